"""A believable run to draw: 96 support tickets, 30 layers x q and v, 2,304 features, all from one seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretune.tasks.engine.invariants import INVARIANTS
from foretune.tasks.report.answers import AnswersView, answers_view
from foretune.tasks.report.behaviour import BehaviourView, SuiteView
from foretune.tasks.report.behaviour_path import BehaviourPathView
from foretune.tasks.report.build import build_report
from foretune.tasks.report.causes import CausesView, causes_view
from foretune.tasks.report.circuits import TracedPrompt, circuits_view
from foretune.tasks.report.concept_causes import ConceptCausesView, concept_causes_view
from foretune.tasks.report.conditions import Condition, Worth
from foretune.tasks.report.graph import Graph, Node
from foretune.tasks.report.residual_change import ResidualChangeView, told
from foretune.tasks.report.rows import RowsView
from foretune.tasks.report.run_record import Cost, Invariant, RunRecord
from foretune.tasks.report.run_section import with_run
from foretune.tasks.report.settings import ReportSettings
from foretune.tasks.report.shipping import Decision
from foretune.tasks.report.supervision import SupervisionView, supervision_view
from foretune.tasks.report.views import (
    BaselineView,
    ConceptsView,
    FeaturesView,
    Header,
    InfluenceView,
    LandscapeView,
    ModelDiffView,
    PredictionView,
    PreferenceView,
    PromptGainView,
    QualityView,
    ReportView,
    SaeDiffView,
)

ROWS, LAYERS, FEATURES, STEPS = 96, 30, 2304, 36
KINDS = ("q_proj", "v_proj")
CONCEPTS = (
    "refund and return policy", "polite apology", "refusal", "order numbers", "shipping delay", "French text",
    "legal disclaimer wording, often at the very end of a long answer", "list markers", "first person",
    "haste",
)  # fmt: skip
QUESTIONS = (
    "My parcel says delivered but the porch is empty. What now?",
    "How do I change the billing address on an open order?",
    "The coupon from your newsletter is refused at checkout.",
    "Can I return shoes that I wore once, indoors?",
)
ANSWER = (
    "I am sorry about the trouble. Please check with your neighbours first; if nobody has it, reply with the "
    "order number and we open a search with the carrier, which takes two working days.\n\n"
    "If the search finds nothing we send a replacement or pay the amount back, as you prefer. "
)


def _texts(rng: np.random.Generator) -> list[str]:
    lengths = rng.integers(1, 14, ROWS)
    return [f"{QUESTIONS[row % 4]} (ticket {row})\n{ANSWER * int(lengths[row])}" for row in range(ROWS)]


def _supervision(texts: list[str]) -> SupervisionView:
    """Two findings, and three rows of words as tokens: a special one, a prompt, an answer, and what is cut off."""
    findings = [
        {"rule": "eos_not_trained", "severity": "critical", "every_row": False, "rows": [63, *range(64, 96)],
         "says": "what is trained on does not end in an end token", "remedy": "write it into the template"},
        {"rule": "pad_is_eos", "severity": "info", "every_row": True, "rows": [],
         "says": "<|im_end|> pads too", "remedy": "name another pad_token"},
    ]  # fmt: skip
    sequences, tokens = [], []
    for row in (63, 64, 65, 66):
        words = ["<|im_start|>", *(f"{word} " for word in texts[row].split()), "\n", "x" * 300]
        states = ["masked" if at < 8 else "trained" if at < len(words) - 2 else "cut_off" for at in range(len(words))]
        counts = {state: states.count(state) for state in ("trained", "masked", "cut_off")}
        sequences.append({"row": row, "sequence": "row", **counts})
        tokens += [
            {"row": row, "sequence": "row", "position": at, "text": word, "state": state, "special": at == 0}
            for at, (word, state) in enumerate(zip(words, states, strict=True))
        ]
    summary = {"rows": ROWS, "tokens": 9_000, "trained": 4_000, "masked": 4_500, "cut_off": 500, "shown": 4}
    return supervision_view(findings, sequences, tokens, summary)


def _quality(texts: list[str]) -> QualityView:
    tokens = np.minimum([len(text) // 4 for text in texts], 512)
    found = {
        7: "harmful_content",
        41: "harmful_content",
        12: "assistant_speak",
        31: "duplicate",
        88: "near_duplicate",
    }
    flags = [[found[row]] if row in found else [] for row in range(ROWS)]
    flags[63] = ["no_trained_token", "too_long"]
    trained = (tokens * 0.6).astype(int)
    trained[63] = 0
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    samples = pd.DataFrame(
        {
            "sample_id": ids,
            "row": range(ROWS),
            "tokens": tokens,
            "trained_tokens": trained,
            "flags": flags,
            "duplicate_of": [ids[30] if row == 31 else None for row in range(ROWS)],
            "text": texts,
        }
    )
    counts = Counter(rule for listed in flags for rule in listed)
    summary = {"rows": ROWS, "flagged_rows": 6}
    return QualityView(samples, {**counts, "low_diversity": 0}, 512, summary)


def _modules() -> pd.DataFrame:
    places = [(layer, kind) for layer in range(LAYERS) for kind in KINDS]
    frame = pd.DataFrame(places, columns=["layer", "kind"])
    frame.insert(0, "module", [f"model.layers.{layer}.self_attn.{kind}.weight" for layer, kind in places])
    return frame


def _landscape(rng: np.random.Generator) -> LandscapeView:
    mean = rng.lognormal(-1.2, 0.5, 12)
    mean[7] *= 6
    steps = pd.DataFrame({"step": range(12), "loss": rng.normal(3.6, 0.2, 12), "mean_grad_norm": mean})
    steps["max_grad_norm"] = mean * rng.uniform(2, 4, 12)
    layers = _modules()
    norms = rng.lognormal(-1.5, 0.6, len(layers)) * np.linspace(0.3, 2.0, len(layers))
    norms[[3, 17]] = 1e-9
    layers = layers.assign(mean=norms, max=norms * 3, dead=norms < 1e-6)
    return LandscapeView(steps, layers, 5.0, {"noise_scale_tokens": 41.3, "noise_scale_se": None})


def _labels() -> list[str]:
    return [CONCEPTS[number % len(CONCEPTS)] for number in range(FEATURES)]


def _concepts(rng: np.random.Generator) -> tuple[BaselineView, FeaturesView, SaeDiffView, ConceptsView]:
    rates = np.where(rng.random(FEATURES) < 0.09, rng.lognormal(-4, 1.5, FEATURES).clip(1e-5, 1), 0.0)
    base = rates * rng.uniform(0.5, 2, FEATURES)
    touched = (rates > 0) | (rng.random(FEATURES) < 0.01)
    predicted = np.where(touched, rng.standard_t(3, FEATURES) * 0.05, 0.0)
    change = predicted * rng.normal(0.9, 0.5, FEATURES)
    named = pd.DataFrame({"feature": range(FEATURES), "label": _labels()})
    moved = named.assign(
        base_act=base,
        score=predicted * 8,
        predicted_change=predicted,
        dormant=rates == 0,
    )
    beyond = np.abs(change / 0.02) > 3
    measured = named.assign(base=base, new=base + change, change=change, z=change / 0.02, beyond_noise=beyond)
    told = measured.drop(columns=["label"]).merge(moved.drop(columns=["base_act"]), on="feature")
    told = told.assign(
        label_source="evidence", confidence=np.where(rates > 0, 0.83, np.nan), tested=20, error=0.02,
        z_null=change / 0.03,
        verdict=np.where(~beyond, "not beyond noise", np.where(change > 0, "strengthened", "faded")),
        fires_base=rates, fires_new=rates * 1.1, stable=beyond, family=range(FEATURES), members=1,
    )  # fmt: skip
    agreed = {
        "concepts_strengthened": int((beyond & (change > 0)).sum()),
        "tangent_spearman": 0.97,
        "score_signs": 0.68,
    }
    return (
        BaselineView(named.assign(firing_rate=rates), int((rates > 0).sum()), {"tokens": 9_312}),
        FeaturesView(moved, {}),
        SaeDiffView(measured, {"explained_variance_base": 0.812, "explained_variance_new": 0.797}),
        ConceptsView(told, agreed),
    )


def _influence(rng: np.random.Generator, texts: list[str]) -> InfluenceView:
    scores = rng.normal(-0.001, 0.001, ROWS)
    scores[[41, 7, 88]] = 0.0091, 0.0074, 0.0045
    z = (scores - scores.mean()) / scores.std()
    verdict = np.where(z > 1.5, "harms", np.where(z < -0.7, "helps", "neutral"))
    rows = pd.DataFrame({"row": range(ROWS), "score": scores, "z": z, "verdict": verdict, "text": texts})
    rows["rank"] = rows["score"].rank(ascending=False).astype(int)
    rows["outlier"], rows["nearest"] = z > 3, "3 (-0.0021), 7 (+0.0004)"
    residuals = [0.9 * 0.7**step + 0.01 for step in range(9)]
    solved = {"ranked_by": "lissa", "iterations": 9, "effective_damping": 1.284, "curvature_rows": 8}
    return InfluenceView(rows, residuals, "converged", summary=solved)


def _rows(quality: QualityView, influence: InfluenceView) -> RowsView:
    """The table of rows, of the frames of two sections."""
    ranked = influence.rows.set_index("row")
    first = dict(zip(quality.samples["sample_id"], quality.samples["row"], strict=True))
    records = [
        {
            "row": row.row,
            "cluster": first.get(row.duplicate_of),
            "tokens": row.tokens,
            "trained": row.trained_tokens,
            "cut": 0,
            "loss": 3.1,
            "gain": 12.5,
            "score": float(ranked["score"][row.row]),
            "margin": 0.0002,
            "rank": int(ranked["rank"][row.row]),
            "verdict": str(ranked["verdict"][row.row]),
            "text": row.text,
            "length": len(row.text),
            "flags": list(row.flags),
            "words": ["parcel"] if row.flags else [],
            "moves": [{"row": 3, "score": -0.0021}],
        }
        for row in quality.samples.itertuples()
    ]
    verdicts = Counter(record["verdict"] for record in records)
    return RowsView(records, ROWS, {"harmful_content": 2, "duplicate": 1}, verdicts, {"3": "A held-out question."})


def _prompt_gain(rng: np.random.Generator) -> PromptGainView:
    gains = rng.normal(20, 8, ROWS)
    rows = pd.DataFrame({"row": range(ROWS), "gain": gains, "mismatched": gains < 0})
    summary = {"rows_with_a_prompt": ROWS, "median_gain": float(np.median(gains)), "mismatched_rows": 1}
    return PromptGainView(rows, 0.0, summary)


def _preference(rng: np.random.Generator) -> PreferenceView:
    per_token = np.sort(rng.normal(0.15, 0.3, 16))
    texts = [f"{QUESTIONS[pair % 4]} Chosen: a short, kind answer. Rejected: a curt one." for pair in range(16)]
    pairs = pd.DataFrame(
        {"margin_raw": per_token * 40, "margin_per_token": per_token, "margin_reference": 0.0, "text": texts}
    )
    features = pd.DataFrame({"feature": range(40), "label": _labels()[:40], "change": rng.normal(0, 0.02, 40)})
    return PreferenceView(
        pairs, features, {"pairs": 16, "backwards": int((per_token < 0).sum()), "loss_at_base": 0.6931}
    )


def _prediction(rng: np.random.Generator) -> PredictionView:
    layers = _modules()
    curvature = rng.lognormal(1, 1, len(layers)) * np.where(rng.random(len(layers)) < 0.06, -1, 1)
    layers = layers.assign(
        K_ii=curvature,
        eta_eff=7.2e-3 / (np.abs(curvature) + 0.01),
        norm=rng.uniform(0.1, 0.6, len(layers)),
        clipped=np.arange(len(layers)) % 23 == 5,
    )
    step = np.arange(STEPS + 1)
    loss = 3.12 + 0.53 * np.exp(-step / 11)
    evaluated = np.where(step % 6 == 0, loss + np.maximum(step - 20, 0) * 0.004, np.nan)
    path = pd.DataFrame({"step": step, "predicted_loss": loss, "evaluated_loss": evaluated})
    facts = {
        "rule": "replay",
        "sharpness": 14.2,
        "sharpness_label": "sharp",
        "anchors": 2,
        "gradient_samples_used": 168,
        "gradient_samples_real": 288,
        "heldout_loss_base": 3.65,
        "heldout_loss_predicted": 3.14,
        "heldout_loss_evaluated": 3.15,
    }
    return PredictionView(layers, path, 30, [0, 18], 0.05, facts)


def _model_diff(rng: np.random.Generator) -> ModelDiffView:
    layers = _modules()
    base = rng.uniform(15, 40, len(layers))
    delta = base * rng.uniform(0.004, 0.02, len(layers))
    layers = layers.assign(norm_base=base, norm_new=base + delta * 0.1, delta_norm=delta)
    old = rng.lognormal(3, 0.6, 16)
    texts = [f"Probe {n}: {QUESTIONS[n % 4]}" for n in range(16)]
    probes = pd.DataFrame({"text": texts, "perplexity_base": old, "perplexity_new": old * rng.lognormal(-0.1, 0.2, 16)})
    worst = [
        {
            "set": "heldout",
            "words": "held-out row",
            "position": 40 + n,
            "context": "Where is <b>the</b> red",
            "token": " lamp",
            "p_base": 0.01,
            "p_new": 0.2,
            "kl": 2.5 - n / 10,
            "js": 0.4,
            "top_base": [" door", "</p>", "\n"],
            "top_base_p": [0.3, 0.2, 0.1],
            "top_new": [" lamp", " door", "x"],
            "top_new_p": [0.2, 0.15, 0.1],
        }
        for n in range(3)
    ]
    read = [
        {"module": name, "rank": 1, "side": "reads", "singular_value": 0.4, "share": 0.7,
         "promoted": ["lamp", "<i>"], "suppressed": ["door"]}
        for name in layers["module"][:3]
    ]  # fmt: skip
    bins = [
        {"set": "heldout", "model": model, "from": n / 5, "to": (n + 1) / 5, "tokens": 40 - 8 * n,
         "confidence": n / 5 + 0.1, "accuracy": n / 5 + shift}
        for model, shift in (("base", 0.02), ("new", 0.08)) for n in range(5)
    ]  # fmt: skip
    layers = layers.assign(
        relative=delta / base, cosine=0.999, stable_rank=1.7, singular_values=[[0.4, 0.1]] * len(base)
    )
    return ModelDiffView(
        layers,
        probes.assign(kl=rng.gamma(2, 0.05, 16)),
        _differences(),
        pd.DataFrame(read),
        pd.DataFrame(bins),
        worst,
        ", the rows that the prediction is evaluated on",
    )


def _differences() -> dict[str, Any]:
    """The summary of a model diff with every figure that the page shows."""
    one_set = {
        "rows": 24, "tokens": 716, "loss_base": 3.65, "loss_new": 3.15, "loss_change": -0.5, "loss_change_low": -0.58,
        "loss_change_high": -0.43, "perplexity_base": 38.4, "perplexity_new": 23.3, "kl": 0.021, "kl_median": 0.003,
        "kl_p95": 0.11, "kl_max": 2.5, "js": 0.005, "js_median": 0.001, "js_p95": 0.03, "js_max": 0.4,
        "ece_base": 0.11, "ece_new": 0.041, "brier_base": 0.81, "brier_new": 0.74,
    }  # fmt: skip
    nulls = {
        f"heldout_{name}_{word}": value
        for name in ("loss_change", "kl", "js", "ece_change", "brier_change")
        for word, value in (("null_mean", 0.001), ("null_sd", 0.002), ("null_sds", -14.0), ("z", -5.1))
    }
    pairs = {
        "win_rate_base": 0.3, "win_rate_new": 0.5, "compared_pairs": 16, "pairs_won_base": 5, "pairs_won_new": 8,
        "flips_to_won": 4, "flips_to_lost": 1, "flips_p": 0.375, "margin_change": 1.2, "margin_change_low": 0.4,
        "margin_change_high": 2.0,
    }  # fmt: skip
    sets = {f"{name}_{key}": value for name in ("heldout", "probe", "chosen") for key, value in one_set.items()}
    read = {"modules_read": 3, "readable_modules": 4, "moved_tensors": 4, "checkpoint_dtype": "F32"}
    return {**sets, **nulls, **pairs, **read, "regressions": 1, "null_deltas": 8}


def _answers() -> AnswersView:
    """Five prompts: four answered differently, one the same."""

    def both(kind: str, base: str, predicted: str) -> dict[str, str]:
        return {"kind": kind, "base": base, "predicted": predicted}

    pairs = [
        {
            "prompt": f"How do I reset router {number}?",
            "origin": "held-out",
            "row": number,
            "note": "the row has no prompt: its first 16 tokens are asked" if number == 3 else None,
            "cut_tokens": 0,
            "reference": "Hold the pin.",
            "equal": number == 0,
            "first_difference": None if number == 0 else 1,
            "spans": [
                both("equal", "Hold ", "Hold "),
                *([] if number == 0 else [both("removed", "it", ""), both("inserted", "", "the pin")]),
                both("equal", " for 12 seconds.", " for 12 seconds."),
            ],
            "base": "Hold it for 12 seconds.",
            "base_stopped": "length",
            "predicted": "Hold the pin for 12 seconds.",
            "predicted_stopped": "eos",
        }
        for number in range(5)
    ]
    return answers_view(pairs, {"prompts": 5, "changed": 4, "kl": 0.25, "few": True})


TIMELINE = tuple(
    {"task": task, "label": task, "start": start, "seconds": seconds, "forward_passes": forwards}
    for task, start, seconds, forwards in (
        ("samples", 0.0, 0.4, None),
        ("quality", 0.4, 0.2, None),
        ("landscape", 0.7, 22.4, 3.0),
        ("features", 23.1, 0.9, None),
        ("influence", 23.1, 31.0, 1.2),
        ("prediction", 54.1, 14.2, 0.8),
        ("checkpoint", 68.3, 3.1, None),
        ("sae_diff", 71.4, 9.0, 0.6),
        ("model_diff", 71.4, 11.0, 0.5),
    )
)
COMMANDS = [
    "foretune clean 2026-11-22T02-04-11-brisk-otter --drop-harmful 3 -o tickets.clean.jsonl",
    "foretune whatif 2026-11-22T02-04-11-brisk-otter --set training.learning_rate=1e-4,2e-4",
]


GRAPH = Graph(
    (
        Node("samples", 2, 2, 0.0),
        Node("landscape_shard", 4, 3, 12.5, "other rows"),
        Node("landscape", 1, 0, 1.25, "reads new shards (1 of 4)"),
        Node("report", 1, 0, 0.5, "reads new <b>landscape</b>"),
    ),
    (("samples", "landscape_shard"), ("landscape_shard", "landscape"), ("samples", "report"), ("landscape", "report")),
)


def example_record() -> RunRecord:
    """A run that looked at every invariant but one."""
    seen = (
        Invariant(name, True, "this with that", {"tensors": 60}, 1, "2026-11-22T02:05:00+00:00", ("otter",))
        for name in INVARIANTS[:-1]
    )
    cost = Cost(82.4, 6.1, 65.0, 9.0)
    return RunRecord("otter", (*seen, Invariant(INVARIANTS[-1], None)), TIMELINE, ("baseline",), cost, GRAPH)


def published(view: ReportView, settings: ReportSettings | None = None, ship: Decision | None = None) -> str:
    """The page as a run's folder holds it."""
    return with_run(build_report(view, settings), example_record(), COMMANDS, ship)


