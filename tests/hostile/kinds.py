"""A generator per kind of input: what is spoiled, and the command that reads it."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.values import (
    NUMBERS,
    PATHS,
    SECRETS,
    TEXTS,
    damaged_bytes,
    numbers,
    scalars,
    spoiled,
    texts,
    values,
)


@dataclass(frozen=True)
class Attempt:
    """One generated attempt: what it is, and how its case is made."""

    what: str
    prepare: Callable[[Case], list[str]]
    own_root: bool = False
    process: bool = False
    heals: bool = True  # a marker that is none is left to its owner


def _what(*parts: Any) -> str:
    return ascii(parts if len(parts) > 1 else parts[0])[:400]


def _plan(case: Case, *options: str) -> list[str]:
    return ["plan", str(case.request), *options]


def dumped(value: Any) -> str:
    """JSON of any value, also of what only Python's JSON holds."""
    return json.dumps(value, default=str)


def _whole_request() -> dict[str, Any]:
    from foretune.flows.request import parse_request

    whole = parse_request({"dataset": {"path": "d"}, "model": {"name_or_path": "m"}}).model_dump(mode="json")
    for name in ("dataset", "model", "runtime"):
        whole[name] = {
            k: v for k, v in whole[name].items() if k not in ("path", "name_or_path", "root", "heldout", "max_length")
        }
    return whole


@st.composite
def requests(draw: Any) -> Attempt:
    """Every setting with values of every type, unknown keys, and YAML that is none."""
    whole = _whole_request()
    section = draw(st.sampled_from([name for name in whole if isinstance(whole[name], dict)]))
    key = draw(st.sampled_from([*(whole[section] or ["x"]), "x", "version"]))
    value = draw(values)
    how = draw(st.sampled_from(["key", "key", "key", "section", "unknown", "bytes", "override", "overrides"]))
    if how == "bytes":
        data = draw(damaged_bytes(yaml.safe_dump(whole).encode()))

    def prepare(case: Case) -> list[str]:
        if how == "override":
            return _plan(
                case, "--set", f"{section}.{key}={value if isinstance(value, str) else dumped(value)}".replace("\0", "")
            )
        if how == "overrides":
            return _plan(case, "--set", str(value).replace("\0", ""), "--set", f"{key}={section}")
        if how == "bytes":
            case.request.write_bytes(data)
            return _plan(case)
        content = case.content()
        if how == "key":
            content[section] = (content.get(section) or {}) | {key: value}
        elif how == "section":
            content[section] = value
        else:
            content[str(value)] = value
        case.request.write_text(yaml_text(content))
        return _plan(case)

    return Attempt(_what(how, section, key, value), prepare)


def yaml_text(content: Any) -> str:
    """YAML of it; JSON, which YAML reads too, of what YAML's writer refuses."""
    try:
        text = yaml.safe_dump(content)
        text.encode()
        return text
    except (yaml.YAMLError, UnicodeEncodeError, RecursionError):
        return dumped(content)


FORMS = [
    {"text": "The river is old."},
    {"prompt": "a?", "completion": "b"},
    {"instruction": "What?", "output": "It."},
    {"question": "What?", "answer": "It."},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "tools": [{"name": "f"}]},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
]


@st.composite
def rows(draw: Any) -> Attempt:
    """Rows of all forms with values spoiled."""
    made = draw(st.lists(st.sampled_from(FORMS).flatmap(lambda form: spoiled(form)), min_size=1, max_size=4))
    if draw(st.booleans()):
        made += [FORMS[2]] * 4
    if draw(st.integers(0, 20)) == 0:
        made.append({"text": "word " * draw(st.sampled_from([10**5, 3 * 10**6]))})
    ascii_only = draw(st.booleans())
    where = draw(st.sampled_from(["train", "heldout", "preferences", "probes"]))

    def prepare(case: Case) -> list[str]:
        lines = "".join(json.dumps(row, ensure_ascii=ascii_only, default=str) + "\n" for row in made)
        file = case.folder / f"{where}.jsonl"
        file.write_bytes(lines.encode(errors="surrogatepass"))
        if where in ("preferences", "probes"):
            case.change(dataset={where: str(file)})
        return _plan(case)

    return Attempt(_what(where, made), prepare)


