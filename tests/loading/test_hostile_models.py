"""Model folders that lie, through `foretune plan`: exit status 2, one line that names the file, nothing computed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foretune.flows import cli
from foretune.storage.errors import BadInput
from foretune.tasks.loading import load_model, model_fingerprint

from . import hostile as h
from .conftest import settings

QUANTISED = "its weights are quantised"

HOSTILE: dict[str, tuple[h.Damage, str]] = {
    # which files are opened
    "index of safetensors names a pickle": (
        h.both(h.index({h.UP: "pytorch_model.bin"}), h.text("pytorch_model.bin", "x")),
        "weight_map names pytorch_model.bin, which is not a .safetensors file in this folder",
    ),
    "index climbs": (h.index({h.UP: "../other.safetensors"}), "weight_map names ../other.safetensors, which is not"),
    "index absolute": (h.index({h.UP: "/tmp/other.safetensors"}), "weight_map names /tmp/other.safetensors"),
    "index backslash": (h.index({h.UP: "..\\other.safetensors"}), "which is not a .safetensors file in this folder"),
    "index list": (h.index(whole=[]), "model.safetensors.index.json: holds a list where an object is expected"),
    "index null": (h.index(whole="null"), "model.safetensors.index.json: holds null where an object is expected"),
    "index without map": (h.index(whole={}), "index.json: weight_map is an object; field required"),
    "index map of numbers": (h.index(whole={"weight_map": {"a": 1}}), "index.json: weight_map.a is 1; input should be"),
    "index empty": (h.index(whole={"weight_map": {}}), "weight_map names no file"),
    "index deep": (h.index(whole=h.DEEP), "index.json: not valid JSON (nested too deeply)"),
    "index misses a shard": (h.index({h.UP: "b.safetensors"}), "1 of 2 weight files are missing, first b.safetensors"),
    "index with a tensor more": (
        h.index({"extra": "model-00001-of-00001.safetensors"}),
        "puts extra in model-00001-of-00001.safetensors, it is in none of its files",
    ),
    "tensor in two shards": (h.second_shard, "both hold"),
    "config names other weights": (
        h.fields("config.json", transformers_weights="other.safetensors"),
        "config.json: transformers_weights has other.safetensors opened instead of the usual file",
    ),
    "config names a pickle": (
        h.fields("config.json", transformers_weights="adapter_model.bin"),
        "transformers_weights has adapter_model.bin opened",
    ),
    "config names another config": (
        h.fields("config.json", configuration_files=["config.5.0.0.json"]),
        "configuration_files has ['config.5.0.0.json'] opened",
    ),
    "tokenizer names another file": (
        h.fields("tokenizer_config.json", fast_tokenizer_files=["tokenizer.5.0.json"]),
        "tokenizer_config.json: fast_tokenizer_files has",
    ),
    "code of another repository": (
        h.fields("config.json", auto_map={"AutoConfig": "owner/name--code.Config"}),
        "auto_map names code of another repository (owner/name--code.Config)",
    ),
    "an adapter beside": (h.text("adapter_config.json", "{}"), "holds a whole model and an adapter"),
    "weights linked": (h.linked("model.safetensors"), "model.safetensors is a link to a file elsewhere"),
    "config linked": (h.linked("config.json"), "config.json is a link to a file elsewhere"),
    "tokenizer linked": (h.linked("tokenizer.json"), "tokenizer.json is a link to a file elsewhere"),
    "link to nothing": (h.linked("model.safetensors", "nothing"), "model.safetensors is a link to nothing"),
    "link to itself": (h.linked("tokenizer.json", "tokenizer.json"), "tokenizer.json is a link to nothing"),
    "weights are a pipe": (h.pipe("model.safetensors"), "model.safetensors is not a plain file"),
    "tokenizer is a pipe": (h.pipe("tokenizer.json"), "tokenizer.json is not a plain file"),
    "config is a pipe": (h.pipe("config.json"), "config.json is not a plain file"),
    "weights are a device": (
        h.both(
            lambda folder: (folder / "model.safetensors").unlink(),
            lambda folder: (folder / "model.safetensors").symlink_to("/dev/zero"),
        ),
        "model.safetensors is a link to a file elsewhere (/dev/zero)",
    ),
    "names that differ in case": (
        h.both(h.text("vocab.txt", "a"), h.text("vocab.TXT", "b")),
        "vocab.TXT and vocab.txt differ in case alone",
    ),
    "pickle": (h.pickled(), "its weights are pickled (pytorch_model.bin)"),
    "other formats": (
        h.pickled("model.ckpt"),
        "holds no weights; it needs model.safetensors or shards with their index (model.ckpt is not read)",
    ),
    # what cannot be simulated
    "int8": (h.as_dtype(h.UP, "int8"), f"{QUANTISED} (tensor {h.UP} is stored as I8)"),
    "uint8": (h.as_dtype(h.UP, "uint8"), "is stored as U8"),
    "fp8": (h.as_dtype(h.UP, "float8_e4m3fn"), f"{QUANTISED} (tensor {h.UP} is stored as F8_E4M3)"),
    "complex": (h.as_dtype("model.norm.weight", "complex64"), "is stored as C64"),
    "quantization_config": (h.fields("config.json", quantization_config={"quant_method": "fp8"}), f"{QUANTISED} (fp8)"),
    "quantization_config text": (
        h.fields("config.json", quantization_config="fp8"),
        "quantization_config is 'fp8'; input should be",
    ),
    "missing tensor": (h.tensors(lambda t: t.pop(h.UP)), f"1 tensors are missing, first {h.UP}"),
    "tensor too many": (
        h.tensors(lambda t: t.update({"value_head.weight": t[h.UP].clone()})),
        "1 stored tensors are no part of a LlamaForCausalLM, first value_head.weight",
    ),
    "other shape": (h.fields("config.json", intermediate_size=60), "is [32, 64], config.json asks for [32, 60]"),
    "other vocabulary": (h.fields("config.json", vocab_size=300), "is [259, 32], config.json asks for [300, 32]"),
    "more layers": (h.fields("config.json", num_hidden_layers=3), "9 tensors are missing, first model.layers.2"),
    "fewer layers": (
        h.fields("config.json", num_hidden_layers=1),
        "9 stored tensors are no part of a LlamaForCausalLM",
    ),
    "untied": (h.fields("config.json", tie_word_embeddings=False), "1 tensors are missing, first lm_head.weight"),
    "1e9 layers": (
        h.fields("config.json", num_hidden_layers=10**9),
        "config.json says 1,000,000,000 layers, its files hold 2",
    ),
    "1e12 wide": (h.fields("config.json", hidden_size=10**12), "config.json says a width of 1,000,000,000,000"),
    "1e12 wide MLP": (h.fields("config.json", intermediate_size=10**12), "config.json asks for [32, 1000000000000]"),
    "encoder-decoder": (h.fields("config.json", model_type="t5", is_encoder_decoder=True), "an encoder-decoder (t5)"),
    "masked": (
        h.fields("config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        "BertForMaskedLM predicts masked tokens",
    ),
    "unknown architecture": (
        h.fields("config.json", model_type="own"),
        "config.json says model_type own, an architecture that transformers",
    ),
    "no architecture": (h.fields("config.json", model_type=None), "config.json says model_type nowhere"),
    "own code": (
        h.fields("config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "it runs code of its own",
    ),
    "not a language model": (h.fields("config.json", model_type="vit"), "is no causal language model"),
    # foreign JSON
    "config list": (h.text("config.json", "[]"), "config.json: holds a list where an object is expected"),
    "config null": (h.text("config.json", "null"), "config.json: holds null where"),
    "config deep": (h.text("config.json", h.DEEP), "config.json: not valid JSON (nested too deeply)"),
    "config bytes": (h.text("config.json", b"\xff\xfe\x00"), "config.json: not valid JSON"),
    "config empty": (h.text("config.json", ""), "config.json: not valid JSON"),
    "config half emoji": (h.fields("config.json", note="\ud83d"), "config.json: note holds half of a surrogate pair"),
    "config huge digits": (
        h.text("config.json", '{"vocab_size": ' + "9" * 5000 + "}"),
        "config.json: not valid JSON (Exceeds the limit",
    ),
    "config NaN": (
        h.fields("config.json", hidden_size=float("nan")),
        "config.json: hidden_size is nan; input should be a",
    ),
    "config float": (h.fields("config.json", num_hidden_layers=2.5), "config.json: num_hidden_layers is 2.5"),
    "config text": (
        h.fields("config.json", hidden_size="32"),
        "config.json: hidden_size is '32'; input should be a valid integer",
    ),
    "config negative": (
        h.fields("config.json", num_hidden_layers=-1),
        "num_hidden_layers is -1; input should be greater",
    ),
    "config nested list": (h.fields("config.json", text_config=[]), "config.json: text_config is a list"),
    "config odd heads": (h.fields("config.json", num_attention_heads=0), "cannot be read"),
    "config rope list": (h.fields("config.json", rope_parameters=[1]), "cannot be read"),
    "config activation": (h.fields("config.json", hidden_act="none-such"), "cannot be read"),
    "tokenizer_config list": (h.text("tokenizer_config.json", "[]"), "tokenizer_config.json: holds a list"),
    "tokenizer_config deep": (h.text("tokenizer_config.json", h.DEEP), "tokenizer_config.json: not valid JSON (nested"),
    "tokenizer_config types": (
        h.fields("tokenizer_config.json", chat_template=7),
        "tokenizer_config.json: chat_template",
    ),
    "tokenizer_config token": (h.fields("tokenizer_config.json", eos_token=[1]), "tokenizer_config.json: eos_token"),
    "tokenizer_config tokens": (
        h.fields("tokenizer_config.json", added_tokens_decoder={"x": {}}),
        "added_tokens_decoder.x",
    ),
    "tokenizer.json list": (h.text("tokenizer.json", "[]"), "tokenizer.json cannot be read"),
    "tokenizer.json deep": (h.text("tokenizer.json", h.DEEP), "tokenizer.json cannot be read"),
    "tokenizer.json torn": (h.text("tokenizer.json", '{"version": "1.0"'), "tokenizer.json cannot be read"),
    "template bytes": (h.text("chat_template.jinja", b"\xff"), "chat_template.jinja cannot be read"),
    "generation_config list": (h.text("generation_config.json", "[]"), "generation_config.json: holds a list"),
    # headers
    "header beyond the file": (h.header(lambda _: None, length=2**60), "not a whole safetensors file"),
    "header of nothing": (h.text("model.safetensors", ""), "not a whole safetensors file"),
    "header list": (h.text("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"), "model.safetensors: holds a list"),
    "header deep": (
        h.text("model.safetensors", len(h.DEEP).to_bytes(8, "little") + h.DEEP.encode()),
        "model.safetensors: not valid JSON (nested too deeply)",
    ),
    "header overlap": (
        h.header(lambda said: said[h.UP].update(data_offsets=[0, 8192])),
        "model.safetensors: tensor",
    ),
    "header beyond": (h.header(lambda said: said[h.UP].update(data_offsets=[0, 2**61])), "model.safetensors: tensor"),
    "header shape": (h.header(lambda said: said[h.UP].update(shape=[2**40, 2**20])), "asks for"),
    "header negative": (
        h.header(lambda said: said[h.UP].update(shape=[-1, 32])),
        "shape.0 is -1; input should be greater",
    ),
    "header dtype": (h.header(lambda said: said[h.UP].update(dtype="../x")), "dtype is '../x'"),
    "header entry": (h.header(lambda said: said.update({h.UP: None})), f"tensor {h.UP}: the file is null"),
}


@pytest.fixture
def plan(tiny_request, llama_copy, capfd, monkeypatch):
    """`foretune plan` over a copy of the tiny model: exit status and the lines of stderr."""
    content = yaml.safe_load(tiny_request.read_text()) | {"model": {"name_or_path": str(llama_copy)}}
    tiny_request.write_text(yaml.safe_dump(content))

    def run(*options: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["foretune", "plan", str(tiny_request), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capfd.readouterr().err.strip().splitlines()

    return run


@pytest.mark.parametrize("case", HOSTILE)
def test_a_folder_that_lies_is_one_line_and_exit_status_2(plan, llama_copy, case):
    damage, said = HOSTILE[case]
    damage(llama_copy)
    status, lines = plan()
    assert (status, len(lines)) == (2, 1), lines
    assert said in lines[0], lines[0]
    assert "Traceback" not in lines[0] and "; " in lines[0], "an error gives its remedy"


HARMLESS: dict[str, h.Damage] = {
    "hard link": lambda folder: os.link(folder / "model.safetensors", folder.parent / "same"),
    "a link inside the folder": lambda folder: (
        (folder / "model.safetensors").rename(folder / "weights.data"),
        (folder / "model.safetensors").symlink_to("weights.data"),
    ),
    "shards with a true index": h.index(),
    "pickle beside safetensors": h.text("pytorch_model.bin", "code"),
    "a note and a folder": h.both(h.text("README.md", "x"), lambda folder: (folder / "tokenizer").mkdir()),
    "infinity in the config": h.fields("config.json", time_step_limit=[0.0, float("inf")]),
    "what a tokenizer says of its files is not opened": h.fields(
        "tokenizer_config.json", vocab_file="/etc/passwd", tokenizer_file="../x"
    ),
    "config of many sizes": h.fields("config.json", layer_types=["full_attention"] * 2),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_unusual_but_sound_is_planned(plan, llama_copy, case):
    HARMLESS[case](llama_copy)
    assert plan() == (0, [])


def test_a_pickle_that_is_allowed_is_planned(plan, llama_copy):
    h.pickled()(llama_copy)
    assert plan("--set", "model.allow_pickle=true") == (0, [])


def test_links_into_the_hub_cache_are_followed_and_into_other_repositories_are_not(tiny_llama, tmp_path):
    commit = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    blobs, other = commit.parents[1] / "blobs", tmp_path / "models--owner--other" / "blobs"
    for folder in (commit, blobs, other):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_llama.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (commit / file.name).symlink_to(f"../../blobs/{number}")
    assert model_fingerprint(commit) == model_fingerprint(tiny_llama)
    (other / "0").write_bytes((tiny_llama / "config.json").read_bytes())
    (commit / "config.json").unlink()
    (commit / "config.json").symlink_to("../../../models--owner--other/blobs/0")
    with pytest.raises(BadInput, match=r"config.json is a link to a file elsewhere"):
        model_fingerprint(commit)


def test_what_a_checkpoint_needs_beside_its_weights_is_part_of_the_fingerprint(llama_copy, tiny_llama):
    before = model_fingerprint(llama_copy)
    assert before == model_fingerprint(tiny_llama)
    seen = {before}
    (llama_copy / "additional_chat_templates").mkdir()
    for name in ("preprocessor_config.json", "processor_config.json", "additional_chat_templates/tool_use.jinja"):
        (llama_copy / name).write_text("{}")
        seen.add(model_fingerprint(llama_copy))
    assert len(seen) == 4


def test_a_pickle_that_is_no_set_of_tensors_is_one_line(llama_copy):
    h.pickled()(llama_copy)
    (llama_copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(BadInput, match=r"cannot be read .* copy"):
        load_model(llama_copy, settings(llama_copy, allow_pickle=True))


@pytest.mark.slow
def test_the_check_is_remembered_by_content_so_that_the_next_plan_imports_no_torch(plan, tiny_request, llama_copy):
    assert plan() == (0, [])
    code = (
        "import sys; from foretune.flows.commands.plan import make_plan;"
        "from foretune.flows.request import load_request; make_plan(load_request(sys.argv[1], []));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_request)], check=True)


@pytest.mark.slow
def test_the_command_itself_ends_the_same_way(tiny_request, llama_copy, plan):
    h.as_dtype(h.UP, "int8")(llama_copy)
    binary = Path(sys.executable).with_name("foretune")
    command = [str(binary)] if binary.exists() else [sys.executable, "-m", "foretune.flows.cli"]
    for name in ("plan", "simulate"):
        done = subprocess.run([*command, name, str(tiny_request)], capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert QUANTISED in done.stderr
    assert not (tiny_request.parent / "root").exists()
