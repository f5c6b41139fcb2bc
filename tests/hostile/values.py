"""Values that files and settings may hold and should not: for every generator, and for the written attempts."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.hostile.contract import SECRET

ESCAPE, OVERRIDE, TAG, ZERO_WIDTH, HALF = (
    "\x1b[31mred\x1b[0m",
    "\u202egpj",
    "\U000e0041\U000e0042",
    "a\u200bb",
    "\ud83d",
)
UNSEEN = [ESCAPE, OVERRIDE, TAG, ZERO_WIDTH, HALF, "\x00", "\x9b31m", "\u2028", "\ufeff", "a\rb", "\x07", "\x7f"]
SECRETS = [
    f"http://key:{SECRET}@host/d.jsonl",
    f"https://h/d.jsonl?X-Amz-Signature={SECRET}",
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/d.jsonl",
    f"Authorization: Bearer {SECRET}0123456789",
]
PATHS = ["", ".", "..", "/", "/dev/zero", "/dev/null", "/proc/self/mem", "../../x", "~", "~nobody/x", "x" * 300, "x/" * 900,
         "*", "[", "**/*", "a\nb", "s3://", "s3:///", "s3://b", "file:///etc/passwd", "http://127.0.0.1:9/x", "C:\\x", "-",
         "//x", "$HOME/x", "x #1", "{a,b}", "é", "\u00a0"]  # fmt: skip
NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**63,
    10**12,
    10**400,
    -(10**30),
    0.0,
    -0.0,
    1e-320,
    1e300,
    -1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
]
TEXTS = [
    *UNSEEN,
    *SECRETS,
    "",
    " ",
    "null",
    "true",
    "1e5",
    "[/b]",
    "{{ x }}",
    "%s %n",
    "<img src=x>",
    "'\"`",
    "=1+1",
    "a" * 5000,
]
DEEP_LIST = json.loads("[" * 60 + "]" * 60)
ODD: list[Any] = [None, True, False, [], {}, [None], {"": None}, {"a": {"b": []}}, [[[]]], DEEP_LIST, {"version": 2}]

texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30), st.text(st.characters(), max_size=8))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(PATHS))
values = st.one_of(
    scalars,
    st.sampled_from(ODD),
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=6,
    ),
)
"""Whatever JSON or YAML can hold, and what only Python's JSON does."""

broken_bytes = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000,
                     b"null", b"[]", b"{}", b"\n\n\n", b"\x1f\x8b\x08", b"PAR1", b"GGUF", b"PK\x03\x04", b"%PDF"]),
)  # fmt: skip


def leaves(content: Any, path: tuple = ()) -> list[tuple]:
    """The place of every value of a tree, its branches too."""
    found = [path] if path else []
    if isinstance(content, dict | list):
        for name, inner in content.items() if isinstance(content, dict) else enumerate(content):
            found += leaves(inner, (*path, name))
    return found


def replaced(content: Any, path: tuple, value: Any) -> Any:
    """The same tree with another value at a place."""
    content = json.loads(json.dumps(content))
    at = content
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return content


@st.composite
def spoiled(draw: Any, content: Any, most: int = 2, keys: Any = texts) -> Any:
    """A tree with one or more of its values replaced, dropped, or with a key that nobody knows."""
    for _ in range(draw(st.integers(1, most))):
        places = leaves(content)
        if not places:
            break
        place = draw(st.sampled_from(places))
        content = replaced(content, place, draw(values))
        if draw(st.integers(0, 5)) == 0 and isinstance(content, dict):
            content = {**content, draw(keys): draw(values)}
    return content


@st.composite
def damaged_bytes(draw: Any, data: bytes) -> bytes:
    """Bytes cut, flipped, doubled, or replaced."""
    how = draw(st.sampled_from(["cut", "flip", "insert", "other", "tail", "swap"]))
    if how == "other" or not data:
        return draw(broken_bytes)
    at = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "flip":
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if how == "insert":
        return data[:at] + draw(broken_bytes)[:1000] + data[at:]
    if how == "tail":
        return data + draw(broken_bytes)
    end = draw(st.integers(at, len(data)))
    return data[at:end] + data[:at] + data[end:]
