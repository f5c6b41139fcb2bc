"""Every feature that fires on a run's rows, joined from its artefacts: numbers, histograms, contexts, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.tasks.report.concepts import name_test
from foretune.tasks.report.shown_tokens import all_shown, shown_tokens

if TYPE_CHECKING:
    import pandas as pd

    Array = np.ndarray[Any, Any]

READ = ("concepts", "feature_contexts", "samples")
BINS = 12
"""Of a histogram, all as wide, from 0 to the feature's largest activation under either model."""
CONTEXTS, LEFT, RIGHT = 6, 14, 6
"""Contexts of a feature, each of another text as far as there are some; tokens before and after the one it fires on."""
NUMBERS = (
    "change", "error", "z", "z_null", "base", "new", "fires_base", "fires_new", "relative", "predicted_change", "score",
    "confidence",
)  # fmt: skip
VERDICTS = ("not beyond noise", "strengthened", "faded")


@dataclass(frozen=True)
class Texts:
    """The rows that were read, one after another."""

    tokens: list[str]  # of all texts, as they may be shown
    starts: Array  # [texts + 1] first token of each
    rows: Array  # [texts] number of the training row, -1 of a held-out one

    def of(self, token: Any) -> Any:
        """The text in which a token stands, or of many."""
        return np.searchsorted(self.starts, token, side="right") - 1


@dataclass(frozen=True)
class Fired:
    """Every token on which a shown feature fires, by the feature's place and by token."""

    place: Array
    token: Array
    base: Array
    new: Array

    @property
    def peak(self) -> Array:
        return np.maximum(self.base, self.new)


@dataclass(frozen=True)
class Contexts:
    """Windows of tokens, by the feature's place; the activations of one window after those of another."""

    first: Array  # [features + 1] first window of each
    start: Array  # [windows] first token
    length: Array  # [windows] tokens
    peak: Array  # [windows] which of these the feature fires on
    base: Array  # [sum of lengths] activations
    new: Array

    @cached_property
    def offsets(self) -> Array:
        """[windows + 1] where the activations of each begin."""
        return np.concatenate([[0], np.cumsum(self.length)])


@dataclass(frozen=True)
class FeatureTable:
    """What the browser, the command and the Parquet file show; `rows` are lines of `concepts` with the lens beside."""

    rows: pd.DataFrame
    texts: Texts
    contexts: Contexts
    histogram: Array  # [features, 2, BINS] tokens, of the base and of the predicted model
    top: Array  # [features] largest activation
    neuronpedia_id: str | None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [{str(name): value for name, value in line.items()} for line in self.rows.to_dict("records")]

    @cached_property
    def names(self) -> dict[int, str]:
        return {line["feature"]: line["label"] for line in self.lines}


def feature_table(opened: Mapping[str, Any], neuronpedia_id: str | None = None) -> FeatureTable:
    """Of the opened artefacts `READ`; `neuronpedia_id` where the request names another than the SAE does."""
    held = opened["feature_contexts"]
    activations, lens = held.arrow("activations.parquet"), held.table("lens.parquet")
    rows = opened["concepts"].table("concepts.parquet")
    fires = (rows["fires_base"] > 0) | (rows["fires_new"] > 0) | rows["feature"].isin(lens["feature"])
    rows = rows[fires].merge(lens, on="feature", how="left").reset_index(drop=True)
    rows["label"] = all_shown([label or "" for label in rows["label"]])
    for name in ("promoted", "suppressed"):
        words = [[] if isinstance(value, float) or value is None else list(value) for value in rows[name]]
        safe = iter(all_shown([word for each in words for word in each]))
        rows[name] = [[next(safe) for _ in each] for each in words]
    for name in NUMBERS:
        rows[name] = rows[name].astype(float) if name in rows else np.nan
    samples = opened["samples"].arrow("samples.parquet", columns=["sample_id", "row"]).to_pydict()
    texts = read_texts(held.arrow("texts.parquet").to_pylist(), dict(zip(samples["sample_id"], samples["row"])))  # noqa: B905
    fired = placed(rows["feature"].to_numpy(), *(activations[name].to_numpy() for name in activations.column_names))
    known = neuronpedia_id or held.json("sae.json")["neuronpedia_id"]
    return FeatureTable(rows, texts, contexts_of(fired, texts, len(rows)), *histograms(fired, len(rows)), known)


def read_texts(texts: Sequence[Mapping[str, Any]], row_of: Mapping[str, int]) -> Texts:
    """The stored texts with the numbers that their rows have in this dataset."""
    tokens = [shown_tokens(text["tokens"]) for text in texts]
    numbers = [row_of.get(text["sample_id"], -1) if text["role"] == "train" else -1 for text in texts]
    starts = np.cumsum([0, *map(len, tokens)])
    return Texts([token for text in tokens for token in text], starts, np.array(numbers, dtype=np.int64))


