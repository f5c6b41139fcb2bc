"""The verdict as a short list of conditions, and what the training is worth: each a figure, a band and a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from foretune.tasks.report.concepts import fading_words
from foretune.tasks.report.numbers import ROWS_NAMED, measured, named_rows, percent
from foretune.tasks.report.supervision import words_asked

if TYPE_CHECKING:
    from foretune.tasks.inputs.trust import Trust

Status = Literal["pass", "warn", "fail", "unknown"]
STATUSES: tuple[Status, ...] = ("pass", "unknown", "warn", "fail")
"""From the best to the worst: the verdict is the worst of them. What nobody measured stops nothing."""
ANSWERS: dict[Status, str] = {"pass": "Yes", "unknown": "Yes", "warn": "Yes, with care", "fail": "Not yet"}
OF_SEVERITY: dict[str, Status] = {"info": "unknown", "warn": "warn", "critical": "fail"}
HARM_SHARE = 0.01  # of the gain: rows that harm by less than this together are no reason
FADING = -0.2  # relative change from which a concept fades
SHARE_OF_GAIN = 0.9


@dataclass(frozen=True)
class Condition:
    """One thing that has to hold before training is worth it."""

    name: str
    question: str  # as people ask it
    value: float | None  # None: not measured
    unit: str
    band: str  # what would pass, in words
    status: Status
    rows: tuple[int, ...] = ()  # the first row numbers, at most `ROWS_NAMED`
    row_count: int = 0  # of all rows that it is about
    reason: str = ""
    remedy: str = ""  # a command with {run} in the run id's place, or ""

    @property
    def figure(self) -> str:
        """The value as people read it."""
        return "not measured" if self.value is None else _figure(self.value, self.unit)

    @property
    def of(self) -> str:
        """What stands after the figure: its unit in words."""
        if self.value is None:
            return ""
        return "row" if self.value == 1 and self.unit == "rows" else SHARES.get(self.unit, self.unit)


@dataclass(frozen=True)
class Worth:
    """What the training brings, from evaluated points only; None: not measured. Its price is the run record's `Cost`.

    All losses are held-out losses in nats per token.
    """

    gain: float  # base loss - loss evaluated on the predicted weights
    gain_error: float | None  # standard error of the gain over the held-out rows, of which each is its own control
    spread: float | None  # between real runs that differ in their order alone, where a backtest measured it
    steps: int  # of the run
    step_at_90: int | None  # the first evaluated step with 90 % of the gain

    def unmeasured(self) -> list[str]:
        """What is not known, each with what would measure it."""
        missing = {
            "the gain's error": self.gain_error is None,
            "the spread between two real runs (foretune backtest trains them)": self.spread is None,
            f"the step with {100 * SHARE_OF_GAIN:.0f} % of the gain (no step before the end was evaluated)": (
                self.step_at_90 is None and self.gain > 0
            ),
        }
        return [words for words, absent in missing.items() if absent]


@dataclass(frozen=True)
class Evidence:
    """What the conditions are judged by."""

    summary: Mapping[str, Any]
    signals: Sequence[Mapping[str, Any]]
    trust: Trust
    harming: Sequence[Mapping[str, Any]] = ()  # every row with the verdict `harms`, worst first: row, score
    method: str = "influence"  # that ranked, in words
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)  # row numbers by flag, and those named by signals
    fading: Sequence[Mapping[str, Any]] | None = None  # concepts that fade beyond noise; None without an SAE
    leaked: Sequence[int] | None = None  # training rows that are held-out rows too
    poisoned: Sequence[str] = ()  # watched suites that some rows move for the worse
    limits: Mapping[str, float] = field(default_factory=dict)  # what the settings let pass, by condition


@dataclass(frozen=True)
class _Asked:
    """How a signal is asked as a question; `flags` name its rows, `drop` those that `clean` may take out."""

    question: str
    unit: str
    band: str  # what passes; {} is the limit that the settings give
    flags: tuple[str, ...] = ()
    drop: bool = False
    always: bool = False  # stands in the list when no signal was raised


_ASKED = {
    "harmful_content": _Asked(
        "Do rows ask for harm and answer willingly?", "rows", "no row", ("harmful_content",), True, True
    ),
    "duplicate_rows": _Asked(
        "Do rows repeat each other?", "share of rows", "at most {}", ("exact_duplicate", "near_duplicate"), True, True
    ),
    "no_trained_tokens": _Asked("Do rows train nothing?", "rows", "no row", ("no_trained_tokens",), True, True),
    "assistant_speak": _Asked(
        "Do answers sound like a chat assistant?", "share of rows", "at most {}", ("assistant_speak",), True
    ),
    "length_violation": _Asked("Are rows cut off or empty?", "rows", "no row", ("too_long", "empty_completion")),
    "low_diversity": _Asked("Do rows share most of their words?", "share of words", "at most {} on average"),
    "contradictory_rows": _Asked("Do rows contradict each other?", "rows", "no row", ("contradictory",)),
    "answer_mismatch": _Asked(
        "Do answers fit their prompts?", "rows", "at most {} that do not", ("answer_mismatch",), True
    ),
    "backwards_preference": _Asked("Are preference pairs the right way round?", "nats per token", "at least 0"),
    "dead_layer": _Asked("Do all adapted modules get a gradient?", "modules without one", "none with a norm below {}"),
    "gradient_spike": _Asked("Are gradients of an even size?", "mean of the batches' largest norms", "at most {}"),
    "sharp_landscape": _Asked(
        "Is the loss flat enough to train on?", "nats per token per squared unit of weight", "at most {}", always=True
    ),
    "heldout_overlap": _Asked("Do held-out rows stand in the training rows?", "share of held-out rows", "none"),
    "behaviour_regression": _Asked("Does a behaviour get worse?", "suites", "none"),
    "behaviour_poison": _Asked("Do some rows erode a behaviour?", "rows", "none", ("behaviour_poison",)),
    "delta_clipped": _Asked("Do the weights stay near the base?", "tensors cut", "none", always=True),
}
_MEASURED = {"harmful_content": "harmful_rows", "sharp_landscape": "sharpness", "delta_clipped": "clipped_modules"}
SHARES = {
    "share of rows": "of the rows",
    "share of held-out rows": "of the held-out rows",
    "share of words": "of the words are shared by two rows",
    "relative change": "of its activation",
}
"""Units that people read as per cent, and of what."""


def _figure(value: float, unit: str) -> str:
    return f"{percent(value)} %" if unit in SHARES else measured(value)


def worst(conditions: Sequence[Condition]) -> Status:
    """The status of the verdict."""
    found = {each.status for each in conditions}
    for status in reversed(STATUSES):
        if status in found:
            return status
    return "unknown"


def answer_of(conditions: Sequence[Condition]) -> tuple[str, list[str]]:
    """Should I train? The worst condition decides; the reasons are those that do not pass, the worst first."""
    failed = sorted((c for c in conditions if c.status in ("warn", "fail")), key=lambda c: c.status != "fail")
    reasons = [each.reason for each in failed]
    return ANSWERS[worst(conditions)], reasons or ["no fault found; the predicted held-out loss falls"]


def conditions_of(evidence: Evidence) -> tuple[Condition, ...]:
    """Every condition, in the order in which people ask."""
    raised = {signal["name"]: signal for signal in evidence.signals}
    listed = [name for name, asked in _ASKED.items() if asked.always or name in raised]
    others = [name for name in raised if name not in _ASKED and name != "beyond_horizon"]
    return (
        _heldout(evidence),
        _trusted(evidence),
        _of_signal("harmful_content", raised.get("harmful_content"), evidence),
        _harming(evidence),
        _leakage(evidence),
        *(_of_signal(name, raised.get(name), evidence) for name in [*listed, *others] if name != "harmful_content"),
        *([] if evidence.fading is None else [_concepts(evidence.fading)]),
    )


def clean_command(conditions: Sequence[Condition]) -> str:
    """One command for the rows that should go: those that harm by what they say, by nothing at all, or by influence;
    "" when there are none. What only needs a look is not dropped unread."""
    by_name = {each.name: each for each in conditions}
    words = []
    for name, statuses in (("harmful_content", ("fail",)), ("no_trained_tokens", ("warn", "fail"))):
        if name in by_name and by_name[name].status in statuses:
            words.append(f"--drop-flagged {name}")
    harming = by_name.get("harming_rows")
    if harming is not None and harming.row_count:
        words.append(f"--drop-worst {harming.row_count}")
    return " ".join(["foretune clean {run}", *words, "-o clean.jsonl"]) if words else ""


def paired_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard error of the mean loss per token under one model less that under another, over the same rows.

    `rows` hold tokens and the sums loss_base and loss_new. Rows are the sample, not tokens: the error is that of a
    ratio of two sums over rows (Cochran 1977, eq. 6.13), sqrt(n / (n - 1) * sum((d - r t)^2)) / sum(t). None below two.
    """
    if len(rows) < 2:
        return None
    gains = [row["loss_base"] - row["loss_new"] for row in rows]
    tokens = sum(row["tokens"] for row in rows)
    rate = sum(gains) / tokens
    squares = sum((gain - rate * row["tokens"]) ** 2 for gain, row in zip(gains, rows, strict=True))
    error = math.sqrt(len(rows) / (len(rows) - 1) * squares) / tokens
    return error if math.isfinite(error) else None


