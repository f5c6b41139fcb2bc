"""What is true of a run, not of its artefacts: the invariants looked at, when its passes ran, what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from foretune.storage.checks import Check
from foretune.storage.contents import Artifact
from foretune.storage.events import read_events
from foretune.storage.manifest import Manifest, artefacts_in
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import INVARIANTS, LISSA_WITHIN_BUDGET
from foretune.tasks.report.graph import Graph, graph_of
from foretune.tasks.report.pace import equivalents, pace_of, seconds_at
from foretune.tasks.report.spent import PassCost, against_plan, deviations


@dataclass(frozen=True)
class Invariant:
    """All records of one invariant together."""

    name: str
    held: bool | None  # None: nobody has recorded a look at it
    compared: str = ""
    figures: Mapping[str, Any] | None = None  # counts of several records are summed
    looks: int = 0
    checked: str | None = None  # the last time, ISO 8601
    runs: tuple[str, ...] = ()  # that looked

    def line(self, run_id: str) -> str:
        """Figures and who looked, for people."""
        if self.held is None:
            return "not recorded: computed by a version that kept no record"
        words = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in (self.figures or {}).items())
        others = ", ".join(name for name in self.runs if name != run_id)
        return f"{words}; looked at by run {others}" if others else words


@dataclass(frozen=True)
class Cost:
    """What a simulation and the run that it predicts cost. `forward passes` are over all training rows.

    The real run's seconds are its epochs times those of the gradient pass over the same rows on this machine: without
    its optimizer, its evaluation and its start, and with what the gradients' storage and any other work of the machine
    cost. Hence an interval: as fast as the fastest and as slow as the slowest part of that pass.
    """

    seconds: float  # wall time of this run
    forward_passes: float | None  # computed in this run
    real_seconds: float | None
    real_forward_passes: float
    real_seconds_from: float | None = None  # None as well where the pass had one part
    real_seconds_to: float | None = None
    timed_parts: int = 0  # of the gradient pass
    timed_in: str = ""  # the run that took it
    planned_forward_passes: float | None = None  # of what was computed; None: not known of all
    planned_seconds: float | None = None  # of its passes, one after the other
    deviations: tuple[str, ...] = ()  # of the plan, the worst ones
    passes: tuple[PassCost, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    run_id: str
    invariants: tuple[Invariant, ...]
    timeline: tuple[dict[str, Any], ...]  # task, label, start (seconds since the run began), seconds, forward_passes
    cached: tuple[str, ...]  # artefacts that were found, by pass
    cost: Cost
    graph: Graph


@dataclass(frozen=True)
class Epoch:
    """What one epoch of the real run computes."""

    tokens: int
    forward_passes: int  # over these tokens: 3 for a forward and a backward, 4 for pairs, which a reference reads too

    @staticmethod
    def of(samples: Artifact) -> Epoch:
        """Of a `samples` artefact; a row without a label is not trained on."""
        import pyarrow.compute

        pc: Any = pyarrow.compute  # makes its functions when it is imported: not seen by a type checker

        table = samples.arrow("samples.parquet", columns=["form", "input_ids", "loss_mask", "rejected_ids"])
        # A null is filled here: Arrow's own way to do it imports pandas.
        lengths = [n or 0 for n in pc.list_value_length(table["input_ids"]).to_pylist()]
        rejected = [n or 0 for n in pc.list_value_length(table["rejected_ids"]).to_pylist()]
        labels = [any(mask or ()) for mask in table["loss_mask"].to_pylist()]
        tokens = sum(a + b for a, b, label in zip(lengths, rejected, labels, strict=True) if label or b)
        return Epoch(tokens, 4 if any(rejected) else 3)


def run_record(
    run: Run, manifests: Mapping[str, Manifest], cached: Iterable[str], epochs: float, epoch: Epoch
) -> RunRecord:
    """Read from the run's events and the manifests of its artefacts, by pass."""
    events = read_events(run)
    return RunRecord(
        run.run_id,
        invariants_of(run, manifests, events),
        tuple(timeline_of(events, epoch.tokens)),
        tuple(cached),
        cost_of(run, manifests, events, epochs, epoch),
        graph_of(run, manifests, events),
    )


def invariants_of(run: Run, manifests: Mapping[str, Manifest], events: list[dict[str, Any]]) -> tuple[Invariant, ...]:
    """Every invariant with its records: those of the artefacts' manifests, of this run's events, and where this run
    opened no model, those of the runs that computed what it gives. LiSSA's only where its solve was asked for."""
    records = [check for manifest in manifests.values() for check in manifest.checks]
    records += _checks_in(events, run.run_id)
    for name in _makers(run, manifests):
        records += _checks_in(read_events(Run(run.root, name)), name)
    ranked = manifests.get("influence")
    unasked = {LISSA_WITHIN_BUDGET} if ranked and ranked.inputs.get("solve", 0) is None else set()
    names = [name for name in INVARIANTS if name not in unasked]
    return tuple(_together(name, [record for record in records if record.name == name]) for name in names)


