"""Where the installed TRL marks the stock chat templates that it knows, as edits.

`python -m tests.samples.template_edits` writes them for
`foretune.tasks.loading.training_templates`, after trl has moved.
"""

from __future__ import annotations

import difflib
import json
import re
from hashlib import sha256
from pathlib import Path

import trl
from trl import chat_template_utils

from foretune.tasks.loading.training_templates import EDITS

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PICTURES = {"idefics3", "llava_next", "qwen2_5_vl", "qwen3_vl", "smolvlm"}
"""Of models that read pictures, which foretune does not simulate."""
_PIECE = re.compile(r"\{[{%#]-?|-?[%}#]\}|\w+|\s+|.", re.DOTALL)
_LEADING_COMMENT = re.compile(r"\A\{#-.*?-#\}\s*", re.DOTALL)


def stock(name: str) -> str:
    """A template as models are published with it."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def marked_by_trl(name: str) -> str | None:
    """What TRL renders in its place, without the remark above it, which renders to nothing; None where it has none."""
    twin = getattr(chat_template_utils, f"{name}_training_chat_template", None)
    return None if twin is None else _LEADING_COMMENT.sub("", twin)


def names() -> list[str]:
    known = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    return [name for name in known if name not in PICTURES and marked_by_trl(name) is not None]


def edits(before: str, after: str) -> list[list[int | str]]:
    """[offset, characters taken out, text put in], from the first on; offsets are of `before`."""
    old, new = _PIECE.findall(before), _PIECE.findall(after)
    ends = [0]
    for piece in old:
        ends.append(ends[-1] + len(piece))
    matched = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [[ends[i], ends[j] - ends[i], "".join(new[k:m])] for kind, i, j, k, m in matched if kind != "equal"]


def found() -> dict[str, dict]:
    """By sha256 of the stock template."""
    return {
        sha256(stock(name).encode()).hexdigest(): {"name": name, "edits": edits(stock(name), marked_by_trl(name) or "")}
        for name in names()
    }


if __name__ == "__main__":
    EDITS.write_text(json.dumps(found(), indent=1) + "\n", encoding="utf-8")
