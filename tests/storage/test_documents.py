"""Stored and foreign JSON and YAML: whatever stands in them, one line or the value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.storage.documents import yaml_mapping
from foretune.storage.errors import BadInput
from foretune.storage.event_records import event_in, is_whole
from foretune.storage.events import EventLog, read_events, run_status
from foretune.storage.manifest import Manifest
from foretune.storage.runs import Run

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "holds no mapping; mend it so"),
        ("", "holds no mapping"),
        ("null", "holds no mapping"),
        ("[" * 5000, "deep"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 levels deep"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: 2026-13-45", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("? {a: b}\n: c", "not valid YAML"),
        ("a: &x [*x]", "an alias stands inside of what it names"),
        (BOMB, "more than 100,000 values"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
    ],
)
def test_a_file_that_no_one_would_write_is_one_line(text, said):
    with pytest.raises(BadInput, match=said) as caught:
        yaml_mapping(text, "request r.yaml", "mend it so")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@given(st.binary(max_size=80))
def test_no_bytes_are_anything_but_a_mapping_or_one_line(data):
    try:
        assert isinstance(yaml_mapping(data, "w", "r"), dict)
    except BadInput as error:
        assert "\n" not in str(error)


WHOLE = {"run_id": "r", "time": "t", "type": "pass_finished", "source": "simulation", "task": "a", "label": "a"}
WHOLE |= {"cached": False, "seconds": 1.5}


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"\x00\x00\x00", b"\xff\xfe{}", b"[1]", b"null", b"[" * 100_000, b'"x"', b"1" * 5000, b"\x1b[31m"),
        *(
            json.dumps(WHOLE | change).encode()
            for change in ({"seconds": "1.5"}, {"label": None}, {"type": ["x"]}, {"task": {}})
        ),
    ],
)
def test_a_line_that_is_no_event_is_none(line):
    assert event_in(line) is None


@given(PLAIN, st.sampled_from([*WHOLE, "loss", "step", "error", "status"]))
def test_an_event_is_what_its_readers_can_take(value, field):
    event = event_in(json.dumps(WHOLE | {field: value}).encode())
    assert event is None or (isinstance(event["seconds"], int | float) and isinstance(event["label"], str))


def test_an_event_of_a_later_version_is_kept_and_one_with_a_field_less_is_not_whole():
    later = {**WHOLE, "type": "thought"}
    assert event_in(json.dumps(later).encode()) == later
    assert is_whole(WHOLE) and not is_whole({name: v for name, v in WHOLE.items() if name != "seconds"})


@given(PLAIN)
def test_a_result_of_any_shape_is_read_or_one_line(tmp_path_factory, value):
    run = Run(str(tmp_path_factory.getbasetemp()), "20260101-000000-any-0000")
    for content in (
        value,
        {"artifacts": value},
        {"summary": value},
        {"artifacts": {"x": {"uri": value, "sha256": "s"}}},
    ):
        (run.place / "result.json").write_bytes(json.dumps(content).encode())
        try:
            read = run.read_result()
        except BadInput as error:
            assert "run it again" in str(error)
            assert run_status(run) == "unreadable"
        else:
            assert all(isinstance(each["uri"], str) for each in read.get("artifacts", {}).values())


@pytest.mark.parametrize("data", [b"", b"{", b"\x00", b"[" * 100_000, b'{"summary": {"heldout_loss_base": "3"}}'])
def test_a_damaged_result_is_one_line(tmp_path, data):
    run = Run(str(tmp_path), "20260101-000000-any-0000")
    (run.place / "result.json").write_bytes(data)
    with pytest.raises(BadInput, match="result.json: unreadable .*run it again"):
        run.read_result()


def test_a_reference_that_names_nothing_makes_a_manifest_unreadable():
    whole = {
        "task": "a",
        "key": "b",
        "version": 1,
        "files": {"f": {"sha256": "", "bytes": 0}},
        "seconds": 0,
        "created": "",
    }
    assert Manifest.from_bytes(json.dumps(whole | {"inputs": {"x": [{"task": "t", "key": "k"}]}}).encode())
    for wrong in ({"task": 1, "key": "k"}, {"task": "../x", "key": "k"}):
        with pytest.raises(ValueError, match="reference"):
            Manifest.from_bytes(json.dumps(whole | {"inputs": {"x": [wrong]}}).encode())


def test_events_and_results_hold_no_secret_and_take_half_a_surrogate_pair(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "tok-3nverySecret")
    run = Run(str(tmp_path), "20260101-000000-any-0000")
    with EventLog(run) as log:
        log.emit("run_finished", status="failed", error="at http://k:SECRET99@h tok-3nverySecret \ud800\x1b")
    run.write_result({"status": "completed", "note": "tok-3nverySecret \udfff", "artifacts": {}})
    stored = (run.place / "events.jsonl").read_bytes() + (run.place / "result.json").read_bytes()
    assert b"SECRET99" not in stored and b"3nvery" not in stored and b"\x1b" not in stored
    assert read_events(run)[0]["error"] == "at http://***@h *** \ud800\x1b"
    assert run.read_result()["note"] == "*** \udfff"
