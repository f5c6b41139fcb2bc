"""The documents say what is there: generated parts equal what the code generates, and the site builds cleanly."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
README_BYTES = 12_000


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT / "docs" / "generate.py"), *arguments], capture_output=True, text=True, timeout=120
    )


def test_every_generated_part_is_what_the_code_generates():
    """The tree, every setting, every command and option, every task's version, the schema of the events."""
    checked = generate("--check")
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_part_that_differs_is_named(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("generate", PROJECT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: tree -->\nold\n<!-- end -->\n")
    assert module.written(page, {"tree": lambda: "new\n"}, check=True) != []
    assert "old" in page.read_text()


def test_the_readme_is_a_front_page():
    assert len((PROJECT / "README.md").read_bytes()) <= README_BYTES


@pytest.mark.optional
@pytest.mark.slow
def test_the_site_builds_without_network_and_every_link_within_it_leads_somewhere(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "-b", "html", str(PROJECT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert (tmp_path / "site" / "request.html").is_file()
