"""Every figure of the page, computed again from the stored files by an own reading of them."""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from foretune.storage.display import visible
from foretune.tasks.report.publish import recorded
from foretune.tasks.report.run_section import with_run
from tests.dag import Simulated, run_dag
from tests.report.stored_differences import difference, differences, likeliest
from tests.report.stored_figures import (
    Stored,
    condition,
    costs,
    events_in,
    judged,
    seconds_written,
    suite_figures,
    worth,
    written,
)

DEMO = Path(os.environ.get("FORETUNE_DEMO_ROOT", ".foretune"))
FROM_SUMMARIES = (
    "quality",
    "prompt_gain",
    "landscape",
    "prediction",
    "baseline",
    "sae_diff",
    "concepts",
    "preference",
    "model_diff",
    "answers",
)


class Facts(HTMLParser):
    """Text of every element that names its figure, and the JSON that the page carries."""

    def __init__(self, html: str):
        super().__init__()
        self.facts: dict[str, str] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._fact: str | None = None
        self._script: dict[str, str | None] | None = None
        self.said: list[str] = []  # the answers, with [-what is struck out-] and {+what is underlined+}
        self._saying = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self._fact = held.get("data-fact")
        self._script = held if tag == "script" else None
        if tag == "span" and held.get("class") == "said":
            self.said.append("")
            self._saying = True
        elif self._saying:
            self.said[-1] += {"del": "[-", "ins": "{+"}[tag]

    def handle_endtag(self, tag: str) -> None:
        self._fact = self._script = None
        self._saying = self._saying and tag != "span"
        if self._saying:
            self.said[-1] += {"del": "-]", "ins": "+}"}[tag]

    def handle_data(self, data: str) -> None:
        if self._saying:
            self.said[-1] += data
        if self._script is not None:
            self.scripts.append((self._script, data))
        elif self._fact:
            assert self.facts.setdefault(self._fact, data) == data, f"{self._fact} is shown with two values"

    def data(self, **wanted: str) -> Any:
        texts = [text for attrs, text in self.scripts if wanted.items() <= attrs.items() and text.startswith("{")]
        return json.loads(texts[0])


def recomputed(stored: Stored) -> dict[str, Any]:
    """Figures that follow from tables, whatever the summaries say of them."""
    gains = [gain for gain in stored.column("prompt_gain", "prompt_gain.parquet", "gain") if gain == gain]
    margins = stored.column("preference", "pairs.parquet", "margin_raw")
    scores = stored.column("influence", "influence.parquet", "score")
    losses = stored.column("landscape", "samples.parquet", "loss")
    tokens = stored.column("landscape", "samples.parquet", "tokens")
    trained = [(loss, count) for loss, count in zip(losses, tokens, strict=True) if count]
    evaluated = stored.column("path", "path.parquet", "evaluated_loss")
    return {
        **supervised(stored),
        "quality.rows": len(stored.column("quality", "samples.parquet", "row")),
        "prompt_gain.median_gain": statistics.median_high(gain for gain in gains if gain is not None),
        "prompt_gain.mismatched_rows": sum(
            map(bool, stored.column("prompt_gain", "prompt_gain.parquet", "mismatched"))
        ),
        "influence.spread": statistics.stdev(scores),
        "landscape.loss": sum(loss * count for loss, count in trained) / sum(count for _, count in trained),
        "landscape.batches": len(stored.column("landscape", "steps.parquet", "step")),
        "baseline.active_features": sum(r > 0 for r in stored.column("baseline", "features.parquet", "firing_rate")),
        **moved_features(stored),
        "prediction.clipped_modules": sum(stored.column("prediction", "layers.parquet", "clipped")),
        "preference.pairs": len(margins),
        "preference.win_rate": sum(margin > 0 for margin in margins) / len(margins),
        "preference.margin_raw": statistics.fmean(margins),
        "model_diff.regressions": sum(stored.column("model_diff", "probes.parquet", "regressed")),
        **asked(stored),
        "loss.base": evaluated[0],
        "loss.evaluated": evaluated[-1],
        "loss.predicted": stored.column("path", "path.parquet", "predicted_loss")[-1],
    }


