"""What a person asks of the table of rows: words, a flag, a verdict, an order, and a page of the result."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.runs import Run
from foretune.tasks.report.rows import MISMATCH, RowTable, flag_counts, heldout_of, row_table

if TYPE_CHECKING:
    from foretune.storage.refs import ArtifactRef

ORDERS = ("row", "tokens", "trained", "cut", "loss", "gain", "score", "rank", "cluster")
PAGE = 25
CSV_COLUMNS = (
    "row", "flags", "words", "cluster", "tokens", "trained", "cut", "loss", "gain", "score", "rank", "verdict", "text",
)  # fmt: skip
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
    """The table of rows in memory, with what makes a search of it quick."""

    def __init__(self, rows: RowTable, text_limit: int):
        import pyarrow.compute as pc

        self.rows, self.text_limit = rows, text_limit
        table = rows.table
        self.flags = flag_counts(table)
        parts = [pc.fill_null(table[name], "") for name in ("prompt", "completion")]
        self._words = pc.utf8_lower(pc.binary_join_element_wise(*parts, "\n"))

    @classmethod
    def of(cls, run: Run, artifacts: dict[str, ArtifactRef], text_limit: int) -> RowReader:
        """Of a finished run's artefacts."""
        opened = {name: run.store.open(ref) for name, ref in artifacts.items() if name in READ}
        return cls(row_table(opened, heldout_of(run, opened)), text_limit)

    def found(self, query: Query) -> dict[str, Any]:
        """A page of the rows that the query asks for, and how many there are."""
        places = self._places(query)
        wanted = [place.as_py() for place in places[query.offset : query.offset + query.limit]]
        records = self.rows.records(wanted, self.text_limit)
        heldout = self.rows.heldout_texts(records, self.text_limit)
        return {"rows": records, "count": len(places), "total": len(self.rows), "heldout": heldout}

    def csv(self, query: Query, text_limit: int) -> str:
        """All rows that the query asks for."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(CSV_COLUMNS)
        places = self._places(query).to_pylist()
        for start in range(0, len(places), 1000):
            for record in self.rows.records(places[start : start + 1000], text_limit):
                writer.writerow([_cell(record[name]) for name in CSV_COLUMNS])
        return out.getvalue()

    def _places(self, query: Query) -> Any:
        """Positions in the table, in the query's order; what has no value comes last."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self.rows.table
        mask = None
        if query.text:
            mask = pc.match_substring(self._words, query.text.lower())
            if query.text.isdecimal() and len(query.text) < 19:
                mask = pc.or_(mask, pc.equal(table["row"], int(query.text)))
        if query.verdict:
            same = pc.fill_null(pc.equal(table["verdict"].cast(pa.string()), query.verdict), False)
            mask = same if mask is None else pc.and_(mask, same)
        if query.flag:
            flagged = self._flagged(query.flag)
            mask = flagged if mask is None else pc.and_(mask, flagged)
        places = pa.array(range(len(table))) if mask is None else pc.indices_nonzero(mask)
        order = table[query.order if query.order in ORDERS else "rank"].take(places)
        direction = "descending" if query.descending else "ascending"
        if pa.types.is_null(order.type):
            return places
        return places.take(pc.sort_indices(order, sort_keys=[("", direction)]))

    def _flagged(self, flag: str) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self.rows.table
        mismatched = pc.fill_null(table["mismatched"].cast(pa.bool_()), False)
        if flag == MISMATCH:
            return mismatched
        if pa.types.is_null(table["flags"].type):
            return pc.if_else(flag == "none", pc.invert(mismatched), mismatched)
        lists = table["flags"].combine_chunks()
        some = pc.or_(pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0), mismatched)
        if flag in ("any", "none"):
            return some if flag == "any" else pc.invert(some)
        parents = pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), flag))
        return pc.is_in(pa.array(range(len(table))), value_set=parents.cast(pa.int64()))


READ = ("samples", "quality", "landscape", "heldout_landscape", "prompt_gain", "influence")


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