def timeline_of(events: Iterable[Mapping[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Every pass that was computed, from its start to its end."""
    begun: dict[str, float] = {}
    listed = list(events)
    first = seconds_at(listed[0]) if listed else 0.0
    passes = []
    for event in listed:
        at, key = seconds_at(event), event.get("key") or event.get("label", "")
        if event["type"] == "pass_started":
            begun[key] = at
        elif event["type"] == "pass_finished":
            start = begun[key] if key in begun else at - float(event["seconds"])
            spent = equivalents(event)
            passes.append(
                {
                    "task": event["task"],
                    "label": event["label"],
                    "start": max(0.0, start - first),
                    "seconds": max(0.0, at - start),
                    "forward_passes": spent / tokens if spent is not None and tokens else None,
                }
            )
    return sorted(passes, key=lambda each: each["start"])


def cost_of(
    run: Run, manifests: Mapping[str, Manifest], events: list[dict[str, Any]], epochs: float, epoch: Epoch
) -> Cost:
    """Seconds and forward passes of this run, and of the real one."""
    spent = [equivalents(event) for event in events if event["type"] == "pass_finished"]
    counted = [each for each in spent if each is not None]
    others = ((name, read_events(Run(run.root, name))) for name in _gradient_makers(run, manifests))
    timed = ((name, pace_of(each)) for name, each in chain([(run.run_id, events)], others))
    timed_in, pace = next(((name, pace) for name, pace in timed if pace), ("", None))
    times = [seconds_at(event) for event in events]
    real = epoch.forward_passes * epoch.tokens * epochs
    several = pace is not None and pace.parts > 1
    passes = against_plan(events, run.read_planned(), epoch.tokens)
    return Cost(
        seconds=round(max(times) - min(times), 3) if times else 0.0,
        forward_passes=sum(counted) / epoch.tokens if epoch.tokens else None,
        real_seconds=pace and pace.mean * real,
        real_forward_passes=epoch.forward_passes * epochs,
        real_seconds_from=pace.fastest * real if pace and several else None,
        real_seconds_to=pace.slowest * real if pace and several else None,
        timed_parts=pace.parts if pace else 0,
        timed_in=timed_in,
        planned_forward_passes=_total(each.planned_forward_passes for each in passes),
        planned_seconds=_total(each.planned_seconds for each in passes),
        deviations=deviations(passes),
        passes=passes,
    )


def _total(parts: Iterable[float | None]) -> float | None:
    """The sum; None while one part is not known, and without any."""
    known = list(parts)
    return None if None in known or not known else sum(each or 0.0 for each in known)


def _together(name: str, records: Sequence[Check]) -> Invariant:
    if not records:
        return Invariant(name, None)
    latest = max(records, key=lambda record: record.checked)
    figures = dict(latest.figures)
    if len(records) > 1:  # of a pass each: a count of all of them, the rest is the latest one's
        counts = {n: v for n, v in figures.items() if type(v) is int}
        figures |= {n: sum(int(record.figures.get(n, 0)) for record in records) for n in counts}
        figures |= {"looks": len(records)}
    runs = tuple(sorted({record.run_id for record in records if record.run_id}))
    return Invariant(name, True, latest.compared, figures, len(records), latest.checked, runs)


def _makers(run: Run, manifests: Mapping[str, Manifest]) -> list[str]:
    """Other runs that computed what this one gives."""
    return sorted({each.run_id for each in manifests.values() if each.run_id and each.run_id != run.run_id})


def _gradient_makers(run: Run, manifests: Mapping[str, Manifest]) -> list[str]:
    """Other runs that computed what this one gives or, where only their sum is of this run, its gradients."""
    landscape = manifests.get("landscape")
    shards = [run.store.manifest(*each) for each in artefacts_in(landscape.inputs)] if landscape else []
    made = {each.run_id for each in shards if each is not None and each.run_id and each.run_id != run.run_id}
    return [*_makers(run, manifests), *sorted(made)]


def _checks_in(events: Iterable[Mapping[str, Any]], run_id: str) -> list[Check]:
    kept = ("name", "compared", "figures", "checked")
    found = [event for event in events if event["type"] == "check" and all(name in event for name in kept)]
    return [Check(**{name: event[name] for name in kept}, run_id=run_id) for event in found]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)
