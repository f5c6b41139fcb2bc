"""A dataset as samples: canonical rows with content ids, split, rendered, tokenised and masked."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.errors import BadInput
from foretune.tasks.samples.forms import CanonicalRow, ColumnNames, Form, as_plain_text, canonical_rows, shown_texts
from foretune.tasks.samples.heldout import HeldoutSettings, split
from foretune.tasks.samples.ids import IdentifiedRow, identify
from foretune.tasks.samples.shards import Subset, bottom_k, subset_of

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.samples.chat import ChatTokenizer
    from foretune.tasks.samples.loss_masks import LabelledRow, LossRules

Role = Literal["train", "heldout", "preferences", "probes"]

# A batch of columns holds at most 2 GiB of text.
_BATCH_ROWS = 10_000

# The bytes behind a path are what a result depends on, and they enter its key by their digest.
_PATH: Any = {"affects_result": False}


class DatasetSettings(BaseModel):
    """What would be trained on, and how it becomes tokens; the defaults are TRL's."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Dataset")

    version: Literal[1] = 1
    path: str = Field(
        title="Training rows",
        description="JSONL, JSON, CSV or Parquet, a folder or a glob of parts; local or s3://",
        json_schema_extra=_PATH,
    )
    heldout: HeldoutSettings = Field(default=HeldoutSettings(), title="Held-out set")
    preferences: str | None = Field(
        default=None,
        title="Preference pairs",
        description="file of prompt, chosen, rejected",
        json_schema_extra=_PATH,
    )
    probes: str | None = Field(
        default=None, title="Probe texts", description="file of {text} rows or of plain lines; null: drawn"
    )
    probe_count: int = Field(
        default=16,
        ge=1,
        le=100_000,
        title="Probes drawn",
        description="rows, from the held-out ones, when there is no probe file",
    )
    max_length: int | None = Field(
        default=1024,
        ge=2,
        le=10_000_000,
        title="Longest row",
        description="tokens; the rest is cut off at the end; null: never",
    )
    columns: ColumnNames = ColumnNames()
    group_column: str | None = Field(
        default=None, title="Group column", description="of the held-out rows; influence is also scored per value of it"
    )
    assistant_only_loss: bool = Field(
        default=False,
        title="Assistant only",
        description="train on the assistant's turns; needs {% generation %} marks, or a stock template with a twin",
    )
    completion_only_loss: bool | None = Field(
        default=None, title="Completion only", description="null: yes where a row has a prompt of its own"
    )

    def for_role(self, role: Role) -> DatasetSettings:
        """These settings with defaults for what only other roles read: a role's key is made of its own."""
        own_file = role == "preferences" or (role == "probes" and self.probes is not None)
        changes: dict[str, Any] = {} if role == "probes" else {"probes": None, "probe_count": 0}
        changes |= {} if role == "heldout" else {"group_column": None}
        if own_file:
            changes |= {
                "heldout": HeldoutSettings(),
                "columns": ColumnNames(),
                "assistant_only_loss": False,
                "completion_only_loss": None,
            }
        return self.model_copy(update=changes)

    def loss_rules(self, role: Role) -> LossRules:
        """What decides a row's tokens and labels; a probe is plain text that need not end."""
        from foretune.tasks.samples.loss_masks import LossRules

        return LossRules(
            max_length=self.max_length,
            assistant_only_loss=self.assistant_only_loss,
            completion_only_loss=self.completion_only_loss,
            append_eos=not (role == "probes" and self.probes),
        )


def read_samples(
    rows: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer, settings: DatasetSettings, role: Role
) -> pa.Table:
    """The `samples` artefact of one role, sorted by sample_id; columns as in `samples_schema`.

    `rows` are those of the role's own file. Without a held-out file "heldout" takes its share of the training
    rows and "train" the rest; without a probe file "probes" draws from what "heldout" would take.

    Raises BadInput for rows of no known form or of several, a preference file without pairs, a split with an
    empty side, and a dataset without any trained token.
    """
    if not rows:
        raise BadInput(f"{role}: the file holds no rows; give at least one")
    settings = settings.for_role(role)
    identified = identify(canonical_rows(rows, settings.columns))
    if role == "preferences" and identified and identified[0].canonical.form != "preference":
        form = identified[0].canonical.form.replace("_", "+")
        raise BadInput(f"{settings.preferences}: its rows have the form {form}; give prompt, chosen and rejected")
    kept = _kept(identified, settings, role)
    kept.sort(key=lambda row: row.sample_id)
    adapted = [
        as_plain_text(row.canonical) if row.canonical.adaptable and not tokenizer.has_template else row.canonical
        for row in kept
    ]
    groups = [_group(rows[row.canonical.row], settings.group_column) for row in kept]
    table = _table(kept, adapted, groups, tokenizer, settings.loss_rules(role))
    if not any(any(mask[1:]) for mask in table["loss_mask"].to_pylist()):
        raise BadInput(
            f"{role}: none of the {len(kept)} rows has a trained token; raise dataset.max_length "
            f"({settings.max_length}), or give rows with a completion"
        )
    return table