def moved_features(stored: Stored) -> dict[str, Any]:
    """How many features move beyond both noises, and in how many families."""
    columns = ("z", "z_null", "change", "stable")
    measured = zip(*(stored.column("sae_diff", "features.parquet", name) for name in columns), strict=True)
    moved = [(change, stable) for z, z_null, change, stable in measured if abs(z) > 3 and abs(z_null) > 3]
    columns = ("feature", "family", "change", "beyond_noise")
    leads = zip(*(stored.column("concepts", "concepts.parquet", name) for name in columns), strict=True)
    lines = [change for feature, family, change, beyond in leads if beyond and feature == family]
    return {
        "sae_diff.features_moved": len(moved),
        "sae_diff.moved_stable": sum(stable for _, stable in moved),
        "concepts.concepts_strengthened": sum(change > 0 for change in lines),
        "concepts.concepts_faded": sum(change < 0 for change in lines),
    }


def asked(stored: Stored) -> dict[str, Any]:
    """Figures of the answers, from the answers themselves."""
    base, predicted = (greedy(stored, side) for side in ("base", "predicted"))
    nats = {name: stored.column("answers", "answers.parquet", name) for name in ("kl", "predicted_nats_base")}
    pairs = [(base[prompt], predicted[prompt]) for prompt in base]
    own = sum(-value for _, new in pairs for value in new["logprobs"])
    tokens, new_tokens = (sum(len(row["token_ids"]) for row in side.values()) for side in (base, predicted))
    return {
        "answers.prompts": len(pairs),
        "answers.changed": sum(a["token_ids"] != b["token_ids"] for a, b in pairs),
        "answers.first_token_changed": sum(a["token_ids"][0] != b["token_ids"][0] for a, b in pairs),
        "answers.kl": sum(nats["kl"]) / tokens,
        "answers.surprise_base": sum(nats["predicted_nats_base"]) / new_tokens,
        "answers.surprise_predicted": own / new_tokens,
    }


def greedy(stored: Stored, side: str) -> dict[str, dict[str, Any]]:
    """The greedy answers of one side, from the file of the pass that asked it."""
    read = stored.json("answers", "manifest.json")["inputs"][side]
    folder = stored.folders["answers"].parents[1] / read["task"] / read["key"]
    rows = pq.ParquetFile(folder / "generations.parquet").read().to_pylist()
    return {row["prompt_id"]: row for row in rows if row["sample"] == 0}


def check_answers(page: Facts, stored: Stored) -> None:
    """What stands on the page, without its marks, are both answers; what is marked is in one of them alone."""
    shown = {re.sub(r"\[-|-\]|\{\+|\+\}", "", text) for text in page.said}
    assert shown
    for side in ("base", "predicted"):
        for row in greedy(stored, side).values():
            assert visible(row["answer"]).replace("\r", "") in shown or not row["answer"].strip()


def supervised(stored: Stored) -> dict[str, int]:
    """Counts of all training rows, from the samples; nothing precedes a row's first token."""
    masks, full = (stored.column("samples", "samples.parquet", name) for name in ("loss_mask", "full_tokens"))
    kept, trained = sum(map(len, masks)), sum(sum(mask[1:]) for mask in masks)
    return {
        "supervision.rows": len(masks),
        "supervision.tokens": sum(full),
        "supervision.trained": trained,
        "supervision.masked": kept - trained,
        "supervision.cut_off": sum(full) - kept,
    }


