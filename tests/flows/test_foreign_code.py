"""A machine that forbids code that comes with a model refuses it, whatever the request says and whoever opens it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from foretune.storage.errors import BadInput
from foretune.tasks.loading import ModelSettings, load_model
from foretune.tasks.loading.foreign_code import SWITCH
from foretune.tasks.loading.stored import StoredWeights
from foretune.tasks.saes import SaeSettings, load_sae

RAN = "own-code-ran"


@pytest.fixture
def own_code(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose own code leaves a file behind when it is imported."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "own"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / RAN)!r}, 'w').close()\n")
    return folder


@pytest.fixture
def pickled(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def asked(request: Path, section: str, **values) -> Path:
    content = yaml.safe_load(request.read_text())
    content[section] |= values
    request.write_text(yaml.safe_dump(content))
    return request


@pytest.mark.slow
@pytest.mark.parametrize("command", ["simulate", "plan", "vet"])
@pytest.mark.parametrize("section", ["model", "sae"])
def test_a_forbidden_request_ends_in_one_line_before_anything_runs(tiny_request, own_code, tmp_path, command, section):
    if section == "model":
        asked(tiny_request, "model", name_or_path=str(own_code), trust_remote_code=True)
    else:
        asked(tiny_request, "sae", allow_pickle=True)
    done = subprocess.run(
        [sys.executable, "-m", "foretune.flows.cli", command, str(tiny_request)],
        env=os.environ | {SWITCH: "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    [line] = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert f"true is forbidden on this machine ({SWITCH} is set); " in line
    assert f"{section}.{'trust_remote_code' if section == 'model' else 'allow_pickle'}" in line
    assert not (tmp_path / RAN).exists()
    assert not (tmp_path / "root" / "artifacts").exists()


def test_who_opens_a_model_past_the_check_is_refused_too(monkeypatch, own_code, pickled, tiny_sae, tmp_path):
    opened = load_model(pickled, ModelSettings(name_or_path=str(pickled), device="cpu", allow_pickle=True))
    assert opened.model is not None
    monkeypatch.setenv(SWITCH, "1")
    for folder, allowed in ((own_code, {"trust_remote_code": True}), (pickled, {"allow_pickle": True})):
        with pytest.raises(BadInput, match=f"^model.{next(iter(allowed))}: true is forbidden on this machine"):
            load_model(folder, ModelSettings(name_or_path=str(folder), device="cpu", **allowed))
    with pytest.raises(BadInput, match=r"^sae.allow_pickle: true is forbidden"):
        load_sae(SaeSettings(path=str(tiny_sae), allow_pickle=True), tiny_sae)
    with pytest.raises(BadInput, match=r"pytorch_model.bin: is pickled, which is forbidden"):
        StoredWeights(pickled)
    assert not (tmp_path / RAN).exists()


@pytest.mark.parametrize(("value", "forbids"), [("1", True), ("yes", True), ("treu", True), ("0", False), ("", False)])
def test_a_value_that_nobody_knows_forbids(monkeypatch, pickled, value, forbids):
    monkeypatch.setenv(SWITCH, value)
    asked = ModelSettings(name_or_path=str(pickled), device="cpu", allow_pickle=True)
    if forbids:
        with pytest.raises(BadInput, match=SWITCH):
            load_model(pickled, asked)
    else:
        assert load_model(pickled, asked).digest
