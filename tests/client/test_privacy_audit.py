"""The audit: its bound by the theorem, and a clip or a noise that somebody forgot."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ich_client import gradients, private
from ich_client.noise import Stream
from ich_client.privacy_audit import Found, audit, chance, lower_bound
from ich_models.privacy import Privacy

THREE = Privacy(epsilon=3.0, delta=1e-3, patients=100, hospitals=3)


def test_bound_by_hand() -> None:
    # ten guesses, all right, no delta: (e^epsilon / (1 + e^epsilon))^10 = 0.05
    each = 0.05**0.1
    assert lower_bound(10, 10, 10, 0.0, 0.05) == pytest.approx(math.log(each / (1 - each)), abs=1e-6)
    assert lower_bound(10, 10, 5, 0.0, 0.05) == 0.0
    assert chance(1000, 100, 60, 0.0, 0.0) == pytest.approx(0.02844, abs=1e-5)  # P(60 heads or more of 100)
    assert chance(1000, 100, 60, 0.0, 1e-5) > chance(1000, 100, 60, 0.0, 0.0)


def test_nothing_speaks_against_the_training_that_is_here() -> None:
    found = audit(THREE)
    assert found.faults == ()
    assert found.bound < found.promised <= 3.0
    assert found.noise == pytest.approx(1, abs=0.2)


def unclipped(kind: type[Any]) -> Callable[..., Any]:
    """An engine that has forgotten the clip."""
    true = kind.clipped

    def clipped(self: Any, draw: Any, clip: float, *rest: Any, **named: Any) -> Any:
        return true(self, draw, math.inf, *rest, **named)

    return clipped


def noise(times: float) -> Callable[[torch.Tensor, float, Stream], torch.Tensor]:
    true = private.add_noise
    return lambda total, scale, stream: true(total, scale * times, stream)


def test_forgotten_clip_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (gradients.Loop, gradients.Ghost):
        monkeypatch.setattr(kind, "clipped", unclipped(kind))
    monkeypatch.setattr(private.self_test, "run", lambda *_: None)  # which would refuse it before
    found = audit(THREE)
    assert found.bound > found.promised
    assert any("times as far as the clip allows" in fault for fault in found.faults)


def test_forgotten_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "add_noise", noise(0.0))
    found = audit(THREE)
    assert found.bound > 4 > found.promised
    assert found.right > 0.97 * found.guesses


@pytest.mark.slow
def test_half_of_the_noise_is_caught_by_measuring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "add_noise", noise(0.5))
    found = audit(THREE, canaries=600, rounds=2)
    assert [fault for fault in found.faults if "noise" in fault]


def test_faults_leave_room_for_chance() -> None:
    sound = Found(3.0, 0.9, 1000, 200, 150, 0.93, 1.4, 0.1)
    assert sound.faults == ()
    assert Found(**{**vars(sound), "contribution": 1.6}).faults
    assert Found(**{**vars(sound), "noise": 0.7}).faults
    assert Found(**{**vars(sound), "bound": 3.1}).faults
