"""Names for features: from a Neuronpedia export, from a table, or from the tokens that a feature favours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.datasets import read_rows
from foretune.storage.documents import json_value
from foretune.storage.errors import BadInput
from foretune.storage.places import localise
from foretune.tasks.loading.logit_lens import final_gains, shown_tokens, unembedded, unembedding
from foretune.tasks.saes.settings import SaeSettings

if TYPE_CHECKING:
    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.saes.autoencoders import LoadedSae

NUMBER_COLUMNS = ("index", "feature")
TEXT_COLUMNS = ("description", "label")
LENS_TOKENS = 5


def feature_labels(
    settings: SaeSettings, sae: LoadedSae, loaded: LoadedModel | None, labels: str | None
) -> list[str | None]:
    """A name for every feature: from the file or folder `labels`, else from the logit lens.

    `loaded` is the base model, whose unembedding the lens uses; without it, or at a hook that is not as wide
    as the residual stream, features that the file does not name get None. Raises BadInput for a file that
    names no feature, or numbers that this SAE does not have.
    """
    named = given_labels(settings, sae, labels) if labels is not None else {}
    missing = [feature for feature in range(sae.d_sae) if feature not in named]
    if missing and loaded is not None:
        named |= logit_lens(sae, loaded, missing)
    return [named.get(feature) for feature in range(sae.d_sae)]


def given_labels(settings: SaeSettings, sae: LoadedSae, labels: str) -> dict[int, str]:
    """{feature: label} of the file or folder `labels`. BadInput where it names none, or one that this SAE lacks."""
    named = read_labels(labels, settings.neuronpedia_id or sae.config.neuronpedia_id)
    if max(named) >= sae.d_sae:
        raise BadInput(
            f"labels {labels}: feature {max(named)}, but the SAE has {sae.d_sae}; give the labels of this SAE"
        )
    return named


def read_labels(uri: str, neuronpedia_id: str | None = None) -> dict[int, str]:
    """{feature: label} of a Neuronpedia export (folder or batch file), or a JSON, JSONL, CSV or Parquet file.

    Rows have `index` or `feature`, and `description` or `label`; of several for one feature the first counts.
    A JSON file may map numbers to labels instead. An export of several layers needs `neuronpedia_id`,
    model/layer.
    """
    path = localise(uri)
    rows = [row for file in _label_files(uri, path) for row in _rows(file)]
    rows = _of_one_layer(uri, rows, neuronpedia_id)
    labels: dict[int, str] = {}
    for row in rows:
        number = next((row[name] for name in NUMBER_COLUMNS if row.get(name) is not None), None)
        text = next((row[name] for name in TEXT_COLUMNS if row.get(name)), None)
        if number is not None and text is not None and str(number).isdecimal():
            labels.setdefault(int(number), " ".join(str(text).split()))
    if not labels:
        wanted = f"{' or '.join(NUMBER_COLUMNS)} and {' or '.join(TEXT_COLUMNS)}"
        raise BadInput(f"labels {uri}: no row has {wanted}; check the columns")
    return labels


def _label_files(uri: str, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [*path.glob("batch-*.jsonl.gz"), *path.glob("explanations/batch-*.jsonl.gz")]
    if not files:
        raise BadInput(f"labels {uri}: no batch-N.jsonl.gz in the folder; give a Neuronpedia export")
    return sorted(files, key=lambda file: int("".join(filter(str.isdigit, file.name)) or 0))


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".json":
        whole = json_value(file.read_bytes(), f"labels {file}", "mend the file")
        if isinstance(whole, dict) and all(isinstance(text, str) for text in whole.values()):
            return [{"index": number, "label": text} for number, text in whole.items()]
    return read_rows(str(file))


def _of_one_layer(uri: str, rows: list[dict[str, Any]], neuronpedia_id: str | None) -> list[dict[str, Any]]:
    layers = sorted({f"{row.get('modelId')}/{row['layer']}" for row in rows if row.get("layer") is not None})
    if len(layers) < 2:
        return rows
    if neuronpedia_id not in layers:
        raise BadInput(
            f"labels {uri}: an export of {len(layers)} layers ({', '.join(layers[:4])}); "
            "set sae.neuronpedia_id to one of them"
        )
    return [row for row in rows if f"{row.get('modelId')}/{row.get('layer')}" == neuronpedia_id]


def logit_lens(sae: LoadedSae, loaded: LoadedModel, features: list[int]) -> dict[int, str]:
    """{feature: its top tokens}: W_dec[f] through the model's final norm and unembedding, largest first.

    Empty where the SAE is not as wide as the unembedding.
    """
    import torch

    head = loaded.model.get_output_embeddings()
    if head is None or head.weight.shape[1] != sae.d_in:
        return {}
    found: dict[int, str] = {}
    with torch.no_grad():
        for start in range(0, len(features), 256):  # 256 x 50k logits are 50 MB
            chunk = features[start : start + 256]
            logits = unembedded(loaded, sae.W_dec[chunk])
            # Twice as many as are shown: some of them differ only in case or are no text.
            top = logits.topk(2 * LENS_TOKENS, dim=-1).indices.tolist()
            for feature, ids in zip(chunk, top, strict=True):
                found[feature] = " · ".join(shown_tokens(loaded, ids, LENS_TOKENS)) or "tokens without text"
    return found


def clearly_promoted(sae: LoadedSae, loaded: LoadedModel, most: int = 3) -> dict[int, str]:
    """{feature: tokens that it promotes}, only where its direction has more to do with them than chance.

    Of V random directions in d dimensions the nearest has a cosine of about sqrt(2 ln V / d); a token counts from 1.3
    times that on, measured behind the final norm's gains with the unembedding's mean taken off.
    """
    import torch

    head = unembedding(loaded)
    if head is None or head.shape[1] != sae.d_in:
        return {}
    found: dict[int, str] = {}
    with torch.no_grad():
        rows = head.float() - head.float().mean(0)
        rows = torch.nn.functional.normalize(rows, dim=1)
        clear = 1.3 * math.sqrt(2 * math.log(rows.shape[0]) / rows.shape[1])
        if clear >= 1:
            return {}
        gains = final_gains(loaded)
        directions = sae.W_dec.to(rows) * (1.0 if gains is None else gains.to(rows))
        directions = torch.nn.functional.normalize(directions, dim=1)
        for start in range(0, len(directions), 256):
            cosines, tokens = (directions[start : start + 256] @ rows.T).topk(4 * most, dim=-1)
            for at, (cosine, ids) in enumerate(zip(cosines, tokens.tolist(), strict=True)):
                words = shown_tokens(loaded, ids[: int((cosine >= clear).sum())], most)
                if words:
                    found[start + at] = ", ".join(words)
    return found
