"""The contract of every attempt, and how an attempt is held against it.

A status that is documented, one line of error at most, no traceback, nothing changed outside of the storage root and
the named output, no secret and no hidden character out, an end in time and in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STATUSES = {0, 1, 2, 3, 130}
SECRET = "SECRETwJalrXUtnFEMI9"
"""What no output may hold; every planted secret contains it."""
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}aws/K7MDENG",
    "HF_TOKEN": f"hf_{SECRET}abcdefgh",
    "OWN_PASSWORD": f"{SECRET}-password",
}
SECONDS = 30.0
"""Of processor time that one attempt may take, its children's too: the clock says more of what else the machine does."""
IDLE_SECONDS, SLOWED = 30.0, 20.0
"""An attempt may take so many times its processor time where others compute too, and wait for so long besides."""
MEGABYTES = 1500.0
"""By which the highest memory of the process may grow in one attempt."""
LONGEST_LINE = 4200
"""Characters: a line holds at most one whole message, and a path."""

_FLAGS = ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",)
_OVERRIDES = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float  # of processor time, where the machine does other things too
    grown: float  # megabytes
    by_the_clock: float = 0.0  # seconds

    @property
    def line(self) -> str:
        return self.err.strip()


def faults(outcome: Outcome, seconds: float = SECONDS) -> list[str]:
    """Everything about an ending that breaks the contract."""
    found = []
    if outcome.status not in STATUSES:
        found.append(f"status {outcome.status}")
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    if any(not line.startswith("foretune: ") for line in lines):
        found.append(f"stderr holds another line: {lines[0][:200]!r}")
    if outcome.status and len(lines) != 1:
        found.append(f"{len(lines)} lines for one fault")
    if any(len(line) > LONGEST_LINE for line in lines):
        found.append(f"a line of {max(map(len, lines))} characters")
    if "Traceback" in outcome.err or "the traceback is in" in outcome.err:
        found.append("nobody foresaw it")
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        found += [f"{name}: {each}" for each in faults_of_text(text)]
    if outcome.seconds > seconds:
        found.append(f"{outcome.seconds:.0f} s")
    if outcome.by_the_clock - SLOWED * outcome.seconds > IDLE_SECONDS:
        found.append(f"waited: {outcome.by_the_clock:.0f} s by the clock, of which it computed {outcome.seconds:.1f} s")
    if outcome.grown > MEGABYTES:
        found.append(f"{outcome.grown:.0f} MB more")
    return found


def faults_of_text(text: str) -> list[str]:
    """A secret in it, or a character that is there and not seen."""
    found = [f"holds the secret: {_around(text, text.index(SECRET))}"] if SECRET in text else []
    for flag in _FLAGS:
        text = text.replace(flag, "")
    raw = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
    raw = raw or (found_one[0] if (found_one := _OVERRIDES.search(text)) else None)
    return found + ([f"holds U+{ord(raw):04X}: {_around(text, text.index(raw))}"] if raw else [])


def _around(text: str, at: int) -> str:
    return ascii(text[max(at - 60, 0) : at + 60])


Tree = dict[str, tuple[int, int, int, str]]


def tree(folder: Path, without: Iterable[Path] = (), digests: bool = False) -> Tree:
    """Every file below a folder: kind and permissions, size, date, and the change time that nobody can set."""
    found: Tree = {}
    skipped = {str(path) for path in without}
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(base, name) not in skipped]
        for name in (*folders, *files):
            path = Path(base, name)
            if str(path) in skipped:
                continue
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                found[str(path.relative_to(folder))] = (status.st_mode, 0, 0, "")
                continue
            digest = ""
            if digests and stat.S_ISREG(status.st_mode):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            dates = (status.st_mtime_ns, status.st_ctime_ns)
            found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, hash(dates), digest)
    return found


def changes(before: Tree, after: Tree) -> list[str]:
    """What is not as it was, by name."""
    return [
        f"changed outside: {name}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def leaks(root: Path, run_files: Iterable[str] = ("*",)) -> list[str]:
    """Secrets in what runs leave: events, results, reports."""
    found = []
    for path in (p for pattern in run_files for p in (root / "runs").glob(f"*/{pattern}")):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            found.append(f"{path.name} holds the secret")
    return found
