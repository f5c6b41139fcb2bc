"""What tracing circuits and trying concepts sends through a model."""

from __future__ import annotations

from foretune.flows.dag.estimate import Estimate, Inputs
from foretune.flows.dag.sizes import Sizes


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
