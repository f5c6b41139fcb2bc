"""The model diff's figures computed again from its tables, by an own reading of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.report.stored_figures import Stored

SETS = ("heldout", "probe", "chosen")
BINS = 15


def difference(name: str, value: Any) -> str:
    """As a reader expects it: three digits, and a sign where it is a change or counts standard deviations."""
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    if isinstance(value, int):
        return f"{value:,}"
    if name.endswith(("_change", "_low", "_high", "_sds", "_z")):
        return f"{value:+.3g}"
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def tokens_of(stored: Stored, name: str) -> dict[str, np.ndarray]:
    columns = ("set", "sample_id", "loss_base", "loss_new", "kl", "js", "confidence_base", "confidence_new",
               "correct_base", "correct_new", "brier_base", "brier_new")  # fmt: skip
    read = {column: np.array(stored.column("model_diff", "tokens.parquet", column)) for column in columns}
    chosen = read["set"] == name
    return {column: values[chosen] for column, values in read.items()}


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return sum(abs((correct - confidence)[bins == n].sum()) for n in range(BINS)) / len(bins)


def _of_set(stored: Stored, name: str) -> dict[str, Any]:
    tokens = tokens_of(stored, name)
    if not len(tokens["kl"]):
        return {}
    summary = stored.json("model_diff")
    found: dict[str, Any] = {"rows": len({*tokens["sample_id"]}), "tokens": len(tokens["kl"])}
    for side in ("base", "new"):
        loss = float(tokens[f"loss_{side}"].mean())
        found |= {f"loss_{side}": loss, f"perplexity_{side}": float(np.exp(loss))}
        found[f"ece_{side}"] = calibration_error(tokens[f"confidence_{side}"], tokens[f"correct_{side}"])
        found[f"brier_{side}"] = float(tokens[f"brier_{side}"].mean())
    for key in ("kl", "js"):
        found |= {key: float(tokens[key].mean()), f"{key}_max": float(tokens[key].max())}
        for word, share in (("median", 0.5), ("p95", 0.95)):
            found[f"{key}_{word}"] = float(np.quantile(tokens[key], share, method="inverted_cdf"))
    found["loss_change"] = found["loss_new"] - found["loss_base"]
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for sample, change in zip(tokens["sample_id"], tokens["loss_new"] - tokens["loss_base"], strict=True):
        rows[sample][0] += change
        rows[sample][1] += 1
    found |= _interval(summary, f"{name}_loss_change", np.array(list(rows.values())))
    # A figure that sums many is told to three digits, of which float32 keeps the last.
    return {f"{name}_{key}": _close(summary[f"{name}_{key}"], value) for key, value in found.items()}


def _close(shown: Any, computed: Any) -> Any:
    """The stored figure, if that is what was computed but for rounding; else what was computed."""
    return shown if isinstance(computed, int) or shown == pytest.approx(computed, rel=1e-4, abs=1e-6) else computed


def _interval(summary: dict[str, Any], name: str, rows: np.ndarray) -> dict[str, Any]:
    """The ends that the summary holds where a bootstrap of one's own has them, within a sixth of its width."""
    drawn = np.random.default_rng(0).integers(len(rows), size=(4000, len(rows)))
    sums = rows[drawn].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    short = name.split("_", 1)[1] if name.split("_", 1)[0] in SETS else name
    ends = {"low": float(low), "high": float(high)}
    return {
        f"{short}_{end}": stored
        if abs((stored := summary[f"{name}_{end}"]) - value) <= (high - low) / 6 + 1e-9
        else value
        for end, value in ends.items()
    }


def differences(stored: Stored) -> dict[str, Any]:
    """Every figure of the section, under the name of the summary's."""
    summary = stored.json("model_diff")
    found = {key: value for name in SETS for key, value in _of_set(stored, name).items()}
    found["regressions"] = int(sum(stored.column("model_diff", "probes.parquet", "regressed")))
    base, new = (np.array(stored.column("model_diff", "pairs.parquet", f"margin_{side}")) for side in ("base", "new"))
    up, down = int(((new > 0) & (base <= 0)).sum()), int(((new <= 0) & (base > 0)).sum())
    found |= {
        "compared_pairs": len(base),
        "pairs_won_base": int((base > 0).sum()),
        "pairs_won_new": int((new > 0).sum()),
        "flips_to_won": up,
        "flips_to_lost": down,
        "flips_p": float(binomtest(up, up + down).pvalue) if up + down else 1.0,
        "margin_change": float((new - base).mean()),
        **_interval(summary, "margin_change", np.stack([new - base, np.ones(len(base))], -1)),
    }
    return found | against_nulls(stored, found)


def against_nulls(stored: Stored, found: dict[str, Any]) -> dict[str, Any]:
    read = stored.json("model_diff", "manifest.json")["inputs"]["nulls"]
    stored.folders.setdefault("null_deltas", stored.folders["model_diff"].parents[1] / read["task"] / read["key"])
    figures = {
        "loss_change": found["heldout_loss_change"],
        "kl": found["heldout_kl"],
        "ece_change": found["heldout_ece_new"] - found["heldout_ece_base"],
        "brier_change": found["heldout_brier_new"] - found["heldout_brier_base"],
    }
    beside: dict[str, Any] = {}
    for name, figure in figures.items():
        nulls = np.array(stored.column("null_deltas", "nulls.parquet", name))
        count, freedom = len(nulls), len(nulls) - 1
        sds = float((figure - nulls.mean()) / nulls.std(ddof=1))
        t = sds / (1 + 1 / count) ** 0.5
        factor = (8 * freedom + 1) / (8 * freedom + 3)
        beside |= {
            "null_deltas": count,
            f"heldout_{name}_null_sds": sds,
            f"heldout_{name}_z": float(np.sign(t) * factor * (freedom * np.log1p(t * t / freedom)) ** 0.5),
        }
    return beside


def likeliest(stored: Stored, side: str) -> list[tuple[float, float, float]]:
    """Points of the reliability diagram: mean confidence, accuracy and tokens of each bin that holds one."""
    tokens = tokens_of(stored, "heldout")
    confidence, correct = tokens[f"confidence_{side}"], tokens[f"correct_{side}"]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        (float(confidence[bins == n].mean()), float(correct[bins == n].mean()), int((bins == n).sum()))
        for n in range(BINS)
        if (bins == n).any()
    ]
