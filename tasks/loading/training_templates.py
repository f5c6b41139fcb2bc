"""Where TRL marks the assistant's text in chat templates that it knows, for `assistant_only_loss`.

No published template has `{% generation %}` marks. TRL knows some of them to the letter and renders a marked one
instead, which gives the same text, but for what would change earlier turns. `template_edits.json` says, by the sha256
of a stock template, what it takes out and puts in, as trl 1.16 does it; a test holds it against the installed one.
"""

from __future__ import annotations

import functools
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

EDITS = Path(__file__).with_name("template_edits.json")


def training_template(template: str) -> str | None:
    """A stock template with TRL's marks; None for any other."""
    known = _edits().get(sha256(template.encode("utf-8", "surrogatepass")).hexdigest())
    if known is None:
        return None
    for start, taken, put in reversed(known["edits"]):  # from the end, so that offsets stay
        template = template[:start] + put + template[start + taken :]
    return template


@functools.cache
def _edits() -> dict[str, Any]:
    return json.loads(EDITS.read_text(encoding="utf-8"))