def _tables() -> dict[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"instruction": ["a", "b", "c"], "output": ["d", "e", "f"]})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    lines = b'{"instruction": "a", "output": "d"}\n' * 3
    return {
        "jsonl": lines,
        "json": b'[{"instruction": "a", "output": "d"}, {"instruction": "b", "output": "e"}]',
        "csv": b"instruction,output\na,d\nb,e\n",
        "tsv": b"instruction\toutput\na\td\n",
        "parquet": parquet.getvalue(),
        "jsonl.gz": gzip.compress(lines),
        "csv.gz": gzip.compress(b"instruction,output\na,d\n"),
        "json.gz": gzip.compress(b"[]"),
        "txt": b"a\nb\n",
        "": lines,
    }


@st.composite
def dataset_files(draw: Any) -> Attempt:
    """Files of every form, torn, flipped, or of another form than their name says."""
    tables = _tables()
    name = draw(st.sampled_from(sorted(tables)))
    data = draw(st.one_of(damaged_bytes(tables[name]), st.sampled_from(sorted(tables.values()))))
    if name.endswith(".gz") and draw(st.booleans()):
        data = gzip.compress(draw(damaged_bytes(gzip.decompress(tables[name]))))
    stem = draw(st.sampled_from(["rows", "rows[1]", "r s", "-r", "é", "\u202er", "r\x1bs", "#r", "*"]))

    def prepare(case: Case) -> list[str]:
        file = case.folder / (f"{stem}.{name}" if name else stem)
        file.write_bytes(data)
        case.change(dataset={"path": str(file)})
        return _plan(case)

    return Attempt(_what(stem, name, data), prepare)


@st.composite
def model_json(draw: Any) -> Attempt:
    """config.json, tokenizer_config.json, tokenizer.json, generation_config.json and an index, spoiled."""
    name = draw(st.sampled_from(["config.json", "config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json",
                                 "model.safetensors.index.json", "special_tokens_map.json", "added_tokens.json"]))  # fmt: skip
    seed = draw(st.integers(0, 2**32))
    value, data = draw(values), draw(st.one_of(st.none(), damaged_bytes(b'{"model_type": "llama", "hidden_size": 32}')))
    deep = draw(st.integers(0, 3))

    def prepare(case: Case) -> list[str]:
        file = case.model / name
        if data is not None or not file.exists():
            file.write_bytes(data if data is not None else dumped(value).encode())
            return _plan(case)
        content = json.loads(file.read_text())
        places = [tuple(p) for p in _places(content) if len(p) <= 1 + deep]
        file.write_text(dumped(_put(content, places[seed % len(places)], value)))
        return _plan(case)

    return Attempt(_what(name, seed, value, data), prepare)


def _places(content: Any) -> list[tuple]:
    from tests.hostile.values import leaves

    return leaves(content)


def _put(content: Any, place: tuple, value: Any) -> Any:
    at = content
    for part in place[:-1]:
        at = at[part]
    at[place[-1]] = value
    return content


@st.composite
def safetensors_headers(draw: Any) -> Attempt:
    """The header of the model's weights, and of the SAE's, says something else than the file holds."""
    which = draw(st.sampled_from(["model/model.safetensors", "sae/sae_weights.safetensors"]))
    how = draw(st.sampled_from(["field", "field", "name", "length", "bytes"]))
    seed, value = draw(st.integers(0, 2**32)), draw(st.one_of(values, st.lists(numbers, max_size=4)))
    field, length = draw(st.sampled_from(["shape", "dtype", "data_offsets", "x"])), draw(st.integers(0, 2**64 - 1))
    name, cut = draw(texts), draw(st.integers(0, 4000))

    def prepare(case: Case) -> list[str]:
        file = case.folder / which
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        said = json.loads(data[8 : 8 + size])
        tensor = sorted(said)[seed % len(said)]
        if how == "bytes":
            file.write_bytes(data[:cut] + bytes([seed % 256]) + data[cut + 1 :] if seed % 2 else data[:cut])
        else:
            if how == "field":
                said[tensor] = said[tensor] | {field: value} if seed % 3 else value
            if how == "name":
                said[name] = said.pop(tensor)
            new = dumped(said).encode()
            file.write_bytes(struct.pack("<Q", length if how == "length" else len(new)) + new + data[8 + size :])
        case.change(sae={"path": str(case.sae)})
        return _plan(case)

    return Attempt(_what(which, how, field, value, length, name, seed, cut), prepare)


