"""Events: one JSON object a line, the same from a simulation and from a real training run.

On disk each event is appended to events.jsonl as it happens. S3 cannot append: there the lines gather in
bounded parts (events/part-*.jsonl), which close() merges into events.jsonl. A crash leaves the parts.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import re
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from foretune.storage.cache import DRAFT, new_draft
from foretune.storage.display import json_shown
from foretune.storage.drafts import to_json
from foretune.storage.errors import BadInput, disk_faults
from foretune.storage.event_records import event_in
from foretune.storage.roots import root_to_write
from foretune.storage.runs import Run

logger = logging.getLogger(__name__)

EVENTS, PARTS = "events.jsonl", "events"
PART = re.compile(rf"part-\d{{5,}}-{DRAFT}\.jsonl")
PART_LINES = 500
PART_SECONDS = 5.0  # how far `foretune watch` may lag behind a run on S3

_open_logs: dict[Run, EventLog] = {}
_opening = threading.Lock()


class EventLog:
    """Appends the events of one run; threads may share it. `EventLog.of(run)` gives one per process."""

    def __init__(self, run: Run, source: str = "simulation"):
        self.run, self.source = run, source
        self._lock = threading.RLock()
        self._file: BinaryIO | None = None
        self._lines: list[bytes] = []
        self._since = 0.0
        self._timer: threading.Timer | None = None
        self._parts = 0
        self._in_root = False
        self._over = False
        # A resumed run or a second process must not write over the parts of another.
        self._writer = new_draft("")

    @classmethod
    def of(cls, run: Run) -> EventLog:
        """This process's log of the run; opened at the first call, flushed when the process ends."""
        with _opening:
            if run not in _open_logs:
                _open_logs[run] = cls(run)
            return _open_logs[run]

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def emit(self, type: str, **fields: Any) -> None:
        """Append one event; NaN and infinities become null. Raises StorageFault when the place fails."""
        event = {
            "run_id": self.run.run_id,
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "type": type,
            "source": self.source,
            **fields,
        }
        line = json_shown(_finite(event), to_json).encode() + b"\n"
        with self._lock:
            if not self._in_root:
                root_to_write(self.run.root)
                self._in_root = True
            if self._over:
                return
            if self.run.place.is_local:
                self._append(line)
            else:
                self._gather(line)

    def emit_last(self, type: str, **fields: Any) -> None:
        """Append one event and send it; whatever threads emit after it is dropped."""
        with self._lock:
            self.emit(type, **fields)
            self.flush()
            self._over = True

    def flush(self) -> None:
        """Send what is gathered; after it a crash loses nothing that was emitted before."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if self._lines:
                name = f"part-{self._parts + 1:05d}{self._writer}.jsonl"
                (self.run.place / PARTS / name).write_bytes(b"".join(self._lines))
                self._parts += 1
                self._lines = []

    def close(self) -> None:
        """Flush, merge the parts into events.jsonl, and forget this process's log of the run."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None
            self.flush()
            if not self.run.place.is_local:
                _merge(self.run)
        with _opening:
            if _open_logs.get(self.run) is self:
                del _open_logs[self.run]

    def _append(self, line: bytes) -> None:
        path = (self.run.place / EVENTS).local_path
        with disk_faults(path):
            if self._file is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
                if not _ends_a_line(path):
                    line = b"\n" + line  # a killed writer left half a line
            self._file.write(line)

    def _gather(self, line: bytes) -> None:
        if not self._lines:
            self._since = time.monotonic()
            self._timer = threading.Timer(PART_SECONDS, self._flush_quietly)
            self._timer.daemon = True
            self._timer.start()
        self._lines.append(line)
        if len(self._lines) >= PART_LINES or time.monotonic() - self._since >= PART_SECONDS:
            self.flush()

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except (ValueError, RuntimeError) as error:
            # No caller to tell: the lines stay, and the next emit or close raises.
            logger.warning("%s: events not written yet (%s)", self.run.run_id, error)


def _flush_open_logs() -> None:
    for log in list(_open_logs.values()):
        log._flush_quietly()  # pyright: ignore[reportPrivateUsage] - this module's own


# Before `atexit`, when threads may no longer be started, which the S3 client does to open a connection.
getattr(threading, "_register_atexit", atexit.register)(_flush_open_logs)


def read_events(run: Run) -> list[dict[str, Any]]:
    """Every event of the run, in order; half a line at a crash, and whatever is no event, is left out. Empty without
    a log."""
    return [event for line in _all_lines(run) if (event := event_in(line)) is not None]


class EventTail:
    """The events of a run as they come, each once: what was read is not read out of its text again."""

    def __init__(self, run: Run) -> None:
        self._run, self._seen = run, 0  # lines

    def read(self) -> list[dict[str, Any]]:
        """Those since the last call, as `read_events` has them."""
        found = [event_in(line) for line in _all_lines(self._run)[self._seen :]]
        if found and found[-1] is None:  # half a line, whose other half may be on its way
            found.pop()
        self._seen += len(found)
        return [event for event in found if event is not None]


def _all_lines(run: Run) -> list[bytes]:
    try:
        lines = (run.place / EVENTS).read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    parts = _parts(run)
    if not parts:
        return lines
    for name in parts:
        try:
            lines += (run.place / PARTS / name).read_bytes().splitlines()
        except FileNotFoundError:
            # Merged since the listing: it is in events.jsonl now.
            return _all_lines(run)
    # A crash between merging and deleting leaves the same lines twice.
    return sorted(dict.fromkeys(lines), key=_time_of)


def _time_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["time"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _parts(run: Run) -> list[str]:
    return [name for name in (run.place / PARTS).list() if PART.fullmatch(name)]


def _merge(run: Run) -> None:
    parts = _parts(run)
    lines = _all_lines(run)
    if lines:
        (run.place / EVENTS).write_bytes(b"\n".join(lines) + b"\n")
    for name in parts:
        (run.place / PARTS / name).delete()


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as stream:
        size = stream.seek(0, 2)
        if size == 0:
            return True
        stream.seek(size - 1)
        return stream.read(1) == b"\n"


def _finite(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def run_status(run: Run) -> str:
    """`status` of result.json, "unreadable" when it is torn or no file; without one "failed" or "stopped" where the
    events end with that, "completed" where those of a real training run do, else "unfinished".
    """
    try:
        try:
            return str(run.read_result().get("status", "finished"))
        except FileNotFoundError:
            last = next(reversed(read_events(run)), {})
    except BadInput:
        return "unreadable"
    ended = last.get("type") == "run_finished"
    # A simulation that was killed just before it wrote its result has not completed.
    real = last.get("source") == "training" or last.get("status") != "completed"
    return str(last.get("status")) if ended and real else "unfinished"
