"""The gate: thresholds on the numbers and signals of a simulation, and what crossing one of them means."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from foretune.flows.form import in_declared_order
from foretune.flows.settings_files import first_fault, read_settings
from foretune.storage.errors import BadInput
from foretune.tasks.report.findings import SEVERITIES
from foretune.tasks.report.numbers import plain
from foretune.tasks.report.shipping import ShipRules

LARGEST = 1e30
"""Beyond it no threshold means anything, and no infinity is one."""

BOUNDS = ("above", "below", "rises_by", "falls_by")


class GateRule(BaseModel):
    """One threshold on a number of the result's `summary`, or on a signal."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Rule")

    number: str | None = Field(
        default=None, title="Number", description="of the result's summary: heldout_loss_evaluated"
    )
    above: float | None = Field(
        default=None, ge=-LARGEST, le=LARGEST, title="Above", description="crossed when the number is larger than this"
    )
    below: float | None = Field(
        default=None, ge=-LARGEST, le=LARGEST, title="Below", description="crossed when the number is smaller than this"
    )
    rises_by: float | None = Field(
        default=None, ge=-LARGEST, le=LARGEST, title="Rises by", description="more than this over the last accepted run"
    )
    falls_by: float | None = Field(
        default=None,
        ge=-LARGEST,
        le=LARGEST,
        title="Falls by",
        description="more than this under the last accepted run",
    )
    signal: str | None = Field(default=None, title="Signal", description="its name, or any")
    severity: Literal["info", "warn", "critical"] = Field(
        default="info", title="Severity", description="signals only: crossed from this severity on"
    )
    verdict: Literal["warn", "fail"] = Field(default="fail", title="When crossed")
    reason: str = Field(title="Reason", description="why the threshold is there; printed with the verdict")

    @model_validator(mode="after")
    def _one_threshold(self) -> GateRule:
        bounds = [name for name in BOUNDS if getattr(self, name) is not None]
        if (self.number is None) == (self.signal is None):
            raise ValueError("a rule names either a number or a signal")
        if self.signal is not None and bounds:
            raise ValueError(f"{bounds[0]} needs a number, not a signal")
        if self.number is not None and len(bounds) != 1:
            raise ValueError(f"give exactly one of {', '.join(BOUNDS)} for {self.number}")
        return self

    @property
    def bound(self) -> str:
        """Which of the four bounds a rule on a number has."""
        return next(name for name in BOUNDS if getattr(self, name) is not None)


class GateShip(BaseModel):
    """What a verdict on shipping lets pass, by suite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Shipping")

    allow: dict[str, Annotated[float, Field(gt=0, le=LARGEST)]] = Field(
        default={},
        max_length=1000,
        title="Allow",
        description="suite, and by how much it may get worse, in its own unit; at least what noise does",
    )
    ignore: list[str] = Field(default=[], max_length=1000, title="Ignore", description="suites that are not judged")
    suites: bool = Field(default=True, title="Suites", description="false: the training's own figure alone is judged")

    @property
    def rules(self) -> ShipRules:
        return ShipRules(self.allow, frozenset(self.ignore), self.suites)


class Gate(BaseModel):
    """What a dataset must keep to before anyone trains on it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Gate")

    version: Literal[1] = 1
    rules: list[GateRule] = Field(
        max_length=10_000,
        default=[GateRule(signal="any", severity="critical", reason="a critical signal is a reason to look first")],
        title="Rules",
        description="every rule is applied; the worst verdict counts",
    )
    accepts: Literal["pass", "warn"] = Field(
        default="pass",
        title="Accepts",
        description="worst verdict with which a version becomes the one that later versions are compared with",
    )
    ship: GateShip = Field(default=GateShip(), title="Shipping")

    @property
    def identity(self) -> dict[str, Any]:
        """What a vetting's verdict depends on; a gate that says nothing of shipping is what it was before it could."""
        return self.model_dump(mode="json", exclude={"ship"} if self.ship == GateShip() else None)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return in_declared_order(core_schema, handler)


