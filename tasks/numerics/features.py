"""Which SAE features one step of descent would strengthen, to first order at the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FeatureScores:
    score: Tensor  # [d_sae] -<grad, W_dec[f]> * base_act[f]; positive: descent strengthens the feature
    dormant: Tensor  # [d_sae] bool, it never fires, so that the score is 0


def feature_scores(resid_grad_mean: Tensor, W_dec: Tensor, base_acts_mean: Tensor) -> FeatureScores:
    """score_f = -<resid_grad_mean, W_dec[f]> * base_acts_mean[f].

    `resid_grad_mean` [d_model]: token-mean gradient of the loss in the residual stream; `W_dec` [d_sae,
    d_model]; `base_acts_mean` [d_sae]. The minus is descent's: the loss falls along minus the gradient.
    Raises ValueError naming both sizes when shapes do not fit.
    """
    if W_dec.shape[1] != resid_grad_mean.numel() or W_dec.shape[0] != base_acts_mean.numel():
        raise ValueError(
            f"W_dec {tuple(W_dec.shape)} does not fit a gradient of {resid_grad_mean.numel()} and "
            f"{base_acts_mean.numel()} activations: use the SAE of this layer"
        )
    push = -(W_dec.double() @ resid_grad_mean.double())
    acts = base_acts_mean.double()
    return FeatureScores((push * acts).float(), acts <= 0.0)
