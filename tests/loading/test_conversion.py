"""GGUF files become model folders: the same function, the same bytes each time."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foretune.storage.errors import BadInput
from foretune.tasks.loading import (
    check_gguf,
    convert_gguf,
    gguf_preview,
    load_model,
    model_files,
    model_fingerprint,
    resolve_model,
    verify_checkpoint,
)
from foretune.tasks.loading.conversion import gguf_shapes
from foretune.tasks.loading.gguf_header import gguf_header
from foretune.tasks.loading.tokenizer_sources import resolve_tokenizer

from .conftest import settings

HEADS, KV_HEADS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def gguf_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(weight, heads):
    """llama.cpp pairs rotary dimensions (0, 1), Hugging Face (0, d/2): rows of q and k move within heads."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def gguf_file(tiny_llama, tmp_path_factory):
    """The tiny Llama as a float32 GGUF file."""
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama)


def written(path, tiny_llama, without=(), **numbers):
    """The tiny Llama written tensor by tensor with the gguf library, `without` some, with more fields."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(config.vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 3)
    writer.add_token_scores([0.0] * config.vocab_size)  # no merges: every byte is a token
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_chat_template(tokenizer.chat_template)
    for name, number in numbers.items():
        writer.add_uint16(name.replace("_", "."), number)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or name in without:
            continue
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(gguf_name(name), values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(gguf_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    convert_gguf(gguf_file, out)
    return out


def test_a_converted_folder_has_the_names_that_transformers_4_reads(converted):
    config = json.loads((converted / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"] == "float32"
    tokenizer = json.loads((converted / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_converted_model_is_the_same_function(converted, opened, batch):
    from foretune.tasks.loading import functional_caller

    ours = load_model(converted, settings(converted))
    seen = batch.attention_mask.bool()
    torch.testing.assert_close(
        functional_caller(ours, [])({}, batch)[seen],
        functional_caller(opened("llama"), [])({}, batch)[seen],
        atol=1e-5,
        rtol=1e-4,
    )


def test_a_converted_model_keeps_tokenizer_and_template(converted, tiny_llama):
    ours, original = AutoTokenizer.from_pretrained(converted), AutoTokenizer.from_pretrained(tiny_llama)
    messages = [{"role": "user", "content": "Where is the pump?"}]
    assert ours.apply_chat_template(messages, tokenize=False) == original.apply_chat_template(messages, tokenize=False)
    assert ours("Where is the pump?").input_ids == original("Where is the pump?").input_ids
    assert ours.eos_token == "<|im_end|>"


def test_conversion_gives_the_same_bytes_from_anywhere(converted, gguf_file, tmp_path):
    elsewhere = tmp_path / "another name.gguf"
    shutil.copyfile(gguf_file, elsewhere)
    convert_gguf(elsewhere, tmp_path / "again")
    for file in sorted(converted.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert model_fingerprint(tmp_path / "again") == model_fingerprint(converted)


def test_the_requested_dtype_is_stored(gguf_file, tmp_path):
    convert_gguf(gguf_file, tmp_path / "half", dtype="bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_a_converted_folder_is_a_base_for_checkpoints(converted, tmp_path):
    from foretune.tasks.loading import write_checkpoint

    loaded = load_model(converted, settings(converted))
    delta = {"model.layers.0.self_attn.q_proj.weight": torch.full((32, 32), 0.01)}
    write_checkpoint(tmp_path / "out", loaded, delta, converted)
    verify_checkpoint(tmp_path / "out", converted, settings(converted))


def test_a_gguf_path_resolves_to_the_file(gguf_file):
    assert resolve_model(settings(gguf_file)) == gguf_file
    assert len(model_fingerprint(gguf_file)) == 64


def test_a_file_that_only_claims_to_be_gguf_is_bad_input(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match=r"model.gguf: not a GGUF file; copy it again"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_of_an_unknown_architecture_is_bad_input(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "unheard-of")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadInput, match=r"transformers cannot read this GGUF file, it .*unheard-of"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_part_of_a_split_file_is_refused_whatever_its_name(tiny_llama, tmp_path):
    part = written(tmp_path / "model.gguf", tiny_llama, split_count=2, split_no=0)
    for refused in (check_gguf, lambda path: convert_gguf(path, tmp_path / "out")):
        with pytest.raises(BadInput, match=r"part 1 of 2 of a split model; merge it with gguf-split --merge"):
            refused(part)
    check_gguf(written(tmp_path / "whole.gguf", tiny_llama, split_count=1))


def test_layers_that_a_gguf_file_lacks_are_never_made_up(tiny_llama, tmp_path):
    last = [name for name in AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict() if ".layers.1." in name]
    with pytest.raises(BadInput, match=r"says 2 layers and holds 1 of them; copy the file again"):
        check_gguf(written(tmp_path / "model.gguf", tiny_llama, without=last))
    torn = written(tmp_path / "torn.gguf", tiny_llama, without=last[:1])
    check_gguf(torn)  # which tensors a layer has only transformers knows
    with pytest.raises(BadInput, match=r"1 tensors are missing, first model.layers.1"):
        convert_gguf(torn, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def changed(at, kind, value):
    def change(data):
        struct.pack_into("<" + kind, data, at, value)
        return data

    return change


LYING = {
    "half of it": lambda data: data[: len(data) // 2],
    "its first bytes": lambda data: data[:10],
    "a version of its own": changed(4, "I", 99),
    "of another byte order": changed(4, "I", 3 << 24),
    "2^60 tensors": changed(8, "Q", 2**60),
    "2^60 fields": changed(16, "Q", 2**60),
    "a name of 2^62 bytes": changed(24, "Q", 2**62),
    "no field at all": changed(16, "Q", 0),
}


@pytest.mark.parametrize("case", LYING)
def test_a_gguf_header_that_lies_is_one_line_and_costs_no_memory(gguf_file, tmp_path, case):
    (tmp_path / "model.gguf").write_bytes(LYING[case](bytearray(gguf_file.read_bytes())))
    with pytest.raises(BadInput, match=r"^model .*model.gguf.*; ") as raised:
        check_gguf(tmp_path / "model.gguf")
    assert len(str(raised.value)) < 400


def test_an_empty_gguf_file_is_bad_input(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(BadInput, match=r"model.gguf: not a GGUF file"):
        check_gguf(tmp_path / "model.gguf")


def test_the_header_of_a_real_model_is_read():
    path = Path(__file__).parents[2] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("make demo fetches the model")
    header = gguf_header(path)
    check_gguf(path)
    assert header.fields["general.architecture"] == "llama" and len(header.tensors) == 272
    assert header.tensors["token_embd.weight"] == [576, 49152]


def test_the_tokenizer_alone_is_that_of_the_converted_folder(gguf_file, converted, own_cache, monkeypatch):
    monkeypatch.setattr("gguf.quants.dequantize", None)  # whoever reads tensors fails
    alone = resolve_tokenizer(settings(gguf_file))
    assert alone.is_relative_to(own_cache) and not list(alone.glob("*.safetensors"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (alone / name).read_bytes() == (converted / name).read_bytes(), name
    assert json.loads((alone / "config.json").read_text())["eos_token_id"] == 258
    assert resolve_tokenizer(settings(gguf_file)) == alone


def test_a_gguf_without_a_tokenizer_is_one_line(tmp_path, own_cache):
    (tmp_path / "x.gguf").write_bytes(b"GGUF but torn")
    with pytest.raises(BadInput, match=r"x\.gguf"):
        resolve_tokenizer(settings(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (None, "holds a vocabulary and no weights; give the file that holds the weights"),
        ("imatrix", "a GGUF file of type imatrix, not a model"),
        ("mmproj", "a GGUF file of type mmproj, not a model"),
    ],
)
def test_a_gguf_file_that_is_no_model_is_one_line_before_anything_runs(tmp_path, kind, words):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(2)
    writer.add_tokenizer_model("gpt2")
    if kind:
        writer.add_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadInput, match=words):
        check_gguf(tmp_path / "x.gguf")


def test_a_preview_has_the_shapes_and_the_tokenizer_of_the_folder_that_it_becomes(gguf_file, converted):
    preview = gguf_preview(gguf_file)
    assert gguf_shapes(preview) == {name: each.shape for name, each in model_files(converted).layout().items()}
    assert (preview / "tokenizer.json").read_bytes() == (converted / "tokenizer.json").read_bytes()
    assert gguf_shapes(converted) is None
