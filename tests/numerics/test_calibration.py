import math

import numpy as np
import pytest
import torch

from foretune.tasks.numerics.calibration import expected_calibration_error, reliability_bins


def test_a_calibrated_model_has_no_error():
    confidence = torch.tensor([0.75] * 4 + [1.0] * 2)
    correct = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(0.0)


def test_the_error_is_the_weighted_gap_of_the_bins():
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.3])
    correct = torch.tensor([True, False, False, True])
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx((3 * (0.9 - 1 / 3) + 0.7) / 4)


def test_bins_hide_gaps_of_opposite_sign():
    confidence, correct = torch.tensor([0.1, 0.4]), torch.tensor([1.0, 0.0])
    assert expected_calibration_error(confidence, correct, 2) == pytest.approx(0.25)
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(0.65)


def test_no_prediction_has_no_error():
    assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0)))


def test_bins_are_those_of_numpys_histogram_and_their_sums_give_the_error():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator)
    correct = (torch.rand(500, generator=generator) < confidence).double()
    binned = reliability_bins(confidence, correct, 15)
    edges = np.linspace(0, 1, 16)
    for sums, weights in ((binned.count, None), (binned.confidence, confidence.double()), (binned.correct, correct)):
        wanted, _ = np.histogram(confidence.double().numpy(), edges, weights=weights)
        assert sums.numpy() == pytest.approx(wanted, rel=1e-6)
    gaps = (binned.confidence - binned.correct).abs() / binned.count
    share = binned.count / len(confidence)
    assert float((gaps * share).nansum()) == pytest.approx(expected_calibration_error(confidence, correct))
