"""The terminal: the one module that prints. Text from outside is redacted, made visible, and never read as markup."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from foretune.storage.display import one_line, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

LONGEST_PART = 4000
"""Characters of one part of a line: a path may be long, a column name of megabytes is cut."""


def plain(text: object, limit: int = LONGEST_PART) -> str:
    """Text that stays on its line and means nothing to the terminal; its spaces stay."""
    flat = shown(str(text)[: 16 * limit]).replace("\n", "\\n").replace("\t", " ")
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def styled(text: object, style: str) -> Text:
    """A part of a line in a style: bold, dim, red."""
    from rich.text import Text

    return Text(plain(text), style)


class Terminal:
    """Lines and tables on stdout; silent when asked to be."""

    def __init__(self, quiet: bool = False, width: int | None = None, file: TextIO | None = None) -> None:
        from rich.console import Console

        plainly: dict[str, Any] = {"quiet": quiet, "width": width, "highlight": False, "markup": False, "emoji": False}
        self.console: Console = Console(file=file, **plainly)
        self.errors: Console = Console(file=file, stderr=file is None, **plainly)

    @property
    def width(self) -> int:
        """Columns of a line."""
        return self.console.width

    @property
    def moving(self) -> bool:
        """Whether stderr is a terminal, where lines can move."""
        return self.errors.is_terminal

    def say(self, *parts: object, whole: bool = False) -> None:
        """One line of these parts; with `whole` it is not wrapped, so that a path can be copied."""
        from rich.text import Text

        line = Text()
        for part in parts:
            line.append_text(part if isinstance(part, Text) else Text(plain(part)))
        self.console.print(line, soft_wrap=whole)

    def hanging(self, head: str, text: object) -> None:
        """Words after a head, in as many lines as they need, each as far in as the first; no word is broken."""
        lines = textwrap.wrap(
            plain(text), max(self.width - len(head), 20), break_long_words=False, break_on_hyphens=False
        )
        for number, line in enumerate(lines or [""]):
            self.say(head if number == 0 else " " * len(head), line, whole=True)

    def beside(self, text: object) -> None:
        """A line on stderr, beside the answer."""
        from rich.text import Text

        self.errors.print(Text(plain(text)), soft_wrap=True)

    def gap(self) -> None:
        """An empty line."""
        self.console.print()

    def table(self, columns: Sequence[object], rows: Iterable[tuple[Sequence[object], str]], whole: int = 0) -> None:
        """A table of cells as text; each row with its style. The first `whole` columns are as wide as they need."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold")
        for number, column in enumerate(columns):
            table.add_column(Text(plain(column)), no_wrap=number < whole)
        for cells, style in rows:
            table.add_row(*(Text(plain(cell)) for cell in cells), style=style)
        self.console.print(table)

    def progress(self) -> Progress:
        """Moving lines on stderr, below what is said, a spinner, a bar and a note each; nothing where it is a file."""
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self.errors,
            transient=True,
            redirect_stdout=self.console.is_terminal,  # else stdout is a file, and stays one
            disable=not self.moving,
        )


def write_json(value: Any) -> None:
    """The last line of stdout, for programs: one JSON object without secrets, which any encoding can hold."""
    from foretune.storage.display import json_shown

    narrow = "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()
    sys.stdout.flush()
    print(json_shown(value, lambda safe: json.dumps(safe, ensure_ascii=narrow, default=str)), flush=True)


def write_lines(lines: Iterable[str]) -> None:
    """Lines for another program on stdout, shown as all text from outside is."""
    for line in lines:
        print(shown(line))


def write_help(text: str) -> None:
    """Text of our own on stdout, as it is."""
    print(text)


def flush() -> None:
    """What was written leaves now."""
    sys.stdout.flush()
    sys.stderr.flush()


def write_error(message: str) -> None:
    """One line on stderr, what a command says when it fails."""
    print(f"foretune: {one_line(message)}", file=sys.stderr)


def write_notice(message: str) -> None:
    """One line on stderr, what a command says beside its answer."""
    write_error(message)


def write_traceback(text: str) -> None:
    """A whole traceback on stderr, for whoever asked for it (FORETUNE_DEBUG)."""
    print(shown(text), file=sys.stderr)


def take_any_encoding() -> None:
    """What stdout or stderr cannot encode is spelled out there, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
