"""One table of all training rows: what every pass says of a row, joined by its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foretune.storage.display import shown
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run

if TYPE_CHECKING:
    import pyarrow

    from foretune.storage.contents import Artifact

WORST, FLAGGED, CUT_WORDS = 100, 200, 40
"""Rows of each end of the ranking, and flagged ones, that a page of one file holds; matched words kept of a row."""

INTERVAL = 1.96  # standard errors on either side of a score: 95 %

# What each artefact says of a row: the artefact, its file, and its columns by the name that the page uses.
SOURCES = (
    (
        "quality",
        "samples.parquet",
        {
            "flags": "flags",
            "matches": "matches",
            "duplicate_of": "duplicate_of",
            "tokens": "tokens",
            "trained": "trained_tokens",
            "cut": "truncated_tokens",
        },
    ),
    ("landscape", "samples.parquet", {"loss": "loss"}),
    ("prompt_gain", "prompt_gain.parquet", {"gain": "gain", "mismatched": "mismatched"}),
    (
        "influence",
        "influence.parquet",
        {
            "score": "score",
            "error": "error",
            "rank": "rank",
            "verdict": "verdict",
            "moved": "nearest_rows",
            "moved_by": "nearest_scores",
        },
    ),
)
MISMATCH = "answer_mismatch"  # of the prompt gain; every other flag is quality's


def compute() -> Any:
    """pyarrow.compute, most of whose functions are made as it is imported: no type checker knows them."""
    import pyarrow.compute

    return pyarrow.compute


@dataclass(frozen=True)
class RowTable:
    """Every training row, in the order of its number, and the held-out rows that training moves."""

    table: pyarrow.Table  # row, sample_id, prompt, completion, rejected, cluster, and what SOURCES name
    heldout: pyarrow.Table  # row, prompt, completion
    unit: str  # of the influence score

    def __len__(self) -> int:
        return self.table.num_rows

    def records(self, places: list[int], limit: int) -> list[dict[str, Any]]:
        """The rows at `places` as the page reads them, each text cut at `limit` characters."""
        import pyarrow as pa

        return [_record(row, limit) for row in self.table.take(pa.array(places, pa.int64())).to_pylist()]

    def heldout_texts(self, records: list[dict[str, Any]], limit: int) -> dict[str, str]:
        """Text of each held-out row that `records` move, by its number."""
        import pyarrow as pa

        pc = compute()
        wanted = sorted({move["row"] for record in records for move in record["moves"]})
        rows = self.heldout.filter(pc.is_in(self.heldout["row"], value_set=pa.array(wanted, pa.int64()))).to_pylist()
        return {str(row["row"]): _cut(_joined(row), limit)["text"] for row in rows}


@dataclass(frozen=True)
class RowsView:
    """What a page of one file holds of the table of rows."""

    records: list[dict[str, Any]]
    total: int  # rows of the dataset
    flags: Mapping[str, int]  # flag -> rows of the dataset
    verdicts: Mapping[str, int]
    heldout: Mapping[str, str] = field(default_factory=dict)
    unit: str = "nats per token"

    def by_rank(self, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows that harm most, worst first, and those that help most, best first."""
        ranked = sorted((r for r in self.records if r["rank"] is not None), key=lambda record: record["rank"])
        worst = [record for record in ranked if record["verdict"] in ("harms", "raises")][:count]
        best = [record for record in reversed(ranked) if record["verdict"] in ("helps", "lowers")][:count]
        return worst, best

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        return {
            "rows": self.records,
            "total": self.total,
            "flags": dict(self.flags),
            "verdicts": dict(self.verdicts),
            "heldout": dict(self.heldout),
            "unit": self.unit,
        }


def heldout_of(run: Run, opened: Mapping[str, Artifact]) -> Artifact | None:
    """The held-out rows behind the held-out landscape, where they are still stored."""
    behind = opened["heldout_landscape"].manifest.inputs.get("samples") if "heldout_landscape" in opened else None
    if not isinstance(behind, dict):
        return None
    found = run.store.find(behind["task"], behind["key"])
    return run.store.open(found) if isinstance(found, ArtifactRef) else None


