"""Whether a concept that moved carries what changed in suites and in answers: its activation alone is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.contexts import Continuation
from foretune.tasks.behaviour.items import Item, SuiteItems
from foretune.tasks.behaviour.margins import has_margin, smooth_margin, unit_of
from foretune.tasks.behaviour.paired import MIN_ITEMS
from foretune.tasks.behaviour.stored_answers import greedy
from foretune.tasks.behaviour.taken_back import Intervention, read_with_each
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.concepts import ConceptBehaviourSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading import LoadedModel, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.saes import LoadedSae

ANSWERS = "answers"
UNCHANGED, IN_WORDS = "did not change beyond chance", "is answered in words"


@dataclass(frozen=True)
class Measure:
    """What a change is told of: the items of a suite, or the predicted model's answers."""

    name: str
    unit: str
    groups: Sequence[Sequence[Continuation]]
    items: Sequence[Item] | None = None  # None: each group is one text, whose nats per token count

    def values(self, nats: Sequence[Sequence[float]]) -> Tensor:
        """[n] by item, of its options' log-likelihoods; of an answer its loss, summed over its tokens."""
        import torch

        if self.items is None:
            return -torch.tensor([own[0] for own in nats], dtype=torch.float64)
        found = [
            smooth_margin(item, torch.tensor(list(own), dtype=torch.float64), [each.tokens for each in group])
            for item, own, group in zip(self.items, nats, self.groups, strict=True)
        ]
        return torch.stack(found)

    @property
    def weights(self) -> Tensor:
        """[n] by which sums are divided."""
        import torch

        sizes = [group[0].tokens for group in self.groups] if self.items is None else [1] * len(self.groups)
        return torch.tensor(sizes, dtype=torch.float64)


@content_task(version=1, libraries=(*NUMERICS, "sae-lens", "tokenizers", "jinja2", "google-re2"))
def concept_behaviour(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    sae: SaeHandle,
    causes: ArtifactRef,
    tokenizer: TokenizerHandle,
    behaviour: ArtifactRef | None,
    suites: list[SuiteItems],
    prompts: ArtifactRef | None,
    predicted: ArtifactRef | None,
    max_new_tokens: int,
    settings: ConceptBehaviourSettings,
) -> None:
    """effects.parquet: per measure and concept of `causes` the share of the change that goes with it, what controls do,
    and a verdict; summary.json: the measures, and the suites that are none, each with its reason.

    Of the suites those that changed beyond chance are measured, by likelihoods; answers are the stored ones of the
    predicted model, teacher-forced.
    """
    tried = run.store.open(causes).arrow("causes.parquet", columns=["feature"])["feature"].to_pylist()
    told = run.store.open(behaviour).json("summary.json")["suites"] if behaviour else []
    chosen, left_out = measured_suites(told, suites, settings.suites)
    rows: list[dict[str, Any]] = []
    measures: list[dict[str, Any]] = []
    if tried:
        folder = tokenizer.folder(run)
        chat, longest = load_tokenizer(folder), token_limits(folder).positions
        asked = [suite_measure(chat, each, settings.items, longest) for each in chosen]
        if prompts is not None and predicted is not None:
            asked.append(answer_measure(run, prompts, predicted, settings.answers))
        models = model.open(run), model.moved_to(checkpoint).open(run)
        with device_lock(models[0]):
            for measure in asked:
                if measure.groups:
                    found, about = effects_of(models, sae.open(), measure, tried, settings)
                    rows, measures = [*rows, *found], [*measures, about]
    draft.write_table("effects.parquet", _table(rows))
    draft.write_json(
        "summary.json", {"features": len(tried), "to": settings.to, "measures": measures, "left_out": left_out}
    )


