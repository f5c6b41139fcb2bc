"""What reading the residual stream's own change sends through a model."""

from __future__ import annotations

from foretune.flows.dag.estimate import Estimate, Inputs
from foretune.flows.dag.sizes import Sizes
from foretune.tasks.loading.hooks import share_to_hook


def residual_change(inputs: Inputs, sizes: Sizes) -> Estimate:
    """Both models, and the base under each null delta, to the hook."""
    settings, depth = inputs["settings"], sizes.known(sizes.depth)
    batches = sizes.rows(inputs["rows"]).first(settings.rows).batches(settings.batch_tokens)
    share = share_to_hook(settings.hook_of(depth), depth)
    forward = (settings.draws + 2) * sum(round(own * share) for own, _ in batches)
    return Estimate(forward, 0, models=2, read=max((own for own, _ in batches), default=0))
