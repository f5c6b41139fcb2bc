"""Text from outside as people may safely see it: no secret in it, and nothing in it that is there but not seen.

Control characters, escape codes, overrides of the reading direction, tag characters, zero-width characters and
halves of surrogate pairs are spelled out (`\\x1b`, `\\u202e`, `\\U000e0041`). What writing needs stays: joiners inside
emoji and inside words of scripts that join, one variation selector after a character that has variants.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from foretune.storage.redaction import redacted, redacted_tree

LONGEST_LINE = 2000
"""Characters of a message: a column name of megabytes is not worth a terminal's time."""

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_JOINERS = "\u200c\u200d"
# Format characters that have a shape of their own (Arabic number signs) are left out.
_FORMATS = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN = re.compile(f"[{_CONTROLS}{_FORMATS}{_SELECTORS}\ud800-\udfff]+")

# Scripts whose letters join, so that a joiner between two of them is spelling: Arabic, Syriac, N'Ko, the Indic scripts
# and their neighbours, Mongolian.
_JOINING = re.compile(
    "[\u0620-\u06ff\u0700-\u07ff\u0840-\u08ff\u0900-\u0eff\u0f00-\u109f\u1780-\u17d3\u1820-\u18aa\ua840-\ua877"
    "\ua880-\ua8ff\ua980-\ua9df\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00010aff\U00010f30-\U00010f6f"
    "\U00011000-\U000118ff\U0001e900-\U0001e95f]"
)
_EMOJI = re.compile("[\u00a9\u00ae\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\U0001f000-\U0001faff]")
_IDEOGRAPH = re.compile("[\u2e80-\u2fdf\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_PRESENTATION = "\ufe0e\ufe0f"  # as text, as emoji
_BLACK_FLAG = "\U0001f3f4"
_REGIONS = {
    "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f" for region in ("gbeng", "gbsct", "gbwls")
}
"""The three flags that Unicode spells with tag characters; any other row of them is text that nobody sees."""


def visible(text: str) -> str:
    """`text` with every character that a reader could not see spelled out; lines and tabs stay."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub(_spelled, text)


def shown(text: object) -> str:
    """The one way for text from outside to terminal, logs, Prefect and report: redacted, and visible."""
    return visible(redacted(str(text)))


def one_line(text: object, limit: int = LONGEST_LINE) -> str:
    """The same on one line of at most `limit` characters."""
    text = str(text)
    if len(text) > 16 * limit:  # far more than is shown, kept whole for a secret at the cut
        text = text[: 16 * limit]
    line = " ".join(shown(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shown_tree(value: Any) -> Any:
    """Plain values with every string in them as `shown`."""
    return redacted_tree(value, shown)


def json_shown(value: Any, dumps: Callable[[Any], str]) -> str:
    """JSON without secrets, in which what cannot be seen is an escape of JSON's: it reads back as it was."""
    return json_visible(dumps(redacted_tree(value)))


def json_visible(text: str) -> str:
    """JSON text with what cannot be seen as an escape of JSON's, half a surrogate pair too: any encoding holds it."""
    return _UNSEEN.sub(lambda found: "".join(map(_as_json, found[0])), text)


def _as_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _spelled(found: re.Match[str]) -> str:
    text, run, end = found.string, found[0], found.end()
    before = text[found.start() - 1] if found.start() else ""
    after = text[end] if end < len(text) else ""
    if before == _BLACK_FLAG and run in _REGIONS:
        return run
    base, out = before, []  # base: the character that a joiner or selector would belong to, itself shown
    for at, character in enumerate(run):
        following = run[at + 1] if at + 1 < len(run) else after
        if _belongs(character, base, following):
            out.append(character)
            base = character
        else:
            out.append(_escape(character))
            base = ""
    return "".join(out)


def _belongs(character: str, base: str, following: str) -> bool:
    """Whether a joiner or a variation selector is part of how `base` (and `following`) are written."""
    if character in _JOINERS:
        if character == "\u200d" and _EMOJI.match(following or " "):
            return base == "\ufe0f" or bool(_EMOJI.match(base or " "))
        return bool(_JOINING.match(base or " ") and _JOINING.match(following or " "))
    if character in _PRESENTATION:
        keycap = bool(base) and base in "#*0123456789" and following == "\u20e3"
        return keycap or (bool(base) and (bool(_EMOJI.match(base)) or base in "‼⁉ℹ〰〽㊗㊙" or _symbol(base)))
    if "\ufe00" <= character <= "\ufe0d":
        return bool(base) and (bool(_IDEOGRAPH.match(base)) or _symbol(base))
    if "\U000e0100" <= character <= "\U000e01ef":
        return bool(base) and bool(_IDEOGRAPH.match(base))
    if "\u180b" <= character <= "\u180f":
        return bool(base) and "\u1820" <= base <= "\u18aa"
    return False


def _symbol(character: str) -> bool:
    return unicodedata.category(character) in ("So", "Sm")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