def measured_suites(
    told: Sequence[Mapping[str, Any]], suites: Sequence[SuiteItems], most: int
) -> tuple[list[SuiteItems], list[dict[str, str]]]:
    """The suites that changed most against their interval, and why each of the others is left out; `told` as in
    summary.json of `behaviour`."""
    known = {each.suite: each for each in suites}
    reasons, sure = [], []
    for row in told:
        items = known.get(row["suite"])
        if row["verdict"] == "no change measured":
            reasons.append({"suite": row["suite"], "reason": UNCHANGED})
        elif items is None or not all(has_margin(item) for item in items.items):
            reasons.append({"suite": row["suite"], "reason": IN_WORDS})
        else:
            sure.append((abs(row["change"]) / max(row["high"] - row["low"], 1e-12), row["suite"]))
    order = [name for _, name in sorted(sure, key=lambda each: (-each[0], each[1]))]
    reasons += [{"suite": name, "reason": f"{most} others changed more clearly"} for name in order[most:]]
    return [known[name] for name in order[:most]], reasons


def suite_measure(tokenizer: Any, suite: SuiteItems, most: int, longest: int | None) -> Measure:
    """The first items of a suite, by their margins."""
    from foretune.tasks.behaviour.scoring import fitting_options

    kept = fitting_options(tokenizer, suite.items[:most], longest)
    unit = unit_of(suite.items[0])
    return Measure(suite.suite, unit, [group for _, group in kept], [item for item, _ in kept])


def answer_measure(run: Run, prompts: ArtifactRef, predicted: ArtifactRef, most: int) -> Measure:
    """The predicted model's greedy answers after their prompts, by their loss per token."""
    answered = greedy(run, predicted)
    rows = sorted(run.store.open(prompts).arrow("prompts.parquet").to_pylist(), key=lambda row: row["prompt_id"])
    groups = []
    for row in rows[:most]:
        answer = answered[row["prompt_id"]]
        asked = row["input_ids"][answer["cut_tokens"] :]
        if answer["token_ids"]:
            groups.append([Continuation([*asked, *answer["token_ids"]], len(asked))])
    return Measure(ANSWERS, "nats per token", groups)


def effects_of(
    models: tuple[LoadedModel, LoadedModel],
    autoencoder: LoadedSae,
    measure: Measure,
    features: Sequence[int],
    settings: ConceptBehaviourSettings,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per feature, and the measure without any intervention."""
    from foretune.tasks.behaviour.likelihoods import log_likelihoods
    from foretune.tasks.numerics.interventions import cause_effect, drawn_features, of_equal_size

    drawn = drawn_features(autoencoder.d_sae, list(features), len(features) * settings.controls, settings.seed)
    rows = autoencoder.W_dec.detach()
    tried = [Intervention(at, rows[feature]) for at, feature in enumerate(features)]
    for at, other in enumerate(drawn):
        place = at % len(features)
        tried.append(Intervention(place, of_equal_size(rows[features[place]], rows[other])))

    def read(loaded: LoadedModel) -> Tensor:
        return measure.values(log_likelihoods(loaded, measure.groups, settings.batch_tokens))

    base, predicted, moved = read_with_each(models, autoencoder, features, tried, settings.to == "base", read)
    weights, controls = measure.weights, moved[len(features) :]
    told = []
    for feature, without in zip(features, moved, strict=False):
        effect = asdict(cause_effect(base, predicted, without, weights, controls, settings.bootstrap))
        verdict = _verdict(effect, len(measure.groups))
        told.append({"measure": measure.name, "feature": feature, **effect, "verdict": verdict})
    total = float(weights.sum())
    figures = {"base": float(base.sum()) / total, "predicted": float(predicted.sum()) / total}
    carrying = sum(row["verdict"] in ("carries", "opposes") for row in told)
    about = {"measure": measure.name, "unit": measure.unit, "items": len(measure.groups), **figures}
    return told, {**about, "controls": len(controls), "carrying": carrying}


def _verdict(effect: Mapping[str, Any], items: int) -> str:
    """carries: it goes with the change; opposes: without it there would be more; nothing; unsure below `MIN_ITEMS`."""
    if items < MIN_ITEMS:
        return "unsure"
    if effect["verdict"] == "nothing" or effect["share"] is None:
        return "nothing"
    return "carries" if effect["share"] > 0 else "opposes"


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import pyarrow as pa

    figures = dict.fromkeys(("effect", "low", "high", "share", "random"), pa.float64())
    schema = {"measure": pa.string(), "feature": pa.int64(), **figures, "verdict": pa.string()}
    return pa.Table.from_pylist(list(rows), schema=pa.schema(schema))
