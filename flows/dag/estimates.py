"""What each pass sends through the model, told before it runs: one function of its declared inputs per task.

A forward counts 1 per token, a backward 2, padding included: what `tasks.numerics.work` counts while a pass runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from foretune.flows.dag.circuit_estimates import circuits, concept_behaviour, concept_causes
from foretune.flows.dag.estimate import Bound, Estimate, Inputs
from foretune.flows.dag.residual_estimates import residual_change
from foretune.flows.dag.sizes import Sizes, Unknown
from foretune.tasks.influence import target_gradients, tokens
from foretune.tasks.influence.solve import most_products
from foretune.tasks.loading.checkpoints import PROBE_TOKENS
from foretune.tasks.prediction.trajectory import evaluation_steps
from foretune.tasks.samples.lengths import Lengths


def estimate(task: str, inputs: Inputs, sizes: Sizes) -> Estimate | None:
    """Of a task with these inputs; None where they do not tell, and for a task of another kind that opens a model."""
    if task not in ESTIMATES:
        return None if inputs.get("model") is not None else Estimate(models=0)
    try:
        return ESTIMATES[task](inputs, sizes)
    except Unknown:
        return None


def _landscape(inputs: Inputs, sizes: Sizes) -> Estimate:
    settings = inputs["settings"]
    batches = sizes.rows(inputs["rows"]).batches(settings.micro_batch(inputs.get("factors") is not None))
    read = inputs["model"].token_price * _sum(batches, inputs["dpo_beta"])
    widest = _widest(batches, inputs["dpo_beta"])
    return Estimate(read, read, graph=min(widest, settings.graph_tokens or widest), gradients=True)


def _losses(inputs: Inputs, sizes: Sizes) -> Estimate:
    batches = sizes.rows(inputs["rows"]).batches(inputs["settings"].batch_tokens)
    read = inputs["model"].token_price * _sum(batches, inputs["dpo_beta"])
    return Estimate(read, read=_widest(batches, inputs["dpo_beta"]))


def _prompt_gain(inputs: Inputs, sizes: Sizes) -> Estimate:
    answers = sizes.rows(inputs["rows"]).only_answers()
    return _forward(answers.batches(inputs["settings"].batch_tokens), inputs["model"].token_price)


def _baseline(inputs: Inputs, sizes: Sizes) -> Estimate:
    return _to_hook(
        sizes.rows(inputs["rows"]).batches(inputs["settings"].batch_tokens, trained_only=False), sizes, inputs["sae"]
    )


def _sae_diff(inputs: Inputs, sizes: Sizes, times: int = 1) -> Estimate:
    return _to_hook(sizes.rows(inputs["rows"]).batches(inputs["settings"].batch_tokens), sizes, inputs["sae"], times)


def _sae_nulls(inputs: Inputs, sizes: Sizes) -> Estimate:
    read = _sae_diff({**inputs, "settings": inputs["compared"]}, sizes, inputs["settings"].draws)
    return dataclasses.replace(read, bound="at most")  # of many rows only a part


def _firings(inputs: Inputs, sizes: Sizes) -> Estimate:
    trained, held = (_baseline({**inputs, "rows": inputs[name]}, sizes) for name in ("rows", "heldout"))
    return dataclasses.replace(trained, forward=trained.forward + held.forward, bound="at most")  # long rows are cut


def _feature_gradient(inputs: Inputs, sizes: Sizes) -> Estimate:
    batches = sizes.rows(inputs["rows"]).batches(target_gradients.BATCH_TOKENS)
    read = _to_hook(batches, sizes, inputs["sae"]).forward
    return Estimate(read, read, graph=_widest(batches), gradients=True)


def _margin_gradient(inputs: Inputs, sizes: Sizes) -> Estimate:
    batches = sizes.table(inputs["pairs"]).batches(target_gradients.BATCH_TOKENS)
    read = _sum(batches, paired=True)
    return Estimate(read, read, graph=_widest(batches, paired=True), gradients=True)


def _sharpness(inputs: Inputs, sizes: Sizes) -> Estimate:
    return _products(sizes.rows(inputs["rows"]), inputs["settings"], inputs["settings"].power_iterations, "at most")


def _solve(inputs: Inputs, sizes: Sizes) -> Estimate:
    return _products(sizes.rows(inputs["rows"]), inputs["curvature"], most_products(inputs["solver"]), "at most")


def _curvature_samples(inputs: Inputs, sizes: Sizes) -> Estimate:
    batches = sizes.rows(inputs["rows"]).batches(inputs["settings"].batch_tokens)
    read = _sum(batches)
    return Estimate(read, read * inputs["settings"].quotient_draws, graph=_widest(batches))


def _curvature(inputs: Inputs, sizes: Sizes) -> Estimate:
    """The samples hold all that is asked of them; else one product, half of it for Gauss-Newton, per tensor."""
    if inputs["samples"] is not None:
        return Estimate()
    settings, modules = inputs["settings"], sizes.known(sizes.modules)
    few = sizes.rows(inputs["rows"]).first(settings.quotient_rows)
    per_module = 1 if settings.curvature == "gauss_newton" else 2
    return _products(few, settings, 1, modules=modules, per_module=per_module)


def _products(
    rows: Lengths, settings: Any, products: int, bound: Bound = "exact", modules: int = 0, per_module: int = 0
) -> Estimate:
    """Products with the curvature of these rows, two backwards each, or one part of a product per module. Beyond
    `graph_tokens` a graph is built again for each product; the modules' parts share it."""
    budget, kept, again = settings.graph_tokens, 0, 0
    for own, _ in rows.batches(settings.batch_tokens):
        budget -= own
        kept, again = (kept + own, again) if budget >= 0 else (kept, again + own)
    built = kept + again * (1 if modules else products)
    backwards = modules * per_module if modules else 2 * products
    return Estimate(
        built,
        built + backwards * (kept + again),
        bound,
        graph=2 * (kept + min(again, settings.batch_tokens)),  # of the forward, and of the backward; one is kept
    )


