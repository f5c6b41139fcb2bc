"""Tools that read models find in base, predicted and trained folder what transformers finds there.

The environments are made by `make thirdparty`; a tool whose environment is missing is left out.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from foretune.flows.commands.export import export_adapter, export_checkpoint
from foretune.flows.request import load_request, to_yaml
from tests.conftest import request_beside, write_sae
from tests.dag import called, run_dag
from tests.thirdparty.environments import PROJECT, asked, python_of
from tests.thirdparty.figures import TOOLS

FOLDERS = ("base", "predicted", "trained")
IDS = [[257, *range(40, 70)], [257, *range(50, 61)], [257, *range(60, 90)]]

pytestmark = [pytest.mark.slow, pytest.mark.optional]


def figures(tool: str, folder: Path, models: list[str], sae: Path) -> dict[str, Any]:
    return asked(tool, folder, IDS, models, sae)["figures"]


@pytest.fixture(scope="module")
def models(first_run, tmp_path_factory) -> dict[str, str]:
    """Folder of the base, the predicted and the trained model, by name; and base and adapter of the predicted one."""
    import shutil

    folder = tmp_path_factory.mktemp("models")
    path = request_beside(first_run, folder / "run")
    request, done = load_request(str(path)), run_dag(path)
    run, base = done.step.run, Path(request.model.name_or_path)
    run.write_request(to_yaml(request))
    artifacts = {name: {"uri": ref.uri, "sha256": ref.sha256} for name, ref in done.made.items()}
    content = {"run_id": run.run_id, "request": request.model_dump(mode="json"), "summary": done.summary("prediction")}
    run.write_result({**content, "artifacts": artifacts})
    export_checkpoint(run, str(folder / "predicted"))
    export_adapter(run, str(folder / "adapter"))
    really_trained(called(request), folder / "trained")
    for file in base.glob("*token*"):
        shutil.copy(file, folder / "trained")
    found = {"base": str(base)} | {name: str(folder / name) for name in ("predicted", "trained")}
    return found | {"adapter": f"{base}:{folder / 'adapter'}"}


def really_trained(wiring: Any, folder: Path) -> None:
    """The same request's training, its end as a folder of transformers."""
    from foretune.tasks.backtest.real_run import train
    from foretune.tasks.samples.dataset import read_table

    request, loaded = wiring.request, wiring.model.open(wiring.step.run)
    table = read_table(wiring.step.run, wiring.tables["train"])
    real = train(loaded, table, request.adapter, request.training, None, folder=folder)
    state = {name: weight.detach().clone() for name, weight in loaded.model.state_dict().items()}
    for name, change in real.delta.items():
        state[name] = state[name] + change.to(state[name].dtype)
    loaded.model.save_pretrained(folder, state_dict=state)


@pytest.fixture(scope="module")
def sae(tmp_path_factory) -> Path:
    return write_sae(tmp_path_factory.mktemp("sae"), seed=3)


@pytest.fixture(scope="module")
def expected(models, sae, tmp_path_factory) -> dict[str, float]:
    folders = [models[name] for name in FOLDERS]
    return figures("transformers", tmp_path_factory.mktemp("figures"), folders, sae)


@pytest.mark.parametrize("tool", [name for name in TOOLS if name != "transformers"])
def test_a_tool_finds_what_transformers_finds(tool, models, expected, sae, tmp_path):
    if not python_of(tool).exists():
        pytest.skip(f"no environment with {tool}; `make thirdparty` makes it")
    alike = {"adapter": "predicted"} if tool == "dlm_sway" else dict(zip(FOLDERS, FOLDERS, strict=True))
    found = figures(tool, tmp_path, [models[name] for name in alike], sae)
    if tool == "sae_lens":  # another figure: three models, three shares
        assert len(set(found.values())) == 3 and max(found.values()) <= 1
        return
    for name, same in alike.items():
        assert found[models[name]] == pytest.approx(expected[models[same]], abs=2e-5), name


def test_vllm_reads_one_configuration_in_all_of_them(models, tmp_path):
    python = PROJECT / ".bench/vllm/bin/python"
    if not python.exists():
        pytest.skip("no environment with vLLM; `make thirdparty` makes it")
    folders, out = [models[name] for name in FOLDERS], tmp_path / "read.json"
    script = Path(__file__).with_name("read_configurations.py")
    subprocess.run([str(python), str(script), str(out), *folders], check=True, timeout=600, cwd=tmp_path)
    found = json.loads(out.read_text())
    base, *others = ({**found[folder], "_name_or_path": "", "transformers_version": ""} for folder in folders)
    assert base["architectures"] == ["LlamaForCausalLM"] and base["hidden_size"] == 32
    assert all(other == base for other in others)
