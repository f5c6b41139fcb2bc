"""How many features of an SAE foretune can name: its own names from contexts, and its own test of them.

    python name_sae.py MODEL_FOLDER SAE_FOLDER TEXT [TEXT ...] [--held-out 0.05] [--features 500] [--json OUT]

With --held-out only the documents that train_sae.py left out are read. A name is made from the contexts of
every second document, and tested on the others.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from sae_activations import layers_before, load_model, residuals
from sae_text import Document, read_documents

from foretune.tasks.concepts.evidence import Evidence
from foretune.tasks.concepts.naming import Detector, name_of
from foretune.tasks.inputs.concepts import NamingSettings

PASSES = 0.8  # AUROC of the detection test


@torch.inference_mode()
def evidence(model, sae, documents: list[Document], tokenizer) -> Evidence:
    """The tokens of the documents and where features fire on them; a document's first token is left out."""
    import numpy as np
    import pyarrow as pa

    starts = np.cumsum([0, *(len(d.ids) for d in documents)])
    number = {id(d): i for i, d in enumerate(documents)}
    found = []
    for chosen, acts in residuals(model, documents):
        places = np.array([starts[number[id(d)]] + p for d in chosen for p in range(len(d.ids))])
        inside = torch.tensor([p > 0 for d in chosen for p in range(len(d.ids))])
        features = sae.encode(acts.float()) * inside[:, None]
        token, feature = features.nonzero(as_tuple=True)
        found.append((places[token.numpy()], feature.int().numpy(), features[token, feature].numpy()))
    columns = (np.concatenate(each) for each in zip(*found, strict=True))
    firings = pa.table(dict(zip(("token", "feature", "activation"), columns, strict=True)))
    tokens = {
        "text": [i for i, d in enumerate(documents) for _ in d.ids],
        "position": [p for d in documents for p in range(len(d.ids))],
        "id": [token for d in documents for token in d.ids],
    }
    return Evidence(pa.table(tokens), firings.sort_by("token"), tokenizer)


def tested_names(sae, found: Evidence, detector: Detector, most: int) -> dict[str, Any]:
    """Shares of the features with enough contexts on either side; at most `most`, drawn at random, are tested."""
    fires = [feature for feature in range(sae.cfg.d_sae) if len(found.firings(feature)[0])]
    drawn = random.Random(0).sample(fires, min(most, len(fires)))
    names = [name_of(feature, None, None, found, detector, NamingSettings()) for feature in drawn]
    scores = [name.confidence for name in names if name.confidence is not None]
    return {
        "fire": len(fires),
        "drawn": len(drawn),
        "tested": len(scores),
        "names_at_80": sum(score >= PASSES for score in scores) / len(scores),
        "names_clear": sum(score >= NamingSettings().clear for score in scores) / len(scores),
        "mean_auroc": sum(scores) / len(scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sae", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--held-out", type=float, help="as in train_sae.py; without it every document is read")
    parser.add_argument("--documents", type=int, default=40, help="at most this many per file")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--features", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    from sae_lens import SAE
    from transformers import AutoTokenizer

    sae, tokenizer = SAE.load_from_disk(options.sae), AutoTokenizer.from_pretrained(options.model)
    documents: list[Document] = []
    for path in options.texts:
        share = 1.0 if options.held_out is None else options.held_out
        read = [d for d in read_documents([path], tokenizer, options.context, share) if d.held_out]
        random.Random(0).shuffle(read)
        documents += read[: options.documents]
    model = load_model(options.model, layers_before(sae.cfg.metadata.hook_name))
    detector_table = model.get_input_embeddings().weight
    found = evidence(model, sae, documents, tokenizer)
    figures = tested_names(sae, found, Detector(found, detector_table), options.features)
    figures = {"documents": len(documents), "tokens": len(found.ids), **figures}
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
