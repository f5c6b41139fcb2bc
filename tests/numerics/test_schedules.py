import pytest
import torch

from foretune.tasks.numerics.schedules import SCHEDULES, learning_rates


def rates_of_transformers(schedule, base_lr, steps, warmup_steps):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (18, 0), (18, 5), (4, 4), (3, 7)])
def test_rates_are_those_that_transformers_sets(schedule, steps, warmup_steps):
    expected = rates_of_transformers(schedule, 3e-4, steps, warmup_steps)
    rates = learning_rates(schedule, 3e-4, steps, warmup_steps)
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="'polynomial' is unknown: use one of linear, cosine"):
        learning_rates("polynomial", 1e-3, 4)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match=r"warmup_steps \(-1\)"):
        learning_rates("linear", 1e-3, 4, -1)
