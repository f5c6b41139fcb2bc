from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from foretune.tasks.numerics.factored import dense
from foretune.tasks.numerics.field import GradientField, virtual_batches
from foretune.tasks.numerics.products import Corrected, across, along
from foretune.tasks.numerics.row_gradients import RowGradients
from tests.numerics.fields import field_of


def row_gradients(rows, shape=(4, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(shape, generator=generator)
    return centre + 2 * torch.randn(rows, *shape, generator=generator)


def field_cut(row_sums, tokens, cuts):
    """A field over consecutive runs of rows; `cuts` are the run lengths."""
    sums, counts, start = [], [], 0
    for length in cuts:
        sums.append({"w": row_sums[start : start + length].sum(0)})
        counts.append(sum(tokens[start : start + length]))
        start += length
    return field_of(sums, counts, cuts)


def test_the_mean_does_not_depend_on_how_rows_are_cut_into_blocks():
    tokens = [3, 9, 1, 4, 7, 2, 8, 6]
    row_sums = row_gradients(8) * torch.tensor(tokens)[:, None, None]
    expected = row_sums.sum(0) / sum(tokens)
    for cuts in ([8], [1] * 8, [3, 5], [2, 1, 4, 1]):
        torch.testing.assert_close(field_cut(row_sums, tokens, cuts).mean("w"), expected)


def test_memory_mapped_bf16_sums_are_read_without_losing_the_fp32_mean(tmp_path):
    sums = (row_gradients(6) * 10).to(torch.bfloat16)
    save_file({f"{block}/w": s.contiguous() for block, s in enumerate(sums)}, tmp_path / "field.safetensors")
    with safe_open(tmp_path / "field.safetensors", "pt") as handle:
        field = GradientField(("w",), (10,) * 6, (1,) * 6, lambda block, name: handle.get_tensor(f"{block}/{name}"))
        torch.testing.assert_close(field.mean("w"), sums.float().sum(0) / 60)
        assert field.group_mean([2], "w").dtype == torch.float32


def test_reading_a_mean_leaves_the_stored_sums_alone():
    sums = [{"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}]
    field_of(sums, [1, 1], [1, 1]).mean("w")
    assert torch.equal(sums[0]["w"], torch.ones(2, 2))


@pytest.mark.parametrize(("block_rows", "batch_rows"), [(2, 8), (8, 8), (24, 8), (16, 4), (3, 8)])
def test_virtual_batches_scatter_like_real_batches(block_rows, batch_rows):
    rows, draws = 96, 240
    gradients = row_gradients(rows)
    generator = torch.Generator().manual_seed(3)

    def real_batch():
        return gradients[torch.randperm(rows, generator=generator)[:batch_rows]].mean(0)

    def virtual_batch(seed):
        shuffled = gradients[torch.randperm(rows, generator=generator)]
        field = field_cut(shuffled, [1] * rows, [block_rows] * (rows // block_rows))
        return virtual_batches(field, batch_rows, 1, seed).gradient(0, "w")

    real = torch.stack([real_batch() for _ in range(draws)])
    virtual = torch.stack([virtual_batch(seed) for seed in range(draws)])
    centre = gradients.mean(0)
    ratio = float((virtual - centre).square().sum() / (real - centre).square().sum())
    # 240 draws of 12 nearly independent entries each: standard error of the ratio about 0.04
    assert ratio == pytest.approx(1.0, abs=0.15)
    assert float((virtual.mean(0) - centre).norm() / centre.norm()) < 0.1


def test_unscaled_large_blocks_would_scatter_too_little():
    field = field_cut(row_gradients(96), [1] * 96, [24] * 4)
    assert field.noise_factor([0], 8) == pytest.approx(((1 / 8 - 1 / 96) / (1 / 24 - 1 / 96)) ** 0.5)
    assert field.noise_factor([0, 1, 2, 3], 8) == 0.0
    assert field.noise_factor([0], 96) == 0.0


def test_every_round_visits_each_block_once_in_a_new_seeded_order():
    field = field_cut(row_gradients(24), [1] * 24, [2] * 12)
    batches = virtual_batches(field, 8, 9, seed=5)
    rounds = [sum(batches.groups[i : i + 3], ()) for i in (0, 3, 6)]
    assert all(sorted(visited) == list(range(12)) for visited in rounds)
    assert len(set(rounds)) == 3
    assert batches.groups == virtual_batches(field, 8, 9, seed=5).groups
    assert batches.groups != virtual_batches(field, 8, 9, seed=6).groups


def test_a_block_without_label_tokens_is_refused():
    with pytest.raises(ValueError, match="leave out blocks that train on nothing"):
        field_of([{"w": torch.ones(1, 1)}], [0], [4])


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="batch_rows must be positive, got 0"):
        virtual_batches(field_cut(row_gradients(4), [1] * 4, [2, 2]), 0, 3, 0)


@pytest.mark.parametrize("batch_rows", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_about_another_mean_is_the_batch_moved_by_the_difference(batch_rows, dtype):
    """Formed whole, by the definition, in float64."""
    torch.manual_seed(3)
    rows = torch.randn(8, 5, 6, dtype=torch.float64)
    blocks = rows.view(4, 2, 5, 6).sum(1).to(dtype)
    field = GradientField(("w",), (6,) * 4, (2,) * 4, lambda block, name: blocks[block])
    factor, shares, mean = torch.randn(3, 6), {0: 0.1, 5: 0.2}, torch.randn(5, 6)
    own = RowGradients({"w": factor}, (3.0,) * 8, lambda numbers, name: (rows[numbers].float() @ factor.T).to(dtype))
    batches = virtual_batches(field, batch_rows, 1, seed=0)
    batches = replace(batches, row_gradients=own, shares=(shares,), mean_shares=(0.3,))
    of_all, group = blocks.double().sum(0) / 24, blocks[list(batches.groups[0])].double().sum(0)
    c, a = field.noise_factor(batches.groups[0], batch_rows), factor.double()
    scattered = of_all + c * (group / (6 * len(batches.groups[0])) - of_all)
    drawn = (
        sum(share * row.double() for share, row in zip(shares.values(), own.read([*shares], "w"), strict=True))
        + 0.3 * of_all @ a.T
    )
    whole = scattered + (drawn - scattered @ a.T) @ torch.linalg.pinv(a.T)
    before = field.mean("w").clone()
    for _ in range(2):  # what is kept the first time serves the second
        found = batches.about(mean.clone(), 0, "w")
        torch.testing.assert_close(found.dense().double(), whole + mean - of_all, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(batches.gradient(0, "w").dense().double(), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(field.mean("w"), before, rtol=0, atol=0)


def test_a_corrected_matrix_is_what_its_parts_make():
    torch.manual_seed(4)
    matrix, left, right = torch.randn(5, 6), torch.randn(5, 2), torch.randn(2, 6)
    corrected, whole = Corrected(matrix, left, right), matrix + left @ right
    down, up = torch.randn(3, 6), torch.randn(5, 3)
    torch.testing.assert_close(dense(corrected), whole)
    torch.testing.assert_close(across(corrected, down), whole @ down.T)
    torch.testing.assert_close(along(corrected, up), up.T @ whole)