def _gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@st.composite
def gguf_headers(draw: Any) -> Attempt:
    """GGUF files of a few fields and tensors, whose counts, lengths and types lie."""
    version = draw(st.sampled_from([0, 1, 2, 3, 4, 2**31]))
    counts = [draw(st.sampled_from([0, 1, 2, 2**31, 2**63])) for _ in range(2)]
    body = b""
    for _ in range(draw(st.integers(0, 3))):
        key = draw(
            st.sampled_from(
                [b"general.architecture", b"llama.block_count", b"tokenizer.ggml.model", b"\xff", b"x" * 70_000]
            )
        )
        kind = draw(st.integers(0, 14))
        length = draw(st.sampled_from([None, 2**63, 2**40]))
        body += _gguf_text(key) + struct.pack("<I", kind)
        if kind == 8:
            body += _gguf_text(b"llama") if length is None else struct.pack("<Q", length)
        elif kind == 9:
            body += struct.pack("<IQ", draw(st.integers(0, 14)), length or 1) + draw(st.binary(max_size=20))
        else:
            body += draw(st.binary(max_size=8))
    body += draw(st.binary(max_size=100))
    data = draw(st.sampled_from([b"GGUF", b"GGUF", b"FUGG", b"GGU"])) + struct.pack("<IQQ", version, *counts) + body

    def prepare(case: Case) -> list[str]:
        file = case.folder / "m.gguf"
        file.write_bytes(data)
        case.change(model={"name_or_path": str(file)})
        return _plan(case)

    return Attempt(_what(data), prepare)


@st.composite
def sae_folders(draw: Any) -> Attempt:
    """cfg.json of sae-lens and of sparsify, spoiled."""
    seed, value = draw(st.integers(0, 2**32)), draw(values)
    data = draw(
        st.one_of(st.none(), st.none(), damaged_bytes(b'{"architecture": "topk", "d_in": 32, "d_sae": 64, "k": 8}'))
    )
    key = draw(st.sampled_from([None, None, "architecture", "d_in", "d_sae", "k", "hook_name", "metadata", "normalize_activations", "is_transcoder",
                                "d_out", "dtype", "activation", "num_latents", "expansion_factor", "hook_layer", "neuronpedia_id"]))  # fmt: skip
    settings = draw(
        st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {}, optional={"hook_name": scalars, "neuronpedia_id": scalars, "release": scalars, "centre": scalars}
            ),
        )
    )

    def prepare(case: Case) -> list[str]:
        file = case.sae / "cfg.json"
        content = json.loads(file.read_text())
        if data is not None:
            file.write_bytes(data)
        else:
            places = _places(content)
            file.write_text(dumped(content | {key: value} if key else _put(content, places[seed % len(places)], value)))
        case.change(sae={"path": str(case.sae)} | (settings or {}))
        return _plan(case)

    return Attempt(_what(key, seed, value, data, settings), prepare)


@st.composite
def label_files(draw: Any) -> Attempt:
    """Labels as JSON, JSONL, CSV, Parquet and an export: read as the features' labels are."""
    from foretune.tasks.saes.labels import read_labels

    name = draw(
        st.sampled_from(["l.json", "l.jsonl", "l.csv", "l.parquet", "l.jsonl.gz", "l.txt", "l", "batch-1.jsonl.gz"])
    )
    row = {"index": 1, "description": "rivers", "feature": "2", "label": "x", "modelId": "m", "layer": "1"}
    made = draw(st.lists(spoiled(row), min_size=1, max_size=3))
    data = draw(
        st.one_of(st.none(), st.none(), damaged_bytes(b'{"1": "rivers"}'), values.map(lambda v: dumped(v).encode()))
    )
    wanted = draw(st.sampled_from([None, "m/1"]))

    def prepare(case: Case) -> list[str]:
        file = case.folder / name
        lines = data if data is not None else "".join(dumped(each) + "\n" for each in made).encode()
        file.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        case.instead = lambda: read_labels(str(file), wanted)
        return ["labels"]

    return Attempt(_what(name, made, data), prepare)


