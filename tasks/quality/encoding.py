"""Damage of encodings: found without a second look where text is ASCII, and mended where that is mechanical."""

from __future__ import annotations

import re
from collections.abc import Iterator

# What UTF-8 looks like once it was read as Latin-1 or Windows-1252: a head byte's sign and a tail byte's sign.
_TAIL = (
    "\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c\u201d"
    "\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
)
_SUSPECT = re.compile(rf"[\u00c2-\u00df][{_TAIL}]|[\u00e0-\u00ef][{_TAIL}]{{2}}|[\u00f0-\u00f4][{_TAIL}]{{3}}")
_C0 = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]|[\x80-\x84\x86-\x9f]")
_CONTROL_TEXT = re.compile("(?:\x1b\\[[0-9;]*[A-Za-z])|[\x00-\x08\x0b\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
_UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]|[\u202a-\u202e\u2066-\u2069]")
_DROPPED = re.compile("[\u00ad\u200b\u2060\ufeff]")
_HALF = re.compile("[\ud800-\udfff]")

Damage = tuple[str, int, int]  # rule, start, end


def damages(text: str) -> Iterator[Damage]:
    """The first place of each kind of damage."""
    broken = None if text.isascii() else _SUSPECT.search(text)
    if broken is not None and _restored(text) == text:
        broken = None
    if broken is not None:
        yield "mojibake", *broken.span()
    # C1 controls are bytes of what was read in the wrong encoding: one fault, not two.
    if (found := (_C0 if broken else _CONTROL).search(text)) is not None:
        yield "control_character", *found.span()
    if text.isascii():
        return
    if (found := _UNSEEN.search(text)) is not None:
        yield "invisible_character", *found.span()
    if (found := _HALF.search(text)) is not None:
        yield "half_character", *found.span()


def _restored(text: str) -> str:
    from ftfy import fix_encoding

    return fix_encoding(text) if not _HALF.search(text) else text


def mended(text: str) -> str:
    """The text with its encoding restored, without control and zero-width characters, and with U+FFFD for halves."""
    if not text.isascii():
        if _SUSPECT.search(text):
            text = _restored(text)
        text = _HALF.sub("\ufffd", _DROPPED.sub("", text))
    return _CONTROL_TEXT.sub("", text)


def trimmed(text: str) -> str:
    """Without white space around it, but for the one blank that some completions begin by."""
    return (" " if text.startswith(" ") and text.strip() else "") + text.strip()


def is_untrimmed(text: str) -> bool:
    return bool(text) and trimmed(text) != text
