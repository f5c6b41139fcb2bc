"""Rows, dataset files and the chat templates that render them, spoiled."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.kinds.attempt import Attempt, dumped, in_words, planned
from tests.hostile.values import (
    damaged_bytes,
    spoiled,
    texts,
)

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
        return planned(case)

    return Attempt(in_words(where, made), prepare)


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
        return planned(case)

    return Attempt(in_words(stem, name, data), prepare)


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
        return planned(case)

    return Attempt(in_words(where, text), prepare)
