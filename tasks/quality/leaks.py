"""Leaks of a run: training rows that stand, or nearly stand, among the held-out rows or in a benchmark. No model.

A task of its own beside pass 0: another held-out set runs this one again and leaves what only the training rows say.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal
from foretune.tasks.quality.leakage import LeakIndex, leak_index
from foretune.tasks.quality.measured import WAYS, measured_line
from foretune.tasks.quality.rows import Texts

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_SHOWN = 20
CRITICAL = 0.1
"""From this share of the held-out rows on, their loss says more of memory than of anything else."""


@content_task(version=1, libraries=("rensa",))
def leaks(draft: Any, run: Run, samples: ArtifactRef, heldout: ArtifactRef, benchmarks: list[Fingerprint]) -> None:
    """Every training row that is found elsewhere: leaks.parquet; counts, how far to believe them, signals:
    summary.json."""
    train = _texts(run, samples)
    held = _texts(run, heldout)
    indexes = [_index(held), *(leak_index("benchmark_leak", source.uri) for source in benchmarks)]
    found = [(index, each) for index in indexes for each in _leaked(index, train)]
    names = [index.name for index in indexes]
    table, parts = _table(found), [_summary(index, found) for index in indexes]
    parts[0] |= {"of": len(held)}
    signals = [heldout_signal(parts[0]), *(benchmark_signal(part) for part in parts[1:])]
    draft.write_table("leaks.parquet", table)
    draft.write_json(
        "summary.json",
        {
            "heldout": parts[0],
            "benchmarks": dict(zip(names[1:], parts[1:], strict=True)),
            "lines": [line for part in parts if (line := _line(part))],
            "signals": [signal.stored() for signal in signals if signal.value > signal.threshold],
        },
    )


def _texts(run: Run, samples: ArtifactRef) -> list[dict[str, Any]]:
    columns = ["sample_id", "row", "prompt", "completion"]
    rows = run.store.open(samples).arrow("samples.parquet", columns=columns).to_pylist()
    return sorted(rows, key=lambda row: (row["row"], row["sample_id"]))


def _index(held: list[dict[str, Any]]) -> LeakIndex:
    index = LeakIndex("heldout_leak", "the held-out rows")
    for row in held:
        texts = Texts.of(row)
        both = [*texts.prompt_words, *texts.completion_words]
        index.add(row["row"], [texts.prompt_words, both] if texts.prompt_words else [both])
    return index


def _leaked(index: LeakIndex, train: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that an index knows, with how and which row of it."""
    leaked = []
    for row in train:
        texts = Texts.of(row)
        both = [*texts.prompt_words, *texts.completion_words]
        found = index.found([texts.prompt_words, texts.completion_words, both])
        if found is not None:
            leaked.append({"sample_id": row["sample_id"], "row": row["row"], "way": found[0], "other_row": found[1]})
    return leaked


def _table(found: list[tuple[LeakIndex, dict[str, Any]]]) -> pa.Table:
    import pyarrow as pa

    schema = pa.schema(
        {
            "sample_id": pa.string(),
            "row": pa.int64(),
            "rule": pa.string(),
            "against": pa.string(),
            "way": pa.string(),
            "other_row": pa.int64(),
        }
    )
    rows = [{**each, "rule": index.rule, "against": index.name} for index, each in found]
    return pa.Table.from_pylist(rows, schema=schema)


def _summary(index: LeakIndex, found: list[tuple[LeakIndex, dict[str, Any]]]) -> dict[str, Any]:
    """Training rows found, of how many rows of the other file, by which ways, with what each is worth."""
    own = [each for other, each in found if other is index]
    ways = Counter(each["way"] for each in own)
    return {
        "against": index.name,
        "rows": len(own),
        "other_rows": len({each["other_row"] for each in own}),
        "first_rows": [each["row"] for each in own[:ROWS_SHOWN]],
        "ways": {way: {"rows": ways[way], "measured": measured_line(rule)} for way, rule in WAYS.items()},
    }


def heldout_signal(part: dict[str, Any]) -> Signal:
    """The share of the held-out rows that the training rows give away."""
    share = part["other_rows"] / max(part["of"], 1)
    rows = ", ".join(map(str, part["first_rows"][:5]))
    more = f" and {part['rows'] - 5:,} more" if part["rows"] > 5 else ""
    advice = (
        f"{part['other_rows']:,} of {part['of']:,} held-out rows stand in the training rows, word by word or nearly "
        f"(rows {rows}{more}), so the predicted held-out loss is void there; take them out of one of the two"
    )
    return Signal("heldout_overlap", "critical" if share >= CRITICAL else "warn", share, 0, advice)


def benchmark_signal(part: dict[str, Any]) -> Signal:
    """Training rows that a benchmark holds."""
    rows = ", ".join(map(str, part["first_rows"][:5]))
    advice = (
        f"{part['rows']:,} training rows stand in {part['against']}, word by word or nearly (rows {rows}): a score on "
        "it would measure memory; drop them"
    )
    return Signal("benchmark_overlap", "warn", part["rows"], 0, advice)


def _line(part: dict[str, Any]) -> str | None:
    """One line of the report; None for what holds no training row."""
    if not part["rows"]:
        return None
    ways = "; ".join(
        f"{each['rows']:,} by {way}{' (' + each['measured'].split(', recall')[0] + ')' if each['measured'] else ''}"
        for way, each in part["ways"].items()
        if each["rows"]
    )
    return f"{part['rows']:,} training rows stand in {part['against']}: {ways}"
