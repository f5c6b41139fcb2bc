import torch

from foretune.tasks.numerics.field import VirtualBatches
from foretune.tasks.numerics.orders import trainer_steps
from foretune.tasks.numerics.row_gradients import RowGradients, RowTaps
from tests.numerics.fields import field_of


def linear_rows(rows=5, tokens=7, inputs=6, outputs=4, rank=2):
    torch.manual_seed(0)
    module = torch.nn.Linear(inputs, outputs, bias=False)
    factor, x = torch.randn(rank, inputs), torch.randn(rows, tokens, inputs)
    return module, factor, x


def test_tapped_rows_are_the_rows_own_gradients_in_adapter_coordinates():
    module, factor, x = linear_rows()
    with RowTaps({"w": module}, {"w": factor}) as taps:
        loss = module(x).tanh().square().sum()
        tapped = taps.projected(torch.autograd.grad(loss, taps.outputs()))["w"]
    for row in range(len(x)):
        alone = torch.autograd.grad(module(x[row]).tanh().square().sum(), module.weight)[0]
        torch.testing.assert_close(tapped[row], alone @ factor.T)


def test_a_module_that_runs_twice_adds_both_parts_of_a_row():
    module, factor, x = linear_rows()
    with RowTaps({"w": module}, {"w": factor}) as taps:
        loss = module(x).square().sum() - module(2 * x).tanh().sum()
        tapped = taps.projected(torch.autograd.grad(loss, taps.outputs()))["w"]
        assert taps.outputs() == []
    whole = torch.autograd.grad(module(x).square().sum() - module(2 * x).tanh().sum(), module.weight)[0]
    torch.testing.assert_close(tapped.sum(0), whole @ factor.T)


def test_a_batch_has_its_own_rows_in_the_adapters_row_space_and_the_blocks_outside():
    torch.manual_seed(1)
    factor, rows = torch.randn(2, 6), [torch.randn(4, 6) for _ in range(6)]
    tokens = (3.0, 5.0, 2.0, 4.0, 6.0, 1.0)
    blocks = [rows[0] + rows[1], rows[2] + rows[3], rows[4] + rows[5]]
    field = field_of([{"w": block} for block in blocks], (8, 6, 7), (2, 2, 2))
    row_gradients = RowGradients({"w": factor}, tokens, lambda numbers, name: torch.stack(rows)[numbers] @ factor.T)
    batches = VirtualBatches(field, ((0,),), 2, row_gradients, ({1: 1 / 11, 4: 1 / 11},))
    real = (rows[1] + rows[4]) / (tokens[1] + tokens[4])
    gradient, of_blocks = batches.gradient(0, "w"), VirtualBatches(field, ((0,),), 2).gradient(0, "w")
    torch.testing.assert_close(gradient @ factor.T, real @ factor.T)
    outside = torch.eye(6) - factor.T @ torch.linalg.solve(factor @ factor.T, factor)
    torch.testing.assert_close(gradient @ outside, of_blocks @ outside)


def test_steps_hold_every_row_once_an_epoch_and_end_an_epoch_short():
    steps = trainer_steps(rows=10, batch_size=2, accumulation=2, steps=6, seed=3)
    assert [[len(batch) for batch in step] for step in steps] == [[2, 2], [2, 2], [2]] * 2
    assert sorted(row for step in steps[:3] for batch in step for row in batch) == list(range(10))
    assert steps[:3] != steps[3:]


def test_the_order_is_the_trainers_own(tmp_path):
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    class Seen(PreTrainedModel):
        """Records the rows of every step."""

        config_class = PreTrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

        def forward(self, row):
            self.seen.append(tuple(row.tolist()))
            return {"loss": self.weight.sum() * row.float().sum()}

    model = Seen(PreTrainedConfig())
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        num_train_epochs=3,
        seed=7,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"row": row} for row in range(10)]
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    steps = trainer_steps(rows=10, batch_size=3, accumulation=1, steps=12, seed=7)
    assert model.seen == [batch for step in steps for batch in step]


def test_a_rank_above_the_input_width_spans_everything():
    torch.manual_seed(2)
    factor, row = torch.randn(9, 6), torch.randn(4, 6)
    rows = RowGradients({"w": factor}, (1.0,), lambda *_: row[None] @ factor.T)
    gradient = torch.randn(4, 6)
    change = rows.sum({0: 1.0}, "w", gradient.device) - gradient @ factor.T
    torch.testing.assert_close(rows.moved(gradient, change, "w").dense(), row, rtol=1e-4, atol=1e-4)