def expected(stored: Stored, page: Facts) -> dict[str, str]:
    """The text of every figure of the sections that the page may show; the first screen has its own checks."""
    facts: dict[str, Any] = {
        f"{name}.{key}": value for name in FROM_SUMMARIES for key, value in stored.json(name).items()
    }
    solver = stored.json("influence", "solver.json")
    facts |= {f"{section}.{key}": value for section in ("influence", "lissa") for key, value in solver.items()}
    if solver.get("ranked_by") == "replayed":
        facts["influence.ranked_by"] = f"{solver['replays_runs']:,} simulated runs on random halves of the rows"
    if facts["prediction.rule"] == "recursion":
        facts["prediction.rule"] = "the optimizer's own steps, one after the other"
    facts |= recomputed(stored)
    texts = {name: written(value) for name, value in facts.items() if isinstance(value, str | int | float | None)}
    texts |= {f"model_diff.{name}": difference(name, value) for name, value in differences(stored).items()}
    rows = stored.column("influence", "influence.parquet", "row")
    scores = stored.column("influence", "influence.parquet", "score")
    if "behaviour" in stored.folders:
        for name, suite in suite_figures(stored).items():
            told = {key: written(suite[key]) for key in ("base", "predicted", "n")} | {
                "change": f"{suite['change']:+.3g}"
            }
            texts |= {f"suite.{name}.{key}": text for key, text in told.items()}
    return texts | {f"row.{row}.score": f"{score:+.3g}" for row, score in zip(rows, scores, strict=True)}


def check_facts(page: Facts, stored: Stored) -> None:
    wanted = expected(stored, page)
    shown = {name: text for name, text in page.facts.items() if not name.startswith(("condition.", "worth.", "cost."))}
    assert len(shown) > 35
    assert shown == {name: wanted[name] for name in shown}


def check_conditions(page: Facts, stored: Stored) -> None:
    shown = {name.split(".", 1)[1]: text for name, text in page.facts.items() if name.startswith("condition.")}
    wanted = judged(stored)
    assert {"heldout_loss", "trust", "harming_rows", "leakage", "fading_concepts"} <= shown.keys()
    assert shown == {name: condition(name, wanted[name]) for name in shown}


def check_worth(page: Facts, stored: Stored) -> None:
    shown = {name.split(".", 1)[1]: text for name, text in page.facts.items() if name.startswith("worth.")}
    assert shown == worth(stored)


def check_cost(page: Facts, wanted: dict[str, Any]) -> None:
    shown = {name.split(".", 1)[1]: text for name, text in page.facts.items() if name.startswith("cost.")}
    assert {"seconds", "forward_passes", "real_forward_passes"} <= shown.keys()
    assert shown == {
        name: (seconds_written if "seconds" in name else written)(float(value)) for name, value in wanted.items()
    }


def check_rows(page: Facts, stored: Stored) -> None:
    rows = {row["row"]: row for row in page.data(id="rows-data")["rows"]}
    columns = {
        "trained": ("quality", "samples.parquet", "trained_tokens"),
        "cut": ("quality", "samples.parquet", "truncated_tokens"),
        "loss": ("landscape", "samples.parquet", "loss"),
        "gain": ("prompt_gain", "prompt_gain.parquet", "gain"),
        "score": ("influence", "influence.parquet", "score"),
        "rank": ("influence", "influence.parquet", "rank"),
    }
    for name, (source, file, column) in columns.items():
        numbers, values = stored.column(source, file, "row"), stored.column(source, file, column)
        held = {
            row: None if value is None or value != value else value for row, value in zip(numbers, values, strict=True)
        }
        assert {row: record[name] for row, record in rows.items()} == {row: held.get(row) for row in rows}, name
    flagged = Counter(flag for row in rows.values() for flag in row["flags"])
    counts = {rule: count for rule, count in stored.json("quality")["counts"].items() if count}
    assert {rule: flagged[rule] for rule in counts} == counts


def check_supervision(html: str, stored: Stored) -> None:
    """Every shown row with its own counts, by the samples; what its tokens say is that the trained ones are so."""
    numbers = stored.column("samples", "samples.parquet", "row")
    masks = dict(zip(numbers, stored.column("samples", "samples.parquet", "loss_mask"), strict=True))
    shown = re.findall(r"<summary>row (\d+): ([\d,]+) trained, ([\d,]+) read only", html)
    assert len(shown) == min(len(numbers), 20)
    for row, trained, masked in shown:
        mask = masks[int(row)]
        assert (trained, masked) == (f"{sum(mask[1:]):,}", f"{len(mask) - sum(mask[1:]):,}")
    names = ("row", "position", "state")
    for row, place, state in zip(*(stored.column("supervision", "tokens.parquet", n) for n in names), strict=True):
        if state != "cut_off" and place < len(masks[row]):  # of a long row the first tokens are kept
            assert (state == "trained") == bool(place and masks[row][place]), (row, place)


