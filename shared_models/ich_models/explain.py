"""What a network looked at: Grad-CAM, Score-CAM and saliency of an image, and t-SNE of embeddings. Stays at the hospital."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import nn
from torch.nn.functional import interpolate, relu, softmax

from ich_models.batch import Batch, Output
from ich_models.networks.staged import Encoder

Score = Callable[[Output], torch.Tensor]
"""What is explained: a number per patient, (B,)."""

FEWEST: Final = 4
"""Embeddings that t-SNE can spread out."""

MODES: Final = {1: "linear", 2: "bilinear", 3: "trilinear"}


def positive(output: Output) -> torch.Tensor:
    """The logit of the positive outcome."""
    return output.logits


def of_type(index: int) -> Score:
    """The logits of one haemorrhage type, summed over a patient's slices: no slice touches another's."""
    return lambda output: output.logits[..., index].flatten(1).sum(1)


def image_layers(network: nn.Module) -> tuple[str, ...]:
    """Where class activation maps look: the last feature maps of every image encoder, as `grad_cam` takes them.

    Raises ValueError for a network that looks at no image.
    """
    found = tuple(
        f"{path}.{module.last}"
        for path, module in network.named_modules()
        if isinstance(module, Encoder) and module.modality == "image"
    )
    if not found:
        raise ValueError("this network looks at no image | only an image can be explained by a map")
    return found


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _image(batch: Batch) -> torch.Tensor:
    if batch.image is None:
        raise ValueError("only an image can be explained by a map | this batch has none")
    if batch.slices is not None and not bool(batch.slices.all()):
        raise ValueError("padded slices cannot be explained | give one patient at a time, without padding")
    return batch.image.detach()


def _watched(network: nn.Module, layer: str, batch: Batch) -> tuple[torch.Tensor, Output]:
    """The layer's feature maps (N, K, *space), N patients or slices, and the output."""
    kept: list[torch.Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda *call: kept.append(call[2]))
    try:
        output: Output = network(batch)
    finally:
        hook.remove()
    if len(kept) != 1:
        raise ValueError(f"the layer '{layer}' was run {len(kept)} times | name a layer that sees every image once")
    return kept[0], output


def _as_image(maps: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """(N, h, w) or (N, d, h, w) -> the image's shape without channels, each of the N from 0 to its own largest, 1."""
    dimensions = maps.ndim - 1
    space = image.shape[-dimensions:]
    mode = MODES[dimensions]
    wide = interpolate(maps[:, None], size=tuple(space), mode=mode, align_corners=False)[:, 0]
    flat = relu(wide).flatten(1)
    scaled = flat / flat.amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    return scaled.reshape(*image.shape[: -dimensions - 1], *space)


def grad_cam(network: nn.Module, batch: Batch, layer: str, score: Score = positive) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017) in 2 or 3 dimensions: (B, *space) or (B, S, H, W), 0 to 1.

    `layer`: a module that gives feature maps, such as 'image.' + the encoder's `last`.
    """
    image = _image(batch).clone().requires_grad_()  # so that frozen layers have a graph, too
    with _evaluating(network), torch.enable_grad():
        maps, output = _watched(network, layer, replace(batch, image=image))
        (gradient,) = torch.autograd.grad(score(output).sum(), maps)
    weights = gradient.flatten(2).mean(2).reshape(*maps.shape[:2], *[1] * (maps.ndim - 2))
    return _as_image(relu((weights * maps.detach()).sum(1)), image.detach())


@torch.no_grad()
def score_cam(
    network: nn.Module, batch: Batch, layer: str, score: Score = positive, *, largest: int | None = None
) -> torch.Tensor:
    """Score-CAM (Wang et al. 2020): maps weighted by what the network says of the image seen through each.

    One forward pass per feature map; `largest`: only the maps of the largest mean. One image per patient.
    """
    image = _image(batch)
    with _evaluating(network):
        maps, _ = _watched(network, layer, batch)
        if len(maps) != len(image) or image.ndim != maps.ndim:
            raise ValueError("Score-CAM takes one image per patient | give slices as patients of their own")
        base = score(network(replace(batch, image=torch.zeros_like(image))))
        order = maps.flatten(2).mean(2).argsort(dim=1, descending=True)[:, : largest or maps.shape[1]]
        rows = torch.arange(len(maps), device=maps.device)
        gains = []
        for column in order.T:
            chosen = maps[rows, column]
            low = chosen.flatten(1).amin(1).reshape(-1, *[1] * (chosen.ndim - 1))
            seen = image * _as_image(chosen - low, image)[:, None]
            gains.append(score(network(replace(batch, image=seen))) - base)
    weights = softmax(torch.stack(gains, dim=1), dim=1)
    picked = maps[rows[:, None], order]
    combined = (weights.reshape(*weights.shape, *[1] * (maps.ndim - 2)) * picked).sum(1)
    return _as_image(relu(combined), image)


def saliency(network: nn.Module, batch: Batch, score: Score = positive, *, channels: int = 1) -> torch.Tensor:
    """Saliency (Simonyan et al. 2014): the score's absolute gradient by pixel, largest over channels.

    `channels`: their axis in the image; 2 where a patient has several slices. (B, *space) or (B, S, H, W), not scaled.
    """
    image = _image(batch).clone().requires_grad_()
    with _evaluating(network), torch.enable_grad():
        output: Output = network(replace(batch, image=image))
        (gradient,) = torch.autograd.grad(score(output).sum(), image)
    return gradient.abs().amax(channels)


def spread_out(embeddings: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """t-SNE (van der Maaten and Hinton 2008) of N embeddings (N, D), N at least `FEWEST` -> (N, 2), the same for the same seed."""
    if len(embeddings) < FEWEST:
        raise ValueError(f"t-SNE of {len(embeddings)} embeddings | it needs at least {FEWEST}")
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    result: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings)
    return result
