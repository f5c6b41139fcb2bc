"""A model's chat template is rendered in a child: jinja2's sandbox keeps it from files, not from time or memory.

One child renders all rows of a table. It imports jinja2 alone, and each row has so much processor time.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from foretune.storage.confinement import Child, confined, keep_within_limits
from foretune.tasks.samples.chat_template import ChatTemplateError, RenderedChat, render_chat

ROW_SECONDS = 10.0
"""Processor time of one conversation; one of 100,000 tokens takes 0.02."""
START_SECONDS, MEAN_SECONDS = 60.0, 0.2
"""Of all rows together, beside the start: two or three renderings each."""
BATCH = 256
WALL = 30.0
"""Times the processor time: how much slower a clock on the wall may be on a busy machine."""
MEMORY = 2 * 2**30
LONGEST = 16 * 2**20
"""Characters of a template, and of a rendered conversation."""

_HEAD = struct.Struct(">I")


@dataclass(frozen=True)
class Conversation:
    """What is to be rendered, and the row it is of."""

    row: int
    messages: list[Any]
    template: str
    variables: dict[str, Any]


class Renderer:
    """Renders conversations in a child that is started with the first of them."""

    def __init__(self, rows: int, stack: contextlib.ExitStack) -> None:
        self._seconds, self._stack = START_SECONDS + MEAN_SECONDS * rows, stack
        self._child: Child | None = None

    def render(self, conversations: Sequence[Conversation]) -> list[RenderedChat]:
        """Every conversation as text. Raises ChatTemplateError, which names the row, where the template refuses one
        or needs more time or memory than it may have."""
        if self._child is None:
            self._child = self._stack.enter_context(confined(__name__, memory=MEMORY, cpu_seconds=self._seconds))
        parts = [conversations[start : start + BATCH] for start in range(0, len(conversations), BATCH)]
        return [chat for part in parts for chat in self._rendered(self._child, part)]

    def _rendered(self, child: Child, part: Sequence[Conversation]) -> Iterator[RenderedChat]:
        at = 0
        with child.within(WALL * ROW_SECONDS):
            try:
                templates = list(dict.fromkeys(each.template for each in part))
                asked = [(templates.index(each.template), each.messages, each.variables) for each in part]
                _write(child.gives, pickle.dumps((templates, asked)))
                for at in range(len(part)):
                    said = json.loads(_read(child.takes))
                    if "fault" in said:
                        raise _refused(part[at].row, said["fault"])
                    yield RenderedChat(said["text"], tuple((start, end) for start, end in said["assistant"]))
            except (EOFError, OSError):
                limits = f"{ROW_SECONDS:g} s and {MEMORY / 2**30:g} GB are the most for one row"
                raise _refused(part[at].row, f"{child.end()}, {limits}") from None


def _refused(row: int, why: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"row {row}: the chat template refuses the conversation ({why}); mend the row, or the template"
    )


@contextlib.contextmanager
def renderer(rows: int) -> Iterator[Renderer]:
    """For the conversations of so many rows."""
    with contextlib.ExitStack() as stack:
        yield Renderer(rows, stack)


def _write(stream: Any, data: bytes) -> None:
    stream.write(_HEAD.pack(len(data)) + data)
    stream.flush()


def _read(stream: Any) -> bytes:
    head = stream.read(_HEAD.size)
    data = stream.read(_HEAD.unpack(head)[0]) if len(head) == _HEAD.size else b""
    if not data:
        raise EOFError
    return data


def _serve(asks: BinaryIO, answers: BinaryIO) -> None:
    """In the child: batches of conversations in, one answer a row out, until there are no more."""
    with contextlib.suppress(EOFError):
        while True:
            templates, asked = pickle.loads(_read(asks))
            for template, messages, variables in asked:
                _allow(ROW_SECONDS)
                _write(answers, json.dumps(_answer(templates[template], messages, variables)).encode())
            _allow(0)


def _answer(template: str, messages: list[Any], variables: dict[str, Any]) -> dict[str, Any]:
    if len(template) > LONGEST:
        return {"fault": f"the template has more than {LONGEST // 2**20} million characters"}
    try:
        chat = render_chat(template, messages, variables)
    except ChatTemplateError as error:
        return {"fault": str(error)[:2000]}
    except MemoryError:
        return {"fault": f"it needs more than {MEMORY / 2**30:g} GB"}
    except RecursionError:
        return {"fault": "its macros call each other without end"}
    except Exception as error:  # whatever a template makes of a row is the template's
        return {"fault": f"{type(error).__name__}: {error}"[:2000]}
    if len(chat.text) > LONGEST:
        return {"fault": f"it makes more than {LONGEST // 2**20} million characters of the row"}
    return {"text": chat.text, "assistant": chat.assistant}


def _allow(seconds: float) -> None:
    """The kernel ends this process when the row took so much processor time, inside a call of C too."""
    import signal

    if hasattr(signal, "setitimer"):  # Windows: the parent's clock alone
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    keep_within_limits()
    _serve(sys.stdin.buffer, sys.stdout.buffer)
