"""Windows, z-scores and neighbouring slices, on numbers worked out by hand."""

import numpy as np
import pytest

from ich_models.windows import WINDOWS, neighbours, window, windows, z_scores


def test_a_window_is_linear_between_its_ends() -> None:
    values = np.array([-1024, 0, 20, 40, 80, 3000], np.int16)
    assert window(values, *WINDOWS["brain"]) == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_windows_are_channels_in_order() -> None:
    values = np.full((2, 3), 75, np.int16)
    channels = windows(values, [WINDOWS["brain"], WINDOWS["blood"]])
    assert channels.shape == (2, 2, 3)
    assert channels[0] == pytest.approx(75 / 80)
    assert channels[1] == pytest.approx(0.5)


def test_a_window_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width"):
        window(np.zeros(3), 40, 0)


def test_z_scores_are_of_what_is_not_zero() -> None:
    assert z_scores(np.array([0, 2, 4, 6, 0])) == pytest.approx([0, -1.224745, 0, 1.224745, 0], abs=1e-6)
    masked = z_scores(np.array([0.0, 2, 4, 6]), np.array([True, False, True, False]))
    assert masked == pytest.approx([-1, 0, 1, 0])
    assert (z_scores(np.zeros(4)) == 0).all()
    assert (z_scores(np.full(4, 3.0)) == 0).all()


def test_neighbours_of_the_end_slices_are_the_end_slices() -> None:
    slices = np.arange(4).reshape(4, 1, 1)
    assert neighbours(slices, 1)[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