def worth_of(
    summary: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    real_losses: Sequence[float] = (),
    gain_error: float | None = None,
) -> Worth:
    """`points` are those of the predicted path, `real_losses` the end losses of a backtest's real runs."""
    losses = [(p["step"], p["evaluated_loss"]) for p in points if _finite(p["evaluated_loss"])]
    gain = summary["heldout_loss_base"] - summary["heldout_loss_evaluated"]
    wanted = summary["heldout_loss_base"] - SHARE_OF_GAIN * gain
    reached = next((step for step, loss in losses if loss <= wanted), None) if gain > 0 and len(losses) > 2 else None
    spread = None
    if len(real_losses) > 1:
        mean = sum(real_losses) / len(real_losses)
        spread = math.sqrt(sum((loss - mean) ** 2 for loss in real_losses) / (len(real_losses) - 1))
    return Worth(gain, gain_error, spread, points[-1]["step"], reached)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _heldout(evidence: Evidence) -> Condition:
    summary = evidence.summary
    rise = summary["heldout_loss_evaluated"] - summary["heldout_loss_base"]
    status: Status = "pass" if rise <= 0 else "fail"
    reason = f"held-out loss falls by {-rise:.3f} nats"
    if status == "fail":
        reason = f"held-out loss would rise by {rise:.3f} nats" if _finite(rise) else "held-out loss would be no number"
    remedy = "foretune whatif {run} --set training.learning_rate=1e-5,3e-5,1e-4" if status == "fail" else ""
    question = "Does the loss on held-out text fall?"
    return Condition("heldout_loss", question, rise, "nats per token", "below 0", status, reason=reason, remedy=remedy)


