"""The sparse autoencoder as the request names it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

AUTO = "auto"


class SaeSettings(BaseModel):
    """Which SAE reads the model's concepts, where, and what its features are called."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Sparse autoencoder")

    version: Literal[1] = 1
    release: str | None = Field(
        default=None, title="Release", description="sae-lens release, or a hub repository; auto: chosen for the model"
    )
    sae_id: str | None = Field(
        default=None, title="SAE id", description="within the release, or a folder of the repository"
    )
    path: str | None = Field(
        default=None, title="Folder", description="local or s3:// folder in the format of sae-lens or sparsify"
    )
    hook_name: str | None = Field(
        default=None, title="Hook point", description="TransformerLens name or module path; none: what the SAE says"
    )
    centre: Literal["auto", "on", "off"] = Field(
        default="auto",
        title="Centre activations",
        description="subtract each token's mean over the width; auto: where the SAE was trained that way",
    )
    labels: str | None = Field(
        default=None, title="Labels", description="Neuronpedia export, JSON or Parquet; none: the logit lens"
    )
    neuronpedia_id: str | None = Field(
        default=None, title="Neuronpedia id", description="model/layer to take from an export of several"
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,4})?)$", title="Device")
    allow_pickle: bool = Field(default=False, title="Open pickled weights")

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_release(cls, content: Any) -> Any:
        return {"release": AUTO} if content == AUTO else content

    @model_validator(mode="after")
    def _one_source(self) -> SaeSettings:
        if self.release == AUTO and self.path is None and self.sae_id is None:
            return self
        if self.release == AUTO:
            raise ValueError("release auto is chosen for the model; leave out sae.sae_id and sae.path")
        if self.path is None and (self.release is None or self.sae_id is None):
            raise ValueError("give sae.path, or both sae.release and sae.sae_id")
        if self.path is not None and (self.release is not None or self.sae_id is not None):
            raise ValueError("give sae.path, or sae.release and sae.sae_id, not both")
        return self
