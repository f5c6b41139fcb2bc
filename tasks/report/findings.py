"""What a finished simulation says: its numbers on one screen, its signals, and an answer with reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.trust import Trust, horizon_signal, trust_of
from foretune.tasks.report.behaviour import behaviour_numbers
from foretune.tasks.report.causes import poison_signal
from foretune.tasks.report.concepts import joined_concepts, moved_concepts, speaking_like
from foretune.tasks.report.conditions import (
    Condition,
    Evidence,
    Worth,
    answer_of,
    clean_command,
    conditions_of,
    paired_error,
    worth_of,
)
from foretune.tasks.report.facts import method_in_words

SEVERITIES = ("critical", "warn", "info")
LISTED = 5  # rows named on the first screen
FAULTS = frozenset({"harmful_content", "no_trained_tokens"})
"""Flags of rows that are not told to help, whatever their influence is."""


@dataclass(frozen=True)
class Findings:
    """The first screen of the report and the `summary` of result.json."""

    answer: str  # "Yes", "Yes, with care" or "Not yet"
    reasons: list[str]
    summary: dict[str, Any]
    signals: list[dict[str, Any]]
    harmful: list[dict[str, Any]] = field(default_factory=list)  # the worst ranks: row, score, verdict, text
    strengthened: list[dict[str, Any]] = field(default_factory=list)  # feature, label, change, relative, z, score
    suppressed: list[dict[str, Any]] = field(default_factory=list)
    conditions: tuple[Condition, ...] = ()
    worth: Worth | None = None

    @property
    def clean(self) -> str:
        """The command that takes out the rows that should go, with {run} in the run id's place; "" without any."""
        return clean_command(self.conditions)


def collect(run: Run, artifacts: dict[str, ArtifactRef], concepts: int = LISTED) -> Findings:
    """Read the summaries of every artefact that is there and judge them; `concepts` are listed per direction."""
    opened = {name: run.store.open(ref) for name, ref in artifacts.items()}
    read = {name: a.json("summary.json") for name, a in opened.items() if "summary.json" in a.names()}
    points = opened["prediction"].arrow("path.parquet").to_pylist()
    trust = trust_of(points, read["prediction"]["tolerance"])
    moved = _concepts(opened)
    strengthened, suppressed = moved or ([], [])
    signals = _signals(read, opened, trust, strengthened)
    ranked = _ranked(opened)
    summary = _summary(read, opened, ranked, trust)
    evidence = Evidence(
        summary=summary,
        signals=signals,
        trust=trust,
        harming=[row for row in ranked if row["verdict"] == "harms"],
        method=method_in_words(opened["influence"].json("solver.json")),
        rows=_flagged(opened) | {"behaviour_poison": _poisoning(read)},
        fading=None if moved is None else suppressed,
        leaked=_leaked(opened),
        poisoned=[suite["suite"] for suite in _poisoned(read)],
        limits=_limits(opened),
    )
    conditions = conditions_of(evidence)
    answer, reasons = answer_of(conditions)
    real = [each["heldout_loss"] for each in _backtested(opened)]
    return Findings(
        answer,
        reasons,
        summary,
        signals,
        _harmful(opened, ranked),
        strengthened[:concepts],
        suppressed[:concepts],
        conditions,
        worth_of(summary, points, real, _gain_error(opened)),
    )


def shown_verdicts(opened: Mapping[str, Any]) -> dict[str, str]:
    """sample_id -> verdict of its influence; `flagged` for a row that would help, but has a fault (see FAULTS)."""
    quality = opened["quality"].arrow("samples.parquet", columns=["sample_id", "flags"]).to_pylist()
    faulty = {row["sample_id"] for row in quality if FAULTS & set(row["flags"])}
    ranked = opened["influence"].arrow("influence.parquet", columns=["sample_id", "verdict"]).to_pylist()
    return {
        row["sample_id"]: "flagged" if row["verdict"] == "helps" and row["sample_id"] in faulty else row["verdict"]
        for row in ranked
    }


