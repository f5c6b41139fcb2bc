"""The wheel: every file of the three rooms is in it, under `foretune` only, and what is in it can be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
ROOMS = {"flows/api": "foretune", "flows": "foretune/flows", "tasks": "foretune/tasks", "storage": "foretune/storage"}


def pip(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its build folder where it builds."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for room in ("flows", "tasks", "storage"):
        shutil.copytree(PROJECT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / file, tree)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, tree)
    return next(out.glob("foretune-*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


def files_of_the_tree() -> set[str]:
    """Where each file of the rooms belongs in the wheel; flows/api is the package itself."""
    found = set()
    for room in ("flows", "tasks", "storage"):
        for path in (PROJECT / room).rglob("*"):
            name = path.relative_to(PROJECT).as_posix()
            if path.is_file() and "__pycache__" not in name and not path.name.startswith("."):
                home = next(home for home in ROOMS if name.startswith(f"{home}/"))
                found.add(ROOMS[home] + name.removeprefix(home))
    return found


def test_no_file_of_the_tree_is_forgotten_and_nothing_lies_outside_the_package(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    packed = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in packed} == {"foretune"}
    assert packed == files_of_the_tree()
    assert "foretune/py.typed" in packed and "foretune/storage/event_schema.json" in packed
    assert any("/templates/" in name for name in packed)


def test_what_is_installed_is_imported_and_runs_without_the_repository(site: Path, tmp_path: Path):
    modules = sorted(
        name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for name in files_of_the_tree()
        if name.endswith(".py")
    )
    script = f"""
import importlib.util, sys
import foretune
from foretune.flows.cli import app

for name in {modules}:
    print(importlib.util.find_spec(name).origin)
for name in ("flows", "tasks", "storage", "api"):
    assert importlib.util.find_spec(name) is None, name
print(foretune.__version__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *origins, told = done.stdout.splitlines()
    assert len(origins) == len(modules)
    assert all(Path(origin).is_relative_to(site) for origin in origins)
    assert f"foretune-{told}.dist-info" in {path.name for path in site.iterdir()}
