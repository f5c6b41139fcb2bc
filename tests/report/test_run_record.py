"""What a report says of its run: who looked at which invariant, when passes ran, what it cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.storage.checks import checked
from foretune.storage.events import EventLog
from foretune.storage.manifest import Manifest
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import INVARIANTS
from foretune.tasks.report.run_record import Epoch, RunRecord, run_record
from foretune.tasks.report.run_section import with_run

EPOCH = Epoch(tokens=100, forward_passes=3)


def manifest(run: Run, task: str, **figures: object) -> Manifest:
    """A stored artefact with one check on it."""
    with run.store.create(task, "0" * 40, {}, run_id=run.run_id) as draft:
        draft.write_json("summary.json", {})
        if figures:
            draft.check(task, "this with that", **figures)
    return run.store.open(draft.ref).manifest


def timed(log: EventLog, monkeypatch: pytest.MonkeyPatch, second: float, kind: str, **fields: object) -> None:
    """One event `second` seconds after noon."""
    import foretune.storage.events as events

    class At:
        @staticmethod
        def now(zone: object) -> object:
            from datetime import datetime, timedelta

            return datetime(2026, 1, 1, 12, tzinfo=zone) + timedelta(seconds=second)  # type: ignore[arg-type]

    monkeypatch.setattr(events, "datetime", At)
    log.emit(kind, **fields)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "root"), "one")


def record_of(run: Run, manifests: dict[str, Manifest], cached: list[str] | None = None) -> RunRecord:
    return run_record(run, manifests, cached or [], epochs=2.0, epoch=EPOCH)


def test_an_invariant_that_nobody_looked_at_is_not_said_to_hold(run):
    record = record_of(run, {"landscape": manifest(run, "landscape")})
    assert [each.name for each in record.invariants] == list(INVARIANTS)
    assert all(each.held is None for each in record.invariants)
    page = with_run("<!--run:invariants-->", record, [])
    assert "0 of 5 checked" in page and "✓" not in page


def test_a_check_is_told_with_its_figures_and_the_run_that_looked(run):
    looked = manifest(run, "checkpoint_verified", tensors=272, files=9)
    later = Run(run.root, "two")
    (told,) = [each for each in record_of(later, {"checkpoint": looked}).invariants if each.held]
    assert told.name == "checkpoint_verified" and told.figures == {"tensors": 272, "files": 9}
    assert told.runs == ("one",)
    assert "tensors 272" in told.line("two") and "looked at by run one" in told.line("two")
    assert "looked at" not in told.line("one")


def test_a_run_that_opened_no_model_names_the_run_that_compared_the_weights(run):
    with EventLog(run) as log:
        check = checked("base_weights_unchanged", "digests", models=1, sha256=["a" * 64])
        log.emit("check", **check.model_dump(exclude={"run_id"}))
    stored = manifest(run, "prediction")
    (told,) = [each for each in record_of(Run(run.root, "two"), {"prediction": stored}).invariants if each.held]
    assert told.name == "base_weights_unchanged" and told.runs == ("one",)


def test_passes_stand_in_the_timeline_when_they_ran_side_by_side_too(run, monkeypatch):
    with EventLog(run) as log:
        timed(log, monkeypatch, 0, "pass_started", task="samples", label="samples", key="a")
        timed(log, monkeypatch, 1, "pass_finished", task="samples", label="samples", key="a", cached=False, seconds=1.0)
        timed(log, monkeypatch, 1, "pass_started", task="influence", label="influence", key="b")
        timed(log, monkeypatch, 3, "pass_started", task="path", label="path", key="c")
        spent = {"forward_tokens": 100, "backward_tokens": 50}
        timed(
            log, monkeypatch, 9, "pass_finished", task="path", label="path", key="c", cached=False, seconds=6, **spent
        )
        timed(
            log, monkeypatch, 11, "pass_finished", task="influence", label="influence", key="b", cached=False, seconds=9
        )
    shown = [
        (each["label"], each["start"], each["seconds"], each["forward_passes"]) for each in record_of(run, {}).timeline
    ]
    assert shown == [("samples", 0, 1, None), ("influence", 1, 10, None), ("path", 3, 6, 2.0)]


def test_the_cost_is_that_of_the_gradient_pass_over_the_epochs(run, monkeypatch):
    label, spent = "landscape_shard train [all]", {"forward_tokens": 100, "backward_tokens": 100}
    with EventLog(run) as log:
        timed(log, monkeypatch, 0, "pass_started", task="landscape_shard", label=label, key="a")
        timed(
            log,
            monkeypatch,
            6,
            "pass_finished",
            task="landscape_shard",
            label=label,
            key="a",
            cached=False,
            seconds=6,
            **spent,
        )
        timed(log, monkeypatch, 9, "progress", task="path", done=1, total=None)
    cost = record_of(run, {}).cost
    assert cost.forward_passes == 3.0 and cost.real_forward_passes == 6.0
    assert cost.seconds == 9.0 and cost.real_seconds == pytest.approx(12.0)
    page = with_run("<!--run:cost-->", record_of(run, {}), [])
    assert "saved 3 s" in " ".join(page.split())


def test_gradient_passes_that_waited_for_each_other_are_not_counted_twice(run, monkeypatch):
    """Two workers, one device: both clocks run from the start, and each second is one pass's."""
    with EventLog(run) as log:
        for end, seconds, part in ((10, 10, "0"), (30, 30, "10"), (30.5, 20, "11"), (45, 14.5, "111")):
            label, spent = f"landscape_shard train [{part}]", {"forward_tokens": 25, "backward_tokens": 25}
            timed(
                log,
                monkeypatch,
                end,
                "pass_finished",
                task="landscape_shard",
                label=label,
                key=part,
                cached=False,
                seconds=seconds,
                **spent,
            )
    cost = record_of(run, {}).cost
    assert cost.real_seconds == pytest.approx(2 * 45)  # epochs; the seconds of the passes add up to 74.5
    assert (cost.real_seconds_from, cost.real_seconds_to) == pytest.approx((2 * 40, 2 * 58))  # 10 s a part; 14.5 s
    assert (cost.timed_parts, cost.timed_in) == (3, "one")
    page = " ".join(with_run("<!--run:cost-->", record_of(run, {}), []).split())
    assert "passes of this run" in page and "fastest to the slowest of their 3 parts" in page


