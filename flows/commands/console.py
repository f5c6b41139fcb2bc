"""What a person sees in the terminal: the passes while they run, and the answer at the end."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from foretune.flows.interruption import when_stopped
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.events import read_events, run_status
from foretune.storage.runs import Run
from foretune.tasks.report.comparison import first_rows

POLL_SECONDS = 0.25
LISTED = 8
COLOURS = {"critical": "red", "warn": "yellow", "info": "cyan"}


class LivePasses:
    """Follows a run's events from a thread: a line per finished pass, a moving line for what runs now."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run, self.console = run, console
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
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
            self.console.print(f"[red]failed[/red] {escape(event['error'])}")

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
            if handler is not None:
                handler(event)

    def _on_pass_started(self, event: dict[str, Any]) -> None:
        self._running[event["label"]] = self.progress.add_task(event["label"], total=None, note="")

    def _on_pass_finished(self, event: dict[str, Any]) -> None:
        self._drop(event["label"])
        self.console.print(f"  {escape(event['label']):<30} [dim]{event['seconds']:>8.1f} s[/dim]")

    def _on_pass_failed(self, event: dict[str, Any]) -> None:
        self._drop(event["label"])
        self.console.print(f"  {escape(event['label']):<30} [red]failed[/red] {escape(event['error'])}")

    def _on_artifact_damaged(self, event: dict[str, Any]) -> None:
        self.console.print(f"  [yellow]damaged[/yellow] {escape(event['error'])}")

    def _on_step(self, event: dict[str, Any]) -> None:
        total = self._steps.get(event["task"])
        place = f"step {event['step']} of {total}" if total else f"batch {event['step']}"
        loss, norm = _shown(event["loss"], 3), _shown(event["max_grad_norm"], 2)
        self._note(event["task"], f"{place}: loss {loss}, max gradient norm {norm}")

    def _on_progress(self, event: dict[str, Any]) -> None:
        if event["source"] == "training":
            self._steps[event["task"]] = event["total"]
        total = f" of {event['total']}" if event.get("total") else ""
        self._note(event["task"], f"{event['done']}{total}")

    def _note(self, task: str, text: str) -> None:
        for label, row in self._running.items():
            if label.startswith(task):
                self.progress.update(row, note=text)

    def _drop(self, label: str) -> None:
        row = self._running.pop(label, None)
        if row is not None:
            self.progress.remove_task(row)


def _shown(value: float | None, digits: int) -> str:
    """Events carry null for what was not a finite number."""
    return "not finite" if value is None else f"{value:.{digits}f}"


def print_answer(console: Console, result: dict[str, Any], run: Run) -> None:
    """Verdict, signals, harmful samples, moving concepts, predicted loss, and where things lie."""
    summary = result["summary"]
    console.print(f"\n[bold]Should I train?[/bold]  [bold]{summary['answer']}.[/bold]")
    for number, reason in enumerate(summary["reasons"], start=1):
        console.print(f"  {number}  {escape(reason)}")
    for signal in result["signals"]:
        console.print(
            f"[{COLOURS[signal['severity']]}]{signal['severity']:<9}[/] {signal['name']}  "
            f"[dim]{signal['value']} (threshold {signal['threshold']})[/dim]"
        )
    if summary["harmful_samples"]:
        console.print("\n[bold]Samples of the worst ranks[/bold] [dim](nats of held-out loss; negative helps)[/dim]")
        for row in summary["harmful_samples"]:
            console.print(
                f"  row {row['row']:<4} {row['score']:+.5f} {row['verdict']:<8} {escape(one_line(row['text'], 80))}"
            )
    for title, sign in (("strengthened", "+"), ("suppressed", "-")):
        if summary[title]:
            console.print(f"\n[bold]Concepts {title}[/bold] [dim](score, and change on held-out text)[/dim]")
        for concept in summary[title]:
            console.print(
                f"  {sign} {concept['feature']:<6} {concept['score']:+.3e}  {concept['change']:+.4f}  "
                f"{escape(one_line(concept['label'] or 'unnamed', 60))}"
            )
    console.print(
        f"\nHeld-out loss  {summary['heldout_loss_base']:.3f} -> {summary['heldout_loss_predicted']:.3f} predicted "
        f"({summary['heldout_loss_evaluated']:.3f} evaluated on the predicted weights), trusted: {summary['trust']}"
    )
    counts = result["tasks"]
    console.print(f"Passes         {counts['run']} run, {counts['cached']} cached")
    harming = sum(row["verdict"] == "harms" for row in summary["harmful_samples"])
    if harming:
        console.print(f"Next           foretune clean {run.run_id} --drop-harmful {harming} -o clean.jsonl")
    console.print(f"Report         {(run.place / 'report.html').uri}", soft_wrap=True)
    console.print(f"Model          {result['artifacts']['checkpoint']['uri']}", soft_wrap=True)


