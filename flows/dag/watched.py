"""Suites that influence is measured on: one that ranks the rows, and those watched beside the held-out loss."""

from __future__ import annotations

from typing import Any

from foretune.flows.dag.wiring import Wiring
from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.items import Suite, SuiteItems
from foretune.tasks.behaviour.margins import WITH_MARGIN, has_margin
from foretune.tasks.behaviour.settings import BUNDLED, BehaviourSettings
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.behaviour.suite_gradient import MarginSettings, suite_gradient

Chosen = tuple[Suite, SuiteItems]


def watched_suites(wiring: Wiring) -> list[Chosen]:
    """The suites of `influence.watch`, cut to their first items. Without the setting those that are critical, where
    rows are kept one by one and the suites are asked at all: a further target costs nothing there but its gradient."""
    settings, names = wiring.request.behaviour, wiring.request.influence.watch
    if names is None:
        if wiring.row_coordinates("train") is None:
            return []
        asked = [each for each in chosen_suites(settings) if each[0].critical]
        return [_cut(wiring, each) for each in asked if all(map(has_margin, each[1].items))]
    return [_cut(wiring, _suite(settings, name, "influence.watch")) for name in dict.fromkeys(names)]


def watched_gradients(wiring: Wiring) -> dict[str, Any]:
    """The input `watched` of the targets; nothing where no suite is watched, so that such keys stay as they are."""
    watched = [_gradient(wiring, suite, items, f"suite {suite.name}") for suite, items in watched_suites(wiring)]
    return {"watched": watched} if watched else {}


def target_suite(wiring: Wiring) -> Any:
    """The gradient of the suite, or of the one item of it, that ranks the rows."""
    target = wiring.request.influence.target
    assert target.suite is not None  # checked with the request
    suite, items = _suite(wiring.request.behaviour, target.suite, "influence.target.suite")
    if target.item is None:
        suite, items = _cut(wiring, (suite, items))
        return _gradient(wiring, suite, items, f"suite {suite.name}")
    own = tuple(item for item in items.items if item.name == target.item)
    if not own:
        some = ", ".join(item.name for item in items.items[:5])
        raise BadInput(
            f"influence.target.item: suite {suite.name} has no item {target.item[:80]!r}; it has {some}, ..."
        )
    items = items.model_copy(update={"items": own})
    return _gradient(wiring, suite, items, f"suite {suite.name}, item {target.item}")


def _suite(settings: BehaviourSettings, name: str, where: str) -> Chosen:
    """A suite of the request, or a bundled one. BadInput for one that is not there, or that has no margin."""
    known = {each if isinstance(each, str) else each.name: each for each in settings.suites}
    if name not in known and name not in BUNDLED:
        raise BadInput(f"{where}: no suite {name[:80]!r}; there are {', '.join(dict.fromkeys([*known, *BUNDLED]))}")
    alone = settings.model_copy(update={"enabled": True, "suites": [known.get(name, name)]})
    ((suite, items),) = chosen_suites(alone)
    if not all(map(has_margin, items.items)):
        with_margin = [
            each for each in dict.fromkeys([*known, *BUNDLED]) if _has_margin(settings, known.get(each, each))
        ]
        raise BadInput(
            f"{where}: suite {name} is scored by written answers, which have no gradient; those of "
            f"{', '.join(WITH_MARGIN)} have: {', '.join(with_margin)}"
        )
    return suite, items


def _has_margin(settings: BehaviourSettings, each: Any) -> bool:
    ((_, items),) = chosen_suites(settings.model_copy(update={"enabled": True, "suites": [each]}))
    return all(map(has_margin, items.items))


def _cut(wiring: Wiring, chosen: Chosen) -> Chosen:
    suite, items = chosen
    return suite, items.model_copy(update={"items": items.items[: wiring.request.influence.suite_items]})


def _gradient(wiring: Wiring, suite: Suite, items: SuiteItems, name: str) -> Any:
    tokens = min(wiring.request.behaviour.batch_tokens, wiring.step_tokens)
    return wiring.step(
        suite_gradient,
        model=wiring.model,
        tokenizer=wiring.tokenizer,
        items=items,
        targets=wiring.request.adapter.targets,
        settings=MarginSettings(name=name, better=suite.direction, batch_tokens=tokens),
        **wiring.storage.inputs(),
    )
