"""Feature names come from the file that the user gives, else from the tokens that a feature favours."""

from __future__ import annotations

import gzip
import json

import pandas
import pytest
import torch

from foretune.storage.errors import BadInput
from foretune.tasks.saes import SaeSettings, feature_labels, load_sae, read_labels

from .sae_folders import D_SAE, sae_lens_folder, weights


def export(folder, rows, batches=2):
    """A Neuronpedia export: explanations/batch-N.jsonl.gz, indices as strings."""
    (folder / "explanations").mkdir(parents=True)
    for number in range(batches):
        with gzip.open(folder / "explanations" / f"batch-{number}.jsonl.gz", "wt") as stream:
            for row in rows[number::batches]:
                stream.write(json.dumps(row) + "\n")
    return folder


def explanation(index, text, layer="8-res-jb"):
    return {
        "modelId": "gpt2-small",
        "layer": layer,
        "index": str(index),
        "description": text,
        "typeName": "np_acts",
    }


def test_a_neuronpedia_export_is_read(tmp_path):
    folder = export(tmp_path, [explanation(n, f"concept  {n}\n") for n in range(30)])
    assert read_labels(str(folder)) == {n: f"concept {n}" for n in range(30)}
    assert read_labels(str(folder / "explanations")) == read_labels(str(folder))
    assert read_labels(str(folder / "explanations" / "batch-1.jsonl.gz"))[1] == "concept 1"


def test_of_several_explanations_the_first_counts(tmp_path):
    assert read_labels(str(export(tmp_path, [explanation(3, "first"), explanation(3, "second")], 1))) == {3: "first"}


def test_an_export_of_several_layers_needs_one_named(tmp_path):
    folder = export(tmp_path, [explanation(1, "eight"), explanation(1, "nine", "9-res-jb")])
    with pytest.raises(
        BadInput,
        match=r"an export of 2 layers \(gpt2-small/8-res-jb, gpt2-small/9-res-jb\); "
        "set sae.neuronpedia_id",
    ):
        read_labels(str(folder))
    assert read_labels(str(folder), "gpt2-small/9-res-jb") == {1: "nine"}


def test_json_jsonl_csv_and_parquet_say_the_same(tmp_path):
    rows = [{"feature": 2, "label": "pumps"}, {"feature": 5, "label": "valves"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "map.json").write_text(json.dumps({"2": "pumps", "5": "valves"}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pandas.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    pandas.DataFrame(rows).rename(columns={"feature": "index", "label": "description"}).to_parquet(
        tmp_path / "rows.parquet"
    )
    for name in ("rows.json", "map.json", "rows.jsonl", "rows.csv", "rows.parquet"):
        assert read_labels(str(tmp_path / name)) == {2: "pumps", 5: "valves"}, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"feature": 1, "name": "x"}]',
            "no row has index or feature and description or label; check the columns",
        ),
        ("{", "not valid JSON"),
    ],
)
def test_a_file_without_labels_is_bad_input(tmp_path, content, message):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        read_labels(str(tmp_path / "labels.json"))


def test_a_folder_without_an_export_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"no batch-N.jsonl.gz in the folder; give a Neuronpedia export"):
        read_labels(str(tmp_path))


@pytest.fixture
def letters(tmp_path, opened):
    """An SAE whose features 0 to 25 write the directions of the letters A to Z, and the base."""
    loaded = opened("llama")
    tensors = weights()
    unembedding = loaded.model.get_output_embeddings().weight
    for feature in range(26):
        [token] = loaded.tokenizer(chr(65 + feature)).input_ids
        tensors["W_dec"][feature] = 4 * unembedding[token] / loaded.model.model.norm.weight
    settings = SaeSettings(path=str(sae_lens_folder(tmp_path / "sae", tensors)), device="cpu")
    return settings, load_sae(settings, tmp_path / "sae"), loaded


def test_the_logit_lens_names_a_feature_after_the_token_it_writes(letters):
    labels = feature_labels(*letters, None)
    assert len(labels) == D_SAE
    assert [label.split(" · ")[0] for label in labels[:26]] == [chr(65 + n) for n in range(26)]


def test_a_file_s_names_come_first_and_the_lens_fills_the_gaps(letters, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"1": "a name", "40": "another"}))
    labels = feature_labels(*letters, str(tmp_path / "labels.json"))
    assert (labels[1], labels[40]) == ("a name", "another")
    assert labels[0].startswith("A")


def test_without_a_model_or_a_matching_width_features_stay_without_name(letters, tmp_path):
    settings, sae, loaded = letters
    assert feature_labels(settings, sae, None, None) == [None] * D_SAE
    narrow = {
        "W_enc": torch.zeros(16, 4),
        "b_enc": torch.zeros(4),
        "W_dec": torch.ones(4, 16),
        "b_dec": torch.zeros(16),
    }
    folder = sae_lens_folder(tmp_path / "narrow", narrow, d_in=16, d_sae=4, k=2)
    own = SaeSettings(path=str(folder), device="cpu")
    assert feature_labels(own, load_sae(own, folder), loaded, None) == [None] * 4


def test_labels_of_a_larger_sae_are_bad_input(letters, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"48": "too far"}))
    with pytest.raises(BadInput, match=r"feature 48, but the SAE has 48; give the labels of this SAE"):
        feature_labels(*letters, str(tmp_path / "labels.json"))
