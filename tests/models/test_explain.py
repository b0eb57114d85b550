"""Explanations: formulas by hand on a network that can be calculated, MONAI as the oracle, and what cannot be explained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.visualize.class_activation_maps import GradCAM
from small_networks import patients, tiny
from torch import nn

from ich_models.batch import Batch, Output
from ich_models.explain import grad_cam, of_type, saliency, score_cam, spread_out

LAST = {"ichpro": "image.net.layer4", "image_only": "image.net.layer4", "vdafm": "image.net.layer4"}


class Sums(nn.Module):
    """Two feature maps, the image and its negative; the logit is 3 times the mean of the first plus the second's."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.weights = nn.Parameter(torch.tensor([3.0, 1.0]))

    def forward(self, batch: Batch) -> Output:
        assert batch.image is not None
        maps = self.maps(batch.image)
        return Output(maps.mean((2, 3)) @ self.weights)


IMAGE = torch.tensor([[[[4.0, 0.0], [-2.0, 2.0]]]])
BATCH = Batch(None, torch.zeros(1), image=IMAGE)


def test_grad_cam_by_hand() -> None:
    """Gradient means are 3/4 and 1/4: relu(3/4 x - 1/4 x) = relu(x / 2), scaled to its largest."""
    assert grad_cam(Sums(), BATCH, "maps")[0].tolist() == [[1.0, 0.0], [0.0, 0.5]]


def test_saliency_by_hand() -> None:
    """d logit / d pixel = (3 - 1) / 4 everywhere."""
    assert saliency(Sums(), BATCH)[0].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_score_cam_by_hand() -> None:
    """Masks: (x + 2) / 6 and (4 - x) / 6. Scores of x * mask, mean times 2; softmax; weighted maps."""
    x = IMAGE[0, 0].double().numpy()
    scores = [2 * (x * mask).mean() for mask in ((x + 2) / 6, (4 - x) / 6)]
    weights = np.exp(scores) / np.exp(scores).sum()
    combined = np.maximum(weights[0] * x - weights[1] * x, 0)
    np.testing.assert_allclose(score_cam(Sums(), BATCH, "maps")[0].numpy(), combined / combined.max(), rtol=1e-5)


def test_score_cam_of_the_strongest_map_alone() -> None:
    """One map: its weight is 1."""
    assert score_cam(Sums(), BATCH, "maps", largest=1)[0].tolist() == [[1.0, 0.0], [0.0, 0.5]]


class Lens(nn.Module):
    """The network as a function of the image, for MONAI."""

    def __init__(self, network: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.network, self.batch = network, batch

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(replace(self.batch, image=image)).logits
        return logits[:, None]


@pytest.mark.parametrize("name", ["ichpro", "image_only", "vdafm"])
def test_grad_cam_is_monais_in_three_dimensions(name: str) -> None:
    network, batch = tiny(name).eval(), patients(name, count=1)
    assert batch.image is not None
    ours = grad_cam(network, batch, LAST[name])
    assert ours.shape == (1, 16, 32, 32)
    theirs = GradCAM(
        Lens(network, batch), f"network.{LAST[name]}", upsampler=lambda size: lambda x: x, postprocessing=lambda x: x
    )(batch.image, class_idx=0)
    wide = nn.functional.interpolate(theirs, size=(16, 32, 32), mode="trilinear", align_corners=False)[:, 0]
    assert wide.max() > 0
    torch.testing.assert_close(ours, (wide / wide.max()).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ichpro", "vdafm", "image_only"])
def test_score_cam_of_the_networks(name: str) -> None:
    network, batch = tiny(name), patients(name, count=2)
    found = score_cam(network, batch, LAST[name], largest=3)
    assert found.shape == (2, 16, 32, 32)
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert network.training, "the mode was not restored"


def test_slices_are_explained_by_type() -> None:
    network, batch = tiny("dlmi").eval(), patients("dlmi", count=2)
    first, other = (grad_cam(network, batch, "members.resnext.net.layer4", of_type(index)) for index in (0, 3))
    assert first.shape == (2, 3, 32, 32)
    assert not torch.equal(first, other)
    assert saliency(network, batch, of_type(0), channels=2).shape == (2, 3, 32, 32)


def test_mednvc_and_hohoho_are_explained() -> None:
    mednvc, hohoho = tiny("mednvc"), tiny("hohoho")
    assert grad_cam(mednvc, patients("mednvc", count=2), "image.seen").shape == (2, 3, 64, 64)
    batch = patients("hohoho", count=2)
    for stage in ("encoder", "sequence"):
        hohoho.enter(stage)
        assert saliency(hohoho, batch, of_type(1), channels=2).max() > 0


def test_a_frozen_encoder_can_be_explained() -> None:
    network: Any = tiny("vdafm", image={"name": "resnet", "frozen": True}).eval()
    assert grad_cam(network, patients("vdafm", count=1), LAST["vdafm"]).shape == (1, 16, 32, 32)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_cannot_be_explained_is_said() -> None:
    network, batch = tiny("dlmi"), patients("dlmi", count=2)
    with pytest.raises(ValueError, match="has none"):
        saliency(network, replace(batch, image=None))
    with pytest.raises(ValueError, match="padded slices"):
        saliency(network, replace(batch, slices=torch.tensor([[True, True, False]] * 2)))
    with pytest.raises(ValueError, match="run 0 times"):
        grad_cam(tiny("mednvc"), patients("mednvc"), "decoder")
    with pytest.raises(ValueError, match="one image per patient"):
        score_cam(network, batch, "members.resnext.net.layer4", of_type(0))


def test_groups_stay_together_when_spread_out() -> None:
    generator = np.random.default_rng(0)
    group = np.repeat([0, 1], 20)
    embeddings = generator.normal(size=(40, 16)) + 20 * group[:, None]
    found = spread_out(embeddings, seed=3)
    assert found.shape == (40, 2)
    assert np.array_equal(found, spread_out(embeddings, seed=3))
    centres = np.stack([found[group == g].mean(0) for g in (0, 1)])
    nearest = ((found[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert np.array_equal(nearest, group)
    with pytest.raises(ValueError, match="at least 4"):
        spread_out(embeddings[:3], seed=0)
