"""The DAG, wired once: `flows.simulate` submits its tasks to Prefect, `flows.commands.plan` only asks their keys."""

from __future__ import annotations

from typing import Any, Protocol

from foretune.flows.dag.earlier import earlier_path
from foretune.flows.request import Request
from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.checkpoint.checkpoint import checkpoint
from foretune.tasks.concepts.baseline import baseline, baseline_shard
from foretune.tasks.concepts.features import feature_scores, features
from foretune.tasks.concepts.preference import preference
from foretune.tasks.influence.derivatives import influence_directions, influence_shard
from foretune.tasks.influence.ranking import RankingSettings, influence
from foretune.tasks.influence.replays import influence_replays
from foretune.tasks.influence.solve import influence_solve
from foretune.tasks.influence.target_gradients import feature_gradient, margin_gradient
from foretune.tasks.influence.targets import influence_targets
from foretune.tasks.influence.tokens import influence_tokens
from foretune.tasks.inputs.field import RowCoordinates
from foretune.tasks.inputs.handles import model
from foretune.tasks.inputs.sources import Sources
from foretune.tasks.inspection.model_diff import model_diff
from foretune.tasks.inspection.sae_base import sae_base
from foretune.tasks.inspection.sae_diff import sae_diff
from foretune.tasks.landscape.curvature import curvature
from foretune.tasks.landscape.curvature_samples import curvature_samples
from foretune.tasks.landscape.gradient import gradient
from foretune.tasks.landscape.landscape import landscape, landscape_shard
from foretune.tasks.landscape.prompt_gain import AnswerPass, prompt_gain, prompt_gain_shard
from foretune.tasks.landscape.sharpness import sharpness
from foretune.tasks.prediction.delta import prediction
from foretune.tasks.prediction.path import path
from foretune.tasks.quality.passes import quality, quality_shard
from foretune.tasks.report.page import RequestLines, report
from foretune.tasks.samples.dataset import TokenizerHandle, encoding_of, role_settings, samples
from foretune.tasks.samples.role_rows import RoleRows
from foretune.tasks.samples.rows import SubsetRows

REPLAYED_ROWS = 8  # fewer rows have too few halves to tell one from another


class Step(Protocol):
    """How the wiring asks for an artefact: by submitting a task, or by asking whether its key is there."""

    run: Run

    def __call__(self, task: Any, **inputs: Any) -> Any:
        """The task's artefact: a future, or a reference."""

    def ready(self, artifact: Any) -> ArtifactRef:
        """Wait for an artefact that the wiring itself depends on."""

    def index(self, samples: Any) -> Any:
        """Sample ids and form of a `samples` artefact."""


def simulation(step: Step, request: Request, sources: Sources) -> dict[str, Any]:
    """Wire every pass of one simulation and return its artefacts by name.

    1. samples of every role, and their shards        5. the path, the prediction and its checkpoint
    2. quality per shard                              6. concepts: features, preference, SAE diff
    3. landscape per shard, train and held-out        7. model diff, side by side with the SAE diff
    4. prompt gain, curvature and influence           8. the report, from all of the above
    """
    wiring = Wiring(step, request, sources)
    made: dict[str, Any] = {"samples": wiring.tables["train"]}
    made["quality"] = wiring.quality()
    if sources.sae is not None:
        made["baseline"] = wiring.baseline()
    made["landscape"] = wiring.landscape("train")
    made["heldout_landscape"] = wiring.landscape("heldout")
    gain = wiring.prompt_gain(made)
    if gain is not None:
        made["prompt_gain"] = gain
    made["curvature"] = wiring.curvature()
    made |= wiring.influence()
    made |= wiring.prediction(made)
    made["checkpoint"] = step(
        checkpoint, model=wiring.model, prediction=made["prediction"], settings=request.checkpoint
    )
    if sources.sae is not None:
        made |= wiring.concepts(made)
    pairs = wiring.preference(made)
    if pairs is not None:
        made["preference"] = pairs
    made["model_diff"] = wiring.model_diff(made)
    made["report"] = step(
        report, names=list(made), artifacts=list(made.values()), lines=wiring.lines(), settings=request.report
    )
    return made


