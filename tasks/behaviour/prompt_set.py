"""The prompts of a run as an input: what stands for them in keys is their tokens, not the rows they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from foretune.storage.digests import digest_of
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.asked import Asked, as_conversation, chosen, encoded_prompts, prompts_of_rows
from foretune.tasks.behaviour.prompt_files import read_prompts
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.samples.chat import ChatTokenizer, load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle, role_rows, role_settings
from foretune.tasks.samples.table import DatasetSettings, Role, read_samples

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "prompts.parquet"


class PromptSet(BaseModel, frozen=True):
    """The prompts that a model is asked; another version of the dataset with the same prompts is the same set."""

    prompts: ArtifactRef
    tokenizer: TokenizerHandle
    digest: str
    count: int = 0
    tokens: int = 0
    longest: int = 0  # tokens of the longest prompt

    def identity(self) -> dict[str, Any]:
        return {"prompts": self.digest, "tokenizer": self.tokenizer.identity()}

    @property
    def work(self) -> tuple[int, int]:
        """Prompts and their tokens."""
        return self.count, self.tokens

    def read(self, run: Run) -> list[Asked]:
        """The prompts, by their ids."""
        columns = ["input_ids", "prompt", "origin", "row", "note", "reference"]
        rows = run.store.open(self.prompts).arrow(FILE, columns=columns).to_pylist()
        asked = [Asked(tuple(row.pop("input_ids")), row.pop("prompt"), **row) for row in rows]
        return sorted(asked, key=lambda each: each.prompt_id)

    def chat(self, run: Run) -> ChatTokenizer:
        return load_tokenizer(self.tokenizer.folder(run))

    @classmethod
    def of(cls, prompts: ArtifactRef, tokenizer: TokenizerHandle, lengths: dict[str, int]) -> PromptSet:
        """The set of prompts with these ids and numbers of tokens."""
        digest = digest_of(sorted(lengths))
        tokens, longest = sum(lengths.values()), max(lengths.values(), default=0)
        return cls(
            prompts=prompts, tokenizer=tokenizer, digest=digest, count=len(lengths), tokens=tokens, longest=longest
        )


def stored_lengths(run: Run, prompts: ArtifactRef) -> dict[str, int]:
    """Tokens of each prompt of a stored artefact, by its id."""
    table = run.store.open(prompts).arrow(FILE, columns=["prompt_id", "input_ids"])
    return {row["prompt_id"]: len(row["input_ids"]) for row in table.to_pylist()}


def asked_prompts(
    tokenizer: ChatTokenizer, heldout: pa.Table, probes: pa.Table | None, source: Fingerprint | None, rows: int
) -> list[Asked]:
    """The prompts of a run: those of the file, then `rows` of probes and held-out rows."""
    given: list[Asked] = []
    if source is not None:
        given = encoded_prompts(read_prompts(source.uri), tokenizer, as_conversation(heldout, tokenizer))
    if not rows:
        return chosen(given, [], [], 0)
    of_probes = () if probes is None else prompts_of_rows(probes, tokenizer, "probe")
    return chosen(given, of_probes, prompts_of_rows(heldout, tokenizer, "held-out"), rows)


def previewed_lengths(
    run: Run,
    files: Mapping[str, tuple[Fingerprint, DatasetSettings]],
    source: Fingerprint | None,
    tokenizer: TokenizerHandle,
    rows: int,
) -> dict[str, int]:
    """The same without the artefact, from the files of "heldout" and "probes"."""
    chat = load_tokenizer(tokenizer.folder(run))
    tables = {
        role: read_samples(
            role_rows(file.uri, role), chat, role_settings(settings, cast("Role", role)), cast("Role", role)
        )
        for role, (file, settings) in files.items()
    }
    found = asked_prompts(chat, tables["heldout"], tables.get("probes"), source, rows)
    return {each.prompt_id: len(each.input_ids) for each in found}
