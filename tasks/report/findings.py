"""What a finished simulation says: its numbers on one screen, its signals, and an answer with reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.report.conditions import Condition, Worth

SEVERITIES = ("critical", "warn", "info")
LISTED = 5  # rows named on the first screen, and concepts by which it is judged


@dataclass(frozen=True)
class Findings:
    """The first screen of the report and the `summary` of result.json."""

    answer: str  # "Yes", "Yes, with care" or "Not yet"
    reasons: list[str]
    summary: dict[str, Any]
    signals: list[dict[str, Any]]
    harmful: list[dict[str, Any]] = field(default_factory=list)  # the worst ranks: row, score, verdict, text
    strengthened: list[dict[str, Any]] = field(default_factory=list)  # feature, label, score, change
    suppressed: list[dict[str, Any]] = field(default_factory=list)
    conditions: tuple[Condition, ...] = ()
    worth: Worth | None = None


def collect(run: Run, artifacts: dict[str, ArtifactRef], concepts: int = LISTED) -> Findings:
    """Read the summaries of every artefact that is there and judge them; `concepts` are listed per direction."""
    opened = {name: run.store.open(ref) for name, ref in artifacts.items()}
    read = {name: a.json("summary.json") for name, a in opened.items() if "summary.json" in a.names()}
    signals = [signal for part in read.values() for signal in part.get("signals", [])]
    signals.sort(key=lambda signal: SEVERITIES.index(signal["severity"]))
    harmful = _harmful(opened)
    strengthened, suppressed = _concepts(opened, max(concepts, LISTED))
    summary = _summary(read, opened)
    answer, reasons = judge(summary, signals, harmful, suppressed[:LISTED])
    return Findings(answer, reasons, summary, signals, harmful, strengthened[:concepts], suppressed[:concepts])


def _harmful(opened: dict[str, Any]) -> list[dict[str, Any]]:
    ranked = opened["influence"].arrow("influence.parquet").to_pylist()
    worst = ranked[:LISTED]
    texts = row_texts(opened["samples"], {row["sample_id"] for row in worst})
    kept = ("row", "sample_id", "rank", "score", "z", "verdict")
    return [{**{name: row[name] for name in kept}, "text": texts[row["sample_id"]]} for row in worst]


def row_texts(samples: Any, wanted: set[str] | None = None) -> dict[str, str]:
    """Prompt and completion of each sample as people read them."""
    columns = ["sample_id", "prompt", "completion"]
    rows = samples.arrow("samples.parquet", columns=columns).to_pylist()
    return {
        row["sample_id"]: f"{row['prompt']} → {row['completion']}" if row["prompt"] else row["completion"]
        for row in rows
        if wanted is None or row["sample_id"] in wanted
    }


def _concepts(opened: dict[str, Any], listed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Top strengthened and suppressed features by the seed's score, with what the checkpoint really did."""
    if "features" not in opened:
        return [], []
    rows = opened["features"].arrow("features.parquet").to_pylist()
    moved = {r["feature"]: r for r in opened["sae_diff"].arrow("features.parquet").to_pylist()}
    ordered = sorted(rows, key=lambda row: row["score"])

    def named(row: dict[str, Any]) -> dict[str, Any]:
        change = moved[row["feature"]]
        share = change["change"] / change["base"] if change["base"] else None
        return {
            "feature": row["feature"],
            "label": row["label"],
            "score": row["score"],
            "predicted_change": row["predicted_change"],
            "change": change["change"],
            "relative": share,
        }

    up = [named(row) for row in reversed(ordered[-listed:]) if row["score"] > 0]
    down = [named(row) for row in ordered[:listed] if row["score"] < 0]
    return up, down


def _summary(read: dict[str, dict[str, Any]], opened: dict[str, Any]) -> dict[str, Any]:
    """Flat numbers, each under the name of its artefact's summary."""
    verdicts = opened["influence"].arrow("influence.parquet", columns=["verdict"])["verdict"].to_pylist()
    solver = opened["influence"].json("solver.json")
    kept = {
        "rows": read["landscape"]["rows"],
        "flagged_rows": read["quality"]["flagged_rows"],
        "train_loss_base": read["landscape"]["loss"],
        "samples_that_harm": verdicts.count("harms"),
        "samples_that_help": verdicts.count("helps"),
        "lissa_residual": solver["residuals"][-1],
        "lissa_iterations": solver["iterations"],
        "noise_scale_tokens": read["landscape"]["noise_scale_tokens"],
        "dead_layers": len(read["landscape"]["dead_layers"]),
    }
    for name in ("prediction", "model_diff", "preference", "baseline", "sae_diff"):
        numbers = {k: v for k, v in read.get(name, {}).items() if v is None or isinstance(v, int | float | str)}
        kept |= {k if k not in kept else f"{name}_{k}": v for k, v in numbers.items()}
    return kept


def judge(
    summary: dict[str, Any],
    signals: list[dict[str, Any]],
    harmful: list[dict[str, Any]],
    suppressed: list[dict[str, Any]],
) -> tuple[str, list[str]]:
    """Should I train? The rule: any critical signal or a predicted rise of held-out loss says "Not yet", any
    warning says "Yes, with care", else "Yes"."""
    rise = summary["heldout_loss_evaluated"] - summary["heldout_loss_base"]
    reasons = [f"{s['name'].replace('_', ' ')}: {s['advice']}" for s in signals if s["severity"] == "critical"]
    if rise > 0:
        reasons.insert(0, f"held-out loss would rise by {rise:.3f} nats")
    harming = [row for row in harmful if row["verdict"] == "harms"]
    if harming:
        rows = ", ".join(str(row["row"]) for row in harming)
        cost = sum(row["score"] for row in harming)
        subject = f"row {rows} raises" if len(harming) == 1 else f"rows {rows} raise"
        reasons.append(f"{subject} held-out loss, by influence ({cost:.4f} nats)")
    reasons += [f"{s['name'].replace('_', ' ')}: {s['advice']}" for s in signals if s["severity"] == "warn"]
    fading = next((c for c in suppressed if c["relative"] is not None and c["relative"] < -0.2), None)
    if fading:
        reasons.append(f'"{fading["label"]}" (feature {fading["feature"]}) fades by {-fading["relative"]:.0%}')
    if rise > 0 or any(s["severity"] == "critical" for s in signals):
        return "Not yet", reasons
    if any(s["severity"] == "warn" for s in signals):
        return "Yes, with care", reasons
    return "Yes", reasons or ["no fault found; the predicted held-out loss falls"]
