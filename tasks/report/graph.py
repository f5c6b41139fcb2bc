"""The graph of a run: which pass read which, what each took, and what was found instead of computed.

The passes stand in layers, each below everything that it reads; within a layer they are ordered by where what they
read stands (the barycentre rule of Sugiyama's method), so that few edges cross. Shards of one pass are one node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.manifest import Manifest, artefacts_in
from foretune.storage.results import task_and_key
from foretune.storage.runs import RESULT, Run, runs_named
from foretune.tasks.engine.changes import changes, code_changes, said

SWEEPS = 8
"""Down and up the layers; more change nothing on graphs of this size."""


@dataclass(frozen=True)
class Node:
    """A pass, its shards together."""

    name: str
    count: int  # artefacts
    cached: int  # of these, found
    seconds: float  # that this run computed
    reason: str = ""  # why it was computed

    @property
    def state(self) -> str:
        return "found" if self.cached == self.count else "computed" if not self.cached else "partly"

    @property
    def line(self) -> str:
        """What is written below the name."""
        shards = f"{self.count - self.cached} of {self.count}, " if self.count > 1 and self.cached < self.count else ""
        return f"found ({self.count})" if self.state == "found" else f"{shards}{self.seconds:.3g} s"


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of the layers; edges as (what was read, who read it)."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Box:
    """A node on the page, in pixels; `x` and `y` are its middle."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    boxes: tuple[Box, ...]
    curves: tuple[str, ...]  # SVG paths
    width: int
    height: int


BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 132, 38, 18, 34


def graph_of(run: Run, manifests: Mapping[str, Manifest], events: Iterable[Mapping[str, Any]]) -> Graph:
    """From the manifests of what a run gives, down to its samples, and from what its events say was computed; why, by
    the manifests of the newest other run of the name."""
    seconds: dict[str, float] = defaultdict(float)
    computed: set[tuple[str, str]] = set()
    for event in events:
        if event["type"] == "pass_finished" and event.get("key"):
            seconds[event["task"]] += float(event["seconds"])
            computed.add((event["task"], event["key"]))
    reasons = _reasons(run, [each for each in manifests.values() if (each.task, each.key) in computed])
    reads = _all_reads(run, manifests)
    keys: dict[str, set[str]] = defaultdict(set)
    edges: set[tuple[str, str]] = set()
    for (task, key), parents in reads.items():
        keys[task].add(key)
        edges |= {(parent, task) for parent, _ in parents if parent != task}
    nodes = [
        Node(
            name=task,
            count=len(each),
            cached=sum((task, key) not in computed for key in each),
            seconds=round(seconds[task], 3),
            reason=reasons.get(task, ""),
        )
        for task, each in keys.items()
    ]
    names = [name for layer in layers([node.name for node in nodes], edges) for name in layer]
    return Graph(tuple(sorted(nodes, key=lambda node: names.index(node.name))), tuple(sorted(edges)))


def _reasons(run: Run, computed: Sequence[Manifest]) -> dict[str, str]:
    """What changed of every pass that was computed, since the newest other run of the name that has a result."""
    if not computed:
        return {}
    try:
        other = next(
            (each for each in runs_named(run.root, run.name) if each.run_id < run.run_id and _ended(each)), None
        )
        stored = other.read_result().get("artifacts", {}) if other else {}
        keys = dict(task_and_key(each["uri"]) for each in stored.values())
        earlier = {task: run.store.manifest(task, key) for task, key in keys.items()}
    except (BadInput, StorageFault, FileNotFoundError):  # a torn result of another run is none of this one's business
        return {}
    found = {}
    for manifest in computed:
        before = earlier.get(manifest.task)
        if before is not None and before.key != manifest.key:
            words = said(changes(manifest.inputs, before.inputs))
            found[manifest.task] = words or ", ".join(code_changes(before, manifest.version, manifest.libraries))
    return found


def _ended(run: Run) -> bool:
    return (run.place / RESULT).exists()


def layers(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Every name in a layer below all that it reads, the layers in an order with few crossings."""
    above: dict[str, list[str]] = defaultdict(list)
    below: dict[str, list[str]] = defaultdict(list)
    for read, reader in edges:
        above[reader].append(read)
        below[read].append(reader)
    depth: dict[str, int] = {}

    def deep(name: str, on_the_way: frozenset[str] = frozenset()) -> int:
        if name not in depth:
            parents = [each for each in above[name] if each not in on_the_way]
            depth[name] = 1 + max((deep(each, on_the_way | {name}) for each in parents), default=-1)
        return depth[name]

    for name in names:
        deep(name)
    found = [
        [name for name in sorted(names) if depth[name] == level] for level in range(max(depth.values(), default=-1) + 1)
    ]
    for sweep in range(SWEEPS):
        order = found if sweep % 2 == 0 else found[::-1]
        places = {name: place / len(layer) for layer in found for place, name in enumerate(layer)}
        for layer in order:
            near = above if sweep % 2 == 0 else below
            middle = {n: sum(places[e] for e in near[n]) / len(near[n]) if near[n] else places[n] for n in layer}
            layer.sort(key=lambda name: (middle[name], name))
            places |= {name: place / len(layer) for place, name in enumerate(layer)}
    return found


def drawing(graph: Graph) -> Drawing:
    """Where every node and edge of a graph stands."""
    named = {node.name: node for node in graph.nodes}
    rows = layers(list(named), graph.edges)
    widest = max(map(len, rows), default=0)
    width = widest * (BOX_WIDTH + GAP_X) + GAP_X
    boxes: dict[str, Box] = {}
    for level, row in enumerate(rows):
        step = (width - GAP_X) / len(row)
        for place, name in enumerate(row):
            x, y = GAP_X / 2 + step * (place + 0.5), GAP_Y / 2 + BOX_HEIGHT / 2 + level * (BOX_HEIGHT + GAP_Y)
            boxes[name] = Box(named[name], round(x, 1), round(y, 1))
    curves = [_curve(boxes[read], boxes[reader]) for read, reader in _drawn(graph.edges)]
    return Drawing(tuple(boxes.values()), tuple(curves), width, len(rows) * (BOX_HEIGHT + GAP_Y))


def _drawn(edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Edges without those that a longer way says already: the report reads everything."""
    readers: dict[str, set[str]] = defaultdict(set)
    for read, reader in edges:
        readers[read].add(reader)

    def reached(start: str, seen: set[str]) -> set[str]:
        for each in readers[start] - seen:
            seen.add(each)
            reached(each, seen)
        return seen

    behind = {name: reached(name, set()) for name in list(readers)}
    return [(a, b) for a, b in edges if not any(b in behind.get(c, set()) for c in readers[a] - {b})]


def _curve(above: Box, below: Box) -> str:
    top, bottom = above.y + BOX_HEIGHT / 2, below.y - BOX_HEIGHT / 2
    middle = (top + bottom) / 2
    return f"M{above.x},{top:g} C{above.x},{middle:g} {below.x},{middle:g} {below.x},{bottom:g}"


def _all_reads(run: Run, manifests: Mapping[str, Manifest]) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Every artefact behind these, with what it read; one whose manifest is gone reads nothing."""
    known = {(each.task, each.key): each for each in manifests.values()}
    waiting, reads = list(known), {}
    while waiting:
        at = waiting.pop()
        if at in reads:
            continue
        manifest = known.get(at) or run.store.manifest(*at)
        reads[at] = set(artefacts_in(manifest.inputs)) if manifest else set()
        waiting += reads[at] - reads.keys()
    return reads
