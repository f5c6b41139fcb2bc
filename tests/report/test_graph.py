"""The graph of a run: every pass below what it read, with what it took, what was found, and why it was computed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from foretune.storage.events import EventLog
from foretune.storage.runs import Run
from foretune.tasks.report.graph import BOX_HEIGHT, BOX_WIDTH, Graph, Node, drawing, graph_of, layers
from foretune.tasks.report.run_section import with_run
from tests.report.conftest import GRAPH, example_record


def stored(run: Run, task: str, key: str, **inputs: object):
    with run.store.create(task, key * 40, inputs, run_id=run.run_id) as draft:
        draft.write_json("summary.json", {})
    return run.store.open(draft.ref).manifest


def reference(task: str, key: str) -> dict[str, str]:
    return {"task": task, "key": key * 40}


def test_shards_are_one_node_and_what_was_found_is_told_from_what_was_computed(tmp_path):
    run = Run(str(tmp_path / "root"), "20261129-101010-tickets-0002")
    stored(run, "samples", "a", source={"digest": "d" * 64})
    for key in "bc":
        stored(run, "shard", key, rows=reference("samples", "a"))
    whole = stored(run, "gradient", "e", shards=[reference("shard", "b"), reference("shard", "c")], rate=2e-4)
    with EventLog(run) as log:
        for task, key, seconds in (("shard", "c", 2.0), ("gradient", "e", 0.5)):
            log.emit("pass_finished", task=task, label=task, key=key * 40, cached=False, seconds=seconds)
    from foretune.storage.events import read_events

    graph = graph_of(run, {"gradient": whole}, read_events(run))
    assert [(node.name, node.count, node.cached, node.state) for node in graph.nodes] == [
        ("samples", 1, 1, "found"),
        ("shard", 2, 1, "partly"),
        ("gradient", 1, 0, "computed"),
    ]
    assert graph.edges == (("samples", "shard"), ("shard", "gradient"))
    assert [node.line for node in graph.nodes] == ["found (1)", "1 of 2, 2 s", "0.5 s"]


def test_a_computed_pass_says_what_changed_since_the_run_before(tmp_path):
    before, run = (Run(str(tmp_path / "root"), f"20261129-10101{n}-tickets-000{n}") for n in (1, 2))
    earlier = stored(before, "path", "a", training={"learning_rate": 1e-4})
    uri = before.store.find("path", earlier.key).uri
    before.write_result({"artifacts": {"path": {"uri": uri, "sha256": earlier.sha256}}})
    now = stored(run, "path", "b", training={"learning_rate": 2e-4})
    event = {"type": "pass_finished", "task": "path", "key": now.key, "seconds": 1.0}
    [node] = graph_of(run, {"path": now}, [event]).nodes
    assert node.reason == "training.learning_rate 0.0001 -> 0.0002"


def test_every_pass_stands_below_what_it_reads_and_no_two_at_one_place():
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "d"), ("x", "d")]
    found = layers(["d", "c", "b", "a", "x"], edges)
    at = {name: level for level, layer in enumerate(found) for name in layer}
    assert all(at[read] < at[reader] for read, reader in edges)
    graph = Graph(tuple(Node(name, 1, 0, 1.0) for name in at), tuple(edges))
    drawn = drawing(graph)
    assert len(drawn.curves) == 5, "a reads d is said by the longer ways"
    for one in drawn.boxes:
        assert BOX_WIDTH / 2 <= one.x <= drawn.width - BOX_WIDTH / 2
        assert BOX_HEIGHT / 2 <= one.y <= drawn.height - BOX_HEIGHT / 2
        for other in drawn.boxes:
            assert one is other or abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT


def test_few_edges_cross():
    edges = [("a", "z"), ("b", "y"), ("c", "x")]
    top, bottom = layers([*"abcxyz"], edges)
    assert [dict(edges)[name] for name in top] == bottom


def test_the_page_draws_it_escaped():
    page = with_run("<!--run:timeline-->", example_record(), [])
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])
    titles = [each.text for each in svg.iter("title")]
    assert "landscape shard: 1 of 4, 12.5 s; other rows" in titles
    assert len(titles) == len(GRAPH.nodes)
    assert "<b>landscape</b>" not in page and "&lt;b&gt;landscape" in page


def test_a_run_without_artefacts_draws_nothing():
    assert drawing(Graph((), ())).boxes == ()
