"""What the passes of a simulation take from the request and from each other; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from foretune.flows.dag.costs import check_costs
from foretune.flows.dag.earlier import Reuse, reused_path
from foretune.flows.dag.effort import effort_of, trained_on_all
from foretune.flows.dag.micro_batches import curved_within_step, step_tokens, within_step
from foretune.flows.dag.storage import field_storage, footprint_of
from foretune.flows.request import Request
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.concepts.baseline import baseline, baseline_shard
from foretune.tasks.concepts.preference import preference
from foretune.tasks.inputs.curvature import CurvatureSettings
from foretune.tasks.inputs.field import RowCoordinates
from foretune.tasks.inputs.handles import model
from foretune.tasks.inputs.sources import Sources
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.landscape.curvature import curvature
from foretune.tasks.landscape.curvature_samples import curvature_samples
from foretune.tasks.landscape.gradient import gradient
from foretune.tasks.landscape.landscape import landscape, landscape_shard
from foretune.tasks.landscape.losses import loss_shard
from foretune.tasks.landscape.prompt_gain import AnswerPass, prompt_gain, prompt_gain_shard
from foretune.tasks.landscape.sharpness import sharpness
from foretune.tasks.prediction.delta import prediction
from foretune.tasks.prediction.path import path
from foretune.tasks.quality.leaks import leaks
from foretune.tasks.quality.passes import quality, quality_shard
from foretune.tasks.report.request_lines import RequestLines
from foretune.tasks.samples.dataset import TokenizerHandle, encoding_of, role_settings, samples
from foretune.tasks.samples.role_rows import RoleRows
from foretune.tasks.samples.rows import SubsetRows
from foretune.tasks.samples.table import Role, SampleIndex


class Step(Protocol):
    """How the wiring gets an artefact: by submitting a task, or by looking its key up."""

    run: Run

    def __call__(self, task: Any, **inputs: Any) -> Any:
        """The task's artefact: a future, or a reference."""

    def ready(self, artifact: Any) -> ArtifactRef:
        """Wait for an artefact that the wiring itself depends on."""
        ...

    def index(self, samples: Any) -> Any:
        """Sample ids and form of a `samples` artefact."""


@dataclass(frozen=True)
class Landscape:
    """The landscape of one role: its gradient blocks, the mean gradient over them, and the table of layers."""

    blocks: list[Any]
    gradient: Any
    layers: Any
    read_only: list[Any] = field(default_factory=list)  # losses of the blocks without gradients, where they are read


