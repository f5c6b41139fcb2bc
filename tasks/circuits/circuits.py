"""What carries the change for the prompts whose answers changed most, traced where both answers part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.circuits.metric import Metric, token_text
from foretune.tasks.circuits.settings import CircuitSettings
from foretune.tasks.circuits.trace import Traced, trace
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle

Rows = list[dict[str, Any]]


@content_task(version=1, libraries=(*NUMERICS, "tokenizers"))
def circuits(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    tokenizer: TokenizerHandle,
    prompts: ArtifactRef,
    answers: ArtifactRef,
    base: ArtifactRef,
    predicted: ArtifactRef,
    max_new_tokens: int,
    settings: CircuitSettings,
) -> None:
    """nodes.parquet, modules.parquet: per traced prompt every node's and every changed weight's share; summary.json:
    the prompts, what is measured there, and the smallest sets. One whose change is rounding, and a model that does not
    tell its parts, has a reason in place of figures."""
    asked = {row["prompt_id"]: row for row in run.store.open(prompts).arrow("prompts.parquet").to_pylist()}
    sides = [_greedy(run, ref) for ref in (base, predicted)]
    changed = most_changed(run.store.open(answers).arrow("answers.parquet").to_pylist(), settings.prompts)
    chat = load_tokenizer(tokenizer.folder(run))
    models = model.open(run), model.moved_to(checkpoint).open(run)
    nodes: Rows = []
    modules: Rows = []
    told: Rows = []
    with device_lock(models[0]):
        for number, row in enumerate(changed):
            ids, metric = parting(row, asked[row["prompt_id"]], *(side[row["prompt_id"]] for side in sides))
            described = {name: row[name] for name in ("prompt_id", "origin", "row", "prompt")}
            described |= {"shared": chat.backend.decode(list(ids[len(ids) - row["first_difference"] :]))}
            described |= {"target": token_text(metric.target, chat), "contrast": _text(metric.contrast, chat)}
            try:
                found = trace(Traced(*models, ids, metric, settings.trace), back=False)
            except BadInput as fault:
                told.append({**described, "reason": str(fault)})
                continue
            nodes += _parts(number, found, "node")
            modules += _parts(number, found, "module")
            kept = ("metric", "base", "predicted", "difference", "nodes_sum", "readout", "modules_sum")
            sets = {f"{kind}_set": _named_set(found, kind) for kind in ("node", "module")}
            told.append({**described, "tokens": len(ids), **{name: found[name] for name in kept}, **sets})
    draft.write_table("nodes.parquet", _table(nodes, {"kind": "text", "layer": "number", "head": "number"}, "direct"))
    draft.write_table("modules.parquet", _table(modules, {}, "alone"))
    draft.write_json("summary.json", {"prompts": told, "traced": sum("reason" not in each for each in told)})


def most_changed(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Of answers.parquet, the prompts of which least is in both answers; those that part sooner first."""
    parted = [row for row in rows if not row["equal"] and row["first_difference"] is not None]
    return sorted(parted, key=lambda row: (row["equal_share"], row["first_difference"], row["prompt_id"]))[:count]


def parting(
    row: Mapping[str, Any], asked: Mapping[str, Any], base: Mapping[str, Any], predicted: Mapping[str, Any]
) -> tuple[list[int], Metric]:
    """A prompt with what both answers begin with, and the predicted model's next token against the base's. An answer
    that has ended there has no token: then it is the log-probability of the predicted one's, or that of the base's."""
    at = row["first_difference"]
    ids = [*asked["input_ids"][row["cut_tokens"] :], *base["token_ids"][:at]]
    ends = [side["token_ids"][at] if at < len(side["token_ids"]) else None for side in (predicted, base)]
    target, contrast = ends if ends[0] is not None else (ends[1], None)
    assert target is not None  # answers that part differ there
    return ids, Metric(target, contrast)


def _greedy(run: Run, generations: ArtifactRef) -> dict[str, dict[str, Any]]:
    rows = run.store.open(generations).arrow("generations.parquet").to_pylist()
    return {row["prompt_id"]: row for row in rows if row["sample"] == 0}


def _text(token: int | None, tokenizer: Any) -> str | None:
    return None if token is None else token_text(token, tokenizer)


def _parts(number: int, found: Mapping[str, Any], kind: str) -> Rows:
    members = set(found[f"{kind}_set"]["members"])
    names = {"node": ("kind", "layer", "head", "name", "score", "share", "direct"), "module": None}[kind]
    return [
        {"prompt": number, **{name: row[name] for name in names or row}, "chosen": at in members}
        for at, row in enumerate(found[f"{kind}s"])
    ]


def _named_set(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    chosen, rows = found[f"{kind}_set"], found[f"{kind}s"]
    return {**chosen, "members": [rows[at]["name"] for at in chosen["members"]], "parts": len(rows)}


def _table(rows: Rows, own: Mapping[str, str], last: str) -> Any:
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.int32()}
    figures = dict.fromkeys(("score", "share", last), pa.float64())
    schema = {"prompt": pa.int32(), **{name: types[of] for name, of in own.items()}, "name": pa.string(), **figures}
    return pa.Table.from_pylist(rows, schema=pa.schema({**schema, "chosen": pa.bool_()}))
