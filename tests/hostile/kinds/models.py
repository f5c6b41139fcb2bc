"""A model folder's JSON and the headers of its weights, spoiled."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.kinds.attempt import Attempt, dumped, in_words, planned, put
from tests.hostile.values import (
    damaged_bytes,
    leaves,
    numbers,
    texts,
    values,
)


@st.composite
def model_json(draw: Any) -> Attempt:
    """config.json, tokenizer_config.json, tokenizer.json, generation_config.json and an index, spoiled."""
    name = draw(st.sampled_from(["config.json", "config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json",
                                 "model.safetensors.index.json", "special_tokens_map.json", "added_tokens.json"]))  # fmt: skip
    seed = draw(st.integers(0, 2**32))
    value, data = draw(values), draw(st.one_of(st.none(), damaged_bytes(b'{"model_type": "llama", "hidden_size": 32}')))
    deep = draw(st.integers(0, 3))

    def prepare(case: Case) -> list[str]:
        file = case.model / name
        if data is not None or not file.exists():
            file.write_bytes(data if data is not None else dumped(value).encode())
            return planned(case)
        content = json.loads(file.read_text())
        places = [tuple(p) for p in leaves(content) if len(p) <= 1 + deep]
        file.write_text(dumped(put(content, places[seed % len(places)], value)))
        return planned(case)

    return Attempt(in_words(name, seed, value, data), prepare)


@st.composite
def safetensors_headers(draw: Any) -> Attempt:
    """The header of the model's weights, and of the SAE's, says something else than the file holds."""
    which = draw(st.sampled_from(["model/model.safetensors", "sae/sae_weights.safetensors"]))
    how = draw(st.sampled_from(["field", "field", "name", "length", "bytes"]))
    seed, value = draw(st.integers(0, 2**32)), draw(st.one_of(values, st.lists(numbers, max_size=4)))
    field, length = draw(st.sampled_from(["shape", "dtype", "data_offsets", "x"])), draw(st.integers(0, 2**64 - 1))
    name, cut = draw(texts), draw(st.integers(0, 4000))

    def prepare(case: Case) -> list[str]:
        file = case.folder / which
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        said = json.loads(data[8 : 8 + size])
        tensor = sorted(said)[seed % len(said)]
        if how == "bytes":
            file.write_bytes(data[:cut] + bytes([seed % 256]) + data[cut + 1 :] if seed % 2 else data[:cut])
        else:
            if how == "field":
                said[tensor] = said[tensor] | {field: value} if seed % 3 else value
            if how == "name":
                said[name] = said.pop(tensor)
            new = dumped(said).encode()
            file.write_bytes(struct.pack("<Q", length if how == "length" else len(new)) + new + data[8 + size :])
        case.change(sae={"path": str(case.sae)})
        return planned(case)

    return Attempt(in_words(which, how, field, value, length, name, seed, cut), prepare)


def _gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@st.composite
def gguf_headers(draw: Any) -> Attempt:
    """GGUF files of a few fields and tensors, whose counts, lengths and types lie."""
    version = draw(st.sampled_from([0, 1, 2, 3, 4, 2**31]))
    counts = [draw(st.sampled_from([0, 1, 2, 2**31, 2**63])) for _ in range(2)]
    body = b""
    for _ in range(draw(st.integers(0, 3))):
        key = draw(
            st.sampled_from(
                [b"general.architecture", b"llama.block_count", b"tokenizer.ggml.model", b"\xff", b"x" * 70_000]
            )
        )
        kind = draw(st.integers(0, 14))
        length = draw(st.sampled_from([None, 2**63, 2**40]))
        body += _gguf_text(key) + struct.pack("<I", kind)
        if kind == 8:
            body += _gguf_text(b"llama") if length is None else struct.pack("<Q", length)
        elif kind == 9:
            body += struct.pack("<IQ", draw(st.integers(0, 14)), length or 1) + draw(st.binary(max_size=20))
        else:
            body += draw(st.binary(max_size=8))
    body += draw(st.binary(max_size=100))
    data = draw(st.sampled_from([b"GGUF", b"GGUF", b"FUGG", b"GGU"])) + struct.pack("<IQQ", version, *counts) + body

    def prepare(case: Case) -> list[str]:
        file = case.folder / "m.gguf"
        file.write_bytes(data)
        case.change(model={"name_or_path": str(file)})
        return planned(case)

    return Attempt(in_words(data), prepare)