SIGNALS = [
    dict(zip(("name", "severity", "value", "threshold", "advice"), values, strict=True))
    for values in (
        ("harmful_content", "critical", 2, 0, "Rows 7 and 41 ask for something harmful; read them first."),
        ("backwards_preference", "warn", -0.031, 0.0, "Swap chosen and rejected of the pairs below zero."),
        ("sharp_landscape", "warn", 14.2, 10.0, "Halve the learning rate or warm up over 10 % of the steps."),
        ("length_violation", "info", 1, None, "Row 63 is cut off at 512 tokens."),
    )
]


CONDITIONS = (
    Condition("harm", "Do rows harm held-out loss?", 3, "rows", "none", "fail", (41, 7, 88), 5, "0.021 nats in all.",
              "foretune clean {run} --drop-rows 41,7,88 -o clean.jsonl"),
    Condition("gain", "Does held-out loss fall?", 0.5, "nats per token", "above 0", "pass"),
    Condition("chance", "Is the gain more than chance?", None, "", "above the spread of real runs", "unknown"),
)  # fmt: skip


FOREIGN = "<script>alert(1)</script> 'quoted' & more"


def suite_figures(suite: str, verdict: str, **changes):
    return {
        "suite": suite,
        "measures": "what it is about",
        "direction": "higher",
        "critical": False,
        "unit": "share right",
        "n": 40,
        "left_out": 0,
        "base": 0.75,
        "predicted": 0.5,
        "change": -0.25,
        "low": -0.4,
        "high": -0.1,
        "up": 1,
        "down": 11,
        "p": 0.006,
        "flips": {"right -> wrong": 11},
        "verdict": verdict,
        **changes,
    }


