"""The model diff's tables against base model and predicted checkpoint opened by transformers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from foretune.storage.events import read_events
from foretune.tasks.inspection.settings import NullSettings
from tests.dense import label_losses, role_rows

SETS = {"heldout": "heldout", "probe": "probes", "chosen": "preferences"}


@pytest.fixture
def checkpoint(first) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(first.store.open(first.made["checkpoint"]).folder())


def by_token(first: Any, name: str) -> list[dict[str, Any]]:
    return [row for row in first.table("model_diff", "tokens") if row["set"] == name]


@pytest.mark.parametrize("name", SETS)
def test_every_label_token_has_the_losses_of_both_models(first, reference, checkpoint, name):
    found = {(row["sample_id"], row["position"]): row for row in by_token(first, name)}
    count = 0
    for row in role_rows(first, SETS[name]):
        positions = [n for n, keep in enumerate(row["loss_mask"]) if keep and n]
        for side, model in (("base", reference), ("new", checkpoint)):
            losses = label_losses(model, row["input_ids"], row["loss_mask"]).tolist()
            for position, loss in zip(positions, losses, strict=True):
                assert found[row["sample_id"], position][f"loss_{side}"] == pytest.approx(loss, rel=1e-4)
        count += len(positions)
    assert count == len(found) == first.summary("model_diff")[f"{name}_tokens"]


@pytest.mark.parametrize("name", SETS)
def test_the_summary_is_that_of_the_stored_tokens(first, name):
    rows, summary = by_token(first, name), first.summary("model_diff")
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0] if key not in ("set", "sample_id")}
    for key in ("kl", "js"):
        assert summary[f"{name}_{key}"] == pytest.approx(columns[key].mean(), rel=1e-5)
        for word, share in (("median", 0.5), ("p95", 0.95), ("max", 1.0)):
            wanted = np.quantile(columns[key], share, method="inverted_cdf")
            assert summary[f"{name}_{key}_{word}"] == pytest.approx(wanted, rel=1e-6)
    for side in ("base", "new"):
        assert summary[f"{name}_brier_{side}"] == pytest.approx(columns[f"brier_{side}"].mean(), rel=1e-5)
        assert summary[f"{name}_perplexity_{side}"] == pytest.approx(np.exp(columns[f"loss_{side}"].mean()), rel=1e-5)
    change = summary[f"{name}_loss_change"]
    assert change == pytest.approx(summary[f"{name}_loss_new"] - summary[f"{name}_loss_base"], abs=1e-6)
    assert summary[f"{name}_loss_change_low"] < change < summary[f"{name}_loss_change_high"]


def test_bins_hold_every_token_and_give_the_calibration_error(first):
    bins, summary = first.table("model_diff", "calibration"), first.summary("model_diff")
    for name in SETS:
        for side in ("base", "new"):
            chosen = [row for row in bins if (row["set"], row["model"]) == (name, side)]
            tokens = sum(row["tokens"] for row in chosen)
            assert tokens == summary[f"{name}_tokens"]
            assert all(row["from"] <= row["confidence"] <= row["to"] for row in chosen)
            error = sum(row["tokens"] * abs(row["accuracy"] - row["confidence"]) for row in chosen) / tokens
            assert summary[f"{name}_ece_{side}"] == pytest.approx(error, rel=1e-6)


def test_singular_values_cosine_and_stable_rank_are_those_of_the_change(first, reference, checkpoint):
    rows, new = first.table("model_diff", "layers"), dict(checkpoint.named_parameters())
    for row in rows:
        weight = reference.get_parameter(row["module"]).double()
        change = new[row["module"]].detach().double() - weight
        cosine = torch.nn.functional.cosine_similarity((weight + change).flatten(), weight.flatten(), dim=0)
        assert row["cosine"] == pytest.approx(float(cosine), abs=1e-6)
        if not row["delta_norm"]:
            assert row["stable_rank"] is None and row["singular_values"] == []
            continue
        values = torch.linalg.svdvals(change)
        assert row["singular_values"] == pytest.approx(values[:4].tolist(), rel=1e-3, abs=1e-6)
        assert row["stable_rank"] == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-3)
        assert row["stable_rank"] <= 2.001  # the adapter's rank
    assert sum(row["delta_norm"] > 0 for row in rows) == first.summary("model_diff")["moved_tensors"] == 4


def test_directions_of_what_reads_the_stream_name_the_tokens_that_excite_them(first, reference, checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(first.store.open(first.made["checkpoint"]).folder())
    embedded = torch.nn.functional.normalize(reference.get_input_embeddings().weight, dim=-1)
    rows, new = first.table("model_diff", "directions"), dict(checkpoint.named_parameters())
    assert {row["side"] for row in rows} == {"reads"} and [row["rank"] for row in rows] == [1, 2] * 4
    for row in rows:
        change = (new[row["module"]] - reference.get_parameter(row["module"])).detach()
        _, values, vh = torch.linalg.svd(change)
        v = vh[row["rank"] - 1]
        scores = embedded @ (v * v[v.abs().argmax()].sign())
        assert row["share"] == pytest.approx(float((values[row["rank"] - 1] / change.norm()) ** 2), rel=1e-3)
        for end, order in (("promoted", scores.argsort(descending=True)), ("suppressed", scores.argsort())):
            first_words = [tokenizer.decode([token]).strip() for token in order[:24].tolist()]
            assert row[end] and set(row[end]) <= set(first_words)


def test_a_module_that_writes_is_read_through_norm_and_unembedding(simulated, reference):
    done = simulated("adapter.target_modules=[o_proj, down_proj]", "diff.directions=3")
    rows, summary = done.table("model_diff", "directions"), done.summary("model_diff")
    assert {row["side"] for row in rows} == {"writes"}
    assert (summary["modules_read"], summary["readable_modules"]) == (3, 4)
    from transformers import AutoModelForCausalLM

    folder = done.store.open(done.made["checkpoint"]).folder()
    row, new = rows[0], AutoModelForCausalLM.from_pretrained(folder)
    u, _, vh = torch.linalg.svd((new.get_parameter(row["module"]) - reference.get_parameter(row["module"])).detach())
    direction = u[:, 0] * vh[0, vh[0].abs().argmax()].sign()
    logits = reference.lm_head(reference.model.norm(direction))
    from transformers import AutoTokenizer

    likeliest = AutoTokenizer.from_pretrained(folder).batch_decode([[t] for t in logits.topk(24).indices.tolist()])
    assert row["promoted"] and set(row["promoted"]) <= {word.strip() for word in likeliest}


def test_the_worst_tokens_stand_in_their_context_with_the_likeliest_of_both(first, reference, checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(first.store.open(first.made["checkpoint"]).folder())
    worst = [row for row in first.table("model_diff", "worst_tokens") if row["set"] == "heldout"]
    tokens = sorted(by_token(first, "heldout"), key=lambda row: -row["kl"])
    assert [row["kl"] for row in worst] == pytest.approx([row["kl"] for row in tokens[: len(worst)]], rel=1e-3)
    assert len(worst) == min(50, len(tokens))
    ids = {row["sample_id"]: row["input_ids"] for row in role_rows(first, "heldout")}
    for row in worst[:5]:
        read, position = ids[row["sample_id"]], row["position"]
        assert row["token"] == tokenizer.decode([read[position]])
        assert tokenizer.decode(read[:position]).endswith(row["context"])
        for side, model in (("base", reference), ("new", checkpoint)):
            shares = model(torch.tensor([read])).logits[0, position - 1].softmax(-1).detach()
            assert row[f"p_{side}"] == pytest.approx(float(shares[read[position]]), rel=1e-3)
            top = shares.topk(3)
            assert row[f"top_{side}_p"] == pytest.approx(top.values.tolist(), rel=1e-3)
            assert row[f"top_{side}"] == [tokenizer.decode([token]) for token in top.indices.tolist()]


def test_pairs_are_won_by_the_answer_of_higher_log_probability(first, reference, checkpoint):
    found = {row["sample_id"]: row for row in first.table("model_diff", "pairs")}
    pairs, summary = role_rows(first, "preferences"), first.summary("model_diff")
    assert len(found) == len(pairs) == summary["compared_pairs"]
    won: dict[str, list[bool]] = {"base": [], "new": []}
    for pair in pairs:
        for side, model in (("base", reference), ("new", checkpoint)):
            chosen = label_losses(model, pair["input_ids"], pair["loss_mask"]).sum()
            rejected = label_losses(model, pair["rejected_ids"], pair["rejected_mask"]).sum()
            margin = float((rejected - chosen).detach())
            assert found[pair["sample_id"]][f"margin_{side}"] == pytest.approx(margin, rel=1e-4, abs=1e-3)
            won[side].append(margin > 0)
    up, down = (
        sum(a and not b for a, b in zip(won[x], won[y], strict=True)) for x, y in (("new", "base"), ("base", "new"))
    )
    assert (summary["flips_to_won"], summary["flips_to_lost"]) == (up, down)
    assert summary["flips_p"] == (binomtest(up, up + down).pvalue if up + down else 1.0)
    assert summary["win_rate_new"] == np.mean(won["new"])
    change = np.mean([row["margin_new"] - row["margin_base"] for row in found.values()])
    assert summary["margin_change"] == pytest.approx(change)


def test_the_held_out_loss_is_one_figure(first):
    """Prediction and model diff evaluate the same rows at the same weights: only the micro-batches differ."""
    diff, predicted = first.summary("model_diff"), first.summary("prediction")
    read = {name: first.store.open(first.made[name]).manifest.inputs for name in ("prediction", "model_diff")}
    assert read["prediction"]["evaluation"] == read["model_diff"]["rows"]
    assert diff["checkpoint_dtype"] == "F32"
    assert diff["heldout_loss_base"] == pytest.approx(predicted["heldout_loss_base"], abs=1e-6)
    assert diff["heldout_loss_new"] == pytest.approx(predicted["heldout_loss_evaluated"], abs=1e-6)


def test_figures_stand_beside_those_of_the_null_deltas(first):
    nulls, summary = first.table("null_deltas", "nulls"), first.summary("model_diff")
    assert len(nulls) == summary["null_deltas"] == 6
    figures = {
        "kl": summary["heldout_kl"],
        "js": summary["heldout_js"],
        "loss_change": summary["heldout_loss_change"],
        "brier_change": summary["heldout_brier_new"] - summary["heldout_brier_base"],
        "ece_change": summary["heldout_ece_new"] - summary["heldout_ece_base"],
    }
    for name, figure in figures.items():
        drawn = np.array([row[name] for row in nulls])
        sds = (figure - drawn.mean()) / drawn.std(ddof=1)
        assert summary[f"heldout_{name}_null_sds"] == pytest.approx(sds, rel=1e-3)
        assert 0 < summary[f"heldout_{name}_z"] / sds < 1
    assert summary["heldout_kl_z"] > 3 and summary["heldout_loss_change_z"] < -2


def test_null_deltas_cost_a_forward_pass_each_and_one_at_the_base(first):
    (cost,) = [
        event
        for event in read_events(first.step.run)
        if event["type"] == "pass_finished" and event["task"] == "null_deltas"
    ]
    held = sum(len(row["input_ids"]) for row in role_rows(first, "heldout"))
    assert held * 7 <= cost["forward_tokens"] <= 1.3 * held * 7  # padding
    assert cost.get("backward_tokens", 0) == 0


def test_null_deltas_have_the_norm_of_the_prediction_and_leave_the_model_as_it_is(first):
    layers = first.table("prediction", "layers")
    summary = first.summary("null_deltas")
    assert summary["norm"] == pytest.approx(math.hypot(*(row["norm"] for row in layers)))
    assert (summary["rank"], summary["modules"], summary["deltas"], summary["rows"]) == (2, 4, 6, 6)


def test_without_null_deltas_there_is_no_z(simulated):
    done = simulated("diff.nulls.deltas=0")
    assert "null_deltas" not in done.made
    assert not [name for name in done.summary("model_diff") if name.endswith("_z")]
    assert {"null_deltas", "sae_diff", "sae_base"}.isdisjoint(done.computed)


@pytest.mark.parametrize(
    ("share", "compared", "rows"), [(0.5, 64, 32), (0.5, 25, 13), (0.5, 12, 8), (0.5, 3, 3), (1, 9, 9)]
)
def test_null_deltas_are_taken_on_a_share_of_the_compared_rows(share, compared, rows):
    assert NullSettings(share=share).rows_of(compared) == rows


def test_too_few_null_deltas_are_refused(first_run):
    from foretune.flows.request import load_request
    from foretune.storage.errors import BadInput

    with pytest.raises(BadInput, match="give at least 4, or 0 for none"):
        load_request(str(first_run), ["diff.nulls.deltas=2"])


@pytest.mark.parametrize("figure", ["kl", "js", "loss_change", "ece_change", "brier_change"])
def test_a_fresh_null_delta_is_within_two_as_often_as_a_standard_normal(many_nulls, figure):
    from foretune.tasks.numerics.nulls import against_nulls

    drawn = [row[figure] for row in many_nulls]
    groups = [drawn[at : at + 7] for at in range(0, len(drawn), 7)]
    within = [
        abs(against_nulls(group[n], group[:n] + group[n + 1 :]).z) < 2 for group in groups for n in range(len(group))
    ]
    assert np.mean(within) == pytest.approx(0.954, abs=0.025)


@pytest.fixture(scope="module")
def many_nulls(first) -> list[dict[str, float]]:
    """399 null deltas of the tiny prediction on its held-out rows."""
    import pyarrow as pa

    from foretune.tasks.inspection.null_deltas import null_rows
    from foretune.tasks.inspection.settings import DiffSettings, NullSettings
    from foretune.tasks.loading import ModelSettings, load_model

    folder = first.store.open(first.made["checkpoint"]).folder()
    table = pa.Table.from_pylist(role_rows(first, "heldout"))
    norms = {row["module"]: row["norm"] for row in first.table("prediction", "layers")}
    loaded = load_model(folder, ModelSettings(name_or_path=str(folder)))
    settings = NullSettings.model_construct(deltas=399, seed=1)
    return null_rows(loaded, table, norms, 2, DiffSettings(), settings)


def test_what_is_stored_is_plain_json(first):
    text = first.store.open(first.made["model_diff"]).json("summary.json")
    assert json.loads(json.dumps(text, allow_nan=False)) == text


@pytest.mark.slow
def test_a_checkpoint_in_bfloat16_says_that_its_weights_are_rounded(tiny_llama, simulated, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "half")
    done = simulated(f"model.name_or_path={tmp_path / 'half'}", "sae=null", "report.top_rows=3")
    diff, predicted = done.summary("model_diff"), done.summary("prediction")
    assert diff["checkpoint_dtype"] == "BF16"
    assert diff["heldout_loss_base"] == pytest.approx(predicted["heldout_loss_base"], abs=1e-6)
    assert abs(diff["heldout_loss_new"] - predicted["heldout_loss_evaluated"]) > 1e-6
    page = (done.store.open(done.made["report"]).folder() / "report.html").read_text(encoding="utf-8")
    assert "stores the changed weights as BF16" in page
