"""What is supervised: the training rows as the trainer sees them, as a task. No model is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle, read_table, role_rows
from foretune.tasks.samples.forms import as_plain_text, canonical_rows
from foretune.tasks.samples.loss_masks import Labelled, labelled_rows
from foretune.tasks.samples.supervision import SeenRow, sequences_of, tokens
from foretune.tasks.samples.supervision_findings import Finding, in_order
from foretune.tasks.samples.supervision_settings import SupervisionSettings
from foretune.tasks.samples.supervision_tally import Tally
from foretune.tasks.samples.table import DatasetSettings
from foretune.tasks.samples.template_findings import row_findings
from foretune.tasks.samples.unread import splits_signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.forms import CanonicalRow
    from foretune.tasks.samples.loss_masks import LabelledRow, LossRules

BATCH = 1000  # rows whose tokens are Python's numbers at a time
FIRST, LAST = 280, 120
"""Tokens that are kept of a shown sequence: of a longer one its beginning and its end."""
SIGNALLED = (
    "eos_not_trained",
    "end_is_not_eos",
    "template_in_messages",
    "template_drops_content",
    "template_strips_thinking",
    "template_drops_tool_calls",
    "template_changes_earlier_turns",
)
"""Rules that only this task knows; the others are signals of `samples` and `quality`, or notes."""


@content_task(version=1, libraries=("tokenizers", "jinja2"))
def supervision(
    draft: Any,
    run: Run,
    source: Fingerprint,
    samples: ArtifactRef,
    tokenizer: TokenizerHandle,
    unread_splits: list[str],
    dataset: DatasetSettings,
    settings: SupervisionSettings,
) -> None:
    """What would be trained without anybody's wish: findings.parquet. Some rows token by token: sequences.parquet,
    tokens.parquet. Counts of all training rows, and signals: summary.json."""
    folder = tokenizer.folder(run)
    rows, table = role_rows(source.uri, "train"), read_table(run, samples)
    looked = _Rows(rows, load_tokenizer(folder), dataset)
    tally = Tally(looked.tokenizer, folder, looked.rules)
    for row in looked.of(table):
        tally.add(row)
    numbers = sorted(table["row"].to_pylist())
    own = [looked.canonical[number] for number in numbers]
    every = [*tally.findings(), *row_findings(own, looked.tokenizer, [rows[number] for number in numbers], dataset)]
    findings = in_order(every)
    shown = _shown(table, findings, settings.rows)
    draft.write_table("findings.parquet", _findings_table(findings))
    for name, made in _shown_tables(list(looked.of(shown)), shown, looked.tokenizer).items():
        draft.write_table(name, made)
    signals = [*_signals(findings), *splits_signals(unread_splits)]
    counts = {name: tally.tokens[name] for name in ("tokens", "trained", "masked", "cut_off")}
    draft.write_json("summary.json", {"rows": tally.rows, **counts, "shown": len(shown), "signals": signals})


class _Rows:
    """Rows of the `samples` table, whole: what was cut off is tokenised again."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer, settings: DatasetSettings) -> None:
        self.rules: LossRules = settings.loss_rules("train")
        self.tokenizer = tokenizer.marked() if self.rules.assistant_only_loss else tokenizer
        canonical = canonical_rows(rows, settings.columns)
        plain = not tokenizer.has_template
        self.canonical: list[CanonicalRow] = [as_plain_text(r) if plain and r.adaptable else r for r in canonical]

    def of(self, table: pa.Table) -> Iterator[SeenRow]:
        columns = ["row", "input_ids", "loss_mask", "full_tokens", "rejected_ids", "rejected_mask"]
        for batch in table.select([*columns, "rejected_full_tokens"]).to_batches(BATCH):
            records = batch.to_pylist()
            cut = [r["row"] for r in records if _is_cut(r)]
            whole = dict(zip(cut, self._whole(cut), strict=True))
            for record in records:
                canonical = self.canonical[record["row"]]
                found = whole.get(record["row"])
                parts = _parts(record) if found is None else [found.answer, found.rejected]
                yield SeenRow(canonical, tuple(sequences_of(canonical, parts, self.rules)))

    def _whole(self, numbers: Sequence[int]) -> list[LabelledRow]:
        rows = [self.canonical[number] for number in numbers]
        return list(labelled_rows(rows, self.tokenizer, replace(self.rules, max_length=None))) if rows else []


def _is_cut(record: dict[str, Any]) -> bool:
    answer, other = len(record["input_ids"]), len(record["rejected_ids"] or ())
    return record["full_tokens"] > answer or (record["rejected_full_tokens"] or 0) > other


def _parts(record: dict[str, Any]) -> list[Labelled | None]:
    answer = Labelled(record["input_ids"], record["loss_mask"], record["full_tokens"])
    if record["rejected_ids"] is None:
        return [answer, None]
    return [answer, Labelled(record["rejected_ids"], record["rejected_mask"], record["rejected_full_tokens"])]


def _shown(table: pa.Table, findings: Sequence[Finding], count: int) -> pa.Table:
    """The rows of the table that are shown: the first of every finding, the second of every finding, then by id."""
    import pyarrow as pa

    turns = zip_longest(*(each.rows[:count] for each in findings if each.rows))
    wanted = dict.fromkeys(row for row in chain.from_iterable(turns) if row is not None)
    numbers = table["row"].to_pylist()
    at = {number: place for place, number in enumerate(numbers)}
    chosen = list(dict.fromkeys([*wanted, *numbers]))[:count]
    return table.take(pa.array([at[number] for number in chosen], pa.int64()))


def _findings_table(findings: Sequence[Finding]) -> pa.Table:
    import pyarrow as pa

    texts = {name: pa.string() for name in ("rule", "severity", "says", "remedy")}
    schema = pa.schema({**texts, "every_row": pa.bool_(), "rows": pa.list_(pa.int64())})
    made = [
        {**{name: getattr(each, name) for name in texts}, "every_row": each.rows is None, "rows": each.rows or []}
        for each in findings
    ]
    return pa.Table.from_pylist(made, schema=schema)


def _shown_tables(rows: Sequence[SeenRow], table: pa.Table, tokenizer: ChatTokenizer) -> dict[str, pa.Table]:
    """The sequences of the shown rows with their counts, and their tokens."""
    import pyarrow as pa

    place = {"row": pa.int64(), "sample_id": pa.string(), "sequence": pa.string()}
    counts = pa.schema({**place, **dict.fromkeys(("tokens", "trained", "masked", "cut_off"), pa.int32())})
    one = pa.schema(
        {
            **place,
            "position": pa.int32(),
            "id": pa.int32(),
            "text": pa.string(),  # "" where the bytes of a character end in a later token, which has it
            "state": pa.string(),  # trained, masked or cut_off
            "special": pa.bool_(),
        }
    )
    sequences, found = [], []
    for row, sample_id in zip(rows, table["sample_id"].to_pylist(), strict=True):
        for sequence in row.sequences:
            where = {"row": row.row, "sample_id": sample_id, "sequence": sequence.name}
            sequences.append({**where, **sequence.counts()})
            found += [{**where, **vars(token)} for token in tokens(sequence, tokenizer, FIRST, LAST)]
    return {
        "sequences.parquet": pa.Table.from_pylist(sequences, schema=counts),
        "tokens.parquet": pa.Table.from_pylist(found, schema=one),
    }


def _signals(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        Signal(each.rule, each.severity, len(each.rows), 0, f"{each.says}; {each.remedy}").stored()
        for each in findings
        if each.rule in SIGNALLED and each.rows
    ]