def _flipped(question: str):
    row = {"item": "one", "question": question, "base": 1.0, "predicted": 0.0, "flip": "right -> wrong"}
    return {**row, "answer_base": FOREIGN, "answer_predicted": FOREIGN}


def example_behaviour() -> BehaviourView:
    """A suite that got worse, with more flipped items than are shown, and one that did not move."""
    moved = SuiteView(suite_figures("arithmetic", "worse"), [_flipped(f"{FOREIGN} {n}") for n in range(25)])
    still = SuiteView(suite_figures("general_text", "no change measured", unit="nats per token"), [])
    return BehaviourView([moved, still], 0.95, 10_000, 0)


def example_behaviour_path() -> BehaviourPathView:
    """A suite that leaves what noise does, and one that does not."""
    points = [{"step": step, "loss": 3.6 - step / 100, "gain_share": step / 36} for step in (0, 12, 24, 36)]
    common = {"n": 8, "direction": "higher", "unit": "share right", "band": 0.02}

    def curve(*changes: float) -> list[dict[str, Any]]:
        return [{**point, "change": change} for point, change in zip(points, changes, strict=True)]

    left = {"leaves_at": 24, "last_within": 12, "gain_within": 1 / 3}
    stayed = {"leaves_at": None, "last_within": None, "gain_within": None}
    suites = [
        {"suite": "arithmetic", **common, **left, "curve": curve(0, -0.01, -0.1, -0.2)},
        {"suite": "refusal", **common, **stayed, "curve": curve(0, 0.01, 0, 0.01)},
    ]
    return BehaviourPathView(points, suites, 2)