def print_comparison(console: Console, compared: dict[str, Any]) -> None:
    """The differences of two runs, most telling first."""
    table = Table(box=None, header_style="bold")
    for column in ("", compared["a"], compared["b"]):
        table.add_column(column)
    for name, pair in {**compared["numbers"], "horizon": compared["horizon"]}.items():
        if pair["a"] is not None or pair["b"] is not None:
            table.add_row(name.replace("_", " "), *("-" if v is None else f"{v:.5g}" for v in (pair["a"], pair["b"])))
    for rule, pair in compared["quality"].items():
        table.add_row(f"flagged {rule}", str(pair["a"]), str(pair["b"]))
    console.print(table)
    samples, signals = compared["samples"], compared["signals"]
    for word in ("added", "removed"):
        console.print(f"rows {word}: {first_rows(samples[word]) or 'none'}")
    console.print(f"rows flipped between helping and harming {len(samples['flipped'])}")
    for row in samples["flipped"][:LISTED]:
        console.print(
            f"  row {row['row_a']} -> {row['row_b']}  {row['verdict_a']} {row['score_a']:+.5f} -> "
            f"{row['verdict_b']} {row['score_b']:+.5f}"
        )
    for word in ("appeared", "vanished"):
        if signals[word]:
            console.print(f"signals {word}: {', '.join(signals[word])}")
    for row in compared["features"][:LISTED]:
        console.print(
            f"  {row['feature']:<6} {row['score_a']:+.3e} -> {row['score_b']:+.3e}  "
            f"{escape(one_line(row['label'] or 'unnamed', 60))}"
        )
    if compared["layers"]:
        console.print("tensors whose effective learning rate moved most")
    for row in most_moved(compared["layers"])[:LISTED]:
        console.print(f"  {row['module']}  {row['eta_eff_a']:.3e} -> {row['eta_eff_b']:.3e}", markup=False)


def most_moved(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensors with an effective learning rate in both runs, the largest change first."""
    both = [row for row in layers if row["eta_eff_a"] is not None and row["eta_eff_b"] is not None]
    return sorted(both, key=lambda row: -abs(row["eta_eff_b"] - row["eta_eff_a"]))


def print_verdict(console: Console, verdict: dict[str, Any]) -> None:
    """The gate's verdict, with every rule that was crossed."""
    before = ", judged before" if verdict["repeated"] else ""
    console.print(f"\n[bold]{verdict['verdict']}[/bold]  {escape(verdict['dataset'])}{before}", soft_wrap=True)
    for crossing in verdict["crossings"]:
        console.print(
            f"[{COLOURS['critical' if crossing['verdict'] == 'fail' else 'warn']}]{crossing['verdict']:<5}[/] "
            f"{escape(crossing['subject'])}: {crossing['value']}, threshold {crossing['threshold']}  "
            f"{escape(crossing['reason'])}"
        )
    if verdict["skipped"]:
        console.print(f"not applied, since no version was accepted yet: {', '.join(verdict['skipped'])}")


def print_training_plan(console: Console, planned: dict[str, Any]) -> None:
    """How much real training a backtest is about to do."""
    runs, waiting, seconds = planned["real_runs"], planned["to_train"], planned["seconds"]
    if not waiting:
        time = "none to train"
    elif seconds is None:
        time = "time not known until something like it has run on this machine"
    else:
        time = f"about {seconds:.0f} s of training"
    console.print(f"real runs  {runs}, {runs - waiting} of them stored; {time}")


def print_backtest(console: Console, result: dict[str, Any], run: Run) -> None:
    """The axes, the losses behind them, and which signals came true."""
    found = result["backtest"]
    table = Table(box=None, header_style="bold")
    for column in ("axis", "simulation", "first step", "re-run"):
        table.add_column(column)
    for axis in found["axes"]:
        cells = [_spread(axis[method]) for method in ("simulation", "first_step", "rerun")]
        table.add_row(axis["axis"], axis["absent"] or cells[0], *cells[1:])
    console.print(table)
    real = ", ".join(f"{each['heldout_loss']:.3f}" for each in found["runs"])
    console.print(
        f"Held-out loss  {found['heldout_loss_base']:.3f} -> {found['heldout_loss_predicted']:.3f} on the predicted "
        f"weights, {real} really trained"
    )
    for row in found["signals"]:
        console.print(f"  {row['name']:<15} {row['verdict']}  [dim]{escape(row['detail'])}[/dim]")
    console.print(f"Report         {(run.place / 'report.html').uri}", soft_wrap=True)


def _spread(scores: dict[str, float] | None) -> str:
    if scores is None:
        return ""
    low, mean, high = scores["low"], scores["mean"], scores["high"]
    return f"{mean:.3f}" if low == high else f"{mean:.3f} ({low:.3f}–{high:.3f})"


def one_line(text: str, width: int = 96) -> str:
    """Text on one line, cut with an ellipsis, control characters made visible as spaces."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
