"""All that knows sae-lens and sparsify: where SAEs come from, the SAE itself, names of its features."""

from foretune.tasks.saes.autoencoders import LoadedSae, load_sae, load_saes
from foretune.tasks.saes.choice import chosen_sae
from foretune.tasks.saes.labels import clearly_promoted, feature_labels, given_labels, read_labels
from foretune.tasks.saes.settings import AUTO, SaeSettings
from foretune.tasks.saes.sources import (
    SaeConfig,
    check_fit,
    check_weights,
    read_sae_config,
    resolve_sae,
    sae_fingerprint,
)

__all__ = [
    "AUTO",
    "LoadedSae",
    "SaeConfig",
    "SaeSettings",
    "check_fit",
    "check_weights",
    "chosen_sae",
    "clearly_promoted",
    "feature_labels",
    "given_labels",
    "load_sae",
    "load_saes",
    "read_labels",
    "read_sae_config",
    "resolve_sae",
    "sae_fingerprint",
]
