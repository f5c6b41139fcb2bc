"""Foreign text before it is shown: what a reader could not see is made visible, and it may be cut to a line."""

from __future__ import annotations

import re

# Controls, separators that end a line in JavaScript, overrides of the reading direction, lone surrogates.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with every character that a reader could not see replaced by U+FFFD; line ends become "\\n"."""
    return _INVISIBLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: object, limit: int) -> str:
    """`text` on one line of at most `limit` characters."""
    line = " ".join(visible(str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