class Wiring:
    """The inputs that several passes share, and one method per pass that needs more than one call."""

    def __init__(self, step: Step, request: Request, sources: Sources) -> None:
        self.step, self.request, self.sources = step, request, sources
        self.model = sources.model_handle(
            lambda gguf: step.ready(step(model, gguf=gguf, dtype=request.model.dtype)), request.model
        )
        self.tokenizer = TokenizerHandle(source=sources.tokenizer or self.model.source)
        self.tables = {
            role: step.ready(
                step(
                    samples,
                    source=source,
                    tokenizer=self.tokenizer,
                    role=role,
                    settings=role_settings(request.dataset, role),
                )
            )
            for role, source in sources.rows.items()
        }
        self.rows = {role: self._rows(role) for role in ("train", "heldout")}
        self.dpo_beta = request.training.beta_for(self.rows["train"].index.form)
        self.fields: dict[str, list[Any]] = {}
        self.gradients: dict[str, Any] = {}

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
            spike_norm=request.thresholds.spike_factor * request.training.max_grad_norm or None,
        )

    def quality(self) -> Any:
        settings = self.request.quality
        shards = [self.step(quality_shard, rows=leaf, settings=settings) for leaf in self.rows["train"].leaves]
        return self.step(quality, samples=self.tables["train"], shards=shards, settings=settings)

    def baseline(self) -> Any:
        settings, sae = self.request.baseline, self.sources.sae
        shards = [
            self.step(baseline_shard, rows=leaf, model=self.model, sae=sae, settings=settings)
            for leaf in self.rows["train"].leaves
        ]
        return self.step(baseline, shards=shards)

    def landscape(self, role: str) -> Any:
        request = self.request
        self.fields[role] = [
            self.step(
                landscape_shard,
                rows=node,
                role=role,
                model=self.model,
                targets=request.adapter.targets,
                hook_name=self.sources.hook_name,
                dpo_beta=self.dpo_beta,
                settings=request.landscape,
                coordinates=self._row_coordinates(role),
            )
            for node in self.rows[role].nodes
        ]
        self.gradients[role] = self.step(gradient, shards=self.fields[role])
        return self.step(
            landscape,
            samples=self.tables[role],
            shards=self.fields[role],
            gradient=self.gradients[role],
            role=role,
            max_grad_norm=request.training.max_grad_norm,
            thresholds=request.thresholds,
        )

    def prompt_gain(self, made: dict[str, Any]) -> Any:
        """How much each answer gains from its prompt; None for a run whose losses are those of pairs."""
        if self.dpo_beta is not None:
            return None
        settings = self.request.prompt_gain
        forward = AnswerPass(batch_tokens=settings.batch_tokens)
        shards = [
            self.step(prompt_gain_shard, rows=leaf, model=self.model, settings=forward)
            for leaf in self.rows["train"].leaves
        ]
        return self.step(prompt_gain, shards=shards, landscape=made["landscape"], settings=settings)

    def curvature(self) -> Any:
        """K_ii along the mean gradient, which every row moves, and the sharpness, which few rows do."""
        request = self.request
        shared = {
            "rows": self.curvature_rows(),
            "model": self.model,
            "adapter": request.adapter,
            "seed": request.training.seed,
            "settings": request.curvature,
        }
        largest = self.step(sharpness, **shared)
        samples = None
        if request.curvature.samples_quotients(request.adapter):
            samples = self.step(curvature_samples, **shared)
        return self.step(curvature, gradient=self.gradients["train"], sharpness=largest, samples=samples, **shared)

    def influence(self) -> dict[str, Any]:
        """The ranking of the training rows, and the tokens of one of them where they are asked for.

        Where the landscape kept the rows one by one, no model is opened to score them.
        """
        request, settings = self.request, self.request.influence
        adapter, seed, training = request.adapter, request.training.seed, request.training
        kept = self._row_coordinates("train") is not None
        targets = self._influence_targets()
        solve = self._influence_solve(targets)
        directions = self.step(
            influence_directions,
            targets=targets,
            nodes=self.fields["train"],
            adapter=adapter,
            seed=seed,
            dtype=request.model.dtype,
            optimizer=training.optimizer,
            rows_per_step=training.rows_per_step,
            adam_epsilon=training.adam_epsilon,
        )
        shared = {"solve": solve, "directions": directions, "adapter": adapter, "seed": seed, "dpo_beta": self.dpo_beta}
        shared["settings"] = settings.scoring
        if kept:
            sources = zip(self.rows["train"].nodes, self.fields["train"], strict=True)
            shards = [self.step(influence_shard, rows=rows, node=node, **shared) for rows, node in sources]
        else:
            shards = [
                self.step(influence_shard, rows=leaf, model=self.model, **shared) for leaf in self.rows["train"].leaves
            ]
        replays = None
        if kept and training.optimizer == "adamw" and len(self.rows["train"].index.trained_ids) >= REPLAYED_ROWS:
            replays = self.step(
                influence_replays,
                nodes=self.fields["train"],
                targets=targets,
                shards=shards,
                adapter=adapter,
                training=training.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0}),
                settings=settings.replays,
            )
        made = {
            "influence": self.step(
                influence,
                samples=self.tables["train"],
                shards=shards,
                gradient=self.gradients["train"],
                solve=solve,
                targets=targets,
                schedule=training.schedule,
                settings=RankingSettings(**settings.model_dump(include=set(RankingSettings.model_fields))),
                replays=replays,
            )
        }
        if settings.tokens_of is not None:
            made["influence_tokens"] = self.step(
                influence_tokens,
                rows=self.rows["train"].one(settings.tokens_of),
                directions=directions,
                model=self.model,
                adapter=adapter,
                seed=seed,
            )
        return made

    def _influence_targets(self) -> Any:
        """What influence is measured on, as gradients in adapter coordinates."""
        request = self.request
        return self.step(
            influence_targets,
            gradient=self._target_gradient(),
            nodes=self.fields["heldout"],
            samples=self.tables["heldout"],
            rows=self.rows["heldout"].subset(request.influence.target.rows, "targets").subset,
            adapter=request.adapter,
            seed=request.training.seed,
            dtype=request.model.dtype,
        )

    def _target_gradient(self) -> Any:
        """Gradient of the ranking target in the full weights."""
        request, target = self.request, self.request.influence.target
        if target.of == "margin":
            pairs = self._pairs()
            if pairs is None:
                raise BadInput("influence.target.of is margin, but there are no pairs; give dataset.preferences")
            return self.step(margin_gradient, pairs=pairs, model=self.model, targets=request.adapter.targets)
        if target.of == "heldout":
            return self.gradients["heldout"]
        if self.sources.sae is None:
            raise BadInput("influence.target.of is feature, but there is no SAE; give sae.path or sae.release")
        return self.step(
            feature_gradient,
            rows=self.evaluation_rows(),
            model=self.model,
            sae=self.sources.sae,
            labels=self.sources.labels,
            feature=target.feature,
            targets=request.adapter.targets,
        )

    def _influence_solve(self, targets: Any) -> Any:
        request, solver = self.request, self.request.influence.solver
        own = {}
        if solver.preconditioner == "adam":
            own = {"nodes": self.fields["train"], "rows_per_step": request.training.rows_per_step}
        return self.step(
            influence_solve,
            rows=self.curvature_rows(),
            targets=targets,
            model=self.model,
            adapter=request.adapter,
            seed=request.training.seed,
            curvature=request.curvature,
            solver=solver,
            **own,
        )

    def prediction(self, made: dict[str, Any]) -> dict[str, Any]:
        """The path, its own or an earlier run's, and the delta at its end."""
        request = self.request
        asked = {
            "evaluation": self.evaluation_rows(),
            "model": self.model,
            "adapter": request.adapter,
            "training": request.training,
            "dpo_beta": self.dpo_beta,
        }
        measured = {"node_rows": self.rows["train"].nodes, "settings": request.prediction.path}
        shared = {
            "nodes": self.fields["train"],
            "heldout_nodes": self.fields["heldout"],
            "heldout_gradient": self.gradients["heldout"],
            **asked,
        }
        paths: dict[str, Any] = {}
        earlier = self._earlier_path({**asked, **measured})
        if request.prediction.rule == "recursion":
            paths["path"] = earlier or self.step(path, **shared, **measured)
        predicted = self.step(
            prediction,
            gradient=self.gradients["train"],
            curvature=made["curvature"],
            path=paths.get("path"),
            earlier=earlier is not None,
            settings=request.prediction,
            **shared,
        )
        return {**paths, "prediction": predicted}

    def _earlier_path(self, wanted: dict[str, Any]) -> ArtifactRef | None:
        """The measured path of an earlier run that serves this one, where one is asked for; `wanted` are the inputs
        of its own path that are no artefacts."""
        request, rows = self.request, self.rows["train"]
        if request.prediction.along is None or not request.prediction.measures_again:
            return None
        travel = sum(request.training.rates(len(rows.index.trained_ids)))
        return earlier_path(self.step.run, request.run_name, request.prediction.along, wanted, rows.index.ids, travel)

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

    def concepts(self, made: dict[str, Any]) -> dict[str, Any]:
        """What reads the SAE after the prediction: features and SAE diff."""
        request, sae, concepts = self.request, self.sources.sae, {}
        compared = self.compared_rows()
        scores = self.step(
            feature_scores,
            gradient=self.gradients["train"],
            baseline=made["baseline"],
            prediction=made["prediction"],
            rows=compared,
            model=self.model,
            sae=sae,
            settings=request.features,
        )
        concepts["features"] = self.step(features, scores=scores, model=self.model, sae=sae, labels=self.sources.labels)
        sides = {"model": self.model, "sae": sae, "rows": compared, "settings": request.diff}
        base = self.step(sae_base, **sides)
        concepts["sae_diff"] = self.step(sae_diff, checkpoint=made["checkpoint"], base=base, **sides)
        return concepts

    def preference(self, made: dict[str, Any]) -> Any:
        """The pairs of the preference file, or the training rows where these are pairs; None without pairs."""
        request, own, pairs = self.request, self.dpo_beta is not None, self._pairs()
        if pairs is None:
            return None
        return self.step(
            preference,
            pairs=pairs,
            gradient=None if own else self.gradients["train"],
            baseline=made.get("baseline"),
            model=self.model,
            sae=self.sources.sae,
            dpo_beta=request.training.dpo_beta,
            settings=request.preference,
        )

    def _pairs(self) -> Any:
        return self.tables.get("preferences", self.tables["train"] if self.dpo_beta is not None else None)

    def model_diff(self, made: dict[str, Any]) -> Any:
        paired = self.rows["heldout"].index.form == "preference"
        return self.step(
            model_diff,
            model=self.model,
            checkpoint=made["checkpoint"],
            rows=self.compared_rows(),
            probes=self.tables.get("probes"),
            pairs=self.tables.get("preferences", self.tables["heldout"] if paired else None),
            settings=self.request.diff,
        )

    def _rows(self, role: str) -> RoleRows:
        table = self.tables[role]
        encoding = encoding_of(self.tokenizer, self.request.dataset, role)
        return RoleRows(table, self.step.index(table), encoding, self.request.shards)

    def _row_coordinates(self, role: str) -> RowCoordinates | None:
        """Where rows are kept one by one: those of a LoRA fine-tune, while they are few enough."""
        request, rows = self.request, len(self.rows[role].index.ids)
        if request.adapter.method != "lora" or rows > request.landscape.row_gradients:
            return None
        return RowCoordinates(r=request.adapter.r, seed=request.training.seed)