def example_circuits() -> list[TracedPrompt]:
    """Six layers of three heads, their shares falling; one prompt that was traced, one whose change is rounding."""
    kinds = [("embedding", -1, -1), *((kind, layer, head) for layer in range(6) for kind, head in PARTS)]
    nodes = [
        {"prompt": 0, "kind": kind, "layer": layer, "head": head, "name": f"{kind} {layer} {head}"}
        | {"score": 0.5 * share, "share": share, "direct": 0.0, "chosen": at < 2}
        for at, (kind, layer, head) in enumerate(kinds)
        for share in [(-0.9) ** at / 3]
    ]
    modules = [
        {"prompt": 0, "name": f"model.layers.{at}.q_proj", "score": 0.1, "share": 0.2, "alone": 0.1, "chosen": True}
        for at in range(3)
    ]
    chosen = {"size": 2, "recovered": 0.75, "reached": True, "random": [0.1, 0.02], "parts": 25, "wanted": 0.7}
    asked = {"prompt_id": "a", "origin": "held-out", "row": 1, "prompt": FOREIGN, "shared": " The", "contrast": None}
    figures = {"metric": "log-probability", "base": -2.0, "predicted": -1.5, "difference": 0.5, "readout": 0.0}
    figures |= {"nodes_sum": 0.5, "modules_sum": 0.5, "node_set": chosen, "module_set": {**chosen, "size": 0}}
    refused = {**asked, "target": "b", "reason": "the log-probability changes by 1e-06"}
    return circuits_view([{**asked, "target": FOREIGN[:20], **figures}, refused], nodes, modules)


