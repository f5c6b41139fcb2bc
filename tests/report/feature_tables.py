"""A made-up table of features, as large as that of a published SAE."""

from __future__ import annotations

import numpy as np
import pandas as pd

from foretune.tasks.report.feature_table import FeatureTable, Fired, Texts, contexts_of, histograms

TEXTS, LENGTH, TOKENS = 216, 256, 30


def many_features(count: int, seed: int = 0) -> FeatureTable:
    """Features that each fire on some tokens of 216 texts; every 40th moves, every 7th is unclear, 3 is hostile."""
    rng = np.random.default_rng(seed)
    words = [f" word{number}" for number in range(3000)]
    tokens = [words[number] for number in rng.integers(0, len(words), TEXTS * LENGTH)]
    texts = Texts(tokens, np.arange(TEXTS + 1) * LENGTH, np.where(np.arange(TEXTS) < 192, np.arange(TEXTS), -1))
    place = np.repeat(np.arange(count), TOKENS)
    token = np.sort(rng.integers(0, TEXTS * LENGTH, (count, TOKENS)), axis=1).ravel()
    base = rng.gamma(2, 1, count * TOKENS).astype(np.float32)
    fired = Fired(place, token, base, np.maximum(base + rng.normal(0, 0.2, len(base)).astype(np.float32), 0))
    feature = np.arange(count) * 3
    change = rng.normal(0, 0.1, count) * np.linspace(3, 0.1, count)
    moved = np.arange(count) < count // 40
    labels = np.array([f"words about topic {number} and some more of it" for number in range(count)], dtype=object)
    labels[::7] = "unclear"
    labels[3] = "<img src=x onerror=alert(1)></script><b>"
    rows = pd.DataFrame(
        {
            "feature": feature, "label": labels, "label_source": "evidence", "tested": 20,
            "confidence": rng.random(count),
            "change": change, "error": 0.01, "z": change / 0.01, "z_null": change / 0.02, "base": 1.0,
            "new": 1 + change,
            "fires_base": 0.01, "fires_new": 0.012, "relative": change, "predicted_change": change, "score": change,
            "verdict": np.where(~moved, "not beyond noise", np.where(change > 0, "strengthened", "faded")),
            "family": feature, "members": 1,
        }
    )  # fmt: skip
    rows["promoted"] = [[f"tok{number % 997}", "shared"] for number in range(count)]
    rows["suppressed"] = [["other"]] * count
    rows["neighbours"] = [[(number + 1) % count * 3, (number + 2) % count * 3] for number in range(count)]
    rows["cosines"] = [[0.5, 0.25]] * count
    return FeatureTable(rows, texts, contexts_of(fired, texts, count), *histograms(fired, count), "gemma-2-2b/20-res")