def _ranked(opened: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every row from the most harmful on, with the verdict that is shown."""
    verdicts = shown_verdicts(opened)
    columns = ["row", "sample_id", "rank", "score", "z", "verdict"]
    has = opened["influence"].arrow("influence.parquet")
    kept = [*columns, "error"] if "error" in has.column_names else columns
    return [row | {"verdict": verdicts[row["sample_id"]]} for row in has.select(kept).to_pylist()]


def _harmful(opened: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    worst = ranked[:LISTED]
    texts = row_texts(opened["samples"], {row["sample_id"] for row in worst})
    return [{**row, "text": texts[row["sample_id"]]} for row in worst]


def row_texts(samples: Any, wanted: set[str] | None = None) -> dict[str, str]:
    """Prompt and completion of each sample as people read them."""
    columns = ["sample_id", "prompt", "completion"]
    rows = samples.arrow("samples.parquet", columns=columns).to_pylist()
    return {
        row["sample_id"]: f"{row['prompt']} → {row['completion']}" if row["prompt"] else row["completion"]
        for row in rows
        if wanted is None or row["sample_id"] in wanted
    }


def _concepts(opened: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Strengthened and faded concepts; None without an SAE."""
    if "features" not in opened:
        return None
    return moved_concepts(concept_rows(opened))


def concept_rows(opened: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every feature with its measured change, what was estimated, and its family."""
    if "concepts" in opened:
        return opened["concepts"].arrow("concepts.parquet").to_pylist()
    return joined_concepts(*(opened[name].arrow("features.parquet").to_pylist() for name in ("features", "sae_diff")))


def _signals(
    read: Mapping[str, Mapping[str, Any]],
    opened: Mapping[str, Any],
    trust: Trust,
    strengthened: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What the passes raised, the most severe first. What is said of the model's behaviour rests on the prediction."""
    signals = [dict(s) for part in read.values() for s in part.get("signals", []) if s["name"] != "beyond_horizon"]
    parted = horizon_signal(trust, read["prediction"].get("path_of", ""))
    signals += [parted] if parted else []
    poison = poison_signal(read["causes"], read.get("behaviour")) if "causes" in read else None
    signals += [poison] if poison else []
    for signal in signals:
        if signal["name"] == "assistant_speak":
            signal["advice"] += _talking(opened, strengthened)
    return sorted(signals, key=lambda signal: SEVERITIES.index(signal["severity"]))


def _talking(opened: Mapping[str, Any], strengthened: Sequence[Mapping[str, Any]]) -> str:
    """That the model would talk as the rows do, where a concept that stands for their phrases really grows."""
    matches = opened["quality"].arrow("samples.parquet", columns=["matches"])["matches"].to_pylist()
    phrases = {m["phrase"] for row in matches for m in row or () if m["rule"] == "assistant_speak"}
    concept = speaking_like(strengthened, sorted(phrases))
    if concept is None:
        return ""
    return f", or the model will talk like that: feature {concept['feature']} grows by {concept['change']:+.3g}"


def _limits(opened: Mapping[str, Any]) -> dict[str, float]:
    """What the settings of each pass let through, by condition: known where no signal was raised, too."""
    of_setting = {
        "duplicate_rows": ("quality", "settings", "duplicate_share"),
        "assistant_speak": ("quality", "settings", "assistant_speak_share"),
        "low_diversity": ("quality", "settings", "low_diversity_overlap"),
        "dead_layer": ("landscape", "thresholds", "dead_layer_norm"),
        "sharp_landscape": ("prediction", "settings", "sharp"),
    }
    inputs = {name: opened[name].manifest.inputs for name, _, _ in of_setting.values() if name in opened}
    found = {of: inputs.get(name, {}).get(part, {}).get(key) for of, (name, part, key) in of_setting.items()}
    return {of: limit for of, limit in found.items() if limit is not None}


def _flagged(opened: Mapping[str, Any]) -> dict[str, list[int]]:
    """Row numbers by flag, ascending."""
    found = defaultdict(list)
    for row in opened["quality"].arrow("samples.parquet", columns=["row", "flags"]).to_pylist():
        for flag in row["flags"]:
            found[flag].append(row["row"])
    if "prompt_gain" in opened:
        gains = opened["prompt_gain"].arrow("prompt_gain.parquet", columns=["row", "mismatched"]).to_pylist()
        found["answer_mismatch"] = [row["row"] for row in gains if row["mismatched"]]
    if "supervision" in opened:
        for each in opened["supervision"].arrow("findings.parquet", columns=["rule", "rows"]).to_pylist():
            found.setdefault(each["rule"], each["rows"])
    return {flag: sorted(rows) for flag, rows in found.items()}


def _poisoned(read: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Watched suites with rows that move them for the worse."""
    suites = read.get("causes", {}).get("suites", [])
    return [suite for suite in suites if suite["rows"] and suite["better"] is not None]


def _poisoning(read: Mapping[str, Mapping[str, Any]]) -> list[int]:
    return sorted({row["row"] for suite in _poisoned(read) for row in suite["rows"]})


def _leaked(opened: Mapping[str, Any]) -> list[int] | None:
    """Training rows whose content is that of a held-out row; ids are digests of what rows say."""
    if "heldout_landscape" not in opened:
        return None
    held = set(opened["heldout_landscape"].arrow("samples.parquet", columns=["sample_id"])["sample_id"].to_pylist())
    rows = opened["samples"].arrow("samples.parquet", columns=["sample_id", "row"]).to_pylist()
    return sorted(row["row"] for row in rows if row["sample_id"] in held)


def _backtested(opened: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Real runs of a backtest that trained on the requested rows."""
    return opened["agreement"].json("agreement.json")["runs"] if "agreement" in opened else []


def _gain_error(opened: Mapping[str, Any]) -> float | None:
    """Of the gain, from the losses of each held-out row under both models; None where they are those of other rows
    than the gain's, of pairs, or not stored (model_diff before version 2)."""
    prediction, diff = opened["prediction"], opened.get("model_diff")
    if diff is None or "heldout.parquet" not in diff.names():
        return None
    predicted = prediction.manifest.inputs
    if predicted["evaluation"] != diff.manifest.inputs["rows"] or predicted["dpo_beta"] is not None:
        return None
    return paired_error(diff.arrow("heldout.parquet").to_pylist())


def _summary(
    read: Mapping[str, Mapping[str, Any]], opened: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]], trust: Trust
) -> dict[str, Any]:
    """Flat numbers, each under the name of its artefact's summary."""
    verdicts = [row["verdict"] for row in ranked]
    solver = opened["influence"].json("solver.json")
    kept = {
        "rows": read["landscape"]["rows"],
        "flagged_rows": read["quality"]["flagged_rows"],
        "train_loss_base": read["landscape"]["loss"],
        "samples_that_harm": verdicts.count("harms"),
        "samples_that_help": verdicts.count("helps"),
        "harmful_rows": read["quality"].get("willing_harm", {}).get("count"),
        "ranked_by": solver.get("ranked_by"),
        "noise_scale_tokens": read["landscape"]["noise_scale_tokens"],
        "dead_layers": len(read["landscape"]["dead_layers"]),
    }
    if "residuals" in solver:  # the solve was asked for
        kept |= {"lissa_residual": solver["residuals"][-1], "lissa_iterations": solver["iterations"]}
    for name in ("prediction", "model_diff", "preference", "baseline", "sae_diff", "concepts"):
        numbers = {k: v for k, v in read.get(name, {}).items() if v is None or isinstance(v, int | float | str)}
        kept |= {k if k not in kept else f"{name}_{k}": v for k, v in numbers.items()}
    kept |= behaviour_numbers(read.get("behaviour"))
    asked = read.get("answers")
    if asked is not None:
        kept |= {"answers_asked": asked["prompts"], "answers_changed": asked["changed"]}
    return kept | {"trusted_steps": trust.trusted_steps, "trust": trust.words, "end_error": trust.end_error}