def values(drawn: Any) -> list[Any]:
    """What a figure draws: plotly writes a column of numbers as base64 of its bytes."""
    if isinstance(drawn, dict):
        return np.frombuffer(base64.b64decode(drawn["bdata"]), dtype=drawn["dtype"]).tolist()
    return drawn


def check_charts(page: Facts, stored: Stored) -> None:
    figures = page.data(**{"class": "figures"})
    predicted, evaluated, *_ = figures["loss-path"]["data"]
    assert values(predicted["x"]) == stored.column("path", "path.parquet", "step")
    assert values(predicted["y"]) == stored.column("path", "path.parquet", "predicted_loss")
    assert values(evaluated["y"]) == stored.column("path", "path.parquet", "evaluated_loss")
    assert predicted["error_y"]["value"] == stored.json("prediction")["tolerance"]
    assert values(figures["influence-ranking"]["data"][0]["y"]) == sorted(
        stored.column("influence", "influence.parquet", "score"), reverse=True
    )
    if "concept-changes" in figures:
        numbers = [int(text.rsplit("#", 1)[1]) for text in figures["concept-changes"]["layout"]["yaxis"]["ticktext"]]
        for trace, (source, column) in zip(
            figures["concept-changes"]["data"][1:],
            (("features", "predicted_change"), ("sae_diff", "change")),
            strict=True,
        ):
            changes = dict(
                zip(
                    stored.column(source, "features.parquet", "feature"),
                    stored.column(source, "features.parquet", column),
                    strict=True,
                )
            )
            assert values(trace["x"]) == pytest.approx([changes[number] for number in numbers])
    if "behaviour" in stored.folders:
        check_behaviour(figures["behaviour-changes"]["data"], stored)
    _, base, new = figures["probe-perplexity"]["data"]
    assert (
        sorted(values(base["x"]))
        == sorted(stored.column("model_diff", "probes.parquet", "perplexity_base"))[: len(values(base["x"]))]
    )
    assert len(values(new["x"])) == len(values(base["x"]))
    _, *sides = figures["reliability"]["data"]
    for trace, side in zip(sides, ("base", "new"), strict=True):
        drawn = [*zip(values(trace["x"]), values(trace["y"]), values(trace["customdata"]), strict=True)]
        assert drawn == [pytest.approx(each) for each in likeliest(stored, side)]


def check_behaviour(drawn: list[dict[str, Any]], stored: Stored) -> None:
    """Means of the items' scores, and the interval of their change drawn from the base's mark on."""
    suites = suite_figures(stored)
    shown = [each["suite"] for each in stored.json("behaviour")["suites"] if each["unit"] != "nats per token"]
    shown.sort(key=lambda name: not suites[name]["moved"])
    interval, base, predicted = drawn
    assert values(base["x"]) == pytest.approx([suites[name]["base"] for name in shown])
    assert values(predicted["x"]) == pytest.approx([suites[name]["predicted"] for name in shown])
    ends = [suites[name]["base"] + suites[name][end] for name in shown for end in ("low", "high")]
    # A bootstrap of its own: within a sixth of each interval's width.
    widths = [suites[name]["high"] - suites[name]["low"] for name in shown for _ in range(2)]
    told = [x for x in values(interval["x"]) if x is not None]
    assert len(told) == len(ends)
    for drawn_end, end, width in zip(told, ends, widths, strict=True):
        assert abs(drawn_end - end) <= width / 6 + 1e-9


