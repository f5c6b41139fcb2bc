"""The figures of each section with the words and the unit that a reader needs; what is not named here is not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Fact:
    name: str  # section.key, by which the page's figure is found again
    label: str
    value: Any
    unit: str = ""


SHOWN: dict[str, tuple[tuple[str, str, str], ...]] = {
    "supervision": (
        ("rows", "training rows", "rows"),
        ("tokens", "their tokens", "tokens"),
        ("trained", "trained", "tokens"),
        ("masked", "read only", "tokens"),
        ("cut_off", "cut off", "tokens"),
    ),
    "quality": (("rows", "rows read", "rows"), ("flagged_rows", "rows with a flag", "rows")),
    "prompt_gain": (
        ("rows_with_a_prompt", "answers with a prompt", "rows"),
        ("median_gain", "median gain", "nats per answer"),
        ("threshold", "an answer may be another row's below", "nats per answer"),
        ("mismatched_rows", "below it", "rows"),
    ),
    "influence": (
        ("ranked_by", "rows ranked by", ""),
        ("spread", "standard deviation of the scores", "nats per token"),
        ("replays_runs", "simulated runs", "each on a random half of the rows"),
        ("replays_coordinates", "of the adapter's coordinates", "share, drawn anew for every sixteenth of them"),
        ("replays_explained_by_first_order", "explained by the first order", "share of the variance"),
    ),
    "lissa": (
        ("iterations", "iterations", "of Hessian-vector products"),
        ("status", "the solve ended as", ""),
        ("effective_damping", "damping", "added to the curvature"),
        ("curvature_rows", "curvature of", "rows"),
    ),
    "landscape": (
        ("loss", "loss of the training rows at the base weights", "nats per token"),
        ("tokens", "trained tokens", "tokens"),
        ("batches", "batches", "batches"),
        ("global_max_norm", "largest gradient norm of a batch", "nats per token per unit of weight"),
        ("noise_scale_tokens", "noise scale", "tokens: from that batch on, more signal than noise"),
        ("noise_scale_se", "its standard error", "tokens"),
    ),
    "prediction": (
        ("trust", "trusted", ""),
        ("rule", "end reached by", ""),
        ("anchors", "gradients measured at", "anchors"),
        ("gradient_samples_used", "gradient samples used", "rows' gradients"),
        ("gradient_samples_real", "a real run takes", "rows' gradients"),
        ("factors_missed", "gradients are stored in factors, which miss", "of their norm"),
        ("factors_missed_along", "and along an adapter's first step", "of what acts there"),
        ("sharpness", "sharpness", "nats per token per squared unit of weight"),
        ("sharpness_label", "which is", ""),
        ("clipped_modules", "clipped", "modules"),
        ("path_of", "along the path of", ""),
    ),
    "baseline": (
        ("n_features", "features of the SAE", "features"),
        ("active_features", "that fire on these rows", "features"),
        ("l0", "active at a time", "features per token"),
        ("explained_variance", "of the activations explained", "share of the variance"),
    ),
    "sae_diff": (
        ("tokens", "compared on", "held-out tokens"),
        ("explained_variance_base", "explained, base", "share of the variance"),
        ("explained_variance_new", "explained, predicted model", "share of the variance"),
        ("features_moved", "moved beyond noise", "features"),
        ("moved_stable", "of which to the same side on both halves of the rows", "features"),
        ("half_spearman", "rank correlation of the two halves' changes", "of 1"),
        ("null_deltas", "held against", "null deltas"),
    ),
    "concepts": (
        ("concepts_strengthened", "strengthened beyond noise", "concepts"),
        ("concepts_faded", "faded beyond noise", "concepts"),
        ("features_within_noise", "not beyond noise", "features"),
        ("tangent_spearman", "the tangent's rank correlation with what was measured", "of 1"),
        ("tangent_signs", "moved to the side that the tangent says", "share of the features that moved"),
        ("score_spearman", "the score's rank correlation with what was measured", "of 1"),
        ("score_signs", "moved to the side that the score says", "share of the features that moved"),
    ),
    "preference": (
        ("pairs", "pairs read", "pairs"),
        ("pairs_in_all", "of", "pairs"),
        ("win_rate", "of which the base model prefers the chosen answer", "share of the pairs"),
        ("win_rate_error", "with a standard error of", "share of the pairs"),
        ("margin_raw", "mean margin", "nats per pair"),
        ("margin_raw_error", "with a standard error of", "nats per pair"),
        ("margin_per_token", "mean margin", "nats per token"),
        ("margin_per_token_error", "with a standard error of", "nats per token"),
        ("cosine_dpo_sft", "cosine of the preference gradient to fine-tuning's", "of 1"),
        ("cosine_dpo_sft_error", "with a standard error of", "of 1"),
    ),
    "answers": (
        ("prompts", "prompts asked", "prompts"),
        ("changed", "answered differently", "prompts"),
        ("first_token_changed", "from the first token on", "prompts"),
        ("equal_share", "tokens in both answers", "share of the longer one's, mean over the prompts"),
        ("same_next_token", "both find the same next token likeliest", "share of the tokens of the base's answers"),
        ("kl", "KL divergence along the base's answers", "nats per token"),
        ("surprise_base", "how unlikely the new answers are to the base", "nats per token"),
        ("surprise_predicted", "and to the predicted model", "nats per token"),
        ("max_new_tokens", "an answer has at most", "tokens"),
    ),
}


RULES = {"recursion": "the optimizer's own steps, one after the other", "rayleigh": "the closed form of curvature"}


def method_in_words(solver: Mapping[str, Any]) -> str:
    """What ranked the rows, from the solver.json of an influence artefact."""
    method = solver.get("ranked_by", solver.get("method"))
    if method == "replayed":
        return f"{solver.get('replays_runs', 0):,} simulated runs on random halves of the rows"
    return {"preconditioned": "influence along the optimizer's own step", "lissa": "LiSSA influence"}.get(
        str(method), "influence"
    )


def _in_words(key: str, summary: Mapping[str, Any]) -> Any:
    """The value, and in place of a setting's word what it means."""
    if key == "ranked_by":
        return method_in_words(summary)
    return RULES.get(str(summary[key]), summary[key]) if key == "rule" else summary[key]


def facts(section: str, summary: Mapping[str, Any]) -> list[Fact]:
    """Those of a section that its summary holds; a figure that could not be taken says so."""
    return [
        Fact(f"{section}.{key}", label, NOT_MEASURED, "")
        if summary[key] is None
        else Fact(f"{section}.{key}", label, _in_words(key, summary), unit)
        for key, label, unit in SHOWN[section]
        if key in summary
    ]
