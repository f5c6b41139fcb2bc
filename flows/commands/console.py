"""What a person sees in the terminal: the passes while they run, comparisons, gates and backtests."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from foretune.flows.commands.remaining import Plan, Remaining, passes_in_words
from foretune.flows.commands.terminal import Terminal, plain, styled
from foretune.flows.gate import crossed_in_words
from foretune.flows.interruption import when_stopped
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.event_records import is_whole
from foretune.storage.events import EventTail, run_status
from foretune.storage.runs import Run
from foretune.tasks.report.numbers import fixed, spread

POLL_SECONDS = 0.25
EVERY_SECONDS = 15.0  # between two lines of progress where nothing moves
LABEL = 120  # characters of a pass's name
COLOURS = {"critical": "red", "warn": "yellow", "info": "cyan"}


class LivePasses:
    """Follows a run's events from a thread: a line per finished pass, and on stderr a moving line for what runs now.

    With its plan stderr also says how many passes are done and how long the rest takes: a moving line where it is a
    terminal, else a line now and then.
    """

    def __init__(self, run: Run, terminal: Terminal, plan: Plan | None = None) -> None:
        self.run, self.terminal = run, terminal
        self.progress = terminal.progress()
        self.remaining = Remaining(plan)
        self._whole: Any = None  # the moving line of the whole run
        self._told, self._told_at = "", time.monotonic()
        self._events = EventTail(run)
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
        self._say_what_was_found()

    def _say_what_was_found(self) -> None:
        """Of a finished run that computed little there is little to follow."""
        with contextlib.suppress(FileNotFoundError, BadInput, StorageFault, ValueError):
            counts = self.run.read_result().get("tasks")
            if isinstance(counts, dict) and {"run", "cached"} <= counts.keys():
                self.terminal.say(passes_in_words(counts))

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        self._ended = True
        if event.get("error"):
            self.terminal.say(styled("failed", "red"), " ", event["error"])

    def _follow(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._catch_up()
            self._tell()

    def _tell(self) -> None:
        """How far the run is, when that has changed."""
        words = self.remaining.words
        if not words or words == self._told:
            return
        if self.terminal.moving:
            if self._whole is None:
                self._whole = self.progress.add_task("run", total=None, note=words)
            self.progress.update(self._whole, note=words)
        elif time.monotonic() - self._told_at < EVERY_SECONDS:
            return
        else:
            self.terminal.beside(words)
        self._told, self._told_at = words, time.monotonic()

    def _catch_up(self) -> None:
        try:
            events = self._events.read()
        except (BadInput, StorageFault):
            return  # the run meets the same fault, and says so
        self.show(events)

    def show(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            handler = getattr(self, f"_on_{event['type']}", None)
            if handler is not None and is_whole(event):
                handler(event)

    def _on_pass_started(self, event: dict[str, Any]) -> None:
        self._running[event["label"]] = self.progress.add_task(plain(event["label"], LABEL), total=None, note="")

    def _on_pass_finished(self, event: dict[str, Any]) -> None:
        self._drop(event["label"])
        self.remaining.ended(event.get("key", ""))
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


def print_verdict(terminal: Terminal, verdict: dict[str, Any]) -> None:
    """The gate's verdict, with every rule that was crossed."""
    before = ", judged before" if verdict["repeated"] else ""
    terminal.gap()
    terminal.say(styled(verdict["verdict"], "bold"), "  ", verdict["dataset"], before, whole=True)
    for crossing in verdict["crossings"]:
        terminal.say(
            styled(f"{crossing['verdict']:<5}", COLOURS["critical" if crossing["verdict"] == "fail" else "warn"]),
            f" {crossed_in_words(crossing)}  {crossing['reason']}",
        )
    if ship := verdict.get("ship"):  # verdicts of before have none
        terminal.hanging("ship? ", f"{ship['verdict']}: {'; '.join(ship['reasons'])}")
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
    for each in found.get("answers", {}).get("methods", []):
        if each["same_answer"]:
            same, share, token = (each[name]["mean"] for name in ("same_answer", "equal_share", "same_next_token"))
            said = f"{same:.0%} of the prompts as the real run, {share:.0%} of the tokens; same next token {token:.1%}"
            terminal.say(f"Answers        {each['meaning']}: {said}")
    for row in found["signals"]:
        terminal.say(f"  {row['name']:<15} {row['verdict']}  ", styled(row["detail"], "dim"))
    terminal.say(f"Report         {(run.place / 'report.html').uri}", whole=True)
