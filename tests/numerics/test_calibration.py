import math

import pytest
import torch

from foretune.tasks.numerics.calibration import expected_calibration_error


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