def _path(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Evaluations along the frozen path, then blocks of gradients and evaluations at the anchors, all that there may
    be of them; where gradients at the base suffice, none of the latter."""
    settings, training, beta = inputs["settings"], inputs["training"], inputs["dpo_beta"]
    once = sizes.rows(inputs["evaluation"]).batches(settings.batch_tokens)
    tables = [sizes.rows(rows) for rows in inputs["node_rows"]]
    batches = [table.batches(settings.batch_tokens) for table in tables if any(table.trained)]
    price, evaluated = inputs["model"].token_price, _sum(once, beta)
    rows = sum(sum(table.trained) for table in tables)
    steps, again = training.steps(rows), settings.rows_again(rows, rows * training.epochs)
    of = settings.portions(rows, len(batches), again, steps)
    blocks = sorted((-(-price * _sum(each, beta) // of) for each in batches for _ in range(of)), reverse=True)
    forward = evaluated * len(evaluation_steps(steps, settings.path_points))
    anchors, measured = _anchors(settings, again * len(blocks) // rows, steps)
    whole, rest = divmod(measured, len(blocks))
    looks = min((anchors + 1) // 2, settings.most_evaluations or anchors)
    there = whole * sum(blocks) + sum(blocks[:rest]) + evaluated * looks
    references = evaluated + (sum(blocks) if settings.anchors != 1 else 0) if beta is not None else 0
    return Estimate(
        forward + there + references,
        there,
        "exact" if settings.anchors == 1 else "at most",
        graph=max(_widest(each, beta) for each in [once, *batches]) if anchors else 0,
        read=_widest(once, beta),
        gradients=True,
    )


def _anchors(settings: Any, paid: int, steps: int) -> tuple[int, int]:
    """Most anchors beside the base, and most blocks that are measured at all of them together."""
    if settings.anchors == 1:
        return 0, 0
    if settings.anchors == "auto":
        anchors = min(settings.max_anchors - 1, paid, steps)
        return anchors, paid if anchors else 0
    anchors = min(settings.anchors - 1, steps)
    return anchors, max(anchors, paid)


def _prediction(inputs: Inputs, sizes: Sizes) -> Estimate:
    """The run's own path was evaluated when it was measured; the closed form, or an earlier run's path, is here."""
    if inputs["path"] is not None and not inputs["earlier"]:
        return Estimate(gradients=True)
    settings, steps = inputs["settings"], inputs["training"].steps(sizes.trained_rows)
    evaluations, bound = len(evaluation_steps(steps, settings.path_points)), "exact"
    if inputs["path"] is not None:
        evaluations, bound = settings.max_anchors // 2 + 1, "at most"
    return _evaluated(inputs, sizes, settings.batch_tokens, evaluations, bound)


def _variants(inputs: Inputs, sizes: Sizes) -> Estimate:
    end = inputs["training"].steps(sizes.trained_rows)
    waypoints = [step for step in evaluation_steps(end, inputs["waypoints"] + 1) if step < end]
    evaluations = (len(waypoints) if inputs["waypoints"] else 0) + inputs["orders"]
    return _evaluated(inputs, sizes, inputs["settings"].batch_tokens, evaluations, "exact")


def _without_rows(inputs: Inputs, sizes: Sizes) -> Estimate:
    """The ends without the named rows and without as many others, where any are named."""
    return _evaluated(inputs, sizes, inputs["settings"].batch_tokens, 2, "at most")


def _evaluated(inputs: Inputs, sizes: Sizes, batch_tokens: int, times: int, bound: Bound) -> Estimate:
    """Losses of the evaluation rows; those of pairs need the base model's own once."""
    beta = inputs["dpo_beta"]
    batches = sizes.rows(inputs["evaluation"]).batches(batch_tokens)
    forward = _sum(batches, beta) * (times + (beta is not None))
    return Estimate(forward, 0, bound, read=_widest(batches, beta), gradients=True)


def _influence_shard(inputs: Inputs, sizes: Sizes) -> Estimate:
    if inputs["node"] is not None:
        return Estimate(models=0)
    if inputs["adapter"].method != "lora":
        raise Unknown  # forward derivatives, one per target
    batches, beta = sizes.rows(inputs["rows"]).batches(inputs["settings"].batch_tokens), inputs["dpo_beta"]
    read = inputs["model"].token_price * _sum(batches, beta)
    return Estimate(read, read, graph=_widest(batches, beta))


def _influence_tokens(inputs: Inputs, sizes: Sizes) -> Estimate:
    """In forward mode, which carries a derivative beside every value."""
    batches = sizes.rows(inputs["rows"]).batches(tokens.BATCH_TOKENS)
    return Estimate(2 * _sum(batches), 0, read=2 * _widest(batches))


def _preference(inputs: Inputs, sizes: Sizes) -> Estimate:
    """With an SAE the gradients of both answers in the residual stream, and of the chosen one alone."""
    batches = sizes.table(inputs["pairs"]).batches(inputs["settings"].batch_tokens)
    read = _sum(batches, paired=True)
    if inputs["sae"] is None:
        return Estimate(read, 0, read=_widest(batches, paired=True))
    return Estimate(read, read + _sum(batches), graph=_widest(batches, paired=True))


def _checkpoint(inputs: Inputs, sizes: Sizes) -> Estimate:
    """One row of a few tokens, when the written folder is opened again."""
    return Estimate(PROBE_TOKENS, 0, models=2, read=PROBE_TOKENS)


def _null_deltas(inputs: Inputs, sizes: Sizes) -> Estimate:
    batches = sizes.rows(inputs["rows"]).batches(inputs["compared"].batch_tokens)
    return _forward(batches, inputs["settings"].deltas + 1)


def _model_diff(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Both models on held-out rows, probes, and both answers of pairs."""
    most = inputs["settings"].batch_tokens
    held = sizes.rows(inputs["rows"]).batches(most)
    probes = [] if inputs["probes"] is None else sizes.table(inputs["probes"]).batches(most)
    pairs = [] if inputs["pairs"] is None else sizes.table(inputs["pairs"]).batches(most)
    forward = 2 * (_sum(held) + _sum(probes) + _sum(pairs, paired=True))
    return Estimate(forward, 0, models=2, read=2 * _widest([*held, *probes, *pairs]))


def _suite(inputs: Inputs, sizes: Sizes, models: int = 1) -> Estimate:
    """From the texts alone: the marks of the chat template and padding are left out, and each option is taken to be
    read after what it shares with the others."""
    items, settings = inputs["items"], inputs["settings"]
    read = models * (sizes.text_tokens(items.texts) + items.answers * settings.answer_tokens)
    return Estimate(read, 0, "about", read=min(read, settings.batch_tokens))


def _path_scores(inputs: Inputs, sizes: Sizes) -> Estimate:
    if inputs["variants"].task == "without_rows":  # of no row, of two ends at most; a template's marks are in the half
        asked = _suite(inputs, sizes, 2)
        return dataclasses.replace(asked, forward=2 * asked.forward, bound="at most")
    return _suite(inputs, sizes, sizes.variants + inputs["noise"].deltas)


def _harness(inputs: Inputs, sizes: Sizes) -> Estimate:
    raise Unknown  # its items are known when lm-evaluation-harness has built them


def _suite_gradient(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Forward and backward, the options after what they share; of what has one option the likelihoods are taken first,
    by a forward of their own."""
    items = inputs["items"]
    read = sizes.text_tokens(items.texts)
    twice = sizes.text_tokens([text for item in items.items if len(item.options_read) < 2 for text in item.texts])
    return Estimate(read + twice, read, "about", graph=min(read, inputs["settings"].batch_tokens))


def _generations(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Every answer as long as it may be, after the longest prompt, with a cache; then read once more as a whole."""
    prompts, settings = inputs["prompts"], inputs["settings"]
    sizes.asked[prompts.prompts.key] = prompts
    written = prompts.longest + settings.max_new_tokens
    texts = prompts.count * (settings.samples + 1)
    return Estimate(
        texts * (2 * written - 1), 0, "at most", read=max(written, min(settings.batch_tokens, texts * written))
    )


def _answers(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Both models on the greedy answers of both, each as long as it may be."""
    prompts = sizes.known(sizes.asked.get(inputs["prompts"].key))
    written = prompts.longest + inputs["settings"].max_new_tokens
    read = max(written, min(inputs["settings"].batch_tokens, 2 * prompts.count * written))
    return Estimate(4 * prompts.count * written, 0, "at most", models=2, read=2 * read)


def _forward(batches: Sequence[tuple[int, int]], times: float = 1) -> Estimate:
    return Estimate(_sum(batches) * times, 0, read=_widest(batches))


def _to_hook(batches: Sequence[tuple[int, int]], sizes: Sizes, sae: Any, times: int = 1) -> Estimate:
    """One forward, to the deepest hook of the SAEs."""
    share = max(sizes.known(sizes.hook_shares.get(each, sizes.hook_share)) for each in sae.each)
    return Estimate(times * sum(round(own * share) for own, _ in batches), 0, read=_widest(batches))


def _sum(batches: Sequence[tuple[int, int]], paired: float | bool | None = None) -> int:
    """Tokens of all micro-batches; with `paired`, or a DPO run's beta, of both answers."""
    return sum(own + (other if paired is not None else 0) for own, other in batches)


def _widest(batches: Sequence[tuple[int, int]], paired: float | bool | None = None) -> int:
    return max((own + (other if paired is not None else 0) for own, other in batches), default=0)


ESTIMATES: dict[str, Callable[[Inputs, Sizes], Estimate]] = {
    "model": lambda inputs, sizes: Estimate(),
    "baseline_shard": _baseline,
    "landscape_shard": _landscape,
    "loss_shard": _losses,
    "prompt_gain_shard": _prompt_gain,
    "sharpness": _sharpness,
    "curvature_samples": _curvature_samples,
    "curvature": _curvature,
    "margin_gradient": _margin_gradient,
    "feature_gradient": _feature_gradient,
    "influence_solve": _solve,
    "influence_shard": _influence_shard,
    "influence_difference": _losses,
    "influence_tokens": _influence_tokens,
    "path": _path,
    "prediction": _prediction,
    "variants": _variants,
    "checkpoint": _checkpoint,
    # At the base weights and a step to either side of them.
    "feature_scores": lambda inputs, sizes: _sae_diff(inputs, sizes, times=3),
    "features": lambda inputs, sizes: Estimate(),
    "firings": _firings,
    "feature_contexts": lambda inputs, sizes: dataclasses.replace(_firings(inputs, sizes), models=2),
    "sae_base": _sae_diff,
    "sae_nulls": _sae_nulls,
    "sae_diff": _sae_diff,
    "preference": _preference,
    "null_deltas": _null_deltas,
    "residual_change": residual_change,
    "model_diff": _model_diff,
    "generations": _generations,
    "answers": _answers,
    "circuits": circuits,
    "concept_causes": concept_causes,
    "concept_behaviour": concept_behaviour,
    "suite_scores": _suite,
    "path_scores": _path_scores,
    "harness_scores": _harness,
    "harness_path_scores": _harness,
    "suite_gradient": _suite_gradient,
    "without_rows": _without_rows,
}
