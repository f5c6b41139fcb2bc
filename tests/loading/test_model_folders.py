"""Where a model is found, which files it is made of, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from foretune.storage.errors import BadInput
from foretune.tasks.loading import load_model, model_fingerprint, model_outline, resolve_model
from foretune.tasks.loading.tokenizer_sources import resolve_tokenizer

from .conftest import settings


def test_importing_loading_imports_no_heavy_library():
    code = (
        "import sys, foretune.tasks.loading, foretune.tasks.loading.hooks, foretune.tasks.saes;"
        "heavy = {'torch', 'transformers', 'peft', 'sae_lens', 'numpy', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fingerprint_needs_no_torch(tiny_llama):
    code = (
        "import sys, pathlib; from foretune.tasks.loading import model_fingerprint, resolve_model, ModelSettings;"
        "print(model_fingerprint(resolve_model(ModelSettings(name_or_path=sys.argv[1]))));"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    seen = subprocess.run([sys.executable, "-c", code, tiny_llama], check=True, capture_output=True, text=True)
    assert seen.stdout.strip() == model_fingerprint(tiny_llama)


def test_the_fingerprint_follows_weights_config_and_tokenizer_and_nothing_else(llama_copy, tiny_llama):
    before = model_fingerprint(tiny_llama)
    (llama_copy / "README.md").write_text("a note")
    (llama_copy / "training_args.bin").write_bytes(b"settings of some trainer")
    assert model_fingerprint(llama_copy) == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        changed = shutil.copytree(llama_copy, llama_copy.parent / f"without_{name}")
        with open(changed / name, "ab") as stream:
            stream.write(b"\n")
        assert model_fingerprint(changed) != before


def test_a_local_folder_is_used_where_it_lies(tiny_llama):
    assert resolve_model(settings(tiny_llama)) == tiny_llama


def test_an_s3_folder_loads_like_the_local_one(tiny_llama, tmp_path, monkeypatch):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FORETUNE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    try:
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="models")
        for file in tiny_llama.iterdir():
            client.upload_file(str(file), "models", f"base/{file.name}")
        found = resolve_model(settings("s3://models/base"))
    finally:
        server.stop()
    assert model_fingerprint(found) == model_fingerprint(tiny_llama)


def test_of_an_s3_folder_the_tokenizer_comes_without_weights(tiny_llama, s3_client, s3_root, own_cache):
    bucket = s3_root.split("/")[2]
    for file in tiny_llama.iterdir():
        s3_client.upload_file(str(file), bucket, f"base/{file.name}")
    found = resolve_tokenizer(settings(f"s3://{bucket}/base"))
    fetched = {path.name for path in found.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= fetched
    assert not any(name.endswith(".safetensors") for name in fetched)
    s3_client.put_object(Bucket=bucket, Key="base/model.safetensors", Body=b"others")
    assert resolve_tokenizer(settings(f"s3://{bucket}/base")) == found
    s3_client.put_object(Bucket=bucket, Key="weights/model.safetensors", Body=b"alone")
    with pytest.raises(BadInput, match="holds no file of the kind that is read here"):
        resolve_tokenizer(settings(f"s3://{bucket}/weights"))


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "no/such/model.gguf", "a/b/c"])
def test_a_missing_path_is_bad_input(name):
    with pytest.raises(BadInput, match=r"no such file or folder; check the path"):
        resolve_model(settings(name))


def test_an_unreachable_hub_is_one_line_with_the_remedy():
    with pytest.raises(
        BadInput,
        match=r"^model owner/name@v2: the hub cannot be reached and its cache has no "
        r"copy \(\w+\); give a local folder or an s3:// folder$",
    ):
        resolve_model(settings("owner/name", revision="v2"))


def test_what_is_neither_path_nor_hub_id_is_bad_input():
    with pytest.raises(BadInput, match=r"model my model: neither an existing path nor a hub id"):
        resolve_model(settings("my model"))


def test_a_hub_id_resolves_offline_from_the_hub_cache(tiny_llama, tmp_path, monkeypatch):
    import huggingface_hub.constants

    repository = tmp_path / "models--owner--name"
    commit = "0" * 40
    shutil.copytree(tiny_llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = resolve_model(settings("owner/name"))
    assert found == repository / "snapshots" / commit
    assert model_fingerprint(found) == model_fingerprint(tiny_llama)


def test_a_file_that_is_no_gguf_is_bad_input(tiny_llama):
    with pytest.raises(BadInput, match=r"a file of unknown kind; give a model folder or a .gguf file"):
        resolve_model(settings(tiny_llama / "config.json"))


def test_a_folder_without_weights_is_bad_input(llama_copy):
    (llama_copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"the folder holds no weights; it needs model.safetensors or shards"):
        load_model(llama_copy, settings(llama_copy))


def test_a_folder_without_config_is_bad_input(llama_copy):
    (llama_copy / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config.json; give a folder in Hugging Face's format"):
        load_model(llama_copy, settings(llama_copy))


def test_an_adapter_folder_is_bad_input(llama_copy):
    (llama_copy / "config.json").rename(llama_copy / "adapter_config.json")
    with pytest.raises(BadInput, match=r"an adapter, not a model; merge it into its base model first"):
        load_model(llama_copy, settings(llama_copy))


def test_an_unreadable_config_is_bad_input(llama_copy):
    (llama_copy / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config.json: not valid JSON .* copy the file again"):
        load_model(llama_copy, settings(llama_copy))


def test_a_missing_shard_is_named(llama_copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (llama_copy / "model.safetensors").rename(llama_copy / "model-00001-of-00002.safetensors")
    (llama_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"1 of 2 weight files are missing, first model-00002-of-00002"):
        load_model(llama_copy, settings(llama_copy))


def test_pickled_weights_are_refused_unless_the_request_allows_them(llama_copy, tiny_llama, batch):
    import torch

    tensors = load_file(llama_copy / "model.safetensors")
    torch.save(tensors, llama_copy / "pytorch_model.bin")
    (llama_copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"its weights are pickled \(pytorch_model.bin\), .* model.allow_pickle"):
        load_model(llama_copy, settings(llama_copy))
    opened = load_model(llama_copy, settings(llama_copy, allow_pickle=True))
    assert torch.equal(opened.weight("model.norm.weight"), tensors["model.norm.weight"])


def test_code_that_comes_with_a_model_is_refused_and_never_runs(llama_copy):
    config = json.loads((llama_copy / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"},
    }
    (llama_copy / "config.json").write_text(json.dumps(config))
    (llama_copy / "own.py").write_text("raise SystemExit('the code of the model ran')")
    with pytest.raises(
        BadInput,
        match=r"it runs code of its own \(auto_map in config.json\); "
        "set model.trust_remote_code: true",
    ):
        load_model(llama_copy, settings(llama_copy))


def test_a_known_architecture_ignores_the_code_that_comes_with_it(llama_copy):
    config = json.loads((llama_copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.Model"}
    (llama_copy / "config.json").write_text(json.dumps(config))
    (llama_copy / "own.py").write_text("raise SystemExit('the code of the model ran')")
    assert type(load_model(llama_copy, settings(llama_copy)).model).__name__ == "LlamaForCausalLM"


def test_quantised_weights_are_bad_input(llama_copy):
    config = json.loads((llama_copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (llama_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"its weights are quantised \(gptq\); give the unquantised model"):
        load_model(llama_copy, settings(llama_copy))


def damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(llama_copy, value):
    name = "model.layers.1.self_attn.v_proj.weight"
    damage(llama_copy, lambda tensors: tensors[name].view(-1)[7].fill_(value))
    with pytest.raises(BadInput, match=rf"tensor {name} has NaN or infinite values"):
        load_model(llama_copy, settings(llama_copy))


def test_huge_finite_weights_are_no_error(llama_copy):
    damage(llama_copy, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    load_model(llama_copy, settings(llama_copy))


def test_a_missing_tensor_is_named_and_never_made_up(llama_copy):
    damage(llama_copy, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(BadInput, match=r"1 tensors are missing, first model.layers.0.mlp.up_proj.weight"):
        load_model(llama_copy, settings(llama_copy))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(llama_copy):
    def narrow(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:60].clone()

    damage(llama_copy, narrow)
    with pytest.raises(BadInput, match=r"up_proj.weight is \[60, 32\], config.json asks for \[64, 32\]"):
        load_model(llama_copy, settings(llama_copy))


def test_a_torn_weight_file_is_bad_input(llama_copy):
    whole = (llama_copy / "model.safetensors").read_bytes()
    (llama_copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"model.safetensors: tensor .* lies at bytes .* copy the file again"):
        load_model(llama_copy, settings(llama_copy))


def test_a_model_that_is_no_causal_language_model_is_bad_input(llama_copy):
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (llama_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"cannot be read \(Unrecognized configuration class"):
        load_model(llama_copy, settings(llama_copy))


def test_a_gpu_that_is_not_there_is_bad_input(tiny_llama):
    import torch

    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight GPUs")
    with pytest.raises(BadInput, match=r"device cuda:7: this machine has . CUDA devices; set device: auto"):
        load_model(tiny_llama, settings(tiny_llama).model_copy(update={"device": "cuda:7"}))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "gpt_neox"])
def test_the_outline_gives_width_and_depth_whatever_the_config_calls_them(folder_of, family):
    outline = model_outline(folder_of(family))
    assert (outline.d_model, outline.layers) == (32, 2)
