"""What a tool says of model folders: `python figures.py TOOL OUT.json IDS.json FOLDER...`, by the tool's own Python.

IDS holds token ids, a list per text. A figure is the mean loss of all tokens but the first of each text, in nats, as
the tool computes it from the folder; `sae_lens` tells the share of the residual stream that an SAE explains instead.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Ids = list[list[int]]


def mean_loss(ids: Ids, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Nats per token, every text by itself."""
    total, count = 0.0, 0
    with torch.no_grad():
        for each in ids:
            read = torch.tensor([each])
            nats = logits_of(read)[0, :-1].double().log_softmax(-1)
            total -= float(nats.gather(-1, read[0, 1:, None]).sum())
            count += len(each) - 1
    return total / count


def plain(folder: str, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **how).eval()


def with_transformers(folder: str, ids: Ids) -> float:
    model = plain(folder)
    return mean_loss(ids, lambda read: model(input_ids=read).logits)


def with_lm_eval(folder: str, ids: Ids) -> float:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    asked = [(("", ""), each[:1], each[1:]) for each in ids]
    found = model._loglikelihood_tokens(asked, disable_tqdm=True)
    return -sum(nats for nats, _ in found) / sum(len(each) - 1 for each in ids)


def with_nnsight(folder: str, ids: Ids) -> float:
    from nnsight import LanguageModel

    model = LanguageModel(folder, device_map="cpu", dispatch=True)

    def logits_of(read: torch.Tensor) -> torch.Tensor:
        with model.trace(read):
            logits = model.lm_head.output.save()
        return logits

    return mean_loss(ids, logits_of)


def with_transformer_lens(folder: str, ids: Ids) -> float:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    return mean_loss(ids, lambda read: model(read, return_type="logits"))


def with_sae_lens(folder: str, ids: Ids) -> float:
    from sae_lens import SAE

    sae, model = SAE.load_from_disk(os.environ["SAE_FOLDER"], device="cpu"), plain(folder)
    layer = int(sae.cfg.metadata.hook_name.split(".")[1])
    with torch.no_grad():
        read = [model(input_ids=torch.tensor([each]), output_hidden_states=True) for each in ids]
        states = torch.cat([each.hidden_states[layer][0, 1:] for each in read])
        missed = (states - sae(states)).pow(2).sum()
    return float(1 - missed / (states - states.mean(0)).pow(2).sum())


def with_mergekit(folder: str, ids: Ids) -> float:
    """Of the folder that a linear merge of this model alone writes."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    alone = {"model": folder, "parameters": {"weight": 1.0}}
    config = MergeConfiguration.model_validate({"merge_method": "linear", "dtype": "float32", "models": [alone]})
    with tempfile.TemporaryDirectory() as out:
        run_merge(config, out, MergeOptions(copy_tokenizer=True, quiet=True))
        return with_transformers(out, ids)


def with_dlm_sway(folder: str, ids: Ids) -> float:
    """`folder` is BASE:ADAPTER: both sides of the tool's own toggle are asked, and the tuned one told."""
    from dlm_sway.backends.hf import HuggingFaceDifferentialBackend
    from dlm_sway.core.model import ModelSpec

    base, adapter = folder.split(":")
    spec = ModelSpec(base=base, adapter=Path(adapter), dtype="fp32", device="cpu")
    backend = HuggingFaceDifferentialBackend(base_spec=spec, adapter_path=Path(adapter))
    with backend.as_finetuned() as view:
        return mean_loss(ids, lambda read: view._model(read).logits)


def with_finetunecheck(folder: str, ids: Ids) -> float:
    """The log of its perplexities, a text's each, weighed by its tokens."""
    from finetunecheck.deep_analysis.perplexity import PerplexityAnalyzer
    from finetunecheck.eval.inference import create_backend
    from finetunecheck.models import ModelSpec, ModelType
    from transformers import AutoTokenizer

    backend: Any = create_backend(ModelSpec(path=folder, model_type=ModelType.HF), "cpu", preference="transformers")
    texts = [AutoTokenizer.from_pretrained(folder).decode(each) for each in ids]
    analyzer = PerplexityAnalyzer(batch_size=1)
    found = analyzer.compute_perplexities(backend._model, backend._tokenizer, texts, "cpu")
    lengths = [len(each) - 1 for each in ids]
    return float(sum(torch.tensor(found).double().log() * torch.tensor(lengths)) / sum(lengths))