def _group(row: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    if column not in row:
        raise BadInput(f"dataset.group_column: a held-out row has no {column!r}; its columns are {', '.join(row)}")
    return str(row[column])


def _kept(rows: list[IdentifiedRow], settings: DatasetSettings, role: Role) -> list[IdentifiedRow]:
    drawn = role == "probes" and settings.probes is None
    if role == "preferences" or (role == "probes" and not drawn):
        return list(rows)
    kept = split(rows, settings.heldout, "train" if role == "train" else "heldout")
    if not drawn:
        return kept
    chosen = set(bottom_k([row.sample_id for row in kept], settings.probe_count, "probes"))
    return [row for row in kept if row.sample_id in chosen]


def parse_probes(text: str) -> list[dict[str, str]]:
    """Probe rows from a file's text: an object {"text": ...} or plain text on each line that is not empty."""
    probes = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, a number of 5,000 digits, or brackets without end
            content = line
        probes.append(content if isinstance(content, dict) else {"text": line})
    return probes


def samples_schema() -> pa.Schema:
    """Columns of samples.parquet."""
    import pyarrow as pa

    ids, mask = pa.list_(pa.int32()), pa.list_(pa.bool_())
    return pa.schema(
        {
            "sample_id": pa.string(),
            "row": pa.int64(),  # position in the file, from 0
            "occurrence": pa.int32(),  # number among equal rows
            "form": pa.string(),
            "group": pa.string(),  # value of dataset.group_column, of held-out rows
            "prompt": pa.string(),  # as a person reads it, without the template's marks
            "completion": pa.string(),  # the chosen answer of a preference row
            "rejected": pa.string(),
            "input_ids": ids,
            "loss_mask": mask,  # True = the token is a label
            "rejected_ids": ids,
            "rejected_mask": mask,
            "full_tokens": pa.int32(),  # before truncation
            "rejected_full_tokens": pa.int32(),
        }
    )


def _table(
    kept: Sequence[IdentifiedRow],
    rows: Sequence[CanonicalRow],
    groups: Sequence[str | None],
    tokenizer: ChatTokenizer,
    rules: LossRules,
) -> pa.Table:
    import pyarrow as pa

    from foretune.tasks.samples.columns import record_batch
    from foretune.tasks.samples.loss_masks import labelled_rows

    labelled = zip(kept, groups, labelled_rows(rows, tokenizer, rules), strict=True)
    batches = []
    while chunk := list(islice(labelled, _BATCH_ROWS)):
        batches.append(record_batch([_record(*each) for each in chunk], samples_schema()))
    return pa.Table.from_batches(batches, schema=samples_schema())


def _record(row: IdentifiedRow, group: str | None, labelled: LabelledRow) -> dict[str, Any]:
    prompt, completion, rejected = shown_texts(row.canonical)
    record = {
        "sample_id": row.sample_id,
        "row": row.canonical.row,
        "occurrence": row.occurrence,
        "form": row.canonical.form,
        "group": group,
        "prompt": prompt,
        "completion": completion,
        "rejected": rejected,
        "input_ids": labelled.answer.input_ids,
        "loss_mask": labelled.answer.loss_mask,
        "full_tokens": labelled.answer.full_tokens,
    }
    if labelled.rejected is not None:
        record |= {
            "rejected_ids": labelled.rejected.input_ids,
            "rejected_mask": labelled.rejected.loss_mask,
            "rejected_full_tokens": labelled.rejected.full_tokens,
        }
    return record


@dataclass(frozen=True)
class SampleIndex:
    """What the wiring of the passes needs to know of a `samples` artefact."""

    ids: list[str]  # sorted
    rows: list[int]  # position of each sample in its file, from 0
    tokens: list[int]  # of each sample, after truncation
    trained: list[bool]  # whether the sample has a label at all
    form: Form

    @property
    def trained_ids(self) -> list[str]:
        """Ids of the samples that have a loss: what every subset is chosen from."""
        return [i for i, trained in zip(self.ids, self.trained, strict=True) if trained]

    def short_ids(self, max_tokens: int) -> list[str]:
        """Ids of the trained samples with at most `max_tokens` tokens; of all trained ones when there is none."""
        short = {i for i, tokens in zip(self.ids, self.tokens, strict=True) if tokens <= max_tokens}
        return [i for i in self.trained_ids if i in short] or self.trained_ids

    def one(self, row: int) -> Subset:
        """The sample at this position of its file, as a subset. BadInput where there is none, or none with a label."""
        found = [i for i, r, trained in zip(self.ids, self.rows, self.trained, strict=True) if r == row and trained]
        if not found:
            raise BadInput(f"influence.tokens_of is {row}: no training row of that number has a trained token")
        return subset_of(found, 1, "one")

    def tokens_of(self, ids: Iterable[str]) -> int:
        """Tokens of these samples together."""
        return sum(self.tokens[bisect_left(self.ids, sample_id)] for sample_id in ids)


def read_index(run: Any, samples: Any) -> SampleIndex:
    """Index of a stored `samples` artefact."""
    columns = ["sample_id", "row", "form", "loss_mask"]
    return index_of(run.store.open(samples).arrow("samples.parquet", columns=columns))


def index_of(table: pa.Table) -> SampleIndex:
    """Index of a `samples` table."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # makes its functions when it is imported: not seen by a type checker
    masks = table["loss_mask"].combine_chunks()
    tails = pc.list_slice(masks, 1)  # nothing precedes a row's first token
    labelled = set(pc.unique(pc.list_parent_indices(tails).filter(pc.list_flatten(tails))).to_pylist())
    trained = [row in labelled for row in range(len(table))]
    tokens = pc.list_value_length(masks).to_pylist()
    ids, rows = table["sample_id"].to_pylist(), table["row"].to_pylist()
    return SampleIndex(ids, rows, tokens, trained, table["form"][0].as_py())
