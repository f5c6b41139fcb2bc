"""Influence scores of foretune and of simple rules, one method a process, for `tests.benchmarks.influence`.

`python -m tests.benchmarks.influence_scores DATA ROWS SWAPPED METHOD OUT` writes what a rival's script writes: `scores`
[train rows, held-out rows], negative where training on the row lowers the held-out row's mean token loss, and a
.json beside it with seconds (opening the model excluded) and the peak resident memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.benchmarks.retraining import Bank

FIRST_ORDER = ("preconditioned", "replayed")
LISSA = {"lissa seed": {"preset": "seed"}, "lissa tuned": {"preset": "tuned"}}
RULES = ("random", "length", "loss", "prompt gain", "gradient dot", "gradient cosine", "representation similarity")
METHODS = (*RULES, *LISSA, *FIRST_ORDER)
EPOCH = "epoch"
FIRST_ORDER_TASKS = ("landscape_shard", "gradient", "influence_targets", "influence_directions", "influence_shard")
SOLVE_NOTHING = ("influence.solver.iterations=1", "curvature.rows=1", "curvature.graph_tokens=0")
"""LiSSA is a method of its own here: the passes of the others only need something in its place."""
BATCH_TOKENS = 1024


class Bench:
    """One data set's passes, called without an engine in a storage root of this process."""

    def __init__(self, bank: Bank) -> None:
        self.bank, self.wiring = bank, bank.wiring
        self.store = bank.run.store

    def seconds(self, tasks: tuple[str, ...]) -> float:
        """What these tasks took, from their manifests."""
        stored = [self.store.manifest(each.task, each.key) for each in self.store.iterate() if each.task in tasks]
        return sum(manifest.seconds for manifest in stored)

    def landscapes(self) -> None:
        self.landscape = {role: self.wiring.landscape(role) for role in ("train", "heldout")}

    def rows(self, role: str) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, d] summed gradients in adapter coordinates, in the order of the role's table, and tokens [n].

        A row whose answer is cut off has no gradient and counts one token.
        """
        from foretune.tasks.inputs.field import per_row_gradients
        from foretune.tasks.loading import lora_scale

        kept = per_row_gradients(self.bank.run, self.landscape[role].blocks, lora_scale(self.bank.request.adapter))
        table = self.bank.train if role == "train" else self.bank.heldout
        place = {sample_id: n for n, sample_id in enumerate(table["sample_id"].to_pylist())}
        at = [place[sample_id] for sample_id in kept.ids]
        found = torch.cat([kept.block(name) for name in kept.names], dim=1)
        gradients, tokens = torch.zeros(len(table), found.shape[1]), torch.ones(len(table))
        gradients[at], tokens[at] = found, torch.tensor(kept.tokens, dtype=torch.float32)
        return gradients, tokens

    def scored(self, method: str) -> tuple[torch.Tensor, float, float]:
        """Scores, seconds in all, seconds of the scoring alone."""
        if method in FIRST_ORDER:
            return self.by_passes(method)
        if method in LISSA:
            return self.by_lissa(LISSA[method])
        return self.by_rule(method)

    def by_passes(self, method: str) -> tuple[torch.Tensor, float, float]:
        """The passes of a simulation up to the ranking; LiSSA's solve is not among the seconds, no score reads it."""
        from foretune.flows.dag.influence import influence_passes

        self.landscapes()
        ranked = influence_passes(self.wiring, self.landscape["train"], self.landscape["heldout"])["influence"]
        artifact = self.store.open(ranked)
        described = artifact.json("targets.json")
        names = [target["name"] for target in described if target["kind"] == "row"]
        order = sorted(range(len(names)), key=lambda n: self.place_of(described, names[n]))
        values = torch.zeros(len(self.bank.train), len(names))
        ids = {sample_id: n for n, sample_id in enumerate(self.bank.train["sample_id"].to_pylist())}
        column = {names[n]: place for place, n in enumerate(order)}
        table = artifact.arrow("targets.parquet").to_pylist() if method == "replayed" else self.first_order()
        for row in table:
            if row["target"] in column:  # not the mean of all
                values[ids[row["sample_id"]], column[row["target"]]] = row["score"]
        replayed = ("influence_replays",) if method == "replayed" else ()
        scoring = ("influence_directions", "influence_shard", *replayed)
        return values, self.seconds((*FIRST_ORDER_TASKS, *replayed)), self.seconds(scoring)

    def place_of(self, described: list[dict[str, Any]], name: str) -> int:
        """Position in the held-out table of the row that a target names."""
        rows = self.bank.heldout["row"].to_pylist()
        return rows.index(next(target["row"] for target in described if target["name"] == name))

    def first_order(self) -> list[dict[str, Any]]:
        """The preconditioned derivatives as rows of targets.parquet; the scale of all is the same."""
        found = []
        for stored in self.store.iterate():
            if stored.task != "influence_shard":
                continue
            shard = self.store.open(self.store.find(stored.task, stored.key))
            derivatives = shard.tensors("derivatives.safetensors")["preconditioned"]
            described = self.described()
            for sample_id, values in zip(shard.json("samples.json"), derivatives.tolist(), strict=True):
                pairs = zip(described, values, strict=True)
                found += [{"sample_id": sample_id, "target": t["name"], "score": -value} for t, value in pairs]
        return found

    def described(self) -> list[dict[str, Any]]:
        stored = next(each for each in self.store.iterate() if each.task == "influence_targets")
        return self.store.open(self.store.find(stored.task, stored.key)).json("targets.json")

    def by_lissa(self, solver: dict[str, Any]) -> tuple[torch.Tensor, float, float]:
        """One solve per held-out row, every one with its own products; on the rows with planted noise one solve of the
        mean of all, which is what they are ranked by (a solve is linear in its target)."""
        from foretune.storage.events import EventLog
        from foretune.tasks.influence.solve import SolverSettings, solved, solver_plan
        from foretune.tasks.inputs.adapted import adapt
        from foretune.tasks.inputs.curvature import curvature_operator

        self.landscapes()
        spent = self.seconds(FIRST_ORDER_TASKS)
        request, settings = self.bank.request, SolverSettings(**solver)
        adapted = adapt(self.bank.loaded, request.adapter, request.training.seed)
        started = time.perf_counter()
        operator = curvature_operator(adapted, self.wiring.curvature_rows().read(self.bank.run), request.curvature)
        (train, _), (held, tokens) = self.rows("train"), self.rows("heldout")
        names = sorted(adapted.weights)
        sizes = [adapted.weights[n].shape[0] * request.adapter.r for n in names]
        scores, log = [], EventLog.of(self.bank.run)

        def by_module(flat: torch.Tensor) -> dict[str, torch.Tensor]:
            parts = dict(zip(names, flat.split(sizes), strict=True))
            return {name: parts[name].view(-1, request.adapter.r) for name in adapted.weights}

        wanted = held / tokens[:, None]
        if settings.preset == "tuned":  # the operator is measured once for all targets
            plan, _ = solver_plan(operator.matvec, by_module(wanted.mean(0)), settings)
            told = {"iterations": plan.iterations, "damping": plan.damping, "scale": plan.scale}
            settings = SolverSettings(**told, tolerance=plan.tolerance)
        for gradient in wanted.mean(0, keepdim=True) if self.bank.swapped else wanted:
            solve, _ = solved(operator.matvec, by_module(gradient), settings, log)
            scores.append(-(train @ torch.cat([solve.solution[name].flatten() for name in names])))
        seconds = time.perf_counter() - started
        return torch.stack(scores, dim=1), spent + seconds, seconds

    def by_rule(self, method: str) -> tuple[torch.Tensor, float, float]:
        started = time.perf_counter()
        train, held = self.bank.train, self.bank.heldout
        if method == "random":
            scores = torch.randn(len(train), len(held), generator=torch.Generator().manual_seed(0))
        elif method == "length":
            counts = torch.tensor([float(sum(mask[1:])) for mask in train["loss_mask"].to_pylist()])
            scores = -counts[:, None].expand(-1, len(held))
        elif method == "loss":
            scores = -torch.tensor(self.base_losses())[:, None].expand(-1, len(held))
        elif method == "prompt gain":
            scores = -torch.tensor(self.prompt_gains())[:, None].expand(-1, len(held))
        elif method == "representation similarity":
            ours, theirs = (torch.nn.functional.normalize(self.representations(t), dim=1) for t in (train, held))
            scores = -ours @ theirs.T
        else:
            self.landscapes()
            ours, (theirs, tokens) = self.rows("train")[0], self.rows("heldout")
            theirs = theirs / tokens[:, None]
            if method == "gradient cosine":
                ours, theirs = (torch.nn.functional.normalize(g, dim=1) for g in (ours, theirs))
            scores = -ours @ theirs.T
        seconds = time.perf_counter() - started
        return scores.contiguous(), seconds, seconds

    def prompt_gains(self) -> list[float]:
        """Nats that each row's prompt gives its answer: a rule of its own for swapped answers, no influence."""
        made = {"landscape": self.wiring.landscape("train").layers}
        found = self.store.open(self.wiring.prompt_gain(made)).arrow("prompt_gain.parquet").to_pylist()
        gains = {row["sample_id"]: row["gain"] or 0.0 for row in found}
        return [gains[sample_id] for sample_id in self.bank.train["sample_id"].to_pylist()]

    def base_losses(self) -> list[float]:
        from foretune.tasks.inputs.adapted import adapt
        from tests.benchmarks.retraining import query_losses

        request = self.bank.request
        return query_losses(adapt(self.bank.loaded, request.adapter, request.training.seed), self.bank.train, {})

    def representations(self, table: Any) -> torch.Tensor:
        """[n, d] mean of the last hidden states over each row's tokens."""
        from foretune.tasks.samples.minibatches import minibatches

        kept = torch.zeros(len(table), self.bank.loaded.model.config.hidden_size)
        with torch.no_grad():
            for minibatch in minibatches(table, BATCH_TOKENS):
                batch = minibatch.batch
                out = self.bank.loaded.model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                mask = batch.attention_mask.unsqueeze(-1)
                kept[list(minibatch.rows)] = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
        return kept