def placed(features: Array, feature: Array, token: Array, base: Array, new: Array) -> Fired:
    """The activations of these features, each by its place among them."""
    order = np.argsort(features)
    found = np.searchsorted(features[order], feature)
    kept = found < len(features)
    kept[kept] = features[order][found[kept]] == feature[kept]
    place = order[found[kept]]
    sorting = np.lexsort((token[kept], place))
    return Fired(place[sorting], *(each[kept][sorting] for each in (token.astype(np.int64), base, new)))


def histograms(fired: Fired, count: int) -> tuple[Array, Array]:
    """[count, 2, BINS] tokens per bin under either model, and [count] the largest activation of each."""
    top = np.zeros(count, dtype=np.float32)
    np.maximum.at(top, fired.place, fired.peak)
    counted = []
    for values in (fired.base, fired.new):
        on = values > 0
        place = fired.place[on]
        binned = np.minimum((values[on] / top[place] * BINS).astype(np.int64), BINS - 1)
        counted.append(np.bincount(place * BINS + binned, minlength=count * BINS).reshape(count, BINS))
    return np.stack(counted, axis=1), top


def contexts_of(fired: Fired, texts: Texts, count: int) -> Contexts:
    """The places where each feature fires most strongly under either model."""
    order = np.lexsort((-fired.peak, fired.place))
    bounds = np.searchsorted(fired.place, np.arange(count + 1))
    text = texts.of(fired.token)
    chosen: list[int] = []
    counts = [0]
    for place in range(count):
        picked: dict[int, int] = {}
        for each in order[bounds[place] : bounds[place + 1]]:
            picked.setdefault(int(text[each]), int(each))
            if len(picked) == CONTEXTS:
                break
        chosen += picked.values()
        counts.append(len(picked))
    at = np.array(chosen, dtype=np.int64)
    token, place = fired.token[at], fired.place[at]
    start = np.maximum(texts.starts[text[at]], token - LEFT)
    length = np.minimum(texts.starts[text[at] + 1], token + RIGHT + 1) - start
    window = np.repeat(np.arange(len(at)), length)
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    wanted = place[window] * (texts.starts[-1] + 1) + start[window] + within
    keys = fired.place * (texts.starts[-1] + 1) + fired.token
    found = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    on = keys[found] == wanted if len(keys) else np.zeros(0, dtype=bool)
    base, new = (np.where(on, side[found], 0) if len(keys) else np.zeros(0) for side in (fired.base, fired.new))
    return Contexts(np.cumsum(counts), start, length, token - start, base, new)


def feature_record(table: FeatureTable, place: int) -> dict[str, Any]:
    """Everything of one feature, as plain values."""
    return {
        **short_record(table, place),
        **{name: table.lines[place][name] for name in ("promoted", "suppressed")},
        "neighbours": _neighbours(table, place),
        "largest_activation": float(table.top[place]),
        "histogram_base": table.histogram[place, 0].tolist(),
        "histogram_new": table.histogram[place, 1].tolist(),
        "contexts": [_context(table, window) for window in range(*table.contexts.first[place : place + 2])],
    }


def short_record(table: FeatureTable, place: int) -> dict[str, Any]:
    """A line of a list."""
    line = table.lines[place]
    numbers = {name: None if np.isnan(line[name]) else float(line[name]) for name in NUMBERS}
    return {
        "feature": int(line["feature"]),
        "label": line["label"],
        "named": name_test(line),
        "verdict": line["verdict"],
        "family": int(line["family"]),
        "members": int(line["members"]),
        **numbers,
    }


def _neighbours(table: FeatureTable, place: int) -> list[dict[str, Any]]:
    numbers, cosines = (table.lines[place][name] for name in ("neighbours", "cosines"))
    if numbers is None or isinstance(numbers, float):
        return []
    return [
        {"feature": int(number), "label": table.names.get(number), "cosine": float(cosine)}
        for number, cosine in zip(numbers, cosines, strict=True)
    ]


def _context(table: FeatureTable, window: int) -> dict[str, Any]:
    held, start = table.contexts, int(table.contexts.start[window])
    offset, length, peak = (int(each[window]) for each in (held.offsets, held.length, held.peak))
    tokens = table.texts.tokens[start : start + length]
    row = int(table.texts.rows[table.texts.of(start)])
    return {
        "row": row if row >= 0 else None,
        "text": "".join([*tokens[:peak], "«", tokens[peak], "»", *tokens[peak + 1 :]]),
        "base": float(held.base[offset + peak]),
        "new": float(held.new[offset + peak]),
    }


def found_places(table: FeatureTable, text: str) -> list[int]:
    """Places of the features whose number, name, promoted tokens or firing tokens hold the text, in any case."""
    wanted = text.casefold().strip()
    if not wanted:
        return list(range(len(table)))
    held, found = table.contexts, []
    peaks = held.start + held.peak
    for place, line in enumerate(zip(table.rows["feature"], table.rows["label"], table.rows["promoted"], strict=True)):
        tokens = {table.texts.tokens[token] for token in peaks[held.first[place] : held.first[place + 1]]}
        words = "\n".join([line[1], *line[2], *tokens]).casefold()
        if wanted == str(line[0]) or wanted in words:
            found.append(place)
    return found
