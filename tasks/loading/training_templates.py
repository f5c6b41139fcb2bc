"""Marked twins of known chat templates: what TRL puts in the place of a stock template for `assistant_only_loss`.

No published template has `{% generation %}` marks. TRL knows some of them to the letter and renders a twin instead,
which gives the same text, but for what would change earlier turns, and says which part is the assistant's.

Source: the templates `*_training.jinja` of trl 1.16 (Apache-2.0, The HuggingFace Team), unchanged; `stock.json` has the
sha256 of each stock template and the name of its twin. A test compares both with the installed trl.
"""

from __future__ import annotations

import functools
import json
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent / "templates"


def training_template(template: str) -> str | None:
    """The marked twin of a stock template; None for any other."""
    name = twin_name(template)
    return None if name is None else (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def twin_name(template: str) -> str | None:
    """The family that a stock template is of, as `qwen3`; None for any other template."""
    return _stock().get(sha256(template.encode("utf-8", "surrogatepass")).hexdigest())


@functools.cache
def _stock() -> dict[str, str]:
    return json.loads((FOLDER / "stock.json").read_text(encoding="utf-8"))