def epoch(bank: Bank) -> float:
    """Seconds of one epoch of forward and backward passes through the peft model, in batches of 8 rows: the floor."""
    from peft import get_peft_model

    from foretune.tasks.backtest.real_run import _examples
    from foretune.tasks.loading import lora_config
    from foretune.tasks.numerics.batches import collate

    model = get_peft_model(bank.loaded.model, lora_config(bank.request.adapter))
    rows = _examples(bank.train, range(len(bank.train)))
    started = time.perf_counter()
    for first in range(0, len(rows), 8):
        batch = collate([(row["input_ids"], row["labels"]) for row in rows[first : first + 8]])
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        out.loss.backward()
    return time.perf_counter() - started


def main() -> None:
    data, rows, swapped, method, out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        overrides = SOLVE_NOTHING if method in FIRST_ORDER else ()
        bank = Bank(data, Path(name), int(rows), swapped == "swapped", str(Path(name) / "root"), overrides)
        if method == EPOCH:
            record: dict[str, Any] = {"seconds_total": epoch(bank)}
        else:
            scores, total, scoring = Bench(bank).scored(method)
            save_file({"scores": scores.float().contiguous()}, out)
            record = {"seconds_total": round(total, 2), "seconds_scoring": round(scoring, 2)}
    record |= {"method": method, "library": "foretune", "peak_mb": _peak_mb(), "threads": torch.get_num_threads()}
    Path(out).with_suffix(".json").write_text(json.dumps(record))


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