def test_a_run_whose_gradients_were_never_timed_does_not_guess_the_real_seconds(run):
    assert record_of(run, {}).cost.real_seconds is None
    assert "were not measured" in with_run("<!--run:cost-->", record_of(run, {}), [])


def test_a_cached_run_takes_the_rate_of_the_run_that_measured(run, monkeypatch):
    label, spent = "landscape_shard train [all]", {"forward_tokens": 100, "backward_tokens": 100}
    with EventLog(run) as log:
        timed(
            log,
            monkeypatch,
            6,
            "pass_finished",
            task="landscape_shard",
            label=label,
            key="a",
            cached=False,
            seconds=6,
            **spent,
        )
    assert record_of(
        Run(run.root, "two"), {"landscape": manifest(run, "landscape")}
    ).cost.real_seconds == pytest.approx(12.0)


def test_a_run_that_only_added_up_stored_gradients_takes_the_rate_of_the_run_that_measured_them(run, monkeypatch):
    spent = {"seconds": 6, "forward_tokens": 100, "backward_tokens": 100}
    label = "landscape_shard train [all]"
    with EventLog(run) as log:
        timed(log, monkeypatch, 6, "pass_finished", task="landscape_shard", label=label, key="a", cached=False, **spent)
    shard = manifest(run, "landscape_shard")
    later = Run(run.root, "two")
    reads = {"shards": [{"task": shard.task, "key": shard.key}]}
    with later.store.create("landscape", "1" * 40, reads, run_id=later.run_id) as draft:
        draft.write_json("summary.json", {})
    stored = later.store.open(draft.ref).manifest
    assert record_of(later, {"landscape": stored}).cost.real_seconds == pytest.approx(12.0)


def test_a_run_that_found_everything_claims_no_saving(run, monkeypatch):
    label, spent = "landscape_shard train [all]", {"forward_tokens": 100, "backward_tokens": 100, "seconds": 6}
    with EventLog(run) as log:
        timed(log, monkeypatch, 6, "pass_finished", task="landscape_shard", label=label, key="a", cached=False, **spent)
    later = record_of(Run(run.root, "two"), {"landscape": manifest(run, "landscape")})
    page = " ".join(with_run("<!--run:cost-->", later, []).split())
    assert "not compared" in page and "saved" not in page


def test_text_from_the_dataset_cannot_take_a_place_of_the_run(run):
    from foretune.tasks.report.standalone import page_environment

    shown = page_environment().from_string("{{ text }} <!--run:id-->").render(text="<!--run:id-->")
    page = with_run(shown, record_of(run, {}), [])
    assert page == "&lt;!--run:id--&gt; one"
