"""One healthy world for all attempts of a process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.hostile.attempts import World
from tests.storage.conftest import faulty_s3  # noqa: F401 - a fixture of this room too


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_sae: Path, tiny_rows: list[dict]) -> World:
    """Inputs without faults, a root with a finished run over them, and the tree beside."""
    base = tmp_path_factory.mktemp("hostile")
    healthy = base / "templates"
    healthy.mkdir()
    shutil.copytree(tiny_llama, healthy / "model")
    shutil.copytree(tiny_sae, healthy / "sae")
    for name, rows in (("train", tiny_rows[:18]), ("heldout", tiny_rows[18:])):
        (healthy / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = {
        "name": "tiny",
        "dataset": {"path": "FOLDER/train.jsonl", "heldout": {"path": "FOLDER/heldout.jsonl"}, "max_length": 128},
        "model": {"name_or_path": "FOLDER/model"},
        "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4},
        "shards": {"max_rows": 6},
        "influence": {"replays": {"runs": 16}},
        "runtime": {"root": "ROOT"},
    }
    (healthy / "request.yaml").write_text(yaml.safe_dump(request))
    made = World(base, healthy, base / "root")
    _beside(made.beside)
    finished_run(healthy, base / "healthy", str(made.root))
    return made


def _beside(folder: Path) -> None:
    for name in ("note.txt", "model/model.safetensors", "artifacts/a/b/manifest.json", "runs/r/result.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"not yours: {name}")
    (folder / "link").symlink_to("note.txt")


def finished_run(healthy: Path, folder: Path, root: str) -> Path:
    """The healthy request, copied to `folder`, simulated without an engine and published below `root`; its file."""
    from foretune.flows.request import load_request, to_yaml
    from foretune.storage.events import EventLog
    from foretune.storage.runs import Run
    from foretune.tasks.report import publish
    from tests.dag import run_dag

    shutil.copytree(healthy, folder)
    file = folder / "request.yaml"
    file.write_text(file.read_text().replace("FOLDER", str(folder)).replace("ROOT", root))
    request = load_request(str(file))
    done = run_dag(request)
    done.step.run.place.delete()
    run = Run(root, "20260101-000000-tiny-0a1b")
    run.write_request(to_yaml(request))
    with EventLog.of(run) as log:
        log.emit("run_started", request="tiny")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publish, "publish_markdown", lambda *_: None)  # nobody serves it here
        publish.publish.fn(run, request.model_dump(mode="json"), done.made, len(done.step.steps))
    return file