def _trusted(evidence: Evidence) -> Condition:
    trust = evidence.trust
    band = f"at most {trust.tolerance:g} from the evaluated loss"
    reason = f"the prediction is trusted: {trust.words}"
    if not trust.at_the_end:
        raised = next((s["advice"] for s in evidence.signals if s["name"] == "beyond_horizon"), reason)
        reason = f"beyond horizon: {raised}"
    status: Status = "pass" if trust.at_the_end else "warn"
    question = "Can the end of the prediction be trusted?"
    return Condition("trust", question, trust.end_error, "nats per token", band, status, reason=reason)


def _harming(evidence: Evidence) -> Condition:
    gain = evidence.summary["heldout_loss_base"] - evidence.summary["heldout_loss_evaluated"]
    numbers = [row["row"] for row in evidence.harming]
    cost = sum(row["score"] for row in evidence.harming)
    status: Status = "pass" if not numbers or cost <= HARM_SHARE * gain else "warn"
    verb = "raises" if len(numbers) == 1 else "raise"
    reason = f"{named_rows(numbers)} {verb} held-out loss ({cost:.4f} nats together, by {evidence.method})"
    return Condition(
        "harming_rows",
        "Do rows raise held-out loss?",
        cost,
        "nats per token",
        f"at most {measured(max(HARM_SHARE * gain, 0.0))}, {HARM_SHARE:.0%} of the gain".replace("%", " %"),
        status,
        tuple(numbers[:ROWS_NAMED]),
        len(numbers),
        reason if numbers else "no row raises it beyond its noise",
        f"foretune clean {{run}} --drop-worst {len(numbers)} -o clean.jsonl" if numbers else "",
    )


