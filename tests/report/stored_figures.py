"""The first screen's figures computed again from stored files, by an own reading of them."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest


class Stored:
    """Artefacts by the name of their pass, read as plain files."""

    def __init__(self, folders: dict[str, Path]):
        self.folders = folders

    def json(self, name: str, file: str = "summary.json") -> Any:
        return json.loads((self.folders[name] / file).read_text())

    def column(self, name: str, file: str, column: str) -> list[Any]:
        return pq.ParquetFile(self.folders[name] / file).read([column])[column].to_pylist()


def written(value: Any) -> str:
    """As a reader expects it: four significant digits, thousands with commas."""
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


SHARES = {"heldout_overlap", "duplicate_rows", "assistant_speak", "low_diversity", "fading_concepts"}


def condition(name: str, value: float) -> str:
    """A condition's figure as a reader expects it: per cent of a share, three digits of what was measured."""
    if name in SHARES:
        hundredths = 100 * value
        if abs(hundredths) >= 10:
            return f"{hundredths:.0f} %"
        digits = f"{hundredths:.1f}" if abs(hundredths) >= 1 else f"{hundredths:.2g}"
        return f"{digits.removesuffix('.0')} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def overlap(stored: Stored) -> float:
    """Mean over all pairs of rows of the words that both have, as a share of those of the row that has fewer."""
    texts = zip(*(stored.column("samples", "samples.parquet", name) for name in ("prompt", "completion")), strict=True)
    sets = [{*re.findall(r"\w+", f"{prompt or ''} {completion}".lower())} for prompt, completion in texts]
    pairs = [len(a & b) / min(len(a), len(b)) for a, b in itertools.combinations(filter(None, sets), 2)]
    return statistics.fmean(pairs)


def sharpness(stored: Stored) -> float:
    """The last step of the power iteration, by the file of the pass that took it."""
    read = stored.json("curvature", "manifest.json")["inputs"]["sharpness"]
    folder = stored.folders["curvature"].parents[1] / read["task"] / read["key"]
    return json.loads((folder / "sharpness.json").read_text())["sharpness_history"][-1]


def judged(stored: Stored) -> dict[str, Any]:
    """The figure of every condition, by its own reading of the tables."""
    table = {
        name: stored.column("quality", "samples.parquet", name) for name in ("sample_id", "flags", "trained_tokens")
    }
    count = len(table["flags"])

    def flagged(*flags: str) -> int:
        return sum(bool({*each} & {*flags}) for each in table["flags"])

    evaluated = stored.column("path", "path.parquet", "evaluated_loss")
    predicted = stored.column("path", "path.parquet", "predicted_loss")
    verdicts = zip(
        *(stored.column("influence", "influence.parquet", name) for name in ("score", "verdict")), strict=True
    )
    held = {*stored.column("heldout_landscape", "samples.parquet", "sample_id")}
    ways = zip(*(stored.column("leaks", "leaks.parquet", name) for name in ("rule", "other_row")), strict=True)
    leaked = {row for rule, row in ways if rule == "heldout_leak"}
    columns = ("change", "base", "z", "z_null", "feature", "family")
    moved = zip(*(stored.column("concepts", "concepts.parquet", name) for name in columns), strict=True)
    fallen = sorted(
        (change, change / base)
        for change, base, z, z_null, feature, family in moved
        if change < 0 < base and abs(z) > 3 and abs(z_null) > 3 and feature == family
    )
    gradients = stored.column("landscape", "layers.parquet", "mean")
    return {
        "heldout_loss": evaluated[-1] - evaluated[0],
        "trust": abs(evaluated[-1] - predicted[-1]),
        "harmful_content": flagged("harmful_content"),
        "harming_rows": sum(score for score, verdict in verdicts if verdict == "harms"),
        "heldout_overlap": len(leaked) / len(held),
        "leakage": sum(sample in held for sample in table["sample_id"]),
        "duplicate_rows": flagged("exact_duplicate", "near_duplicate") / count,
        "no_trained_tokens": sum(tokens == 0 for tokens in table["trained_tokens"]),
        "assistant_speak": flagged("assistant_speak") / count,
        "length_violation": flagged("too_long", "empty_completion"),
        "answer_mismatch": sum(stored.column("prompt_gain", "prompt_gain.parquet", "mismatched")),
        "backwards_preference": statistics.fmean(stored.column("preference", "pairs.parquet", "margin_per_token")),
        "low_diversity": overlap(stored),
        "gradient_spike": statistics.fmean(stored.column("landscape", "steps.parquet", "max_grad_norm")),
        "contradictory_rows": flagged("contradictory"),
        "dead_layer": sum(norm < 1e-6 for norm in gradients),
        "sharp_landscape": sharpness(stored),
        "delta_clipped": sum(stored.column("prediction", "layers.parquet", "clipped")),
        "fading_concepts": next((share for _, share in fallen if share < -0.2), 0.0),
    }


