"""Model folders, SAE folders and labels that lie."""

from __future__ import annotations

import shutil

from tests.hostile.attempts import Case
from tests.hostile.written.attempt import Written, labels
from tests.loading import test_hostile_models as models
from tests.saes import test_hostile_saes as saes

LABELS = {
    name: Written(labels(file, data), 2 if refused else 0, "")
    for name, file, data, refused in (
        ("labels JSON", "l.json", '{"1": "rivers"}', False),
        ("labels JSONL", "l.jsonl", '{"index": 1, "description": "rivers"}\n', False),
        ("labels CSV", "l.csv", "index,description\n1,rivers\n", False),
    )
}


def _model(name: str) -> Written:
    damage, said = models.HOSTILE[name]

    def prepare(case: Case) -> list[str]:
        case.output = case.folder / "elsewhere"
        damage(case.model)
        return ["plan", str(case.request)]

    return Written(prepare, 2, said)


def _sae(name: str) -> Written:
    make = saes.HOSTILE[name][0]

    def prepare(case: Case) -> list[str]:
        shutil.rmtree(case.sae)
        case.change(sae={"path": str(make(case.sae) or case.sae)})
        return ["plan", str(case.request)]

    return Written(prepare, 2, "")


MODELS = {f"model: {name}": _model(name) for name in models.HOSTILE}

SAES = {f"SAE: {name}": _sae(name) for name in saes.HOSTILE}
