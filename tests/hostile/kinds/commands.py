"""Command lines and the environment of a process."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.kinds.attempt import Attempt, escapable, in_words, planned
from tests.hostile.kinds.stored import read_by
from tests.hostile.values import (
    NUMBERS,
    PATHS,
    SECRETS,
    TEXTS,
    texts,
)

COMMANDS = [
    "simulate",
    "plan",
    "export",
    "report",
    "runs",
    "compare",
    "vet",
    "backtest",
    "clean",
    "watch",
    "lineage",
    "gc",
    "whatif",
]

OPTIONS = ["--root", "--set", "--json", "--quiet", "--keep-last", "--keep-days", "--delete", "-o", "--force", "--drop-harmful", "--drop-flagged",
           "--gate", "--dataset", "--seeds", "--retrain", "--evaluate", "--help", "--version", "--none", "-x", "--", "latest"]  # fmt: skip


@st.composite
def command_lines(draw: Any) -> Attempt:
    """Commands with options and words that do not belong to them, and names of every kind."""
    command = draw(st.sampled_from([*COMMANDS, *COMMANDS, "none", "", "--help", "\x1b"]))
    words = draw(
        st.lists(
            st.one_of(
                st.sampled_from(OPTIONS), st.sampled_from([*PATHS, *TEXTS]), st.sampled_from(NUMBERS).map(str), texts
            ),
            max_size=6,
        )
    )
    request, option = draw(st.booleans()), draw(st.sampled_from(["missing.jsonl", "inputs", "model"]))
    words = [word.replace("\0", "") if escapable(word) else ascii(word) for word in words]
    words = [word for word in words if not word.startswith(("/", "~", "..", "s3:", "http")) or word == "/dev/null"]

    def prepare(case: Case) -> list[str]:
        case.output = case.folder
        case.change(dataset={"path": str(case.folder / option)})  # nothing is simulated
        first = [str(case.request)] if request and command in ("simulate", "plan", "vet", "backtest") else []
        return [command, *first, *words]

    return Attempt(in_words(command, words, request), prepare)


VARIABLES: dict[str, list[str]] = {
    "PREFECT_API_URL": [
        "foo",
        "http://",
        "http://127.0.0.1:9/api",
        "ftp://x",
        "\x1b[31m",
        SECRETS[0],
        "http://[::1",
        ":",
    ],
    "PREFECT_HOME": ["/proc/x", "/dev/null", "relative", "", "x" * 5000, "/proc/self/fd"],
    "PREFECT_PROFILES_PATH": ["/dev/null", "/proc/self/mem", "/none", "/"],
    "PREFECT_PROFILE": ["none", "\x1b"],
    "PREFECT_LOGGING_LEVEL": ["x", "DEBUG", ""],
    "PREFECT_API_REQUEST_TIMEOUT": ["x", "-1", "1e300"],
    "PREFECT_API_DATABASE_CONNECTION_URL": ["x", f"postgresql://u:{'SECRETwJalrXUtnFEMI9'}@127.0.0.1:9/d"],
    "PREFECT_UNKNOWN": ["x"],
    "HOME": ["/none", "", "/dev/null", "/proc", "relative"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16", "ascii:strict"],
    "LANG": ["C", "xx", ""],
    "PYTHONUTF8": ["0"],
    "COLUMNS": ["1", "x", "-5", "99999999"],
    "TERM": ["dumb", "\x1b"],
    "FORCE_COLOR": [""],
    "FORETUNE_CACHE": ["/proc/x", "/dev/null", "", "relative"],
    "FORETUNE_DEBUG": [""],
    "FORETUNE_FORBID_REMOTE_CODE": ["1", "x"],
    "HF_HOME": ["/proc/x", ""],
    "HF_HUB_OFFLINE": ["x", ""],
    "AWS_PROFILE": ["none"],
    "AWS_ENDPOINT_URL": ["foo", "http://127.0.0.1:9"],
    "RAY_ADDRESS": ["x"],
    "OMP_NUM_THREADS": ["0", "x", "-1"],
    "TMPDIR": ["/none"],
    "TZ": ["x", ":"],
    "PYTHONWARNINGS": ["error"],  # of one that it cannot read the interpreter itself says so, before ours begins
    "PYTHONHASHSEED": ["0"],
}


@st.composite
def environments(draw: Any) -> Attempt:
    """Variables of ours, of Prefect and of Python, each a process of its own."""
    chosen = draw(st.lists(st.sampled_from(sorted(VARIABLES)), min_size=1, max_size=2, unique=True))
    environment = {name: draw(st.sampled_from(VARIABLES[name])) for name in chosen}
    command = draw(st.sampled_from(["plan", "plan", "runs", "vet"]))

    def prepare(case: Case) -> list[str]:
        case.environment = environment
        case.output = case.folder / "relative"
        return planned(case) if command == "plan" else read_by(["runs"], case) if command == "runs" else [
            "vet", str(case.request), "--dataset", str(case.folder / "none.jsonl")
        ]  # fmt: skip

    return Attempt(in_words(command, environment), prepare, process=True)
