import pytest
import torch

from foretune.tasks.numerics.datamodel import (
    FirstOrder,
    first_order,
    fit_datamodel,
    replayed_changes,
)
from foretune.tasks.numerics.half_runs import HalfRuns, half_runs
from foretune.tasks.numerics.optimizers import OptimizerSettings
from foretune.tasks.numerics.preconditioner import Moments, row_moments

ROWS, WIDTHS = 10, {"a": 6, "b": 3}
TOKENS = [3.0, 5.0, 2.0, 7.0, 4.0, 6.0, 1.0, 2.0, 8.0, 3.0]


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = {name: torch.randn(ROWS, width, generator=generator) * 0.1 for name, width in WIDTHS.items()}
    targets = {name: torch.randn(2, width, generator=generator) for name, width in WIDTHS.items()}
    return rows, targets


def halves(runs=5, epochs=2):
    return half_runs(ROWS, 2, epochs, runs, seed=1, rates=lambda steps: [1.0 - t / steps for t in range(steps)])


def steps_of(runs):
    """Run, step, rows."""
    return [[[row for row in step if row >= 0] for step in run] for run in runs.rows.tolist()]


def shares_of_all(runs, run):
    """[t, rows] share of each row in every step of a run, by the definition."""
    shares = torch.zeros(len(runs.rates), ROWS)
    for number, step in enumerate(steps_of(runs)[run]):
        shares[number, step] = 1 / sum(TOKENS[row] for row in step)
    return shares


