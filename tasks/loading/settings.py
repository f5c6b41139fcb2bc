"""Which base model a request names, and how it is opened."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelSettings(BaseModel):
    """Which base model, and how it is opened."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, title="Base model")

    version: Literal[1] = 1
    name_or_path: str = Field(
        min_length=1, title="Model", description="hub id, local folder, s3:// folder, or .gguf file"
    )
    revision: str | None = Field(default=None, title="Revision", description="branch, tag or commit of a hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", title="Dtype", description="in which the model computes"
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,4})?)$", title="Device", description="auto: CUDA when there"
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = Field(
        default="eager", title="Attention", description="only eager has the forward-mode derivatives that passes use"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        title="Gradient checkpointing",
        description="gradients of the landscape and of anchors in less memory: every layer runs twice",
    )
    trust_remote_code: bool = Field(default=False, title="Run code that comes with the model")
    allow_pickle: bool = Field(default=False, title="Open pickled weights")
    device_map: Literal["auto"] | None = Field(
        default=None, title="Device map", description="auto: spread the layers over GPUs, main memory and disk"
    )
    cpu_memory_gb: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        title="Main memory for the model",
        description="GB that device_map fills before it goes to disk",
    )
    offload_folder: str | None = Field(
        default=None,
        title="Offload folder",
        description="where device_map puts layers that fit nowhere else; none: the cache",
    )
