"""Name the features of an SAE: the tokens and contexts that fire it most, and what it promotes.

    python label_features.py MODEL_FOLDER SAE_FOLDER TEXT [TEXT ...] [-o SAE_FOLDER/labels.json]

Writes a JSON list of {"index", "description"} (Neuronpedia's field names), one entry per feature that
fires somewhere in the texts. A description reads

    router, modem | unplug the «router» for 30 seconds | promotes cable, internet

that is: the tokens with most of the activation among the strongest examples; the strongest example;
and the logit lens of the decoder row, only where it says more than chance. Automatic, and unchecked
by a person.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_activations import layers_before, load_model, residuals
from sae_text import Document, read_documents
from torch import Tensor

EXAMPLES = 16  # strongest tokens kept per feature
CONTEXT = 4  # tokens shown on each side of the strongest one
# Chance: the best of 49,152 random directions in 576 dimensions has cosine sqrt(2 ln 49152 / 576) = 0.19.
LENS_COSINE = 0.25


@dataclass(frozen=True)
class Peaks:
    values: Tensor  # [EXAMPLES, d_sae] activation, strongest first
    documents: Tensor  # [EXAMPLES, d_sae] index of the document
    positions: Tensor  # [EXAMPLES, d_sae] index of the token in it


@torch.inference_mode()
def strongest(model, sae, documents: list[Document]) -> Peaks:
    """The EXAMPLES strongest activations of every feature over all tokens but the first of each text."""
    number = {id(d): i for i, d in enumerate(documents)}
    kept = torch.zeros(EXAMPLES, sae.cfg.d_sae)
    where = torch.zeros(2, EXAMPLES, sae.cfg.d_sae, dtype=torch.long)
    for chosen, acts in residuals(model, documents):
        place = torch.tensor([(number[id(d)], p) for d in chosen for p in range(len(d.ids))]).T  # [2, tokens]
        features = sae.encode(acts.float()) * (place[1] > 0).unsqueeze(1)
        values = torch.cat([kept, features])
        kept, order = values.topk(EXAMPLES, dim=0)
        places = torch.cat([where, place.unsqueeze(2).expand(-1, -1, sae.cfg.d_sae)], dim=1)
        where = places.gather(1, order.expand(2, -1, -1))
    return Peaks(kept, where[0], where[1])


@torch.inference_mode()
def promoted(weights, sae, tokenizer, count: int = 3) -> list[list[str]]:
    """Per feature up to `count` tokens whose centred unembedding has a cosine of at least LENS_COSINE
    with its decoder row (after the gain of the final norm); mostly none this early in the model."""
    unembedding = weights["lm_head.weight"] - weights["lm_head.weight"].mean(0)
    unembedding = torch.nn.functional.normalize(unembedding, dim=1)
    rows = torch.nn.functional.normalize(sae.W_dec * weights["model.norm.weight"], dim=1)
    names = []
    for part in rows.split(256):
        cosines, tokens = (part @ unembedding.T).topk(4 * count, dim=-1)
        for row, cosine in zip(tokens.tolist(), cosines, strict=True):
            clear = row[: int((cosine >= LENS_COSINE).sum())]
            names.append(distinct((tokenizer.decode([t]) for t in clear), count))
    return names


def distinct(tokens, count: int) -> list[str]:
    """The first `count` readable tokens that differ by more than case and spaces."""
    found: dict[str, str] = {}
    for token in tokens:
        text = readable(token)
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            found.setdefault(text.lower(), text)
    return list(found.values())[:count]


def readable(token: str) -> str:
    """A token without its spaces; one without letters or digits is quoted, to be seen in a list."""
    text = token.strip()
    if not text:
        return repr(token).replace(" ", "\N{OPEN BOX}")
    return text if any(c.isalnum() for c in text) else f'"{text}"'


def describe(feature: int, peaks: Peaks, documents: list[Document], promotes: list[str], tokenizer) -> str:
    """One line for a feature that fired at least once; see the head of this file."""
    weight: Counter[str] = Counter()
    columns = (peaks.values[:, feature], peaks.documents[:, feature], peaks.positions[:, feature])
    for value, document, position in zip(*columns, strict=True):
        if value > 0:
            token = readable(tokenizer.decode([documents[document].ids[position]]))
            weight[token.lower()] += float(value)
    tokens = [t for t, share in weight.most_common(3) if share >= 0.1 * weight.total()] or list(weight)[:1]
    ids, at = documents[peaks.documents[0, feature]].ids, int(peaks.positions[0, feature])
    before, after = ids[max(0, at - CONTEXT) : at], ids[at + 1 : at + 1 + CONTEXT]
    peak = tokenizer.decode([ids[at]])
    gap = peak[: len(peak) - len(peak.lstrip())]
    left, right = (tokenizer.decode(side, skip_special_tokens=True) for side in (before, after))
    parts = [", ".join(tokens), " ".join(f"{left}{gap}«{peak.strip()}»{right}".split())]
    if promotes:
        parts.append("promotes " + ", ".join(promotes))
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sae", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, help="default: labels.json in the SAE folder")
    parser.add_argument("--documents", type=int, default=150, help="at most this many per file")
    parser.add_argument("--context", type=int, default=256)
    options = parser.parse_args()

    from sae_lens import SAE
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    sae = SAE.load_from_disk(options.sae)
    documents: list[Document] = []
    for path in options.texts:
        found = read_documents([path], tokenizer, options.context, 0.0)
        random.Random(0).shuffle(found)
        documents += found[: options.documents]
    model = load_model(options.model)
    promotes = promoted(model.state_dict(), sae, tokenizer)
    model = load_model(options.model, layers_before(sae.cfg.metadata.hook_name))
    peaks = strongest(model, sae, documents)
    labels = [
        {"index": f, "description": describe(f, peaks, documents, promotes[f], tokenizer)}
        for f in range(sae.cfg.d_sae)
        if peaks.values[0, f] > 0
    ]
    lines = ",\n".join(json.dumps(label, ensure_ascii=False) for label in labels)
    (options.out or options.sae / "labels.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(labels)} of {sae.cfg.d_sae} features labelled from {len(documents)} documents")


if __name__ == "__main__":
    main()
