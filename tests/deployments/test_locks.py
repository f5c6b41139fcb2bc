"""The locks: everything has a digest, one version of each package, and nothing for developers in the image."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests.deployments.team import PROJECT

LOCKS = PROJECT / "deployments" / "locks"
FILES = [PROJECT / "requirements.lock", *sorted(LOCKS.glob("*.lock"))]
PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def entries(path: Path) -> list[str]:
    return [entry for entry in re.split(r"^(?=\S)", path.read_text(), flags=re.MULTILINE) if entry[:1] not in ("", "#")]


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def versions(path: Path) -> dict[str, str]:
    return {name_of(entry): re.search(r"==([\w.]+)", entry)[1] for entry in entries(path)}


def module(name: str) -> ModuleType:
    """A script of deployments/locks, which is no package."""
    spec = importlib.util.spec_from_file_location(name, LOCKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_entry_is_one_version_with_digests(path):
    for entry in entries(path):
        first, *digests = entry.rstrip().split(" \\\n")
        assert re.fullmatch(r"[\w.-]+(\[[\w, -]+\])?==[\w.+!]+( ; .+)?", first), first
        assert digests and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", digest) for digest in digests), first


def test_image_and_developers_have_the_same_versions():
    ours, image = versions(PROJECT / "requirements.lock"), versions(LOCKS / "image.lock")
    assert {name: image[name] for name in image.keys() & ours.keys()} == {
        n: ours[n] for n in image.keys() & ours.keys()
    }
    assert {"prefect-docker", "prefect-kubernetes", "asyncpg", "ray", "setuptools"} <= image.keys()
    assert ours["torch"] == versions(LOCKS / "torch-cuda.lock")["torch"] == versions(LOCKS / "torch-cpu.lock")["torch"]


def test_what_the_package_asks_for_is_locked_and_only_that_is_in_the_image():
    ours, image = versions(PROJECT / "requirements.lock"), versions(LOCKS / "image.lock")
    extras = PROJECT_FILE["optional-dependencies"]
    wanted = [*PROJECT_FILE["dependencies"], *(each for extra in extras.values() for each in extra)]
    assert {name_of(each) for each in wanted} <= ours.keys()
    assert {name_of(each) for each in PROJECT_FILE["dependencies"]} - {"torch"} <= image.keys()
    for_developers = {name_of(each) for extra in ("test", "lint", "docs") for each in extras[extra]}
    assert not for_developers & image.keys()


def test_on_linux_the_lock_of_make_has_the_build_for_processors_alone():
    """pip prefers a file whose digest it finds; with the CUDA build's in the lock it would fetch gigabytes."""
    cpu = re.findall(r"sha256:(\w+)", (LOCKS / "torch-cpu.lock").read_text())
    [torch] = [entry for entry in entries(PROJECT / "requirements.lock") if name_of(entry) == "torch"]
    assert set(cpu) <= set(re.findall(r"sha256:(\w+)", torch))
    assert not any(re.match(r"nvidia-|cuda-|triton", name) for name in versions(PROJECT / "requirements.lock"))
    assert sorted(cpu) == sorted(module("write").PROCESSOR_BUILDS.values())


def test_the_image_is_built_on_a_digest_from_locks_and_sees_no_more_than_it_holds():
    dockerfile = (PROJECT / "deployments" / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.+)$", dockerfile, re.MULTILINE) == ["python@${PYTHON_DIGEST}"]
    assert re.search(r"^ARG PYTHON_DIGEST$", dockerfile, re.MULTILINE)  # no default: the build ends without one
    installs = re.findall(r"pip install (.+)", dockerfile)
    assert installs and all(
        "--require-hashes" in each or each == "--no-deps --no-build-isolation ." for each in installs
    )
    lines = (PROJECT / "deployments" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    seen = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [word for words in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for word in words.split()]
    assert all(any(word == one or word.startswith(f"{one}/") for one in seen) for word in copied)
    assert all(any(word == one or word.startswith(f"{one}/") for word in copied) for one in seen)


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages, 0 with a known vulnerability"),
        (
            [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}],
            1,
            "a 1: CVE-1, fixed in 2",
        ),
        (
            [{"name": "a", "skip_reason": "not found"}],
            2,
            "audit: not done, the vulnerability service cannot be reached",
        ),
    ],
    ids=["clean", "vulnerable", "no answer"],
)
def test_an_audit_that_got_no_answer_is_no_clean_audit(capsys, packages, status, said):
    assert module("audit").told(packages) == status
    out, err = capsys.readouterr()
    assert (out + err).startswith(said)
    assert status != 2 or (out == "" and len(err.splitlines()) == 1)
