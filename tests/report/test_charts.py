"""What the figures say: values against the frames that they draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from foretune.storage.display import visible
from foretune.tasks.report.charts import calibration, dataset, features, layers, losses, samples, settings, timeline
from foretune.tasks.report.charts.look import HARMS, HELPS, hover, label
from foretune.tasks.report.views import ReportView
from tests.report.conftest import TIMELINE


def test_text_is_escaped_after_it_is_cut() -> None:
    assert label("<" * 50, 10) == "&lt;" * 9 + "…"
    assert hover("<b>& </b>") == "&lt;b&gt;&amp; &lt;/b&gt;"


def test_hidden_characters_are_made_visible_and_letters_are_kept() -> None:
    assert visible("a\u202eb\x00c\r\nd\U000e0041") == "a\\u202eb\\x00c\nd\\U000e0041"
    assert visible("हिन्दी עברית 👩‍🚀\tcafé") == "हिन्दी עברית 👩‍🚀\tcafé"


def test_flags_are_sorted_and_silent_rules_are_left_out() -> None:
    chart = dataset.dataset_flags({"rare": 1, "never": 0, "often_seen": 9})
    assert list(chart.figure.data[0].x) == [9, 1]
    assert list(chart.figure.layout.yaxis.ticktext) == ["often seen", "rare"]
    assert dataset.dataset_flags({"never": 0}) is None


def test_every_row_is_counted_once_in_the_lengths(view: ReportView) -> None:
    chart = dataset.row_lengths(view.quality.samples, 512)
    assert [int(np.sum(trace.y)) for trace in chart.figure.data] == [96, 96]


def test_firing_rates_count_the_active_features_only() -> None:
    chart = features.firing_rates([0.0, 0.0, 0.01, 0.5, 1.0])
    assert int(np.sum(chart.figure.data[0].y)) == 3 and "2 never fire" in chart.caption
    assert features.firing_rates([0.0]) is None


def test_influence_is_drawn_from_harm_to_help_in_the_colours_of_the_verdicts(view: ReportView) -> None:
    bars = samples.influence_ranking(view.influence.rows).figure.data[0]
    assert list(bars.y) == sorted(view.influence.rows["score"], reverse=True)
    assert bars.marker.color[0] == HARMS and bars.marker.color[-1] == HELPS
    assert "row 41" in bars.customdata[0]


def test_a_long_ranking_is_thinned_in_the_middle_and_covers_every_rank() -> None:
    count = 50_000
    scores = np.linspace(1, -1, count)
    ranks = range(1, count + 1)
    rows = pd.DataFrame({"row": range(count), "score": scores, "rank": ranks, "verdict": "neutral", "text": ""})
    bars = samples.influence_ranking(rows).figure.data[0]
    assert len(bars.x) == 600 and list(bars.x[:200]) == list(range(1, 201)) and bars.x[-1] == count
    assert np.sum(bars.width) / 0.85 == pytest.approx(count, rel=0.01)


def test_dead_modules_are_marked_and_keep_out_of_the_colour_scale(view: ReportView) -> None:
    cells, marks = layers.layer_norms(view.landscape.layers).figure.data
    dead = view.landscape.layers[view.landscape.layers["dead"]]
    assert list(marks.x) == list(dead["layer"])
    drawn = [cell for line in cells.z for cell in line if cell is not None]
    assert len(drawn) == 58 and min(drawn) > -6


def test_a_module_of_no_layer_is_left_off_the_map(view: ReportView) -> None:
    head = pd.DataFrame(
        [
            {
                "module": "lm_head.weight",
                "layer": None,
                "kind": "lm_head",
                "mean": 1.0,
                "max": 1.0,
                "dead": False,
            }
        ]
    )
    both = pd.concat([view.landscape.layers.astype({"layer": object}), head], ignore_index=True)
    cells = layers.layer_norms(both).figure.data[0]
    assert len(cells.z) == 2 and layers.layer_norms(head) is None


def test_negative_curvature_is_marked(view: ReportView) -> None:
    frame = view.prediction.layers
    _, marks = layers.curvature_map(frame).figure.data
    assert len(marks.x) == int((frame["K_ii"] < 0).sum()) > 0


def test_concepts_are_drawn_from_what_was_predicted_to_what_was_measured(view: ReportView) -> None:
    predicted, measured = view.features.features, view.sae_diff.features
    chart = features.concept_changes(predicted, measured, 5)
    _, open_marks, filled = chart.figure.data
    sure = measured[measured["z"].abs() > 3]["change"]
    chosen = [*sure.nlargest(5).index, *sure.nsmallest(5).index[::-1]]
    assert list(filled.x) == list(sure[chosen]) and open_marks.marker.symbol == "circle-open"
    assert list(open_marks.x) == list(predicted["predicted_change"][chosen])


def test_concepts_without_a_comparison_are_only_predicted(view: ReportView) -> None:
    figure = features.concept_changes(view.features.features, None, 5).figure
    assert [trace.name for trace in figure.data if trace.name] == ["predicted"]


def test_agreement_is_the_share_of_equal_signs() -> None:
    predicted = pd.DataFrame({"feature": range(4), "predicted_change": [1.0, 1.0, -1.0, 0.0], "label": "x",
                              "base_act": 0.0, "dormant": False})  # fmt: skip
    measured = pd.DataFrame({"feature": range(4), "change": [0.1, -0.1, -0.2, 0.3], "base": 0.0, "new": 0.0, "z": 9.0,
                             "beyond_noise": True})  # fmt: skip
    assert "Of all 3 features that move, 67%" in features.concept_changes(predicted, measured, 4).caption


def test_a_quote_in_a_name_is_a_quote_in_a_chart() -> None:
    assert label('"just" & <b>') == '"just" &amp; &lt;b&gt;' and hover('it\'s "x"') == 'it\'s "x"'


def test_the_path_is_shaded_from_the_horizon_on_and_only_there(view: ReportView) -> None:
    path = view.prediction.path
    shaded = losses.loss_path(path, 30, []).figure
    assert (shaded.layout.shapes[0].x0, shaded.layout.shapes[0].x1) == (30, 36)
    assert list(shaded.data[1].x) == list(range(0, 37, 6))
    assert [line.x0 for line in losses.loss_path(path, None, [0, 18]).figure.layout.shapes] == [0, 18]
    assert not losses.loss_path(path, None, []).figure.layout.shapes
    assert not losses.loss_path(path, 36, []).figure.layout.shapes


def test_every_stored_step_of_the_path_has_its_mark_and_its_band(view: ReportView) -> None:
    predicted, evaluated = losses.loss_path(view.prediction.path, None, [], 0.05).figure.data
    assert list(predicted.x) == list(view.prediction.path["step"]) and predicted.mode == "lines+markers"
    assert predicted.error_y.value == 0.05 and evaluated.mode == "markers"


def test_probes_stand_in_the_order_that_the_caption_says(view: ReportView) -> None:
    _, base, new = losses.probe_perplexity(view.model_diff.probes, 8).figure.data
    factors = np.abs(np.log(np.array(new.x) / np.array(base.x)))
    assert list(factors) == sorted(factors, reverse=True)


def test_prompt_gains_count_every_answer_once() -> None:
    chart = samples.prompt_gains([1.0, 2.0, float("nan"), -3.0], 0.0)
    assert sum(chart.figure.data[0].y) == 3 and samples.prompt_gains([], 0.0) is None


def test_a_residual_of_zero_leaves_a_gap_on_the_logarithmic_axis() -> None:
    assert list(samples.solver_residual([0.5, 0.0], "converged").figure.data[0].y) == [0.5, None]
    assert samples.solver_residual([], "converged") is None


def test_weight_change_is_relative_and_drops_untouched_modules(view: ReportView) -> None:
    frame = view.model_diff.layers.copy()
    frame.loc[frame["kind"] == "v_proj", "delta_norm"] = 0.0
    (line,) = layers.weight_change(frame).figure.data
    kept = frame[frame["kind"] == "q_proj"]
    assert list(line.y) == pytest.approx(list(kept["delta_norm"] / kept["norm_base"]))


def test_reliability_draws_the_held_out_bins_of_both_models(view: ReportView) -> None:
    diagonal, base, new = calibration.reliability(view.model_diff.calibration).figure.data
    bins = view.model_diff.calibration
    assert list(diagonal.x) == [0, 1]
    for trace, side in ((base, "base"), (new, "new")):
        part = bins[bins["model"] == side]
        assert list(trace.x) == list(part["confidence"]) and list(trace.y) == list(part["accuracy"])
    assert calibration.reliability(bins[bins["set"] == "probe"]) is None


def test_the_timeline_draws_each_task_from_start_to_end() -> None:
    (run,) = timeline.timeline(TIMELINE).figure.data
    assert list(run.base)[2] == 0.7 and list(run.x)[2] == 22.4 and run.text[2] == "22.4 s, 3 forwards"


def test_a_task_mapped_over_shards_shares_one_line() -> None:
    shards = [
        {"task": "landscape", "label": f"{n}", "start": n, "seconds": 1.0, "forward_passes": 1.0} for n in range(8)
    ]
    (run,) = timeline.timeline(shards).figure.data
    assert set(run.y) == {0} and run.text is None


def test_a_what_if_draws_loss_trust_and_movement_of_every_setting_that_does_not_diverge() -> None:
    def setting(loss, trusted, best=False, evaluated=None):
        common = {"changed": {"training.epochs": "1"}, "steps": 8, "status": "", "largest_module": "m"}
        losses = {"predicted_loss": loss, "evaluated_loss": evaluated, "largest_movement": 0.02}
        return common | losses | {"trusted_steps": trusted, "best": best}

    drawn = settings.losses_by_setting(
        [setting(2.0, 8), setting(None, 0), setting(1.5, 4), setting(1.8, 8, True, 1.9)], 2.5
    )
    traces = {trace.name: trace for trace in drawn.figure.data if trace.name}
    assert list(traces["trusted for the whole run"].x) == [2.0, 1.8]
    assert list(traces["beyond what the run's gradients tell"].x) == [1.5]
    assert (list(traces["best"].x), list(traces["best"].y)) == ([1.9], [2])  # at the loss that it is best by
    trust, movement = (trace for trace in drawn.figure.data if trace.type == "bar")
    assert list(trust.x) == [100, 50, 100] and list(movement.x) == [2, 2, 2]
    assert len(drawn.figure.layout.yaxis.ticktext) == 3
    assert settings.losses_by_setting([setting(None, 0)], 2.5) is None


def test_what_was_evaluated_along_the_base_gradients_is_drawn_apart() -> None:
    path = pd.DataFrame({"step": [0, 36], "predicted_loss": [3.88, 3.63], "evaluated_loss": [3.88, 3.62]})
    base = pd.DataFrame({"step": [0, 9, 18], "predicted_loss": [3.88, 3.77, 3.66], "evaluated_loss": [3.88, 3.78, 3.7]})
    chart = losses.loss_path(path, None, [0, 11], 0.05, base)
    hollow = chart.figure.data[2]
    assert (list(hollow.x), list(hollow.y), list(hollow.customdata)) == ([9, 18], [3.78, 3.7], [3.77, 3.66])
    assert "base gradients alone" in chart.caption and hollow.mode == "markers"
    assert len(losses.loss_path(path, None, [], 0.05, path).figure.data) == 2  # the same path is drawn once
