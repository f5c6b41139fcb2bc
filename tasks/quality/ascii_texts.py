"""The texts of many rows as one run of bytes, raw and normalised: what ASCII texts are searched in together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TABLE = bytes(
    32 if chr(byte).isspace() else 39 if byte == 96 else ord(chr(byte).lower()) if byte < 128 else byte
    for byte in range(256)
)


class AsciiTexts:
    """Texts of ASCII without a zero character, each between two of them.

    `normal` is what `phrases.normal_text` makes of each; offsets are bytes, which are characters here.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.raw = ("\0" + "\0".join(texts) + "\0").encode() if texts else b"\0"
        self.buffer = np.frombuffer(self.raw, np.uint8)
        self.bounds = np.flatnonzero(self.buffer == 0)  # a text stands behind each but the last
        self.normal, self.normal_buffer, self.normal_bounds = self._normalised()

    def _normalised(self) -> tuple[bytes, np.ndarray, np.ndarray]:
        normal = self.raw.translate(_TABLE)
        buffer = np.frombuffer(normal, np.uint8)
        blank = buffer == 32
        doubled = np.zeros(len(blank), bool)
        np.logical_and(blank[1:], blank[:-1], out=doubled[1:])
        if not doubled.any():
            return normal, buffer, self.bounds
        buffer = buffer[~doubled]
        return buffer.tobytes(), buffer, np.flatnonzero(buffer == 0)

    def __len__(self) -> int:
        return len(self.texts)

    def normal_of(self, text: int) -> bytes:
        return self.normal[self.normal_bounds[text] + 1 : self.normal_bounds[text + 1]]

    def holding(self, marked: np.ndarray) -> np.ndarray:
        """Which texts have one of the raw positions."""
        return np.unique(np.searchsorted(self.bounds, marked, "right") - 1)
