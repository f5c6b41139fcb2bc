"""What tracing circuits and trying concepts sends through a model."""

from __future__ import annotations

from foretune.flows.dag.estimate import Estimate, Inputs
from foretune.flows.dag.sizes import Sizes
from foretune.tasks.behaviour.margins import has_margin


def circuits(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Each prompt with the answers' common beginning, as long as both may be."""
    prompts, settings = sizes.known(sizes.asked.get(inputs["prompts"].key)), inputs["settings"]
    written = prompts.longest + inputs["max_new_tokens"]
    count = min(settings.prompts, prompts.count)
    return Estimate(
        count * written * settings.trace.forwards,
        count * written * settings.trace.backwards,
        "at most",
        models=2,
        graph=written,
        read=max(settings.batch_tokens, written),
        gradients=True,
    )


def concept_causes(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Both models, and the predicted one once per concept and control; none where no concept moved."""
    batches = sizes.rows(inputs["rows"]).batches(inputs["settings"].batch_tokens)
    forward = inputs["settings"].forwards * sum(own for own, _ in batches)
    return Estimate(forward, 0, "at most", models=2, read=max((own for own, _ in batches), default=0))


def concept_behaviour(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Both models, and the predicted one once per concept and control, on the longest suites that may be chosen, twice
    their texts for what a chat template and padding add, and on the answers; none where no concept or suite moved."""
    settings = inputs["settings"]
    suites = (
        sizes.text_tokens([text for item in suite.items[: settings.items] for text in item.texts])
        for suite in inputs["suites"]
        if all(has_margin(item) for item in suite.items)
    )
    read = 2 * sum(sorted(suites, reverse=True)[: settings.suites])
    if inputs["predicted"] is not None:
        prompts = sizes.known(sizes.asked.get(inputs["prompts"].key))
        read += min(settings.answers, prompts.count) * (prompts.longest + inputs["max_new_tokens"])
    return Estimate(read * settings.forwards, 0, "at most", models=2, read=min(read, settings.batch_tokens))