def _leakage(evidence: Evidence) -> Condition:
    leaked = evidence.leaked
    question = "Are held-out rows among the training rows?"
    if leaked is None:
        return Condition("leakage", question, None, "rows", "no row", "unknown", reason="not measured")
    reason = f"{named_rows(leaked)} {'is a' if len(leaked) == 1 else 'are'} held-out row{'s'[: len(leaked) > 1]} too"
    return Condition(
        "leakage",
        question,
        len(leaked),
        "rows",
        "no row",
        "warn" if leaked else "pass",
        tuple(leaked[:ROWS_NAMED]),
        len(leaked),
        f"{reason}: held-out loss looks better than it is; take them out of one of the two" if leaked else "",
    )


def _concepts(fading: Sequence[Mapping[str, Any]]) -> Condition:
    falls = [c for c in fading if c["relative"] is not None and c["relative"] < FADING]
    return Condition(
        "fading_concepts",
        "Does a concept fade?",
        falls[0]["relative"] if falls else 0.0,
        "relative change",
        f"none by more than {percent(-FADING)} %",
        "warn" if falls else "pass",
        reason=fading_words(falls) if falls else "",
    )


def _of_signal(name: str, signal: Mapping[str, Any] | None, evidence: Evidence) -> Condition:
    asked = _ASKED.get(name) or _Asked(*words_asked(name), flags=(name,))
    rows = sorted({row for flag in asked.flags for row in evidence.rows.get(flag, ())})
    band = _band(name, asked, evidence.limits.get(name, signal.get("threshold") if signal else None))
    if signal is None:
        value = evidence.summary.get(_MEASURED.get(name, ""), len(rows))
        if asked.unit == "share of rows":
            value = len(rows) / max(evidence.summary.get("rows", 0), 1)
        named = () if name == "harmful_content" else tuple(rows[:ROWS_NAMED])
        return Condition(name, asked.question, value, asked.unit, band, "pass", named, len(named) and len(rows))
    drops = " ".join(f"--drop-flagged {flag}" for flag in asked.flags if evidence.rows.get(flag)) if asked.drop else ""
    if name == "behaviour_poison":
        drops = " ".join(f"--drop-causes {suite}" for suite in evidence.poisoned)
    return Condition(
        name,
        asked.question,
        signal["value"],
        asked.unit,
        band,
        OF_SEVERITY[signal["severity"]],
        tuple(rows[:ROWS_NAMED]),
        len(rows),
        f"{name.replace('_', ' ')}: {signal['advice']}",
        f"foretune clean {{run}} {drops} -o clean.jsonl" if drops else "",
    )


def _band(name: str, asked: _Asked, limit: float | None) -> str:
    if limit is None or (name in _ASKED and "{}" not in asked.band):
        return asked.band.format("a few")
    if asked.unit == "rows":  # which are whole
        limit = math.floor(limit)
    unit = "" if name == "dead_layer" else asked.unit  # whose value counts modules
    return (asked.band or "at most {}").format(_figure(limit, unit))
