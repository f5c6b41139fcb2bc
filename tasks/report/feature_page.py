"""The feature browser: one page of one file that holds every feature that fires, as arrays, and shows those in view."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from foretune.tasks.report.concepts import name_test
from foretune.tasks.report.feature_table import BINS, VERDICTS, FeatureTable
from foretune.tasks.report.standalone import filled_page, json_data

FEATURES_PAGE = "features.html"
ANY_RUN = "@@run-id@@"
"""Where the name of the run that publishes a stored page comes: the page is the same for all that look it up."""
SCRIPTS = ("features.js",)
STYLES = ("report.css", "features.css")
COLUMNS = (
    "feature", "family", "members", "change", "error", "z", "z_null", "base", "new", "fires_base", "fires_new",
    "predicted_change", "score", "confidence",
)  # fmt: skip
_ID = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+")
NONE = -1
"""No token, no neighbour, no row."""


def feature_page(table: FeatureTable, run_id: str) -> str:
    """The page as text. All text from outside is data that the script writes as text, never as HTML."""
    from markupsafe import Markup

    data = Markup(json_data(page_data(table)))
    return filled_page("features.html.jinja", SCRIPTS, STYLES, run_id=run_id, count=len(table), data=data)


def page_data(table: FeatureTable) -> dict[str, Any]:
    """What the script reads: numbers as base64 of little-endian arrays, each word once."""
    words: dict[str, int] = {}

    def numbered(texts: Sequence[str]) -> list[int]:
        return [words.setdefault(text, len(words)) for text in texts]

    rows, held = table.rows, table.contexts
    sources: dict[str, int] = {}
    named = [sources.setdefault(name_test(line), len(sources)) for line in table.lines]
    top = np.repeat(np.repeat(table.top, np.diff(held.first)), held.length)
    known = table.neuronpedia_id if _ID.fullmatch(table.neuronpedia_id or "") else None
    return {
        "neuronpedia": known,
        "labels": rows["label"].tolist(),
        "named": packed(named, np.int32),
        "sources": list(sources),
        "verdict": packed([VERDICTS.index(verdict) for verdict in rows["verdict"]], np.uint8),
        "columns": {
            name: packed(rows[name], np.int32 if name in ("feature", "family", "members") else np.float32)
            for name in COLUMNS
        },
        "bins": BINS,
        "histogram": packed(np.minimum(table.histogram, 65535), np.uint16),
        "top": packed(table.top, np.float32),
        "tokens": packed(numbered(table.texts.tokens), np.int32),
        "starts": packed(table.texts.starts, np.int32),
        "rows": packed(table.texts.rows, np.int32),
        "contexts": {
            "first": packed(held.first, np.int32),
            "start": packed(held.start, np.int32),
            "length": packed(held.length, np.uint8),
            "peak": packed(held.peak, np.uint8),
            "base": packed(shades(held.base, top), np.uint8),
            "new": packed(shades(held.new, top), np.uint8),
        },
        **{name: lists(rows[name], numbered) for name in ("promoted", "suppressed")},
        "neighbours": lists(rows["neighbours"], list),
        "cosines": lists(rows["cosines"], lambda cosines: [round(100 * float(cosine)) for cosine in cosines]),
        "words": list(words),
    }


def packed(values: Any, kind: Any) -> str:
    """An array's bytes as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<")).tobytes()).decode()


def shades(values: Any, top: Any) -> Any:
    """Activations as 1 to 255 parts of the feature's largest, 0 where it does not fire."""
    return np.where(values > 0, np.maximum(np.round(255 * values / np.where(top > 0, top, 1)), 1), 0)


def lists(column: Any, numbered: Any) -> dict[str, Any]:
    """Lists of one column as a rectangle, `NONE` where a list is shorter."""
    found = [[] if value is None or isinstance(value, float) else numbered(value) for value in column]
    width = max(map(len, found), default=0)
    return {"width": width, "data": packed([[*each, *[NONE] * (width - len(each))] for each in found], np.int32)}
