"""The dataset as the first artefact of a run: samples of one role, sorted by id, tokenised and masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from foretune.storage.datasets import KNOWN, read_rows
from foretune.storage.digests import digest_of
from foretune.storage.errors import BadInput
from foretune.storage.places import Place, localise
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import Fingerprint, identity
from foretune.tasks.engine.passes import content_task
from foretune.tasks.loading import gguf_preview, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.rendering import rendering_signals
from foretune.tasks.samples.rows import SubsetRows
from foretune.tasks.samples.table import DatasetSettings, Role, parse_probes, read_samples
from foretune.tasks.samples.unread import as_records, unread_columns, unread_signals

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from foretune.tasks.loading.folders import TokenLimits

VERSION = 1
"""Raised when the same rows would become other tokens or labels."""


class TokenizerHandle(BaseModel, frozen=True):
    """The tokenizer files of the base model: of a folder outside the root, or of a converted GGUF."""

    source: Fingerprint | ArtifactRef
    gguf: Fingerprint | None = None  # the file that `source` is converted from

    def identity(self) -> Any:
        return identity(self.source)

    def folder(self, run: Run) -> Path:
        """Local folder that holds tokenizer.json; in a plan that of a file which was never converted."""
        if not isinstance(self.source, ArtifactRef):
            return localise(self.source.uri)
        if self.source.uri or self.gguf is None:
            return run.store.open(self.source).folder()
        return gguf_preview(localise(self.gguf.uri))


def role_settings(settings: DatasetSettings, role: Role) -> DatasetSettings:
    """What of the settings a role reads; a probe file counts by its bytes, not by its path."""
    own = settings.for_role(role)
    return own.model_copy(update={"probes": "file"}) if own.probes else own


def encoding_of(tokenizer: TokenizerHandle, settings: DatasetSettings, role: Role) -> str:
    """What turns a row's content into tokens and labels, as a digest."""
    from dataclasses import asdict

    return digest_of(
        {
            "version": VERSION,
            "tokenizer": tokenizer.identity(),
            "rules": asdict(settings.for_role(role).loss_rules(role)),
        }
    )


@content_task(version=4, libraries=("tokenizers", "jinja2"))
def samples(
    draft: Any, run: Run, source: Fingerprint, tokenizer: TokenizerHandle, role: Role, settings: DatasetSettings
) -> None:
    """Every row of a role's file: samples.parquet; what of the file is not read, and how it differs from what it
    seems to say: summary.json."""
    folder = tokenizer.folder(run)
    rows, chat = role_rows(source.uri, role), load_tokenizer(folder)
    table = read_samples(rows, chat, settings, role)
    check_limits(table, token_limits(folder), role)
    unread = unread_columns(rows, settings.for_role(role).columns, settings.group_column)
    signals = [*unread_signals(unread), *rendering_signals(table, chat)] if role == "train" else []
    draft.write_table("samples.parquet", table)
    draft.write_json("summary.json", {"rows": len(rows), "unread": as_records(unread), "signals": signals})


def check_limits(table: pa.Table, limits: TokenLimits, role: str) -> None:
    """Raise BadInput for a token that the model has no embedding for, or a row longer than its positions."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # makes its functions when it is imported: not seen by a type checker

    for column in ("input_ids", "rejected_ids"):
        longest = pc.max(pc.list_value_length(table[column])).as_py() or 0
        largest = pc.max(pc.list_flatten(table[column])).as_py() or 0
        if limits.positions is not None and longest > limits.positions:
            raise BadInput(
                f"{role}: a row of {longest} tokens, but the model has {limits.positions} positions; "
                f"set dataset.max_length to {limits.positions} or less"
            )
        if limits.vocabulary is not None and largest >= limits.vocabulary:
            raise BadInput(
                f"{role}: token {largest} of the tokenizer, but the model's vocabulary ends at "
                f"{limits.vocabulary - 1}; give the tokenizer that belongs to the model"
            )


def role_rows(uri: str, role: str) -> list[dict[str, Any]]:
    """Rows of a file; probes may also be plain lines of text."""
    if role != "probes" or uri.endswith(KNOWN):
        return read_rows(uri)
    try:
        rows = parse_probes(Place(uri).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{uri}: not UTF-8 text at byte {error.start} ({error.reason}); save it as UTF-8") from None
    if not rows:
        raise BadInput(f"{uri}: no probe text in the file; give one text a line or remove dataset.probes")
    return rows


def read_table(run: Run, samples: ArtifactRef) -> pa.Table:
    """All samples of a role, sorted by id."""
    return run.store.open(samples).arrow("samples.parquet")


def read_some(run: Run, rows: ArtifactRef | SubsetRows) -> pa.Table:
    """All samples of a role, or a few of them, sorted by id."""
    return rows.read(run) if isinstance(rows, SubsetRows) else read_table(run, rows)


def label_tokens(run: Run, samples: ArtifactRef) -> dict[str, int]:
    """Tokens with a loss of every sample, by id: nothing precedes a row's first one."""
    table = run.store.open(samples).arrow("samples.parquet", columns=["sample_id", "loss_mask"])
    return {i: sum(mask[1:]) for i, mask in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)}


def row_numbers(run: Run, samples: ArtifactRef) -> dict[str, int]:
    """{sample id: position of the row in its file}. Shards do not know it: they are stored by what their rows say."""
    table = run.store.open(samples).arrow("samples.parquet", columns=["sample_id", "row"])
    return dict(zip(table["sample_id"].to_pylist(), table["row"].to_pylist(), strict=True))


def preview_table(
    run: Run, source: Fingerprint, tokenizer: TokenizerHandle, role: Role, settings: DatasetSettings
) -> pa.Table:
    """The table of a role whose `samples` artefact is not stored, made in memory."""
    return read_samples(role_rows(source.uri, role), load_tokenizer(tokenizer.folder(run)), settings, role)