def suite_figures(stored: Stored) -> dict[str, dict[str, Any]]:
    """Of every suite its items, means, change and interval, from the scores of each side by its own bootstrap."""
    inputs = stored.json("behaviour", "manifest.json")["inputs"]
    root, found = stored.folders["behaviour"].parents[1], {}
    for suite, base, predicted in zip(inputs["suites"], inputs["base"], inputs["predicted"], strict=True):
        sides = (
            pq.read_table(root / ref["task"] / ref["key"] / "scores.parquet")["score"] for ref in (base, predicted)
        )
        before, after = (np.array([score for score in side.to_pylist() if score is not None]) for side in sides)
        draws = np.random.default_rng(inputs["settings"]["seed"]).integers(
            0, len(before), (inputs["settings"]["resamples"], len(before))
        )
        tail = (1 - inputs["settings"]["confidence"]) / 2
        low, high = np.quantile((after - before)[draws].mean(axis=1), [tail, 1 - tail])
        moved = len(before) >= 8 and (low > 0 or high < 0)
        found[suite["name"]] = {
            "n": len(before),
            "base": before.mean(),
            "predicted": after.mean(),
            "change": (after - before).mean(),
            "low": low,
            "high": high,
            "moved": moved,
        }
    return found


def worth(stored: Stored) -> dict[str, Any]:
    """What the training brings, from the path and from the losses of each held-out row."""
    evaluated = stored.column("path", "path.parquet", "evaluated_loss")
    steps = stored.column("path", "path.parquet", "step")
    gain = evaluated[0] - evaluated[-1]
    tokens, base, new = (
        np.array(stored.column("model_diff", "heldout.parquet", name)) for name in ("tokens", "loss_base", "loss_new")
    )
    assert (base.sum() - new.sum()) / tokens.sum() == pytest.approx(gain, abs=1e-4)
    over = base - new - tokens * (base - new).sum() / tokens.sum()
    error = over.std(ddof=1) * len(over) ** 0.5 / tokens.sum()
    taken = [(step, loss) for step, loss in zip(steps, evaluated, strict=True) if loss is not None and loss == loss]
    enough = next((step for step, loss in taken if evaluated[0] - loss >= 0.9 * gain), None)
    return {
        "gain": f"{gain:+.3g}",
        "gain_error": written(float(f"{error:.2g}")),
        **({"step_at_90": written(enough), "steps": written(steps[-1])} if len(taken) > 2 and gain > 0 else {}),
    }


def spent(events: list[dict[str, Any]]) -> int:
    """Tokens through a model, a backward counted as two forwards."""
    return sum(event.get("forward_tokens", 0) + 2 * event.get("backward_tokens", 0) for event in events)


def gradient_passes(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    label = "landscape_shard train"
    return [each for each in events if each["type"] == "pass_finished" and each["label"].startswith(label)]


def own_paces(gradients: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """Seconds and work of each gradient pass without the time in which it waited for the one before it; one that ended
    with another is counted with it."""
    ends = sorted(
        (datetime.fromisoformat(each["time"]).timestamp(), each["seconds"], spent([each])) for each in gradients
    )
    paces: list[tuple[float, int]] = []
    free = 0.0
    for end, seconds, work in ends:
        took = end - max(free, end - seconds)
        if paces and took < 0.1 * seconds:
            paces[-1] = paces[-1][0] + took, paces[-1][1] + work
        else:
            paces.append((took, work))
        free = end
    return paces


def seconds_written(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def costs(stored: Stored, runs: list[list[dict[str, Any]]], epochs: float) -> dict[str, Any]:
    """What a run cost by its events up to its end, and the real one by the rows and the gradient pass over them; of
    `runs` the first is the run, the others are those that may have measured its gradients."""
    ids, masks = (stored.column("samples", "samples.parquet", name) for name in ("input_ids", "loss_mask"))
    tokens = sum(len(row) for row, mask in zip(ids, masks, strict=True) if any(mask))
    before = [event for event in runs[0] if event["type"] != "run_finished"]
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in before]
    passes = [event for event in before if event["type"] == "pass_finished"]
    gradients = next(filter(None, map(gradient_passes, runs)), None)
    found = {
        "seconds": round(max(times) - min(times), 3),
        "forward_passes": spent(passes) / tokens,
        "real_forward_passes": 3 * epochs,
    }
    if gradients:
        paces = own_paces(gradients)
        work = 3 * tokens * epochs
        whole = sum(took for took, _ in paces) / sum(each for _, each in paces)
        found["real_seconds"] = whole * work
        if len(paces) > 1:
            found["real_seconds_from"], found["real_seconds_to"] = (
                end(took / each for took, each in paces) * work for end in (min, max)
            )
    return found


def events_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