def audit(html: str, stored: Stored, runs: list[list[dict[str, Any]]], epochs: float) -> None:
    page = Facts(html)
    check_facts(page, stored)
    check_conditions(page, stored)
    check_worth(page, stored)
    check_cost(page, costs(stored, runs, epochs))
    check_rows(page, stored)
    check_answers(page, stored)
    check_charts(page, stored)
    check_supervision(html, stored)


@pytest.fixture(scope="module")
def tiny(first: Simulated) -> tuple[str, Stored, list[list[dict[str, Any]]], float]:
    """The page of the tiny run as it is published, its files, its events and its epochs."""
    run = first.step.run
    folders = {name: Path(first.store.place(ref.task, ref.key).uri) for name, ref in first.made.items()}
    epochs = json.loads((folders["prediction"] / "manifest.json").read_text())["inputs"]["training"]["epochs"]
    page = (folders["report"] / "report.html").read_text(encoding="utf-8")
    html = with_run(page, recorded(run, {"training": {"epochs": epochs}}, first.made), [])
    return html, Stored(folders), [events_in(Path(run.place.uri))], epochs


def test_every_figure_of_the_tiny_run_is_what_its_files_say(tiny) -> None:
    audit(*tiny)


@pytest.mark.parametrize(
    "fact",
    [
        "landscape.loss",
        *(f"model_diff.{name}" for name in ("heldout_kl_median", "heldout_loss_change_low", "heldout_kl_z", "flips_p")),
        *(f"answers.{name}" for name in ("changed", "kl", "surprise_predicted")),
        "supervision.trained",
        "supervision.cut_off",
        *(f"condition.{name}" for name in ("heldout_loss", "trust", "harming_rows", "leakage", "fading_concepts")),
        *(f"worth.{name}" for name in ("gain", "gain_error")),
        *(f"cost.{name}" for name in ("seconds", "forward_passes", "real_seconds", "real_forward_passes")),
    ],
)
def test_a_figure_that_is_not_what_its_files_say_is_found(tiny, fact) -> None:
    html, *files = tiny
    changed, times = re.subn(rf'(data-fact="{re.escape(fact)}">)[^<]*', r"\g<1>1.234", html)
    assert times
    with pytest.raises(AssertionError):
        audit(changed, *files)


@pytest.mark.slow
def test_figures_that_only_a_warning_shows_are_what_their_files_say(tiny_request) -> None:
    data = tiny_request.parent / "train.jsonl"
    row = json.loads(data.read_text().splitlines()[0])
    with data.open("a") as more:
        more.write(json.dumps(row | {"output": "Something else altogether, and at some length."}) + "\n")
    given = ("quality.low_diversity_overlap=0.01", "thresholds.spike_factor=1e-6", "prediction.sharp=1e-9")
    made = run_dag(tiny_request, *given)
    folders = {name: Path(made.store.place(ref.task, ref.key).uri) for name, ref in made.made.items()}
    page, stored = Facts((folders["report"] / "report.html").read_text(encoding="utf-8")), Stored(folders)
    shown = {f"condition.{name}" for name in ("low_diversity", "contradictory_rows", "gradient_spike")}
    assert shown | {"condition.sharp_landscape"} <= page.facts.keys()
    check_conditions(page, stored)


@pytest.mark.slow
def test_every_figure_of_the_demo_is_what_its_files_say() -> None:
    results = sorted((DEMO / "runs").glob("*-helpdesk-*/result.json"))
    if not results:
        pytest.skip(f"{DEMO} has no finished run of the demo")
    html = (results[-1].parent / "report.html").read_text(encoding="utf-8")
    if "data-rows=" not in html:
        pytest.skip("the demo's report is of an older version")
    result = json.loads(results[-1].read_text())
    made = result["artifacts"]
    folders = {name: DEMO / "artifacts" / "/".join(each["uri"].split("/")[-2:]) for name, each in made.items()}
    epochs = result["request"]["training"]["epochs"]
    others = [events_in(folder.parent) for folder in results[:-1]]
    audit(html, Stored(folders), [events_in(results[-1].parent), *others], epochs)