@dataclass(frozen=True)
class Crossing:
    """A rule that was crossed: by what value, and what that means."""

    subject: str  # "heldout_loss_evaluated rises_by", "signal harmful_content"
    value: float | str | None
    threshold: float | str
    verdict: str  # warn | fail
    reason: str


@dataclass(frozen=True)
class GateVerdict:
    """`fail` when one crossed rule says so, else `warn` when one does, else `pass`."""

    verdict: str
    crossings: list[Crossing]
    skipped: list[str]  # numbers compared with the last accepted run while there is none

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def accepted_by(self, gate: Gate) -> bool:
        """Whether this version is the one that later versions are compared with."""
        return self.verdict == "pass" or (self.verdict == "warn" and gate.accepts == "warn")


def apply_gate(gate: Gate, result: dict[str, Any], accepted: dict[str, Any] | None = None) -> GateVerdict:
    """Judge a `result.json`; `accepted` is the summary of the last accepted run.

    A number without a value crosses its rule: what cannot be measured does not pass. Raises BadInput for a
    number that the summary does not have.
    """
    crossings, skipped = [], []
    for position, rule in enumerate(gate.rules, start=1):
        if rule.signal is not None:
            crossings += _crossed_by_signals(rule, result["signals"])
            continue
        assert rule.number is not None  # a rule has either
        value = _number(rule.number, result["summary"], position)
        if rule.bound in ("rises_by", "falls_by") and accepted is None:
            skipped.append(f"{rule.number} {rule.bound}")
        elif _crosses(rule, value, (accepted or {}).get(rule.number)):
            subject = f"{rule.number} {rule.bound}"
            crossings.append(Crossing(subject, value, getattr(rule, rule.bound), rule.verdict, rule.reason))
    verdicts = {crossing.verdict for crossing in crossings}
    return GateVerdict("fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass", crossings, skipped)


def _crossed_by_signals(rule: GateRule, signals: list[dict[str, Any]]) -> list[Crossing]:
    rank = SEVERITIES.index
    return [
        Crossing(f"signal {signal['name']}", signal["value"], rule.severity, rule.verdict, rule.reason)
        for signal in signals
        if rule.signal in ("any", signal["name"]) and rank(signal["severity"]) <= rank(rule.severity)
    ]


def _number(name: str, summary: dict[str, Any], position: int) -> float | None:
    numbers = {key: v for key, v in summary.items() if v is None or isinstance(v, int | float)}
    if name not in numbers:
        near = difflib.get_close_matches(name, numbers, n=3, cutoff=0.0)
        raise BadInput(f"gate rule {position}: no number {name} in the summary; nearest: {', '.join(near)}")
    return numbers[name]


def _crosses(rule: GateRule, value: float | None, before: float | None) -> bool:
    limit = getattr(rule, rule.bound)
    if value is None or (rule.bound in ("rises_by", "falls_by") and before is None):
        return True
    rise = 0.0 if before is None else value - before  # bounds without a version before do not read it
    return {
        "above": lambda: value > limit,
        "below": lambda: value < limit,
        "rises_by": lambda: rise > limit,
        "falls_by": lambda: -rise > limit,
    }[rule.bound]()


def crossed_in_words(crossing: dict[str, Any]) -> str:
    """As in `flagged_rows is 15, above 10` and `signal dead_layer is 2, at or beyond warn`."""
    value, threshold = plain(crossing["value"]), plain(crossing["threshold"])
    subject, _, bound = crossing["subject"].rpartition(" ")
    if subject == "signal":
        return f"{crossing['subject']} is {value}, at or beyond {threshold}"
    return f"{subject} is {value}, {bound.replace('_', ' ')} {threshold}"


def load_gate(uri: str) -> Gate:
    """Read gate.yaml; every fault is one BadInput line."""
    content = read_settings(uri, "gate")
    try:
        return Gate.model_validate(content)
    except pydantic.ValidationError as error:
        raise BadInput(f"gate {uri}: {first_fault(error, Gate, 'gate')}") from None
