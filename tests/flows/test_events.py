"""One schema for the events of a simulation and of a real training run, and one command that follows both."""

from __future__ import annotations

import json
import selectors
import subprocess
from pathlib import Path

import jsonschema
import pytest

from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.events import EventLog, read_events
from foretune.storage.runs import Run
from foretune.tasks.backtest.callback import TrainingEvents
from tests.flows.test_command_line import COMMAND, foretune
from tests.storage.schema import event_schema

pytestmark = pytest.mark.slow

CHECK = jsonschema.Draft202012Validator(event_schema(), format_checker=jsonschema.FormatChecker())


def checked(run: Run) -> list[dict]:
    events = read_events(run)
    for event in events:
        CHECK.validate(event)
    return events


@pytest.fixture
def training(tiny_llama: Path, tiny_rows: list[dict], tmp_path: Path) -> TrainingEvents:
    """A real run of transformers' Trainer on the tiny Llama: LoRA-free, 4 steps, clipped hard."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    encoded = [tokenizer(f"{row['instruction']} {row['output']}")["input_ids"][:48] for row in tiny_rows]
    rows = [{"input_ids": ids, "labels": ids} for ids in encoded if len(ids) == 48]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trained"),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        max_grad_norm=1e-4,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    callback = TrainingEvents(str(tmp_path / "root"), "tiny")
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    return callback


def test_a_real_training_run_writes_the_events_of_the_schema(training):
    events = checked(training.run)
    assert [event["type"] for event in events][:3] == ["pass_started", "progress", "step"]
    assert events[-1]["type"] == "run_finished"
    steps = [event for event in events if event["type"] == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert {event["source"] for event in events} == {"training"}
    assert steps[0]["learning_rate"] > steps[-1]["learning_rate"] > 0
    assert len(steps[0]["layer_grad_norms"]) == len(events[0]["modules"]) == 2


def test_norms_are_those_before_clipping(training):
    step = next(event for event in read_events(training.run) if event["type"] == "step")
    total = sum(norm**2 for norm in step["layer_grad_norms"]) ** 0.5
    assert total > 1e-3  # clipped to 1e-4
    assert "gradient_spike" in {e["name"] for e in read_events(training.run) if e["type"] == "signal"}


def test_watch_follows_a_training_run_to_its_end(training):
    done = foretune("watch", "latest", "--root", training.run.root, "--json")
    assert done.returncode == 0, done.stderr
    assert "training" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["events"] == len(read_events(training.run))


def test_watch_follows_a_run_that_is_still_going(tmp_path):
    run = Run(str(tmp_path / "root"), "20261126-020000-tickets-1a2b")
    log = EventLog(run)
    log.emit("pass_started", task="landscape_shard", label="landscape_shard train [0]")
    words = [*COMMAND, "watch", "tickets", "--root", run.root]
    watching = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    with selectors.DefaultSelector() as ready:
        ready.register(watching.stdout, selectors.EVENT_READ)
        step = {"task": "landscape_shard", "epoch": 0, "learning_rate": 0, "mean_grad_norm": None, "dead_layers": 0}
        log.emit("step", step=1, loss=float("nan"), max_grad_norm=None, layer_grad_norms=[], **step)
        finished = {"task": "landscape_shard", "label": "landscape_shard train [0]", "cached": False, "seconds": 1.5}
        log.emit("pass_finished", **finished)
        assert ready.select(timeout=120), "nothing was shown while the run was going"
        assert watching.poll() is None
    log.emit("run_finished", status="failed", error="model: the disk is full; free some space")
    log.close()
    said, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0
    assert "landscape_shard train [0]" in said
    assert "the disk is full; free some space" in said
    assert [CHECK.is_valid(event) for event in read_events(run)] == [True] * 4


def test_a_simulation_writes_the_events_of_the_schema(prefect_server, tiny_request):
    request = load_request(str(tiny_request))
    simulate(request, run_id="simulated")
    run = Run(request.runtime.root, "simulated")
    events = checked(run)
    assert {"pass_started", "pass_finished", "step", "progress", "run_finished"} <= {e["type"] for e in events}
    assert {event["source"] for event in events} == {"simulation"}
    done = foretune("watch", "simulated", "--root", run.root)
    assert "landscape" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "step"},
        {"type": "signal", "name": "x", "severity": "bad", "value": 1, "threshold": 0, "advice": ""},
        {"type": "unheard_of"},
        {"type": "progress", "task": "a", "done": 1, "source": "elsewhere"},
    ],
)
def test_the_schema_refuses_what_is_no_event(wrong):
    event = {"run_id": "r", "time": "2026-11-22T21:00:00+00:00", "source": "simulation", **wrong}
    assert not CHECK.is_valid(event)
