"""The examples for data pipelines in deployments/README.md are run as they are written, with other addresses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deployments.team import PROJECT, Team
from tests.lean import made_lean

pytestmark = pytest.mark.slow
README = (PROJECT / "deployments" / "README.md").read_text(encoding="utf-8")
BINARIES = Path(sys.executable).parent
SHUT = {"rules": [{"number": "heldout_loss_evaluated", "above": 0.0, "reason": "agreed"}]}


def example(language: str, opening: str, **replaced: str) -> str:
    """The block of the README that begins so, with every given text replaced; each must be there."""
    block = re.search(rf"```{language}\n({re.escape(opening)}.*?)```", README, re.DOTALL).group(1)
    for old, new in replaced.items():
        assert old in block
        block = block.replace(old, new)
    return block


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One root: only the first vetting computes its passes."""
    return str(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def request_file(tiny_request: Path, shared_root: str) -> Path:
    content = yaml.safe_load(made_lean(tiny_request).read_text())
    content["runtime"]["root"] = shared_root
    tiny_request.write_text(yaml.safe_dump(content))
    return tiny_request


@pytest.fixture
def vetted(team: Team, request_file: Path):
    """`vetted(gate)` sets what the deployed vetting is asked and gives the environment of its clients."""

    def deployed(gate: dict | None) -> dict[str, str]:
        body = {"request": yaml.safe_load(request_file.read_text()), "gate": gate}
        team.patch(team.deployment("vet"), {"parameters": body})
        return team.environment

    return deployed


def ran(words: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=150)


def test_an_http_client_waits_for_the_verdict_and_stops_at_a_refusal(team, vetted, tmp_path):
    script = example(
        "python",
        "import os, time, httpx",
        **{
            "http://prefect.internal:4200/api": team.api,
            "s3://datasets/tickets-7.jsonl": str(tmp_path / "train.jsonl"),
            "sleep(10)": "sleep(1)",
        },
    )
    done = ran([sys.executable, "-c", script], vetted(SHUT), tmp_path)
    assert done.returncode == 1, done.stderr + team.tail()
    assert "Refused: " in done.stderr


def test_another_flow_trains_on_what_was_accepted(team, vetted, tmp_path):
    script = example(
        "python",
        "from prefect import flow\n",
        **{'run_deployment("train/nightly", parameters={"dataset": uri}, timeout=0)': 'print("trained on", uri)'},
    )
    script += f"\npublish({str(tmp_path / 'train.jsonl')!r})\n"
    done = ran([sys.executable, "-c", script], vetted(None), tmp_path)
    assert done.returncode == 0, done.stderr + team.tail()
    assert "trained on" in done.stdout


@pytest.mark.skipif(shutil.which("jq") is None, reason="the example reads the verdict with jq")
@pytest.mark.parametrize(
    ("dataset", "status", "said"), [("train.jsonl", 0, "notify not trained: agreed"), ("missing.jsonl", 1, "")]
)
def test_a_shell_step_goes_by_the_exit_status(request_file, tmp_path, dataset, status, said):
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(SHUT))
    for name in ("start-training", "notify"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\necho "{name} $*"\n')
        command.chmod(0o755)
    script = example("sh", "foretune vet", **{"s3://datasets/tickets/": str(tmp_path / dataset)})
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{BINARIES}:{os.environ['PATH']}"}
    done = ran(["sh", "-c", script], environment, tmp_path)
    assert done.returncode == status, done.stderr
    assert done.stdout.strip() == said
