"""The prompts that both models are asked, as an artefact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.asked import as_records
from foretune.tasks.behaviour.prompt_set import FILE, asked_prompts
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.engine.passes import content_task
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle, read_table

if TYPE_CHECKING:
    import pyarrow as pa


@content_task(version=1, libraries=("tokenizers", "jinja2"))
def prompts(
    draft: Any,
    run: Run,
    heldout: ArtifactRef,
    probes: ArtifactRef | None,
    source: Fingerprint | None,
    tokenizer: TokenizerHandle,
    count: int,
) -> None:
    """prompts.parquet: the file's, and `count` of probes and held-out rows; every prompt once."""
    chat = load_tokenizer(tokenizer.folder(run))
    others = None if probes is None else read_table(run, probes)
    found = asked_prompts(chat, read_table(run, heldout), others, source, count)
    draft.write_table(FILE, _table(as_records(found)))


def _table(records: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    texts = ("prompt_id", "origin", "prompt", "note", "reference")
    schema = pa.schema({**dict.fromkeys(texts, pa.string()), "row": pa.int64(), "input_ids": pa.list_(pa.int32())})
    return pa.Table.from_pylist(records, schema=schema)
