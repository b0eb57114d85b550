"""The secret stream: its numbers against SciPy's distributions, and that no seed and no torch generator moves it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ich_client.noise import Stream, add_noise


def test_normal_numbers_are_normal() -> None:
    """Moments within five standard errors; Kolmogorov and Smirnov's distance where 1e-6 of true samples lie beyond."""
    count = 1_000_000
    numbers = Stream().normal((count,)).numpy()
    error = 5 / math.sqrt(count)
    assert numbers.mean() == pytest.approx(0, abs=error)
    assert numbers.var() == pytest.approx(1, abs=error * math.sqrt(2))
    assert stats.skew(numbers) == pytest.approx(0, abs=error * math.sqrt(6))
    assert stats.kurtosis(numbers) == pytest.approx(0, abs=error * math.sqrt(24))
    assert stats.kstest(numbers, "norm").pvalue > 1e-6
    # neighbours, and the two halves that come of one radius, are uncorrelated
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < error
    half = 2**14
    assert abs(np.corrcoef(numbers[:half] ** 2, numbers[half : 2 * half] ** 2)[0, 1]) < 5 / math.sqrt(half)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (2**15,), (2**15 + 1,), (3 * 2**15 - 1,)])
def test_every_number_of_any_form_is_drawn(shape: tuple[int, ...]) -> None:
    numbers = Stream().normal(shape)
    assert numbers.shape == shape
    assert numbers.dtype == torch.float64
    assert len(numbers.unique()) == numbers.numel()
    assert float(numbers.abs().max()) < 8.67


def test_the_standard_deviation_is_what_was_asked_for() -> None:
    """sigma 1.3 and clip 0.7 on 400,000 zeros: within 1 % (the standard error is 0.11 %)."""
    noised = add_noise(torch.zeros(400, 1000), 1.3 * 0.7, Stream())
    assert float(noised.std()) == pytest.approx(0.91, rel=0.01)


def test_noise_comes_on_top_and_none_leaves_every_bit() -> None:
    total = torch.full((100_000,), 3.0, dtype=torch.float64)
    assert torch.equal(add_noise(total, 0, Stream()), total)
    noised = add_noise(total, 0.5, Stream())
    assert noised.dtype == torch.float64
    assert torch.equal(noised, noised.float().double()), "rounded to 24 bits"
    assert float(noised.mean()) == pytest.approx(3, abs=5 * 0.5 / math.sqrt(100_000))
    assert float(noised.std()) == pytest.approx(0.5, rel=0.02)


def test_no_seed_repeats_it() -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(7)
        np.random.default_rng(7)
        stream = Stream()
        return torch.cat([stream.normal((8,)), torch.from_numpy(stream.uniform(8)), stream.seeds(8).double()])

    assert not (drawn()[:, None] == drawn()).any()


def test_it_takes_nothing_from_torchs_generator() -> None:
    before = torch.get_rng_state()
    stream = Stream()
    stream.normal((10,)), stream.seeds(3), stream.poisson(10, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_patient_is_drawn_alone() -> None:
    """Sizes of 20,000 batches of 40 at 0.2 are binomial: mean 8, variance 6.4; each patient is in a fifth of them."""
    stream, times = Stream(), 20_000
    sizes, seen = np.zeros(times), np.zeros(40)
    for batch in range(times):
        rows = stream.poisson(40, 0.2).numpy()
        assert len(set(rows)) == len(rows)
        sizes[batch] = len(rows)
        seen[rows] += 1
    assert sizes.mean() == pytest.approx(8, abs=5 * math.sqrt(6.4 / times))
    assert sizes.var() == pytest.approx(6.4, rel=0.06)
    assert np.abs(seen / times - 0.2).max() < 5 * math.sqrt(0.16 / times)
    assert (sizes == 0).sum() < 20  # chance of an empty one: 0.8^40 = 1.3e-4


def test_all_and_nobody() -> None:
    stream = Stream()
    assert stream.poisson(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert stream.poisson(0, 0.5).tolist() == []
    assert all(len(stream.poisson(3, 1e-9)) == 0 for _ in range(100))
