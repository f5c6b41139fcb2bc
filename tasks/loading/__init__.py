"""All that knows transformers and peft: models, adapters and checkpoints. No import here loads torch."""

from foretune.tasks.loading.adapters import (
    AdapterSettings,
    AdapterTargets,
    adapter_config,
    lora_config,
    lora_init,
    lora_scale,
    target_weights,
    undecayed_weights,
)
from foretune.tasks.loading.checkpointing import recomputed
from foretune.tasks.loading.checkpoints import CheckpointCheck, verify_checkpoint, write_checkpoint
from foretune.tasks.loading.conversion import convert_gguf, gguf_preview
from foretune.tasks.loading.files import companion_files, model_files
from foretune.tasks.loading.folders import (
    ModelConfig,
    ModelOutline,
    model_config,
    model_fingerprint,
    model_outline,
    resolve_model,
    token_limits,
)
from foretune.tasks.loading.foreign_code import refuse_foreign_code
from foretune.tasks.loading.gguf_header import check_gguf
from foretune.tasks.loading.models import (
    LoadedModel,
    all_finite,
    building,
    choose_device,
    close_models,
    functional_caller,
    label_caller,
    load_model,
    model_inputs,
)
from foretune.tasks.loading.moved import at_weights
from foretune.tasks.loading.settings import ModelSettings
from foretune.tasks.loading.skeleton import check_model
from foretune.tasks.loading.tokenizer_backend import tokenizer_fingerprint

__all__ = [
    "AdapterSettings",
    "AdapterTargets",
    "CheckpointCheck",
    "LoadedModel",
    "ModelConfig",
    "ModelOutline",
    "ModelSettings",
    "adapter_config",
    "all_finite",
    "at_weights",
    "building",
    "check_gguf",
    "check_model",
    "choose_device",
    "close_models",
    "companion_files",
    "convert_gguf",
    "functional_caller",
    "gguf_preview",
    "label_caller",
    "load_model",
    "lora_config",
    "lora_init",
    "lora_scale",
    "model_config",
    "model_files",
    "model_fingerprint",
    "model_inputs",
    "model_outline",
    "recomputed",
    "refuse_foreign_code",
    "resolve_model",
    "target_weights",
    "token_limits",
    "tokenizer_fingerprint",
    "undecayed_weights",
    "verify_checkpoint",
    "write_checkpoint",
]