def row_table(
    opened: Mapping[str, Artifact], heldout: Artifact | None, verdicts: Mapping[str, str] | None = None
) -> RowTable:
    """Join what the artefacts of a run say of its training rows; `verdicts` by sample id replace influence's own."""
    import pyarrow as pa

    pc, columns = compute(), ["row", "sample_id", "prompt", "completion", "rejected"]
    table = opened["samples"].arrow("samples.parquet", columns=columns).combine_chunks().sort_by("row")
    rows = table["row"]
    for name, file, wanted in SOURCES:
        there = opened[name].arrow(file).combine_chunks() if name in opened else None
        held = set(there.column_names) if there is not None else set()
        at = pc.index_in(rows, value_set=there["row"]) if there is not None else None
        for column, stored in wanted.items():
            values = there[stored].take(at) if there is not None and stored in held else pa.nulls(len(rows))
            table = table.append_column(column, values)
    if verdicts is not None:
        shown_ones = pa.array([verdicts.get(name) for name in table["sample_id"].to_pylist()], pa.string())
        table = table.set_column(table.column_names.index("verdict"), "verdict", shown_ones)
    table = table.append_column("cluster", _clusters(table))
    solver = opened["influence"].json("solver.json") if "influence" in opened else {}
    names = ["row", "prompt", "completion"]
    other = heldout.arrow("samples.parquet", columns=names) if heldout is not None else table.slice(0, 0).select(names)
    return RowTable(table, other.combine_chunks(), solver.get("unit", "nats per token"))


def _clusters(table: pyarrow.Table) -> Any:
    """For every row of a cluster of equal or nearly equal rows the number of its first row."""
    import pyarrow as pa

    pc, heads = compute(), table["duplicate_of"]
    if pa.types.is_null(heads.type):
        return pa.nulls(len(table), pa.int64())
    first = table["row"].take(pc.index_in(heads, value_set=table["sample_id"].combine_chunks()))
    is_head = pc.is_in(table["row"], value_set=first.combine_chunks().drop_null())
    return pc.coalesce(first, pc.if_else(is_head, table["row"], pa.scalar(None, pa.int64())))


def flag_counts(table: pyarrow.Table) -> dict[str, int]:
    """Rows of every flag, the prompt gain's among them, the most frequent first."""
    import pyarrow as pa

    pc = compute()
    counts: dict[str, int] = {}
    if not pa.types.is_null(table["flags"].type):
        found = pc.value_counts(pc.list_flatten(table["flags"])).to_pylist()
        counts = {each["values"]: each["counts"] for each in found}
    mismatched = int(pc.sum(pc.fill_null(table["mismatched"].cast(pa.bool_()), False)).as_py() or 0)
    if mismatched:
        counts[MISMATCH] = mismatched
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def rows_view(rows: RowTable, limit: int) -> RowsView:
    """The rows that a page of one file holds: all of a small dataset, else the worst, the best and the flagged."""

    pc, table, count = compute(), rows.table, len(rows)
    flags = flag_counts(table)
    places = list(range(count))
    if count > 2 * WORST + FLAGGED:
        ranks = table["rank"].to_pylist()
        ranked = sorted((p for p in places if ranks[p] is not None), key=lambda place: ranks[place])
        lengths = pc.list_value_length(table["flags"]).to_pylist() if flags else []
        flagged = [place for place, length in enumerate(lengths) if length][:FLAGGED]
        places = sorted({*ranked[:WORST], *ranked[-WORST:], *flagged})
    verdicts = {each["values"]: each["counts"] for each in pc.value_counts(table["verdict"]).to_pylist()}
    records = rows.records(places, limit)
    known = {name: number for name, number in verdicts.items() if name is not None}
    return RowsView(records, count, flags, known, rows.heldout_texts(records, limit), rows.unit)


def _record(row: dict[str, Any], limit: int) -> dict[str, Any]:
    flags = [*(row["flags"] or []), *([MISMATCH] if row["mismatched"] else [])]
    moves = zip(row["moved"] or [], row["moved_by"] or [], strict=True)
    kept = ("row", "cluster", "tokens", "trained", "cut", "loss", "gain", "score", "rank", "verdict")
    error = _finite(row["error"])
    return {
        **{name: _finite(row[name]) for name in kept},
        "margin": None if error is None else INTERVAL * error,
        **_cut(_joined(row), limit),
        "flags": [shown(flag) for flag in flags],
        "words": _words(row, set(flags)),
        "moves": [{"row": number, "score": _finite(score)} for number, score in moves],
    }


def _joined(row: dict[str, Any]) -> str:
    """Prompt and answer, and of a pair the rejected answer too."""
    text = f"{row['prompt']} → {row['completion']}" if row["prompt"] else str(row["completion"])
    return f"{text} ⇸ {row['rejected']}" if row.get("rejected") else text


def _words(row: dict[str, Any], flags: set[str]) -> list[str]:
    """The words of the text that made the row's flags, each once."""
    found = {}
    for match in row["matches"] or []:
        if match["rule"] in flags:
            text = row.get(match["part"]) or ""
            words = text[match["start"] : match["end"]] if match["start"] is not None else ""
            found[" ".join(shown(words or match["phrase"]).split())] = None
    return list(found)[:CUT_WORDS]


def _cut(text: str, limit: int) -> dict[str, Any]:
    whole = shown(text[: 4 * limit])  # a secret at the cut is whole in this
    return {"text": whole[:limit], "length": len(text)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value - value != 0 else value
