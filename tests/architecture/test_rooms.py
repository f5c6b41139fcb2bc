"""The shape of the house that import-linter cannot see: who opens files, what is a pass, how long things get."""

from __future__ import annotations

import ast
import statistics
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TESTS = PROJECT / "tests"
ROOMS = ("flows", "tasks", "storage")
SOURCES = [path for room in ROOMS for path in sorted((PROJECT / room).rglob("*.py"))]
FILE_ACCESS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rename", "iterdir"}
FILE_ACCESS |= {"safe_open", "save_file", "load_file", "copyfile", "copytree", "rmtree", "rmdir", "to_parquet"}
MODEL_FORMATS = {"loading", "saes"}
"""Rooms that read and write folders in a library's own format, where storage has put them."""
MOST_LINES, MOST_FUNCTION_LINES, MOST_MEDIAN_LINES = 350, 60, 100


def place_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def file_accesses(source: str) -> list[str]:
    """Calls that open, write or remove a file by themselves; those of a `Place` or of a draft are storage's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        plain = called.id if isinstance(called, ast.Name) else ""
        method = called.attr if isinstance(called, ast.Attribute) else ""
        owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
        of_storage = "Place(" in owner or owner.split(".")[-1] in {"place", "draft", "store", "run", "self", "model"}
        tensors = method == "open" and not owner.startswith("Path")  # handles and stores open what storage gave
        data_frame = method == "rename" and ".table(" in owner
        by_function = plain in FILE_ACCESS and plain != "read_text"  # a function of that name reads a row's text
        by_method = method in FILE_ACCESS and not (of_storage or tensors or data_frame)
        if by_function or by_method:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def outside_storage() -> list[Path]:
    return [
        path
        for path in SOURCES
        if path.relative_to(PROJECT).parts[0] != "storage" and not MODEL_FORMATS & set(path.relative_to(PROJECT).parts)
    ]


PRINTS = "flows/commands/terminal.py"
TELLS_PREFECT = "tasks/engine/announcements.py"
SAYING = {
    "print": PRINTS,
    "echo": PRINTS,
    "secho": PRINTS,
    "Console": PRINTS,
    "create_markdown_artifact": TELLS_PREFECT,
    "create_table_artifact": TELLS_PREFECT,
    "create_link_artifact": TELLS_PREFECT,
    "emit_event": TELLS_PREFECT,
}
"""What makes text leave, and the one module that may call it: there it is redacted and made visible."""


def saying(source: str) -> list[tuple[str, str]]:
    """(what is called, where) of every call by which text leaves, and of every use of stdout or stderr."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            found += [(name, f"line {node.lineno}: {ast.unparse(node)[:80]}")] if name in SAYING else []
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}:
            found.append(("print", f"line {node.lineno}: {ast.unparse(node)}"))
    return found


NOBODY_READS = {
    "storage/parquet_rows.py": "a child process, whose parent reads its streams",
    "tasks/samples/template_child.py": "a child process, whose parent reads its streams",
    "flows/interruption.py": "flushes what the terminal has written, and says one constant line",
}
SPEAKERS = [path for path in SOURCES if place_of(path) not in NOBODY_READS]


@pytest.mark.parametrize("path", SPEAKERS, ids=place_of)
def test_text_leaves_by_one_module(path):
    assert [where for name, where in saying(path.read_text()) if SAYING[name] != place_of(path)] == []


@pytest.mark.parametrize(
    "line", ["print(x)", "console.print(x)", "typer.echo(x)", "sys.stderr.write(x)", "emit_event(event=x)", "Console()"]
)
def test_text_that_leaves_by_another_way_is_found(line):
    assert len(saying(line)) == 1


@pytest.mark.parametrize("path", outside_storage(), ids=place_of)
def test_only_storage_touches_bytes(path):
    assert file_accesses(path.read_text()) == []


@pytest.mark.parametrize(
    "line", ["open('a')", "Path('a').write_text('b')", "folder.mkdir()", "json.loads(path.read_bytes())", "rmtree(x)"]
)
def test_a_file_that_is_opened_by_hand_is_found(line):
    assert len(file_accesses(line)) == 1


def test_every_pass_stands_under_the_contract_that_passes_do_not_import_each_other():
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = next(c["modules"] for c in contracts if c["name"] == "A pass never imports another pass")
    floors_below = {"inputs", "samples", "engine"}  # what every stage may import
    passes = [
        "foretune." + place_of(path).removesuffix(".py").replace("/", ".")
        for path in SOURCES
        if path.relative_to(PROJECT).parts[0] == "tasks"
        and path.relative_to(PROJECT).parts[1] not in floors_below
        and "\n@content_task(" in path.read_text()
    ]
    assert sorted(named) == sorted(passes)


def test_no_file_is_longer_than_one_can_hold_in_mind():
    assert [f"{place_of(path)}: {lines_of(path)}" for path in SOURCES if lines_of(path) > MOST_LINES] == []


def test_half_of_the_files_are_short():
    assert statistics.median(lines_of(path) for path in SOURCES if path.name != "__init__.py") <= MOST_MEDIAN_LINES


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{place_of(path)}:{node.name}: {node.end_lineno - node.lineno + 1}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]
    assert long == []


def test_every_package_of_the_tree_is_installed():
    packages = set(tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in SOURCES if "api" not in path.parts}
    assert packages == {"foretune", *("foretune." + place_of(folder).replace("/", ".") for folder in folders)}


BESIDE_STAGES = {"api", "flows", "orchestration", "storage"}
"""Folders of tests for what is no stage: flows/api, the commands, flows/dag with its engines, and storage."""


def test_every_room_has_a_folder_of_tests_of_its_own():
    stages = {path.name for path in (PROJECT / "tasks").iterdir() if (path / "__init__.py").is_file()}
    untested = [room for room in sorted(stages | BESIDE_STAGES) if not any((TESTS / room).glob("test_*.py"))]
    assert untested == []


def test_every_folder_of_tests_is_that_of_a_room_and_a_package():
    """Without __init__.py a conftest would be imported twice, and two files of one name would be one module."""
    rooms = {path.name for path in (PROJECT / "tasks").iterdir()} | BESIDE_STAGES
    # The house, older versions, servers, attacks, and tools that open what foretune writes.
    beyond = {"architecture", "archives", "deployments", "hostile", "thirdparty"}
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    assert {folder.name for folder in folders} <= rooms | beyond
    assert [folder.name for folder in folders if not (folder / "__init__.py").is_file()] == []