TEMPLATES = [
    "{{ messages[0].content }}", "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ ''.__class__.__mro__ }}", "{{ 1/0 }}",
    "{{ raise_exception('\x1b[31m') }}", "{% include 'x' %}", "{{ 'a' * 10**10 }}", "{{ self }}", "{{ range(10**9)|list }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 10 ** (10 ** 7) }}", "{% generation %}x{% endgeneration %}", "{{ undefined.x }}",
    "{{ cycler.__init__.__globals__ }}", "{% raw %}", "{{ strftime_now('%Y') }}", "{{ messages|tojson }}", "{% set x = namespace() %}{{ x }}",
]  # fmt: skip


@st.composite
def templates(draw: Any) -> Attempt:
    """Chat templates of the model and of the request, spoiled."""
    text = draw(st.sampled_from(TEMPLATES).flatmap(lambda one: st.one_of(st.just(one), st.text(max_size=20).map(lambda t: one + t),
                st.integers(0, 30).map(lambda at: one[:at]), texts)))  # fmt: skip
    where = draw(st.sampled_from(["jinja", "config", "named"]))

    def prepare(case: Case) -> list[str]:
        file = case.model / "tokenizer_config.json"
        content = json.loads(file.read_text())
        if where == "jinja":
            (case.model / "chat_template.jinja").write_bytes(text.encode(errors="surrogatepass"))
        else:
            content["chat_template"] = text if where == "config" else [{"name": "default", "template": text}]
            file.write_text(dumped(content))
        case.rows.write_text(dumped(FORMS[5]) + "\n" + dumped(FORMS[2]) + "\n")
        return _plan(case)

    return Attempt(_what(where, text), prepare)


@st.composite
def gates(draw: Any) -> Attempt:
    """Gates through `vet`, over a dataset that is not there, so that nothing is simulated."""
    rule = {"number": "heldout_loss_evaluated", "above": 3.0, "verdict": "fail", "severity": "warn", "reason": "agreed"}
    content = draw(spoiled({"version": 1, "rules": [rule, {"signal": "any", "reason": "x"}], "accept_warn": False}))
    data = draw(st.one_of(st.none(), st.none(), damaged_bytes(yaml.safe_dump({"rules": [rule]}).encode())))

    def prepare(case: Case) -> list[str]:
        file = case.folder / "gate.yaml"
        file.write_bytes(data if data is not None else yaml_text(content).encode())
        return ["vet", str(case.request), "--gate", str(file), "--dataset", str(case.folder / "none.jsonl")]

    return Attempt(_what(content, data), prepare)


READERS = [["watch"], ["report"], ["lineage"], ["compare", "latest"], ["runs"], ["gc"], ["gc", "--keep-last", "0"],
           ["gc", "--keep-last", "0", "--delete"], ["clean", "-o", "out.jsonl", "--force"], ["export", "exported"],
           ["whatif", "--set", "training.epochs=1,3"]]  # fmt: skip


def _reader(words: list[str], case: Case) -> list[str]:
    command, *rest = words
    if command == "clean":
        case.output = case.folder / "out.jsonl"
    if command == "export":
        case.output = case.folder / "exported"
    named = [] if command in ("runs", "gc") else ["latest"]
    return [command, *named, *rest, "--root", str(case.root), *(["--quiet"] if command == "watch" else [])]


