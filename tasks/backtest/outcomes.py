"""What a weight change does to the held-out rows: their loss, and the concepts on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.tasks.inputs.adapted import AdaptedModel
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inspection.activations import sample_activations
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.prediction.evaluation import RowsAtWeights

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.numerics.agreement import Outcome
    from foretune.tasks.saes import LoadedSae


class HeldOut:
    """Held-out loss over `table`, and mean SAE activations over `compared`, at the base weights plus a delta."""

    def __init__(
        self,
        adapted: AdaptedModel,
        table: pa.Table,
        dpo_beta: float | None,
        autoencoder: LoadedSae | None,
        compared: pa.Table,
        settings: DiffSettings,
    ) -> None:
        self.adapted, self.autoencoder, self.compared, self.settings = adapted, autoencoder, compared, settings
        self.rows = RowsAtWeights(adapted, table, dpo_beta, settings.batch_tokens)
        self.base_loss = self.rows.loss({})
        self.base_features = self._features({})

    def loss(self, delta: dict[str, Tensor]) -> float:
        """Nats per label token, or per pair for DPO."""
        return self.rows.loss(delta)

    def outcome(self, delta: dict[str, Tensor]) -> Outcome:
        """Loss after `delta`, and how far it moves the mean activation of every feature; no features without SAE."""
        from foretune.tasks.numerics.agreement import Outcome

        features, base = self._features(delta), self.base_features
        moved = None if features is None or base is None else features - base
        return Outcome(delta, self.loss(delta), moved)

    def _features(self, delta: dict[str, Tensor]) -> Tensor | None:
        if self.autoencoder is None:
            return None
        base = self.adapted.weights
        weights = {name: base[name] + change.to(base[name]) for name, change in delta.items()}
        loaded = self.adapted.loaded
        (found,) = sample_activations(loaded, [self.autoencoder], self.compared, self.settings, weights)
        return found.sums.sum(0) / found.tokens.sum()


def first_step_extrapolated(
    first_step: dict[str, Tensor], training: TrainingSettings, record: dict[str, Any]
) -> dict[str, Tensor] | None:
    """The first step as long as all learning rates of the run together; None where warm-up starts at rate 0."""
    from foretune.tasks.numerics.schedules import learning_rates

    warmup = training.warmup_steps(record["rows"])
    rates = learning_rates(training.lr_scheduler_type, training.learning_rate, record["steps"], warmup)
    return {name: step * (sum(rates) / rates[0]) for name, step in first_step.items()} if rates[0] else None
