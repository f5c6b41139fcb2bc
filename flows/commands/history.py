"""What the artefacts of a storage root tell a plan: what tasks cost, and why a key is new."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.manifest import Manifest
from foretune.storage.rates import Took, remembered_rates
from foretune.tasks.engine.changes import changes, code_changes, distance, said
from foretune.tasks.engine.keys import ContentKey, library_versions

NEWEST_MANIFESTS = 200  # of one task, from which costs and changes are estimated


@dataclass(frozen=True)
class Cost:
    """Expected cost of a task, and its basis; None where the task never ran, under this root or on this machine."""

    seconds: float | None = None
    bytes: int | None = None
    basis: Literal["this root", "this machine", "another model"] | None = None
    forward_tokens: float | None = None  # through a model; None as well where no pass of the kind counted any
    backward_tokens: float | None = None


@dataclass(frozen=True)
class Reason:
    """Why a pass is to be computed: in a line, what differs itself, and the run that it was compared with."""

    line: str
    own: tuple[str, ...] = ()  # without what was read and is new for a reason of its own
    run_id: str | None = None


class History:
    """Manifests by task, read when a task of that name is not stored."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store

    @functools.cached_property
    def _stored(self) -> dict[str, list[tuple[float, str]]]:
        found = defaultdict(list)
        for stored in self.store.iterate():
            if stored.complete:
                found[stored.task].append((stored.modified, stored.key))
        return found

    @functools.cache  # noqa: B019 - one history lives as long as one plan
    def manifests(self, task: str) -> list[Manifest]:
        """The task's newest manifests, newest first."""
        newest = sorted(self._stored.get(task, []), reverse=True)[:NEWEST_MANIFESTS]
        return [manifest for _, key in newest if (manifest := self.store.manifest(task, key))]

    def cost(self, task: str, work: dict[str, int], model: Any = None) -> Cost:
        """From what the task took with the same model: under this root, else on this machine under any root; else
        with another model under this root. `model` is its identity in keys, None for a pass without one."""
        stored = self.manifests(task)
        same = [Took.of(manifest) for manifest in stored if manifest.inputs.get("model") == model]
        if same:
            return _expected(same, work, "this root")
        here = remembered(task, work, model)
        if here.basis is not None:
            return here
        return _expected([Took.of(manifest) for manifest in stored], work, "another model") if stored else Cost()

    def reason(
        self, policy: ContentKey, inputs: dict[str, Any], among: Collection[tuple[str, str]] | None = None
    ) -> Reason:
        """What differs between these inputs and those of the most similar stored artefact of the task; of those
        `among`, (task, key) each, where the task is there."""
        known = self.manifests(policy.task)
        if among is not None:
            known = [each for each in known if (each.task, each.key) in among] or known
        if not known:
            return Reason("never run here")
        compared = [(manifest, changes(inputs, manifest.inputs)) for manifest in known]
        nearest, found = min(compared, key=lambda each: distance(each[1]))
        if found:
            own = tuple(dict.fromkeys(each.said for each in found if not each.read))
            return Reason(said(found), own, nearest.run_id)
        code = code_changes(nearest, policy.version, library_versions(policy.libraries))
        words = f"its code is new: {', '.join(code)}" if code else "stored files are missing or torn"
        return Reason(words, (f"{policy.task}, {words}",), nearest.run_id)


def remembered(task: str, work: dict[str, int], model: Any = None) -> Cost:
    """From what the task took with this model on this machine, under any root."""
    here = remembered_rates(task, model)
    return _expected(here, work, "this machine") if here else Cost()


def _expected(known: list[Took], work: dict[str, int], basis: Any) -> Cost:
    """Seconds: the median rate of what is known times this one's tokens (or rows, or parts); their median where
    sizes are not known. Bytes: those of the artefact that is nearest in size. Tokens through a model: as seconds."""
    unit = next((unit for unit in ("tokens", "rows", "parts") if work.get(unit)), None)
    sized = [took for took in known if unit and took.work.get(unit)]
    if unit is None or not sized:
        tokens = _median_tokens([(took, 1.0) for took in known], 1)
        return Cost(median(took.seconds for took in known), round(median(took.bytes for took in known)), basis, *tokens)
    size = work[unit]
    nearest = min(sized, key=lambda took: abs(took.work[unit] - size))
    tokens = _median_tokens([(took, took.work[unit]) for took in sized], size)
    return Cost(size * median(took.seconds / took.work[unit] for took in sized), nearest.bytes, basis, *tokens)


def _median_tokens(known: list[tuple[Took, float]], size: float) -> tuple[int | None, int | None]:
    """Forward and backward, of those that counted any."""
    counted = [(took.cost, of) for took, of in known if took.cost]
    if not counted:
        return None, None
    names = ("forward_tokens", "backward_tokens")
    forward, backward = (round(size * median(cost.get(name, 0) / of for cost, of in counted)) for name in names)
    return forward, backward