class Wiring:
    """The inputs that several passes share, and one method per pass that needs more than one call."""

    def __init__(self, step: Step, request: Request, sources: Sources) -> None:
        self.step, self.asked, self.sources = step, request, sources  # `request` is the one that the budget pays for
        self.model = sources.model_handle(
            lambda gguf: step.ready(step(model, gguf=gguf, dtype=request.model.dtype)), request.model
        )
        self.tokenizer = TokenizerHandle(source=sources.tokenizer or self.model.source, gguf=sources.gguf)
        self.tables = {
            role: step.ready(
                step(
                    samples,
                    source=source,
                    tokenizer=self.tokenizer,
                    role=role,
                    settings=role_settings(request.dataset, cast("Role", role)),
                )
            )
            for role, source in sources.rows.items()
        }
        index = {role: step.index(self.tables[role]) for role in ("train", "heldout")}
        bounded = request.effort.share is not None and "preferences" in self.tables
        pairs = step.index(self.tables["preferences"]) if bounded else None
        self.effort = effort_of(request, index["train"], index["heldout"], pairs)
        self.measuring = self.model.in_bfloat16() if self.effort.autocast else self.model
        self.step_tokens = step_tokens(request, index["train"])
        self.request = request = within_step(self.effort.of(request), self.step_tokens)
        wanted = {"train": self.effort.train_rows, "heldout": self.effort.heldout_rows}
        self.rows = {role: self._rows(cast("Role", role), index[role], wanted[role]) for role in index}
        if self.rows["train"].others:
            self.request = request = request.model_copy(update={"training": self.whole_run(request.training)})
        self.suite_scores: dict[Any, list[Any]] = {}  # scores of the suites, by the weights that were asked
        self.dpo_beta = request.training.beta_for(self.rows["train"].index.form)
        self.folder = (self.model if self.model.source.uri else self.tokenizer).folder(step.run)  # of shapes at least
        check_costs(request, self.rows["train"].index, self.rows["heldout"].index, self.folder)
        nodes = sum(len(rows.nodes) for rows in self.rows.values())
        self.storage = field_storage(request, footprint_of(request, self.folder), nodes)

    def lines(self) -> RequestLines:
        """What the report's first lines say about the request."""
        request, rows = self.request, len(self.rows["train"].index.ids)
        return RequestLines(
            name=request.run_name,
            dataset=request.dataset.path.rsplit("/", 1)[-1],
            rows=rows,
            model=request.model.name_or_path,
            adapter=request.adapter_line(),
            training=request.training.line(len(self.rows["train"].index.trained_ids)),
            max_length=request.dataset.max_length,
            effort=self.effort.line(self.rows["train"].measured_rows, rows),
            saes=self.sources.sae_line,
            neuronpedia_id=request.sae.neuronpedia_id if request.sae else None,
            more_saes=tuple(f"{each.name} at {each.hook_name}" for each in self.sources.more_saes),
            spike_norm=request.thresholds.spike_factor * request.training.max_grad_norm or None,
        )

    def quality(self) -> Any:
        settings = self.request.quality
        shards = [self.step(quality_shard, rows=leaf, settings=settings) for leaf in self.rows["train"].all_leaves]
        return self.step(quality, samples=self.tables["train"], shards=shards, settings=settings)

    def leaks(self) -> Any:
        return self.step(
            leaks,
            samples=self.tables["train"],
            heldout=self.tables["heldout"],
            benchmarks=list(self.sources.benchmarks),
        )

    def baseline(self) -> Any:
        settings, sae = self.request.baseline, self.sources.sae
        shards = [
            self.step(baseline_shard, rows=leaf, model=self.model, sae=sae, settings=settings)
            for leaf in self.rows["train"].first_leaves(self.effort.beside_rows)
        ]
        return self.step(baseline, shards=shards)

    def landscape(self, role: str) -> Landscape:
        request = self.request
        blocks = [
            self.step(
                landscape_shard,
                rows=node,
                role=role,
                model=self.measuring if role == "train" else self.model,
                targets=request.adapter.targets,
                hook_name=self.sources.hook_name,
                dpo_beta=self.dpo_beta,
                settings=request.landscape,
                coordinates=self.row_coordinates(role),
                **self.storage.inputs(),
            )
            for node in self.rows[role].nodes
        ]
        mean, losses = self.step(gradient, shards=blocks), self._read_only(role)
        layers = self.step(
            landscape,
            samples=self.tables[role],
            shards=blocks,
            **({"read_only": losses} if losses else {}),
            gradient=mean,
            role=role,
            max_grad_norm=request.training.max_grad_norm,
            thresholds=request.thresholds,
        )
        return Landscape(blocks, mean, layers, losses)

    def _read_only(self, role: str) -> list[Any]:
        """The losses of the rows that are not measured, where the budget pays for a forward over them."""
        others = self.rows[role].first_others(self.effort.read_rows) if role == "train" else []
        opened = self.model if self.effort.differences else self.measuring  # a small step's is lost in bfloat16
        shared = {"model": opened, "dpo_beta": self.dpo_beta, "settings": self.request.landscape.reading}
        return [self.step(loss_shard, rows=block, **shared) for block in others]

    def prompt_gain(self, made: dict[str, Any]) -> Any:
        """How much each answer gains from its prompt; None for a run whose losses are those of pairs."""
        if self.dpo_beta is not None:
            return None
        settings = self.request.prompt_gain
        forward = AnswerPass(batch_tokens=settings.batch_tokens)
        shards = [
            self.step(prompt_gain_shard, rows=leaf, model=self.measuring, settings=forward)
            for leaf in self.rows["train"].first_leaves(self.effort.beside_rows)
        ]
        return self.step(prompt_gain, shards=shards, landscape=made["landscape"], settings=settings)

    def curvature(self, train: Landscape) -> Any:
        """K_ii along the mean gradient, and the sharpness, which does not read it: other rows leave it cached."""
        request = self.request
        shared = {
            "rows": self.curvature_rows(),
            "model": self.model,
            "adapter": request.adapter,
            "seed": request.training.seed,
        }
        products = self.curvature_products()
        largest = self.step(sharpness, settings=products, **shared)
        samples = None
        if request.curvature.samples_quotients(request.adapter):
            samples = self.step(curvature_samples, settings=request.curvature, **shared)
        given = {"gradient": train.gradient, "sharpness": largest, "samples": samples, "settings": products}
        return self.step(curvature, **given, **shared)

    def curvature_products(self) -> CurvatureSettings:
        """The curvature's settings for passes that multiply by it."""
        return curved_within_step(self.request, self.step_tokens)

    def prediction(self, train: Landscape, heldout: Landscape, curved: Any) -> dict[str, Any]:
        """The path, its own or an earlier run's, and the delta at its end."""
        request = self.request
        replayed = {
            "evaluation": self.evaluation_rows(),
            "model": self.model,
            "adapter": request.adapter,
            "training": request.training,
            "dpo_beta": self.dpo_beta,
        }
        measured = {"node_rows": self.rows["train"].nodes, "settings": request.prediction.path}
        shared = {
            "nodes": train.blocks,
            "heldout_nodes": heldout.blocks,
            "heldout_gradient": heldout.gradient,
            **replayed,
        }
        paths: dict[str, Any] = {}
        earlier = self._reuse({**replayed, **measured}).ref
        if request.prediction.rule == "recursion":
            paths["path"] = earlier or self.step(path, **shared | measured | {"model": self.measuring})
        predicted = self.step(
            prediction,
            gradient=train.gradient,
            curvature=curved,
            path=paths.get("path"),
            earlier=earlier is not None,
            settings=request.prediction,
            **shared,
        )
        return {**paths, "prediction": predicted}

    def _reuse(self, inputs: dict[str, Any]) -> Reuse:
        """Whose path the run is predicted along; `inputs` are those of its own path that are no artefacts."""
        request, rows = self.request, self.rows["train"]
        if request.prediction.along is None or not request.prediction.measures_again:
            return Reuse(None, "the request reuses no path")
        elapsed_lr = sum(request.training.rates(len(rows.index.trained_ids)))
        return reused_path(
            self.step.run, request.run_name, request.prediction.along, inputs, rows.index.ids, elapsed_lr
        )

    def curvature_rows(self) -> SubsetRows:
        """The training rows whose curvature is taken."""
        settings = self.request.curvature
        return self.rows["train"].short_subset(settings.rows, "curvature", settings.max_row_tokens)

    def evaluation_rows(self) -> SubsetRows:
        """The held-out rows whose loss is taken along the predicted path."""
        return self.rows["heldout"].subset(self.request.prediction.evaluation_rows, "evaluation")

    def compared_rows(self) -> SubsetRows:
        """The held-out rows on which base and predicted checkpoint are compared."""
        return self.rows["heldout"].subset(self.request.diff.rows, "diff")

    def preference(self, train: Landscape, made: dict[str, Any]) -> Any:
        """The pairs of the preference file, or the training rows where these are pairs; None without pairs."""
        request, own = self.request, self.dpo_beta is not None
        pairs = self.some_pairs("train" if own else None)
        if pairs is None:
            return None
        return self.step(
            preference,
            pairs=pairs,
            gradient=None if own else train.gradient,
            baseline=made.get("baseline"),
            model=self.model,
            sae=self.sources.sae,
            dpo_beta=request.training.dpo_beta,
            settings=request.preference,
        )

    def some_pairs(self, role: str | None) -> Any:
        """The pairs of the preference file, else those of a role; on a budget the first of them by id."""
        role = "preferences" if "preferences" in self.tables else role
        if role is None:
            return None
        if (most := self.effort.pair_rows) is None:
            return self.tables[role]
        rows = self.rows.get(role) or self._rows(cast("Role", role), self.step.index(self.tables[role]), None)
        return rows.of_all(most, "pairs") if len(rows.index.trained_ids) > most else self.tables[role]

    def pairs(self) -> Any:
        """The table of preference pairs, or None."""
        return self.tables.get("preferences", self.tables["train"] if self.dpo_beta is not None else None)

    def _rows(self, role: Role, index: SampleIndex, wanted: int | None) -> RoleRows:
        encoding = encoding_of(self.tokenizer, self.request.dataset, role)
        return RoleRows(self.tables[role], index, encoding, self.request.shards, wanted)

    def whole_run(self, training: TrainingSettings) -> TrainingSettings:
        """A run of these settings over all training rows, however many of them are measured."""
        rows = self.rows["train"]
        return trained_on_all(training, len(rows.index.trained_ids)) if rows.others else training

    def row_coordinates(self, role: str) -> RowCoordinates | None:
        """The coordinates of per-row gradients; None for a full fine-tune, or above `landscape.row_gradients` rows."""
        request, rows = self.request, self.rows[role].measured_rows
        most = min(request.landscape.row_gradients, self.storage.most_rows)
        if request.adapter.method != "lora" or rows > most:
            return None
        return RowCoordinates(r=request.adapter.r, seed=request.training.seed)