@st.composite
def stored_files(draw: Any) -> Attempt:
    """result.json, request.yaml, events.jsonl, manifests and the marker of a root, damaged; then what reads them."""
    name = draw(
        st.sampled_from(
            [
                "result.json",
                "result.json",
                "request.yaml",
                "events.jsonl",
                "report.html",
                "manifest",
                "manifest",
                "data",
                "marker",
            ]
        )
    )
    words = draw(st.sampled_from(READERS))
    seed, value = draw(st.integers(0, 2**32)), draw(values)
    how = draw(st.sampled_from(["field", "field", "bytes", "cut", "gone", "folder"]))
    data = draw(damaged_bytes(b'{"run_id": "r", "time": "t", "type": "step", "source": "s"}\n'))

    def prepare(case: Case) -> list[str]:
        stored = sorted((case.root / "artifacts").glob("*/*/*"))
        manifests = [path for path in stored if path.name == "manifest.json"]
        others = [path for path in stored if path.is_file() and path.name != "manifest.json"]
        file = {
            "manifest": manifests[seed % len(manifests)], "data": others[seed % len(others)], "marker": case.root / "foretune.json",
        }.get(name, case.run / name)  # fmt: skip
        _damage(file, how, seed, value, data)
        return _reader(words, case)

    return Attempt(_what(name, how, words, seed, value, data), prepare, own_root=True, heals=name != "marker")


def _damage(file: Path, how: str, seed: int, value: Any, data: bytes) -> None:
    before = file.read_bytes()
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "bytes":
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(before[: seed % (len(before) + 1)])
    elif how == "field":
        file.write_bytes(_spoiled_document(file, before, seed, value))


def _spoiled_document(file: Path, before: bytes, seed: int, value: Any) -> bytes:
    if file.suffix == ".yaml":
        content = yaml.safe_load(before)
        places = _places(content)
        return yaml_text(_put(content, places[seed % len(places)], value)).encode()
    if file.suffix == ".jsonl":
        lines = [json.loads(line) for line in before.splitlines()]
        for event in lines[:: 1 + seed % 3]:
            event[sorted(event)[seed % len(event)]] = value
        return "".join(dumped(event) + "\n" for event in lines).encode()
    if file.suffix == ".json":
        content = json.loads(before)
        places = _places(content)
        return dumped(_put(content, places[seed % len(places)], value) if places else value).encode()
    return before[: len(before) // 2] + b"\x00" + before[len(before) // 2 + 1 :]


@st.composite
def triggers(draw: Any) -> Attempt:
    """What an event's payload may give a vetting: places of datasets that nobody meant."""
    place = draw(st.one_of(st.sampled_from([*PATHS, *TEXTS]), texts))

    def prepare(case: Case) -> list[str]:
        gate = case.folder / "gate.yaml"
        gate.write_text("rules: [{signal: any, reason: x}]\n")
        place_here = (
            place.replace("\0", "")
            .encode(errors="surrogateescape" if _escapable(place) else "replace")
            .decode(errors="surrogateescape")
        )
        case.rows.unlink()
        (case.folder / "heldout.jsonl").unlink()  # nothing is simulated
        return ["vet", str(case.request), "--gate", str(gate), f"--dataset={place_here}"]

    return Attempt(_what(place), prepare)


def _escapable(text: str) -> bool:
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


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
    words = [word.replace("\0", "") if _escapable(word) else ascii(word) for word in words]
    words = [word for word in words if not word.startswith(("/", "~", "..", "s3:", "http")) or word == "/dev/null"]

    def prepare(case: Case) -> list[str]:
        case.output = case.folder
        case.change(dataset={"path": str(case.folder / option)})  # nothing is simulated
        first = [str(case.request)] if request and command in ("simulate", "plan", "vet", "backtest") else []
        return [command, *first, *words]

    return Attempt(_what(command, words, request), prepare)


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
    "PYTHONWARNINGS": ["error", "x"],
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
        return _plan(case) if command == "plan" else _reader(["runs"], case) if command == "runs" else [
            "vet", str(case.request), "--dataset", str(case.folder / "none.jsonl")
        ]  # fmt: skip

    return Attempt(_what(command, environment), prepare, process=True)


KINDS: dict[str, Callable[[], Any]] = {
    "requests": requests,
    "rows": rows,
    "dataset files": dataset_files,
    "model JSON": model_json,
    "safetensors headers": safetensors_headers,
    "GGUF headers": gguf_headers,
    "SAE folders": sae_folders,
    "label files": label_files,
    "chat templates": templates,
    "gates": gates,
    "stored files": stored_files,
    "triggers": triggers,
    "command lines": command_lines,
    "environment": environments,
}
