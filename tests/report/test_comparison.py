"""The comparison as a section of a report: once, last, and with foreign text escaped."""

from __future__ import annotations

from foretune.tasks.report.comparison import comparison_section, comparison_tables, with_comparison

PAIR = {"a": 3.25, "b": None}
COMPARED = {
    "a": "20261121-020000-tickets-0001",
    "b": "20261122-020000-tickets-0002",
    "numbers": {"heldout_loss_evaluated": PAIR},
    "horizon": {"a": None, "b": 12},
    "identical": False,
    "request": [{"setting": "training.learning_rate", "a": 0.0002, "b": 0.0004}],
    "inputs": [{"input": "train rows", "a": "a" * 64, "b": "b" * 64}],
    "concepts_apart": None,
    "losses_apart": None,
    "influence_apart": None,
    "tensors": {"added": [], "removed": []},
    "signals": {"appeared": ["dead_layer"], "vanished": []},
    "samples": {
        "added": [7],
        "removed": [],
        "flipped": [
            {
                "sample_id": "0" * 64,
                "row_a": 3,
                "row_b": 4,
                "verdict_a": "helps",
                "verdict_b": "harms",
                "score_a": -0.5,
                "score_b": 0.25,
            }
        ],
    },
    "quality": {"too_short": {"a": 0, "b": 2}},
    "features": [
        {
            "feature": 5,
            "label": "<script>alert(1)</script>",
            "base_a": 1.5,
            "base_b": 1.5,
            "new_a": 1.6,
            "new_b": 1.7,
            "change_a": 0.1,
            "change_b": 0.2,
            "z_a": 4.0,
            "z_b": 8.0,
            "error_a": 0.025,
            "error_b": 0.025,
            "z": 2.83,
        }
    ],
    "layers": [{"module": "q_proj", "eta_eff_a": 0.1, "eta_eff_b": 0.2, "norm_a": 1.0, "norm_b": 2.0}],
}
REPORT = "<html><nav><ol>\n<li>x</li>\n</ol>\n</nav><main><section>y</section></main></html>"


def test_the_section_says_what_changed_and_escapes_labels():
    section = comparison_section(COMPARED)
    assert "1 row added, 0 removed.\nRows flipped between helping and harming: 1." in section
    assert "held-out loss evaluated" in section and "nats per token" in section
    assert "Signals that appeared: dead_layer." in section
    assert "vanished" not in section
    assert ">3.25<" in section
    assert ">-<" in section
    assert "<script>" not in section
    assert "&lt;script&gt;" in section


def test_identical_runs_and_different_saes_are_said_in_a_line():
    same = comparison_section(COMPARED | {"identical": True, "concepts_apart": "the runs read different SAEs"})
    assert "The two runs are identical: every artefact has the same key." in same
    assert "Concepts cannot be compared: the runs read different SAEs." in same
    assert "identical" not in comparison_section(COMPARED)


def test_what_is_not_one_quantity_before_and_after_is_not_compared():
    tensors = {"added": [f"layers.{n}.o_proj" for n in range(5)], "removed": ["k_proj"]}
    apart = {"losses_apart": "they are of different held-out rows", "influence_apart": "rows were ranked otherwise"}
    said = comparison_section(COMPARED | apart | {"tensors": tensors})
    assert "Losses before and after are not of the same tokens: they are of different held-out rows." in said
    assert "Influence cannot be compared: rows were ranked otherwise." in said
    assert "Rows flipped between helping and harming: not compared." in said
    assert "only the run after adapts: layers.0.o_proj, layers.1.o_proj, layers.2.o_proj and 2 more." in said
    assert "only the run before adapts: k_proj." in said


def test_tensors_that_stayed_are_not_listed():
    stayed = {"module": "v_proj", "eta_eff_a": 0.1, "eta_eff_b": 0.1, "norm_a": 1.0, "norm_b": 1.0}
    tables = {
        each.caption: each.rows for each in comparison_tables(COMPARED | {"layers": [stayed, *COMPARED["layers"]]})
    }
    assert [row[0] for row in tables["Effective learning rate per tensor"]] == ["q_proj"]


def test_identical_runs_have_no_tables():

    assert comparison_tables(COMPARED | {"identical": True}) == []


def test_a_second_comparison_takes_the_place_of_the_first():
    once = with_comparison(REPORT, comparison_section(COMPARED))
    twice = with_comparison(once, comparison_section(COMPARED | {"a": "another"}))
    for page in (once, twice):
        assert page.count('id="comparison"') == 1
        assert page.count('href="#comparison"') == 1
        assert page.endswith("</section>\n</main></html>") or page.endswith("</section></main></html>")
    assert "another" in twice
    assert COMPARED["a"] not in twice


def test_the_rest_of_the_report_stays_as_it_was():
    page = with_comparison(REPORT, comparison_section(COMPARED))
    assert page.startswith("<html><nav><ol>\n<li>x</li>\n")
    assert "<section>y</section>" in page