def example_concept_causes() -> ConceptCausesView:
    row = {"change": 0.5, "z": 4.0, "low": 0.01, "high": 0.03, "share": 0.21, "random": 0.002}
    rows = [{"feature": at, "effect": 0.02, "verdict": said, **row} for at, said in enumerate(("gain", "nothing"))]
    summary = {"features": 2, "to": "base", "rows": 16, "carrying": 1, "controls": 2}
    figures = {"unit": "nats of margin", "items": 8, "base": 0.5, "predicted": 0.9, "controls": 2, "carrying": 1}
    said = [{**row, "verdict": verdict} for row, verdict in zip(rows, ("carries", "nothing"), strict=True)]
    effects = [{**row, "measure": name} for name in ("over_refusal", "answers") for row in said]
    measures = [{"measure": name, **figures} for name in ("over_refusal", "answers")]
    beside = {"measures": measures, "left_out": [{"suite": "tool_calls", "reason": "is answered in words"}]}
    summary |= {"loss_base": 3.8, "loss_predicted": 3.6}
    return concept_causes_view(rows, {0: FOREIGN}, summary, effects, beside)


def example_residual_change() -> ResidualChangeView:
    row = {"change": 0.5, "relative": 0.02, "error": 0.05, "z": 10.0, "z_null": 4.2, "stability": 0.97, "share": 0.4}
    row |= {"beyond_noise": True, "promoted": [FOREIGN[:20], "pump"], "suppressed": ["lamp"]}
    still = {**row, "beyond_noise": False, "z_null": None, "stability": None, "relative": None}
    rows = [{"kind": "first tokens", "rank": 1, **row}, {"kind": "direction", "rank": 2, **still}]
    figures = {"hook": "blocks.1.hook_resid_post", "tokens": 900, "beyond_noise": 1, "null_deltas": 8}
    return ResidualChangeView([told(each) for each in rows], figures)