def with_optimum_onnx(folder: str, ids: Ids) -> float:
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(folder, export=True, use_cache=False)
    return mean_loss(ids, lambda read: model(input_ids=read, attention_mask=torch.ones_like(read)).logits)


def with_circuit_tracer(folder: str, ids: Ids) -> float:
    """Of its replacement model, over transcoders of few features that are silent: the model's own MLPs carry on."""
    from circuit_tracer import ReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from nnsight import save
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    each: dict[int, Any] = {
        layer: SingleLayerTranscoder(
            config.hidden_size, 4, torch.nn.functional.relu, layer, device=torch.device("cpu"), dtype=torch.float32
        )
        for layer in range(config.num_hidden_layers)
    }
    for transcoder in each.values():
        for weight in transcoder.parameters():
            torch.nn.init.zeros_(weight)
    read = TranscoderSet(each, "mlp.hook_in", "mlp.hook_out")
    model = ReplacementModel.from_pretrained_and_transcoders(
        folder, read, backend="nnsight", device=torch.device("cpu"), dtype=torch.float32
    )

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        with model.trace(tokens):
            logits = save(model.output.logits)
        return logits

    return mean_loss(ids, logits_of)


def with_sae_dashboard(folder: str, ids: Ids) -> float:
    """Of the hooked model that it reads, once the pages of some features are made."""
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE

    model, sae = hooked(folder), SAE.load_from_disk(os.environ["SAE_FOLDER"], device="cpu")
    # It folds the decoder's norms, which a TopK SAE refuses; only the pages need it.
    sae.fold_W_dec_norm = lambda: None
    spread = torch.tensor([token for each in ids for token in each]).repeat(1024)[:1024].reshape(32, 32)
    config = SaeVisConfig(
        hook_point=sae.cfg.metadata.hook_name, features=[0, 1], minibatch_size_features=2, device="cpu", dtype="float32"
    )
    pages = SaeVisRunner(config).run(encoder=sae, model=model, tokens=spread)
    assert sorted(pages.feature_data_dict) == [0, 1]
    return mean_loss(ids, lambda read: model(read, return_type="logits"))


def hooked(folder: str) -> Any:
    """A Llama as TransformerLens 2 has it, which opens only models that it knows by name."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoTokenizer

    model = plain(folder)
    own = model.config
    config = HookedTransformerConfig(
        n_layers=own.num_hidden_layers,
        d_model=own.hidden_size,
        d_head=own.head_dim,
        n_heads=own.num_attention_heads,
        n_key_value_heads=own.num_key_value_heads,
        d_mlp=own.intermediate_size,
        d_vocab=own.vocab_size,
        n_ctx=min(own.max_position_embeddings, 512),
        act_fn=own.hidden_act,
        normalization_type="RMS",
        eps=own.rms_norm_eps,
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=own.head_dim,
        rotary_base=own.rope_theta,
        original_architecture="LlamaForCausalLM",
        default_prepend_bos=False,
        device="cpu",
    )
    found = HookedSAETransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    weights, kept = convert_llama_weights(model, config), {"center_writing_weights": False, "center_unembed": False}
    found.load_and_process_state_dict(weights, fold_ln=False, fold_value_biases=False, **kept)
    return found


TOOLS: dict[str, tuple[Callable[[str, Ids], float], str]] = {
    "transformers": (with_transformers, "transformers"),
    "lm_eval": (with_lm_eval, "lm-eval"),
    "nnsight": (with_nnsight, "nnsight"),
    "transformer_lens": (with_transformer_lens, "transformer-lens"),
    "sae_lens": (with_sae_lens, "sae-lens"),
    "mergekit": (with_mergekit, "mergekit"),
    "dlm_sway": (with_dlm_sway, "dlm-sway"),
    "finetunecheck": (with_finetunecheck, "finetunecheck"),
    "optimum_onnx": (with_optimum_onnx, "optimum-onnx"),
    "circuit_tracer": (with_circuit_tracer, "circuit-tracer"),
    "sae_dashboard": (with_sae_dashboard, "sae-dashboard"),
}
"""By name: the reader, and the distribution whose version counts."""


def main(words: Sequence[str]) -> None:
    tool, out, ids, *folders = words
    reader, distribution = TOOLS[tool]
    read = json.loads(Path(ids).read_text())
    figures = {folder: reader(folder, read) for folder in folders}
    versions = {name: importlib.metadata.version(name) for name in (distribution, "transformers", "torch")}
    Path(out).write_text(json.dumps({"figures": figures, "versions": versions}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
