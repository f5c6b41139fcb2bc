"""SAE folders and their labels, spoiled."""

from __future__ import annotations

import gzip
import json
from typing import Any

from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.kinds.attempt import Attempt, dumped, in_words, planned, put
from tests.hostile.values import (
    damaged_bytes,
    leaves,
    scalars,
    spoiled,
    values,
)


@st.composite
def sae_folders(draw: Any) -> Attempt:
    """cfg.json of sae-lens and of sparsify, spoiled."""
    seed, value = draw(st.integers(0, 2**32)), draw(values)
    data = draw(
        st.one_of(st.none(), st.none(), damaged_bytes(b'{"architecture": "topk", "d_in": 32, "d_sae": 64, "k": 8}'))
    )
    key = draw(st.sampled_from([None, None, "architecture", "d_in", "d_sae", "k", "hook_name", "metadata", "normalize_activations", "is_transcoder",
                                "d_out", "dtype", "activation", "num_latents", "expansion_factor", "hook_layer", "neuronpedia_id"]))  # fmt: skip
    settings = draw(
        st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {}, optional={"hook_name": scalars, "neuronpedia_id": scalars, "release": scalars, "centre": scalars}
            ),
        )
    )

    def prepare(case: Case) -> list[str]:
        file = case.sae / "cfg.json"
        content = json.loads(file.read_text())
        if data is not None:
            file.write_bytes(data)
        else:
            places = leaves(content)
            file.write_text(dumped(content | {key: value} if key else put(content, places[seed % len(places)], value)))
        case.change(sae={"path": str(case.sae)} | (settings or {}))
        return planned(case)

    return Attempt(in_words(key, seed, value, data, settings), prepare)


@st.composite
def label_files(draw: Any) -> Attempt:
    """Labels as JSON, JSONL, CSV, Parquet and an export: read as the features' labels are."""
    from foretune.tasks.saes.labels import read_labels

    name = draw(
        st.sampled_from(["l.json", "l.jsonl", "l.csv", "l.parquet", "l.jsonl.gz", "l.txt", "l", "batch-1.jsonl.gz"])
    )
    row = {"index": 1, "description": "rivers", "feature": "2", "label": "x", "modelId": "m", "layer": "1"}
    made = draw(st.lists(spoiled(row), min_size=1, max_size=3))
    data = draw(
        st.one_of(st.none(), st.none(), damaged_bytes(b'{"1": "rivers"}'), values.map(lambda v: dumped(v).encode()))
    )
    wanted = draw(st.sampled_from([None, "m/1"]))

    def prepare(case: Case) -> list[str]:
        file = case.folder / name
        lines = data if data is not None else "".join(dumped(each) + "\n" for each in made).encode()
        file.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        case.instead = lambda: read_labels(str(file), wanted)
        return ["labels"]

    return Attempt(in_words(name, made, data), prepare)
