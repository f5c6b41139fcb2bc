"""Documents for training the demo's SAE: files of several forms to token ids, split by content."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HH_TURN = re.compile(r"\n\n(Human|Assistant): ")
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "Human": "user", "Assistant": "assistant"}
PLAIN_CHARACTERS = 1200  # a plain file is cut into documents of about this length, at blank lines


@dataclass(frozen=True)
class Document:
    source: str  # name of the file it came from
    ids: list[int]  # token ids, truncated to the context length
    held_out: bool  # True: never trained on


def read_documents(paths: list[Path], tokenizer, max_tokens: int, held_out: float) -> list[Document]:
    """Tokenise every document of `paths`; conversations go through the tokenizer's chat template.

    Whether a document is held out depends on the sha256 of its first 200 characters after the
    template, so the two continuations of one HH prompt fall on the same side.
    """
    documents = []
    for path in paths:
        for conversation in read_conversations(path):
            text = conversation
            if not isinstance(conversation, str):
                text = tokenizer.apply_chat_template(conversation, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]
            if len(ids) >= 8:
                documents.append(Document(path.name, ids, _share(opening(conversation)) < held_out))
    return documents


def read_conversations(path: Path) -> Iterator[list[dict] | str]:
    """Yield message lists, or strings for plain prose, from one file (.gz is opened in passing)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
        name = path.name.removesuffix(".gz")
        if name.endswith(".jsonl"):
            rows = (json.loads(line) for line in stream if line.strip())
        elif name.endswith(".json"):
            rows = iter(json.load(stream))
        elif name.endswith(".csv"):
            rows = csv.DictReader(stream)
        else:
            yield from plain_documents(stream.read())
            return
        for row in rows:
            yield from row_conversations(row)


def row_conversations(row: dict) -> Iterator[list[dict] | str]:
    """The conversations of one row, by the columns it has. A row of no known form yields nothing."""
    if "conversations" in row:
        yield [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    elif "chosen" in row and "prompt" in row:
        for answer in (row["chosen"], row["rejected"]):
            yield exchange(row["prompt"], answer)
    elif "chosen" in row:
        for transcript in (row["chosen"], row["rejected"]):
            parts = HH_TURN.split(transcript)[1:]
            turns = zip(parts[::2], parts[1::2], strict=True)
            yield [{"role": ROLES[speaker], "content": content.strip()} for speaker, content in turns]
    elif "instances" in row:
        for instance in row["instances"]:
            yield exchange(f"{row['instruction']}\n{instance['input']}".strip(), instance["output"])
    elif "question" in row:
        yield exchange(row["question"], row["answer"])
    elif "instruction" in row:
        yield exchange(f"{row['instruction']}\n{row.get('input') or ''}".strip(), row["output"])
    elif "text" in row:
        yield row["text"]
    elif "prompt" in row:
        yield [{"role": "user", "content": row["prompt"]}]


def is_chat(path: Path) -> bool:
    """Whether the file holds conversations; anything else is read as plain prose."""
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json", ".csv"))


def exchange(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def opening(conversation: list[dict] | str) -> str:
    """What identifies a document: its first message, or the start of the prose."""
    return conversation[:200] if isinstance(conversation, str) else conversation[0]["content"]


def plain_documents(text: str) -> Iterator[str]:
    """Cut prose at blank lines into pieces of about PLAIN_CHARACTERS characters."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        piece = f"{piece}\n\n{paragraph}".strip() if piece else paragraph.strip()
        if len(piece) >= PLAIN_CHARACTERS:
            yield piece
            piece = ""
    if piece:
        yield piece


def _share(text: str) -> float:
    """A number in [0, 1) fixed by the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12
