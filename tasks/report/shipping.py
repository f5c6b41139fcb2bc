"""Ship or not, from figures alone: what a run has measured goes in, a verdict with its reasons comes out.

A change counts where its interval leaves out zero and it is larger than the largest that noise alone made, its floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from foretune.tasks.report.numbers import measured, signed

Verdict = Literal["SHIP", "DON'T", "INCONCLUSIVE"]
Outcome = Literal["pass", "fail", "unknown", "not judged"]
Direction = Literal["higher", "lower", "either"]

MIN_COUNT = 8
"""Fewer rows, pairs or items tell nothing, as `behaviour` has it."""
SMALLEST = 1e-3
"""Of a suite's change: below a thousandth of its unit (a share, a probability, nats per token) nobody ships by it."""
ALLOWED, COUNTS = "allowed by the gate", "the smallest that counts"
"""What a floor is where it is not of noise."""


def titled(name: str) -> str:
    """A figure or a suite as people call it."""
    return name.replace("_", " ").replace("heldout", "held-out")


@dataclass(frozen=True)
class Measured:
    """A figure of base and predicted model, its change, and what noise alone does to it."""

    name: str
    base: float
    predicted: float
    change: float
    low: float | None  # of the change, paired bootstrap; None: not taken
    high: float | None
    floor: float | None  # the largest change that noise alone made; None: not measured
    direction: Direction
    unit: str
    count: int | None  # None: the run is older than the count
    counted: str  # rows, pairs or items
    floor_from: str  # what the floor is of, or where there is none, what would measure it
    needs_interval: bool = True  # False: a figure of the whole, beside one that has an interval

    @property
    def title(self) -> str:
        return titled(self.name)

    @property
    def better_by(self) -> float:
        """The change, above zero where it is for the better."""
        return -self.change if self.direction == "lower" else self.change

    @property
    def few(self) -> bool:
        return self.count is not None and self.count < MIN_COUNT

    @property
    def is_measured(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class ShipEvidence:
    """What the verdict rests on."""

    task: Sequence[Measured]  # all of them must improve
    suites: Sequence[Measured]  # none of them may get worse
    trusted: bool  # at the end of the prediction
    trust: str  # in words
    leaked: str = ""  # what a critical `heldout_overlap` says


@dataclass(frozen=True)
class ShipRules:
    """What a gate says of shipping."""

    allow: Mapping[str, float] = field(default_factory=dict)  # suite -> by how much it may get worse
    ignore: frozenset[str] = frozenset()  # suites that are not judged
    suites: bool = True  # False: none is asked for


@dataclass(frozen=True)
class Check:
    """One condition of the verdict."""

    name: str
    outcome: Outcome
    reason: str
    value: float | None = None
    floor: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    floor_from: str = ""
    remedy: str = ""  # what to do next, {run} in the run id's place


@dataclass(frozen=True)
class Decision:
    """DON'T where one condition fails, else INCONCLUSIVE where one is open, else SHIP."""

    verdict: Verdict
    reasons: list[str]  # the conditions that decided
    checks: list[Check]

    @property
    def remedies(self) -> list[str]:
        """What to do next, each once: of the conditions that decided first."""
        listed = [c for each in ("fail", "unknown") for c in self.checks if c.outcome == each and c.remedy]
        return list(dict.fromkeys(check.remedy for check in listed))


def decide(evidence: ShipEvidence, rules: ShipRules | None = None, gate: Sequence[Check] = ()) -> Decision:
    """The verdict; `gate` holds a failed check for every rule of a gate that was crossed."""
    rules = rules or ShipRules()
    checks = [task_check(each) for each in evidence.task]
    checks += [_trust(evidence), _leakage(evidence), *gate, *_suites(evidence.suites, rules)]
    failed = [check.reason for check in checks if check.outcome == "fail"]
    opened = [check.reason for check in checks if check.outcome == "unknown"]
    if failed:
        return Decision("DON'T", failed, checks)
    if opened:
        return Decision("INCONCLUSIVE", opened, checks)
    judged = sum(check.outcome == "pass" for check in checks if check.name.startswith("suite."))
    suites = (
        f"none of {judged} suite{'s'[: judged != 1]} gets worse beyond its floor" if judged else "no suite was judged"
    )
    return Decision("SHIP", [*(check.reason for check in checks[: len(evidence.task)]), suites], checks)


def task_check(figure: Measured) -> Check:
    """Whether the training does what it is for: better than noise makes it, by an interval that leaves out zero."""
    by, floor, title = figure.better_by, figure.floor, figure.title
    verb = "falls" if figure.change < 0 else "rises"
    if not math.isfinite(figure.change):
        return _of(figure, "fail", f"{title} would be no number", LOWER_RATE)
    if figure.few:
        few = f"{title} rests on {figure.count} {figure.counted}, below {MIN_COUNT}"
        return _of(figure, "unknown", few, "hold more rows out (dataset.heldout)")
    if by <= 0:
        said = f"{verb} by {measured(abs(figure.change))} {figure.unit}" if figure.change else "does not change"
        return _of(figure, "fail", f"{title} {said}: no improvement", LOWER_RATE)
    if floor is None:
        return _of(figure, "unknown", f"what noise does to {title} was not measured", figure.floor_from)
    if by <= floor:
        reason = f"{title} {verb} by {measured(by)}, no more than noise does ({measured(floor)}, {figure.floor_from})"
        return _of(figure, "fail", reason, LOWER_RATE)
    if figure.needs_interval and figure.low is None:
        return _of(figure, "unknown", f"{title} has no interval", "set diff.bootstrap: 2000 and simulate again")
    if figure.needs_interval and not figure.is_measured:
        reason = f"{title} {verb} by {measured(by)}, but its interval ({_interval(figure)}) includes zero"
        return _of(figure, "unknown", reason, "hold more rows out (dataset.heldout), and compare more (diff.rows)")
    between = f" ({_interval(figure)})" if figure.low is not None else ""
    return _of(figure, "pass", f"{title} {verb} by {measured(by)} {figure.unit}{between}, noise {measured(floor)}")


def suite_check(figure: Measured, rules: ShipRules) -> Check:
    """Whether a suite stays as good as it was, but for noise and for what the gate allows."""
    name, title, worse = figure.name, figure.title, -figure.better_by
    if name in rules.ignore or figure.direction == "either":
        why = "the gate ignores it" if name in rules.ignore else "neither way is better"
        return _suite(figure, "not judged", f"{title}: {why}", figure.floor, figure.floor_from)
    floor, figure_from = _floor(figure, rules.allow.get(name))
    if not math.isfinite(worse) or figure.few:
        few = f"{title} rests on {figure.count} items, below {MIN_COUNT}"
        return _suite(figure, "unknown", few, floor, figure_from, "ask more items (behaviour.items, or its file)")
    if worse <= 0:
        return _suite(figure, "pass", f"{title} does not get worse", floor, figure_from)
    moved = f"{title} gets worse by {measured(worse)} ({measured(figure.base)} -> {measured(figure.predicted)})"
    if floor is None:
        return _suite(figure, "unknown", f"{moved}; what noise does was not measured", None, "", figure.floor_from)
    if worse <= floor:
        return _suite(figure, "pass", f"{moved}, no more than {measured(floor)} ({figure_from})", floor, figure_from)
    if not figure.is_measured:
        reason = f"{moved}, beyond {measured(floor)}, but its interval ({_interval(figure)}) includes zero"
        return _suite(figure, "unknown", reason, floor, figure_from, MORE_ITEMS)
    reason = f"{moved}, interval {_interval(figure)}, beyond {measured(floor)} ({figure_from})"
    return _suite(figure, "fail", reason, floor, figure_from, WHAT_FLIPPED)


LOWER_RATE = "foretune whatif {run} --set training.learning_rate=1e-5,3e-5,1e-4"
WHAT_FLIPPED = "read in the report which items flipped (What would it break?), and look for rows that teach it"
MORE_ITEMS = "ask more items (behaviour.items, behaviour.path.items), or allow it in a gate (ship.allow)"
ASK = "set behaviour.enabled: true and name suites (behaviour.suites), or ship.suites: false in a gate"


def _floor(figure: Measured, allowed: float | None) -> tuple[float | None, str]:
    """The largest of what noise does, what a gate allows and what is too small to count, and which of them it is."""
    known = [(figure.floor, figure.floor_from), (allowed, ALLOWED)]
    floors = [(floor, of) for floor, of in known if floor is not None]
    if not floors:
        return None, ""
    return max([*floors, (SMALLEST, COUNTS)], key=lambda each: each[0])


def _suites(suites: Sequence[Measured], rules: ShipRules) -> list[Check]:
    if not rules.suites:
        return []
    if not suites:
        return [Check("suites", "unknown", "no suite was asked: what the fine-tune breaks is not known", remedy=ASK)]
    return [suite_check(each, rules) for each in suites]


def _trust(evidence: ShipEvidence) -> Check:
    if evidence.trusted:
        return Check("trust", "pass", f"the prediction's end is trusted: {evidence.trust}")
    reason = f"the prediction is beyond its horizon at its end: {evidence.trust}"
    return Check("trust", "unknown", reason, remedy="simulate a shorter run, a lower learning rate, or more anchors")


def _leakage(evidence: ShipEvidence) -> Check:
    if not evidence.leaked:
        return Check("leakage", "pass", "held-out rows are not given away by training rows")
    reason = f"held-out rows are leaked: {evidence.leaked}"
    return Check("leakage", "unknown", reason, remedy="take the rows out of the training rows or out of the held-out")


def _of(figure: Measured, outcome: Outcome, reason: str, remedy: str = "") -> Check:
    """A check of the task; the floor's origin stands beside it where there is a floor."""
    floor_from = figure.floor_from if figure.floor is not None else ""
    return Check(
        figure.name, outcome, reason, figure.change, figure.floor, figure.low, figure.high, figure.unit, floor_from,
        remedy,
    )  # fmt: skip


def _suite(
    figure: Measured, outcome: Outcome, reason: str, floor: float | None, floor_from: str, remedy: str = ""
) -> Check:
    name = f"suite.{figure.name}"
    return Check(
        name, outcome, reason, figure.change, floor, figure.low, figure.high, figure.unit,
        floor_from if floor is not None else "", remedy,
    )  # fmt: skip


def _interval(figure: Measured) -> str:
    if figure.low is None or figure.high is None:
        return "none"
    return f"{signed(figure.low)} to {signed(figure.high)}"
