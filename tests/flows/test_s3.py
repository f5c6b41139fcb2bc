"""Everything on S3 at once: dataset, model, SAE and storage root, against an S3 that speaks HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from foretune.flows.cli import app
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.errors import BadInput
from tests.dag import run_dag

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

BINARY = Path(sys.executable).with_name("foretune")


@pytest.fixture
def remote_request(tiny_request: Path, s3_client: Any, s3_root: str) -> Path:
    """The tiny request with every input, and the storage root, in a bucket."""
    bucket = s3_root.split("/")[2]
    request = yaml.safe_load(tiny_request.read_text())

    def uploaded(path: str) -> str:
        local = Path(path)
        for file in [local] if local.is_file() else sorted(f for f in local.rglob("*") if f.is_file()):
            s3_client.upload_file(str(file), bucket, f"in/{file.relative_to(local.parent)}")
        return f"s3://{bucket}/in/{local.name}"

    dataset = request["dataset"]
    for name in ("path", "preferences", "probes"):
        dataset[name] = uploaded(dataset[name])
    dataset["heldout"]["path"] = uploaded(dataset["heldout"]["path"])
    request["model"]["name_or_path"] = uploaded(request["model"]["name_or_path"])
    request["sae"]["path"] = uploaded(request["sae"]["path"])
    request["runtime"]["root"] = s3_root
    tiny_request.write_text(yaml.safe_dump(request))
    return tiny_request


def asked(*words: str) -> dict[str, Any]:
    """The JSON object of a command, run in this process."""
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"], catch_exceptions=False)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_from_s3_to_s3_and_every_command_on_it(prefect_server, remote_request, s3_root, tmp_path):
    request = load_request(str(remote_request))
    first = simulate(request)
    assert first["tasks"]["cached"] == 0
    again = simulate(request)
    assert again["tasks"]["run"] == 0
    assert again["summary"] == first["summary"]

    assert asked("plan", str(remote_request))["run"] == 0
    listed = asked("runs", "--root", s3_root)["runs"]
    assert {run["run_id"] for run in listed} == {first["run_id"], again["run_id"]}
    assert asked("report", "latest", "--root", s3_root)["report"].startswith(s3_root)
    exported = asked("export", "latest", str(tmp_path / "out"), "--root", s3_root)
    assert sorted(exported["files"]) == sorted(file.name for file in (tmp_path / "out").iterdir())
    cleaned = asked("clean", "latest", "--drop-harmful", "2", "-o", f"{s3_root}/clean.jsonl", "--root", s3_root)
    assert cleaned["rows"] == 16
    assert asked("watch", "latest", "--root", s3_root)["status"] == "completed"


def test_the_numbers_are_those_of_local_files(remote_request, s3_root, tmp_path):
    remote = run_dag(load_request(str(remote_request)))
    local = run_dag(load_request(str(remote_request), [f"runtime.root={tmp_path / 'local'}"]))
    assert local.made.keys() == remote.made.keys()
    assert {name: made.key for name, made in local.made.items()} == {n: m.key for n, m in remote.made.items()}
    assert local.found.summary == remote.found.summary


@pytest.mark.parametrize(
    "override",
    [
        "dataset.path=s3://nowhere/train.jsonl",
        "dataset.probes=s3://nowhere/probes.txt",
        "model.name_or_path=s3://nowhere/model",
        "sae.path=s3://nowhere/sae",
    ],
)
def test_a_missing_bucket_is_bad_input_that_names_it(remote_request, override):
    with pytest.raises(BadInput, match="no bucket 'nowhere'"):
        run_dag(load_request(str(remote_request), [override]))


def assert_refused(words: list[str], fragment: str) -> None:
    """The command ends as bad input, with one line that says this."""
    done = subprocess.run([str(BINARY), *words, "--quiet"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert fragment in done.stderr
    assert done.stdout == ""


def test_a_missing_bucket_of_the_root_is_one_line_on_the_command_line(remote_request):
    assert_refused(["simulate", str(remote_request), "--root", "s3://nowhere/root"], "no bucket 'nowhere'")


@pytest.mark.parametrize("command", ["simulate", "plan", "vet"])
def test_missing_credentials_are_one_line_on_the_command_line(remote_request, monkeypatch, command):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_refused([command, str(remote_request)], "no S3 credentials; set AWS_ACCESS_KEY_ID")


def test_missing_credentials_are_one_line_for_commands_on_runs(s3_root, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_refused(["runs", "--root", s3_root], "no S3 credentials; set AWS_ACCESS_KEY_ID")
