"""What a person asks of the table of rows: words, a flag, a verdict, an order, and a page of the result."""

from __future__ import annotations

import bisect
import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.runs import Run
from foretune.tasks.report.findings import shown_verdicts
from foretune.tasks.report.rows import MISMATCH, RowTable, compute, flag_counts, heldout_of, row_table

if TYPE_CHECKING:
    from foretune.storage.refs import ArtifactRef

ORDERS = ("row", "tokens", "trained", "cut", "loss", "gain", "score", "rank", "cluster")
PAGE = 25
CSV_COLUMNS = (
    "row", "flags", "words", "cluster", "tokens", "trained", "cut", "loss", "gain", "score", "margin", "rank",
    "verdict", "text",
)  # fmt: skip
BETWEEN = b"\x00"  # of two rows' words: no search holds it
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a text that begins so


@dataclass(frozen=True)
class Query:
    """An empty text, flag or verdict asks for all of them."""

    text: str = ""
    flag: str = ""  # a rule, "any" or "none"
    verdict: str = ""
    order: str = "rank"
    descending: bool = False
    offset: int = 0
    limit: int = PAGE


class RowReader:
    """The table of rows in memory, with what makes a search of it quick: a hundred thousand rows in some tens of ms."""

    def __init__(self, rows: RowTable, text_limit: int):
        pc = compute()

        self.rows, self.text_limit = rows, text_limit
        self.flags = flag_counts(rows.table)
        parts = [pc.fill_null(rows.table[name], "") for name in ("prompt", "completion")]
        words = pc.utf8_lower(pc.binary_join_element_wise(*parts, "\n")).to_pylist()
        encoded = [text.encode(errors="surrogatepass") for text in words]
        self._words = BETWEEN.join(encoded)
        self._ends = list(itertools.accumulate(len(text) + len(BETWEEN) for text in encoded))
        self._sorted: dict[tuple[str, bool], Any] = {}

    @classmethod
    def of(cls, run: Run, artifacts: dict[str, ArtifactRef], text_limit: int) -> RowReader:
        """Of a finished run's artefacts."""
        opened = {name: run.store.open(ref) for name, ref in artifacts.items() if name in READ}
        return cls(row_table(opened, heldout_of(run, opened), shown_verdicts(opened)), text_limit)

    def found(self, query: Query) -> dict[str, Any]:
        """A page of the rows that the query asks for, and how many there are."""
        places = self._places(query)
        records = self.rows.records(places[query.offset : query.offset + query.limit].tolist(), self.text_limit)
        heldout = self.rows.heldout_texts(records, self.text_limit)
        return {"rows": records, "count": len(places), "total": len(self.rows), "heldout": heldout}

    def page(self, query: Query) -> bytes:
        """The same as JSON."""
        return _json(self.found(query))

    def one(self, number: int, text_limit: int) -> bytes | None:
        """One row by its number, as JSON; None where there is none."""
        pc = compute()

        places = pc.indices_nonzero(pc.equal(self.rows.table["row"], number)).to_pylist()
        records = self.rows.records(places, text_limit)
        return _json({"rows": records, "heldout": self.rows.heldout_texts(records, text_limit)}) if records else None

    def csv(self, query: Query, text_limit: int) -> Iterator[str]:
        """All rows that the query asks for, some at a time."""
        places = self._places(query).tolist()
        yield _lines([CSV_COLUMNS])
        for start in range(0, len(places), 500):
            records = self.rows.records(places[start : start + 500], text_limit)
            yield _lines([[_cell(record[name]) for name in CSV_COLUMNS] for record in records])

    def _places(self, query: Query) -> Any:
        """Positions in the table, in the query's order; what has no value comes last."""
        import numpy as np

        kept = np.ones(len(self.rows), dtype=bool)
        if query.text:
            kept &= self._holding(query.text)
        if query.verdict:
            kept &= self._having(query.verdict)
        if query.flag:
            kept &= self._flagged(query.flag)
        order = self._order(query.order if query.order in ORDERS else "rank", query.descending)
        return order[kept[order]]

    def _order(self, column: str, descending: bool) -> Any:
        """All positions, sorted by a column once."""
        pc = compute()

        if (column, descending) not in self._sorted:
            keys = [("", "descending" if descending else "ascending")]
            values = self.rows.table[column].cast("float64")
            self._sorted[column, descending] = pc.sort_indices(values, sort_keys=keys).to_numpy()
        return self._sorted[column, descending]

    def _holding(self, text: str) -> Any:
        """Which rows hold the words, whatever their case, or have that number."""
        import numpy as np

        wanted, found, at, place = text.lower().encode(errors="surrogatepass"), [], 0, 0
        while BETWEEN not in wanted and (at := self._words.find(wanted, at)) >= 0:
            place = bisect.bisect_right(self._ends, at, place)
            found.append(place)
            at = self._ends[place]  # on with the next row
        hits = np.zeros(len(self.rows), dtype=bool)
        hits[found] = True
        if text.isdecimal() and len(text) < 19:
            hits |= self.rows.table["row"].to_numpy() == int(text)
        return hits

    def _having(self, verdict: str) -> Any:
        pc = compute()

        same = pc.equal(self.rows.table["verdict"].cast("string"), verdict)
        return pc.fill_null(same, False).to_numpy()

    def _flagged(self, flag: str) -> Any:
        import numpy as np
        import pyarrow as pa

        pc = compute()

        table = self.rows.table
        mismatched = pc.fill_null(table["mismatched"].cast(pa.bool_()), False).to_numpy()
        if flag == MISMATCH or pa.types.is_null(table["flags"].type):
            return ~mismatched if flag == "none" else mismatched
        lists = table["flags"].combine_chunks()
        if flag in ("any", "none"):
            some = pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0).to_numpy(zero_copy_only=False)
            return (some | mismatched) == (flag == "any")
        hits = np.zeros(len(table), dtype=bool)
        hits[pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), flag)).to_numpy()] = True
        return hits


READ = ("samples", "quality", "landscape", "heldout_landscape", "prompt_gain", "influence")


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
