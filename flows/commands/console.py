"""What a person sees in the terminal: the passes while they run, and the answer at the end."""

from __future__ import annotations

import threading
import time
from typing import Any

from foretune.flows.commands.terminal import Terminal, plain, styled
from foretune.flows.interruption import when_stopped
from foretune.storage.display import one_line
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.event_records import is_whole
from foretune.storage.events import read_events, run_status
from foretune.storage.runs import Run
from foretune.tasks.report.numbers import fixed, spread

POLL_SECONDS = 0.25
CONCEPTS = 5  # of each direction; result.json lists `features.top`
LABEL = 120  # characters of a pass's name
COLOURS = {"critical": "red", "warn": "yellow", "info": "cyan"}


class LivePasses:
    """Follows a run's events from a thread: a line per finished pass, a moving line for what runs now."""

    def __init__(self, run: Run, terminal: Terminal) -> None:
        self.run, self.terminal = run, terminal
        self.progress = terminal.progress()
        self._seen = 0
        self._ended = False
        self._running: dict[str, Any] = {}
        self._steps: dict[str, int] = {}  # of a real training, by task
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._stopping = when_stopped(self.progress.stop)  # else the terminal's cursor stays hidden

    def __enter__(self) -> LivePasses:
        self._stopping.__enter__()
        self.progress.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._catch_up()
        self.progress.stop()
        self._stopping.__exit__(None, None, None)

    def until_finished(self) -> None:
        """Return when the run has ended; at once for one that already has."""
        while run_status(self.run) == "unfinished" and not self._ended:
            time.sleep(POLL_SECONDS)

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        self._ended = True
        if event.get("error"):
            self.terminal.say(styled("failed", "red"), " ", event["error"])

    def _follow(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._catch_up()

    def _catch_up(self) -> None:
        try:
            events = read_events(self.run)
        except (BadInput, StorageFault):
            return  # the run meets the same fault, and says so
        self.show(events[self._seen :])
        self._seen = len(events)

    def show(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            handler = getattr(self, f"_on_{event['type']}", None)
            if handler is not None and is_whole(event):
                handler(event)

    def _on_pass_started(self, event: dict[str, Any]) -> None:
        self._running[event["label"]] = self.progress.add_task(plain(event["label"], LABEL), total=None, note="")

    def _on_pass_finished(self, event: dict[str, Any]) -> None:
        self._drop(event["label"])
        self.terminal.say(f"  {plain(event['label'], LABEL):<30} ", styled(f"{event['seconds']:>8.1f} s", "dim"))

    def _on_pass_failed(self, event: dict[str, Any]) -> None:
        self._drop(event["label"])
        self.terminal.say(f"  {plain(event['label'], LABEL):<30} ", styled("failed", "red"), " ", event["error"])

    def _on_artifact_damaged(self, event: dict[str, Any]) -> None:
        self.terminal.say("  ", styled("damaged", "yellow"), " ", event["error"])

    def _on_step(self, event: dict[str, Any]) -> None:
        total = self._steps.get(event["task"])
        place = f"step {event['step']} of {total}" if total else f"batch {event['step']}"
        loss, norm = fixed(event["loss"], 3), fixed(event["max_grad_norm"], 2)
        self._note(event["task"], f"{place}: loss {loss}, max gradient norm {norm}")

    def _on_progress(self, event: dict[str, Any]) -> None:
        if event["source"] == "training":
            self._steps[event["task"]] = event["total"]
        total = f" of {event['total']}" if event.get("total") else ""
        self._note(event["task"], f"{event['done']}{total}")

    def _note(self, task: str, text: str) -> None:
        for label, row in self._running.items():
            if label.startswith(task):
                self.progress.update(row, note=plain(text, LABEL))

    def _drop(self, label: str) -> None:
        row = self._running.pop(label, None)
        if row is not None:
            self.progress.remove_task(row)


def print_answer(terminal: Terminal, result: dict[str, Any], run: Run) -> None:
    """Verdict, signals, harmful samples, moving concepts, predicted loss, and where things lie."""
    summary = result["summary"]
    terminal.gap()
    terminal.say(styled("Should I train?", "bold"), "  ", styled(f"{summary['answer']}.", "bold"))
    for number, reason in enumerate(summary["reasons"], start=1):
        terminal.say(f"  {number}  {reason}")
    for signal in result["signals"]:
        terminal.say(
            styled(f"{signal['severity']:<9}", COLOURS[signal["severity"]]),
            f" {signal['name']}  ",
            styled(f"{signal['value']} (threshold {signal['threshold']})", "dim"),
        )
    if summary["harmful_samples"]:
        _heading(terminal, "Samples of the worst ranks", "nats of held-out loss; negative helps")
        for row in summary["harmful_samples"]:
            terminal.say(f"  row {row['row']:<4} {row['score']:+.5f} {row['verdict']:<8} {one_line(row['text'], 80)}")
    for title, sign in (("strengthened", "+"), ("suppressed", "-")):
        if summary[title]:
            _heading(terminal, f"Concepts {title}", "score, and change on held-out text")
        for concept in summary[title][:CONCEPTS]:
            terminal.say(
                f"  {sign} {concept['feature']:<6} {concept['score']:+.3e}  {concept['change']:+.4f}  "
                f"{one_line(concept['label'] or 'unnamed', 60)}"
            )
    terminal.gap()
    terminal.say(
        f"Held-out loss  {summary['heldout_loss_base']:.3f} -> {summary['heldout_loss_predicted']:.3f} predicted "
        f"({summary['heldout_loss_evaluated']:.3f} evaluated on the predicted weights), trusted: {summary['trust']}"
    )
    counts = result["tasks"]
    terminal.say(f"Passes         {counts['run']} run, {counts['cached']} cached")
    harming = sum(row["verdict"] == "harms" for row in summary["harmful_samples"])
    if harming:
        terminal.say(f"Next           foretune clean {run.run_id} --drop-harmful {harming} -o clean.jsonl")
    terminal.say(f"Report         {(run.place / 'report.html').uri}", whole=True)
    terminal.say(f"Model          {result['artifacts']['checkpoint']['uri']}", whole=True)


def _heading(terminal: Terminal, title: str, units: str) -> None:
    terminal.gap()
    terminal.say(styled(title, "bold"), " ", styled(f"({units})", "dim"))


def print_verdict(terminal: Terminal, verdict: dict[str, Any]) -> None:
    """The gate's verdict, with every rule that was crossed."""
    before = ", judged before" if verdict["repeated"] else ""
    terminal.gap()
    terminal.say(styled(verdict["verdict"], "bold"), "  ", verdict["dataset"], before, whole=True)
    for crossing in verdict["crossings"]:
        terminal.say(
            styled(f"{crossing['verdict']:<5}", COLOURS["critical" if crossing["verdict"] == "fail" else "warn"]),
            f" {crossing['subject']}: {crossing['value']}, threshold {crossing['threshold']}  {crossing['reason']}",
        )
    if verdict["skipped"]:
        terminal.say(f"not applied, since no version was accepted yet: {', '.join(verdict['skipped'])}")


def print_training_plan(terminal: Terminal, planned: dict[str, Any]) -> None:
    """How much real training a backtest is about to do."""
    runs, waiting, seconds = planned["real_runs"], planned["to_train"], planned["seconds"]
    if not waiting:
        time = "none to train"
    elif seconds is None:
        time = "time not known until something like it has run on this machine"
    else:
        time = f"about {seconds:.0f} s of training"
    terminal.say(f"real runs  {runs}, {runs - waiting} of them stored; {time}")


def print_backtest(terminal: Terminal, result: dict[str, Any], run: Run) -> None:
    """The axes, the losses behind them, and which signals came true."""
    found = result["backtest"]
    rows: list[tuple[Any, ...]] = []
    for axis in found["axes"]:
        cells = [spread(axis[method]) for method in ("simulation", "first_step", "rerun")]
        rows.append((axis["axis"], axis["absent"] or cells[0], *cells[1:]))
    terminal.table(("axis", "simulation", "first step", "re-run"), [(cells, "") for cells in rows])
    real = ", ".join(f"{each['heldout_loss']:.3f}" for each in found["runs"])
    terminal.say(
        f"Held-out loss  {found['heldout_loss_base']:.3f} -> {found['heldout_loss_predicted']:.3f} on the predicted "
        f"weights, {real} really trained"
    )
    for row in found["signals"]:
        terminal.say(f"  {row['name']:<15} {row['verdict']}  ", styled(row["detail"], "dim"))
    terminal.say(f"Report         {(run.place / 'report.html').uri}", whole=True)