def trained(rows, targets, runs, make_optimizer, max_norm):
    """The truth by torch's own optimizer on a loss that is linear in the weights, one run after another."""
    outcomes = []
    for steps in steps_of(runs):
        weights = {name: torch.zeros(width, requires_grad=True) for name, width in WIDTHS.items()}
        optimizer = make_optimizer(weights.values())
        for step, rate in zip(steps, runs.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            items = sum(TOKENS[row] for row in step)
            sum((rows[n][step].sum(0) / items * w).sum() for n, w in weights.items()).backward()
            if max_norm:
                torch.nn.utils.clip_grad_norm_(weights.values(), max_norm)
            optimizer.step()
        outcomes.append(sum(targets[name] @ w.detach() for name, w in weights.items()))
    return torch.stack(outcomes).double()


@pytest.mark.parametrize("max_norm", [None, 0.02])
def test_a_replay_is_what_torchs_adamw_does_on_a_linear_loss(max_norm):
    rows, targets = problem()
    runs = halves()
    changes = replayed_changes(
        rows.__getitem__, list(WIDTHS), TOKENS, targets.__getitem__, runs, OptimizerSettings(max_grad_norm=max_norm)
    )
    expected = trained(rows, targets, runs, lambda w: torch.optim.AdamW(w, weight_decay=0.0), max_norm)
    torch.testing.assert_close(changes, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [None, 0.02])
def test_some_of_the_coordinates_tell_of_all_with_noise_that_differs_between_runs(max_norm):
    torch.manual_seed(5)
    shared, width = torch.randn(1, 4_000), 4_000
    rows, target = shared + torch.randn(ROWS, width), 0.2 * shared + torch.randn(1, width)
    runs = half_runs(ROWS, 2, 1, 64, seed=0, rates=lambda steps: [1.0] * steps)
    asked = (lambda _: rows, ["w"], TOKENS, lambda _: target, runs, OptimizerSettings(max_grad_norm=max_norm))
    whole, some = replayed_changes(*asked), replayed_changes(*asked, coordinates=0.1, seed=1)
    off = (some - whole).view(-1, 4)  # 16 draws, each for 4 of the runs
    assert 0 < off.std() < 0.5 * whole.abs().mean()
    assert abs(off.mean()) < 3 * off.mean(1).std() / 4
    assert off.mean(1).std() > off.std(1).mean()  # runs of a draw err together, those of different ones do not
    assert torch.equal(replayed_changes(*asked, coordinates=1.0), whole)


def test_every_run_takes_half_of_the_rows_once_an_epoch():
    runs = halves(runs=7, epochs=3)
    assert runs.inclusion(ROWS).sum(1).tolist() == [5.0] * 7
    for steps in steps_of(runs):
        seen = [row for step in steps for row in step]
        assert [len(step) for step in steps] == [2, 2, 1] * 3 and len(runs.rates) == 9
        assert all(seen.count(row) == 3 for row in seen)


def test_the_batches_of_some_runs_are_the_products_with_the_shares_of_all_rows():
    runs, rows = halves(runs=5, epochs=2), torch.randn(ROWS, 7)
    expected = torch.stack([shares_of_all(runs, run) @ rows for run in range(5)])
    torch.testing.assert_close(runs.batches(slice(1, 4), rows, runs.shares(TOKENS)), expected[1:4])
    for most in (1, 10, 10**6):
        found = runs.squared_norms((rows @ rows.T).double(), runs.shares(TOKENS), most)
        torch.testing.assert_close(found, expected.double().square().sum(-1), rtol=1e-5, atol=1e-9)


def test_first_order_sums_the_rows_that_take_part():
    rows, targets = problem()
    derivatives = sum(rows[name] @ targets[name].T for name in WIDTHS)
    runs = HalfRuns(torch.tensor([[[0, 1], [2, 3]]]), (1.0, 0.5))
    order = first_order(derivatives, TOKENS, runs, momentum=0.0)
    size = 2 * sum(TOKENS) / ROWS
    expected = -(derivatives[[0, 1]].sum(0) + 0.5 * derivatives[[2, 3]].sum(0)) / size
    torch.testing.assert_close(order.changes[0], expected.double())
    torch.testing.assert_close(order.scores, -derivatives.double() * 0.75 / size)


def test_momentum_spreads_a_batch_over_later_steps_and_keeps_the_sum():
    derivatives = torch.ones(ROWS, 1)
    runs = HalfRuns(torch.tensor([[[0], [1], [2]]]), (1.0, 1.0, 1.0))
    spread = first_order(derivatives, [1.0] * ROWS, runs, momentum=0.9)
    # Every step's mean of equal gradients is that gradient, whatever the momentum.
    torch.testing.assert_close(spread.changes, torch.tensor([[-3.0]], dtype=torch.float64))


def test_the_fit_recovers_planted_effects_from_noisy_halves():
    generator = torch.Generator().manual_seed(3)
    runs = half_runs(40, 4, 1, 400, seed=0, rates=lambda steps: [1.0] * steps)
    truth = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    guess = truth + 0.5 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    taken = runs.inclusion(40)
    changes = taken @ truth + 0.5 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    fitted = fit_datamodel(taken, changes, FirstOrder(guess, taken @ guess))
    centred = truth - truth.mean()
    error = (fitted.scores - fitted.scores.mean() - centred).norm() / centred.norm()
    assert error < 0.12 < (guess - guess.mean() - centred).norm() / centred.norm()


def test_nineteen_of_twenty_intervals_hold_what_was_planted():
    """Up to what all rows have in common, which halves of equal size do not tell."""
    generator = torch.Generator().manual_seed(5)
    runs = half_runs(60, 4, 1, 400, seed=0, rates=lambda steps: [1.0] * steps)
    truth = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    truth -= truth.mean(0)
    taken = runs.inclusion(60)
    for noise in (2.0, 5.0):
        changes = taken @ truth + noise * torch.randn(400, 20, generator=generator, dtype=torch.float64)
        fitted = fit_datamodel(taken, changes, FirstOrder(torch.zeros_like(truth), torch.zeros_like(changes)))
        inside = ((fitted.scores - truth).abs() < 1.96 * fitted.errors).double().mean().item()
        assert 0.91 < inside < 0.99


def test_without_a_guess_the_fit_shrinks_to_zero_where_halves_say_nothing():
    generator = torch.Generator().manual_seed(3)
    runs = half_runs(12, 4, 1, 64, seed=0, rates=lambda steps: [1.0] * steps)
    taken, noise = runs.inclusion(12), torch.randn(64, 1, generator=generator, dtype=torch.float64)
    fitted = fit_datamodel(taken, noise, FirstOrder(torch.zeros(12, 1).double(), torch.zeros(64, 1).double()))
    assert fitted.scores.abs().max() < 0.15
    assert fitted.explained.item() == 0.0


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="3 rows: a datamodel needs at least 4"):
        half_runs(3, 2, 1, 4, seed=0, rates=lambda steps: [1.0] * steps)


def test_adams_direction_is_the_derivative_of_its_expected_step():
    mean = torch.tensor([0.3, -0.02, 0.0], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([0.01, 0.04, 0.09], dtype=torch.float64)
    step = mean / (mean.square() + variance).sqrt()
    expected = torch.autograd.grad(step.sum(), mean)[0]
    found = Moments(mean.detach(), variance).adam(torch.ones(3, dtype=torch.float64), 0.0)
    torch.testing.assert_close(found, expected)


def test_row_moments_are_those_of_drawn_batches():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 3, generator=generator) + 1.0
    tokens = torch.full((400,), 4.0)
    moments = row_moments(rows, tokens, 8)
    drawn = torch.stack([rows[torch.randint(400, (8,), generator=generator)].sum(0) / 32 for _ in range(20000)])
    torch.testing.assert_close(moments.mean, drawn.mean(0), rtol=0.02, atol=1e-3)
    torch.testing.assert_close(moments.variance, drawn.var(0), rtol=0.05, atol=1e-6)


def test_a_batch_of_all_rows_still_has_a_direction():
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    moments = row_moments(rows, torch.ones(6), 6)
    assert (moments.variance > 0).all()
