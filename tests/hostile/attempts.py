"""Attempts: a command over inputs of its own, in this process or in another, and what broke the contract."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.contract import ENVIRONMENT, Outcome, changes, faults, leaks, tree

CLOCK_SECONDS = 300.0
"""After which an attempt is ended; it broke the contract long before."""
HEALED_EVERY = 10
"""A root that attempts only read is tried again after one in so many, a root of an attempt's own always."""


class TooLong(BaseException):
    """The attempt has not ended; raised into it."""


@dataclass
class Case:
    """The inputs and the root of one attempt, which it may spoil."""

    folder: Path
    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    output: Path | None = None
    instead: Callable[[], Any] | None = None  # what the command calls, where a reader is tried by itself

    @property
    def request(self) -> Path:
        return self.folder / "request.yaml"

    @property
    def rows(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def sae(self) -> Path:
        return self.folder / "sae"

    @property
    def run(self) -> Path:
        """The folder of the finished run in the root."""
        return next(iter(sorted((self.root / "runs").iterdir())))

    def content(self) -> dict[str, Any]:
        return yaml.safe_load(self.request.read_text())

    def change(self, **sections: Any) -> None:
        """Sections of the request, replaced or added to."""
        content = self.content()
        for name, value in sections.items():
            old = content.get(name)
            content[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
        self.request.write_text(yaml.safe_dump(content))


Prepare = Callable[[Case], "list[str]"]
"""Spoils a case and says the command."""


@dataclass
class World:
    """Healthy inputs and a root with a finished run, beside them a tree that nobody may touch."""

    base: Path
    healthy: Path  # folder of request.yaml, rows, model, sae
    root: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    heals: Iterator[int] = field(default_factory=itertools.count)

    @property
    def beside(self) -> Path:
        return self.base / "beside"

    def case(self, own_root: bool) -> Case:
        """Fresh inputs; with `own_root` a copy of the root too, whose artefacts are linked."""
        folder = self.base / "attempts" / str(next(self.numbers))
        shutil.copytree(self.healthy, folder)
        root = self.root
        if own_root:
            root = folder / "root"
            shutil.copytree(self.root, root, copy_function=os.link)
            for file in root.glob("runs/*/*"):
                data = file.read_bytes()
                file.unlink()
                file.write_bytes(data)
        request = folder / "request.yaml"
        request.write_text(request.read_text().replace("FOLDER", str(folder)).replace("ROOT", str(root)))
        return Case(folder, root)

    def attempt(
        self, prepare: Prepare, own_root: bool = False, process: bool = False, heals: bool = True
    ) -> tuple[Outcome, list[str]]:
        """Run one attempt; what broke the contract, and whether a healthy command still succeeds on the root."""
        case = self.case(own_root)
        temporary = case.folder.parent / "tmp"
        temporary.mkdir(exist_ok=True)
        try:
            words = prepare(case)
            kept = [case.root, temporary, *([case.output] if case.output else [])]
            leaked = leaks(case.root)
            inputs, outside = tree(case.folder, kept), tree(self.beside, digests=True)
            environment = ENVIRONMENT | {"TMPDIR": str(temporary)} | case.environment
            if process:
                outcome = run_process(words, environment, case.folder)
            else:
                outcome = run_here(words, environment, case.folder, case.instead)
            found = faults(outcome)
            found += changes(inputs, tree(case.folder, kept)) + changes(outside, tree(self.beside, digests=True))
            found += [each for each in leaks(case.root) if each not in leaked]
            found += [f"left {path.name}" for path in temporary.glob("foretune-*")]
            if heals and (own_root or next(self.heals) % HEALED_EVERY == 0):
                found += self.healed(case)
            return outcome, found
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            remove(case.folder)

    def healed(self, case: Case) -> list[str]:
        """A healthy command on the same root."""
        folder = self.base / "healthy"
        if not folder.exists():
            shutil.copytree(self.healthy, folder)
            request = folder / "request.yaml"
            request.write_text(request.read_text().replace("FOLDER", str(folder)).replace("ROOT", str(self.root)))
        outcome = run_here(["plan", str(folder / "request.yaml"), "--root", str(case.root), "--quiet"], {}, folder)
        return (
            [] if outcome.status == 0 else [f"a healthy plan after it: status {outcome.status}, {outcome.line[:300]}"]
        )


def remove(folder: Path) -> None:
    """A folder, whatever permissions the attempt gave it."""
    for base, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(base, name)
            if not path.is_symlink() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _late(*_: object) -> None:
    raise TooLong


@contextlib.contextmanager
def _surroundings(environment: dict[str, str], folder: Path, words: list[str]) -> Iterator[None]:
    before, at, argv, handler = dict(os.environ), os.getcwd(), sys.argv, signal.getsignal(signal.SIGALRM)
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # read again from TMPDIR
    sys.argv = ["foretune", *words]
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        os.environ.clear()
        os.environ.update(before)
        os.chdir(at)
        tempfile.tempdir = None
        sys.argv = argv


@contextlib.contextmanager
def _captured() -> Iterator[tuple[Any, Any]]:
    """What this process writes, to its streams and past them."""
    sys.stdout.flush()
    sys.stderr.flush()
    streams, numbers = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    files = tempfile.TemporaryFile("w+b"), tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed once they are read
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file.fileno(), number)
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb", 0), "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb", 0), "utf-8", write_through=True)
    try:
        yield files
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.close()
        sys.stdout, sys.stderr = streams
        for number, kept in zip((1, 2), numbers, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def _text(file: Any) -> str:
    file.seek(0)
    data = file.read()
    file.close()
    return data.decode(errors="surrogateescape")


def _times() -> tuple[float, float]:
    """Processor time of this process and of its children that have ended; the clock."""
    return sum(os.times()[:4]), time.monotonic()


def _taken(began: tuple[float, float], grown: float = 0.0) -> tuple[float, float, float]:
    computed, clock = (now - then for now, then in zip(_times(), began, strict=True))
    return computed, grown, clock


def _most() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_here(
    words: list[str], environment: dict[str, str], folder: Path, instead: Callable[[], Any] | None = None
) -> Outcome:
    """`foretune WORDS` by its entry point in this process; with `instead` this takes the place of the command."""
    from foretune.flows import cli

    status, began, memory = 0, _times(), _most()
    with _surroundings(environment, folder, words), _captured() as files:
        handles, cli.stop_at_signals = cli.stop_at_signals, lambda: None  # signals are the test's own
        app = cli.app
        if instead is not None:
            cli.app = lambda **_: instead() and None
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        except TooLong:
            status = -9
        except BaseException as error:
            status = -1
            print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            cli.stop_at_signals, cli.app = handles, app
    return Outcome(status, _text(files[0]), _text(files[1]), *_taken(began, _most() - memory))


def run_process(words: list[str], environment: dict[str, str], folder: Path) -> Outcome:
    """`foretune WORDS` as a user starts it. A variable set to `unset` is not there."""
    began = _times()
    around = {n: v for n, v in (os.environ | environment).items() if v != "unset"}
    command = [sys.executable, "-c", "from foretune.flows.command import main; main()"]
    try:
        done = subprocess.run([*command, *words], capture_output=True, cwd=folder, env=around, timeout=CLOCK_SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome(-9, "", "", *_taken(began))
    wide = around.get("PYTHONIOENCODING", "").startswith("utf-16")  # which the user then reads
    encoding, errors = ("utf-16", "replace") if wide else ("utf-8", "surrogateescape")
    out, err = (data.decode(encoding, errors) for data in (done.stdout, done.stderr))
    return Outcome(done.returncode, out, err, *_taken(began))