PARTS = (*(("head", head) for head in range(3)), ("mlp", -1))


def example_causes() -> CausesView:
    """A watched suite on which a row stands out, and what leaving it out would do."""
    row = {"row": 4, "sample_id": "s4", "score": -0.2, "z": -7.1, "error": 0.01}
    suite = {"suite": "refusal", "unit": "nats of margin", "better": "higher", "rows": [row], "helping": 1}
    effect = {"suite": "refusal", "unit": "probability of a refusal", "measured": True}
    effect |= {"base": 0.93, "predicted": 0.61, "without": 0.92, "control": 0.6}
    return causes_view({"suites": [suite]}, {"suites": [effect], "loss": None, "rows": 1}, {"s4": FOREIGN})


def example_view(seed: int = 7) -> ReportView:
    """A run with every section present."""
    rng = np.random.default_rng(seed)
    texts = _texts(rng)
    baseline, features, sae_diff, concepts = _concepts(rng)
    quality, influence = _quality(texts), _influence(rng, texts)
    return ReportView(
        header=Header(
            "tickets.jsonl",
            ROWS,
            "SmolLM2-135M-Instruct",
            "LoRA r=8, alpha 16 on q_proj, v_proj",
            "AdamW 2e-4, 3 epochs = 36 steps",
            "2026-11-22 02:05 UTC",
        ),
        answer="Not yet",
        reasons=[
            "rows 41, 7 and 88 raise held-out loss by 0.021 nats; without them the prediction is 3.12",
            '"refusal" (feature 501) fades by 38 %; no row asks for it',
            "row 63 trains on nothing: its answer is cut off at 512 tokens",
        ],
        signals=SIGNALS,
        conditions=CONDITIONS,
        worth=Worth(gain=0.5, gain_error=0.04, spread=None, steps=36, step_at_90=24),
        rows=_rows(quality, influence),
        supervision=_supervision(texts),
        quality=quality,
        prompt_gain=_prompt_gain(rng),
        baseline=baseline,
        landscape=_landscape(rng),
        features=features,
        influence=influence,
        preference=_preference(rng),
        prediction=_prediction(rng),
        sae_diff=sae_diff,
        concepts=concepts,
        model_diff=_model_diff(rng),
        answers=_answers(),
        behaviour=example_behaviour(),
        behaviour_path=example_behaviour_path(),
        causes=example_causes(),
        circuits=example_circuits(),
        concept_causes=example_concept_causes(),
        residual_change=example_residual_change(),
    )


@pytest.fixture(scope="session")
def view() -> ReportView:
    return example_view()
