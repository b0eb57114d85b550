"""MedNVC (Liu and Shi): a masked-autoencoder image encoder whose features ask laboratory values, one way."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2Layer

from ich_models.batch import Batch, Output
from ich_models.losses import PerSample, Term, masked_patches, outcome
from ich_models.networks.constants import Standardise, StandardiseImage
from ich_models.networks.encoders import ConvNeXtEncoder, block
from ich_models.networks.fusion import OneWay, ValueTokens
from ich_models.networks.options import MedNvc
from ich_models.networks.staged import Encoder, StagedNetwork, StageRule


class Decoder(nn.Module):
    """One ConvNeXt-V2 block that paints hidden patches: (N, D, h, w), visible (N, 1, h, w) -> (N, h * w, K)."""

    def __init__(self, entering: int, width: int, numbers: int, encoder: ConvNeXtEncoder) -> None:
        super().__init__()
        self.enter = nn.Conv2d(entering, width, 1)
        self.hidden = nn.Parameter(torch.randn(1, width, 1, 1) * 0.02)
        self.block = ConvNextV2Layer(encoder.net.config, width)  # type: ignore[no-untyped-call]
        self.paint = nn.Conv2d(width, numbers, 1)

    def forward(self, features: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        known = torch.where(visible > 0, self.enter(features.contiguous()), self.hidden)
        painted: torch.Tensor = self.paint(block(self.block, known, None).contiguous())
        return painted.flatten(2).transpose(1, 2)


class MedNvcNetwork(StagedNetwork):
    """Views (B, V, C, H, W) or one (B, C, H, W), and values (B, D) -> logits (B,): the highest of the patient's views.

    Stages: `pretrain` (no labels: hidden patches are painted) and `train`. It begins in `train`.
    """

    def __init__(self, options: MedNvc, columns: int) -> None:
        super().__init__()
        self.options = options
        width, patch = options.image.widths[1], options.masked_patch
        self.standardise = StandardiseImage(options.image.channels) if options.standardise else nn.Identity()
        self.image = ConvNeXtEncoder(options.image)
        self.decoder = Decoder(options.image.widths[3], options.decoder, options.image.channels * patch**2, self.image)
        self.input = Standardise(columns)
        self.values = ValueTokens(columns, width)
        self.ask = nn.ModuleList([OneWay(width, options.heads, options.mlp) for _ in range(options.blocks)])
        self.output = nn.Linear(options.image.widths[3], 2)
        self.stages = {
            "pretrain": StageRule([Term("pixels", self._pixels, per_sample=True)], ("image", "decoder")),
            "train": StageRule(
                [Term("outcome", outcome, per_sample=True)], ("image", "input", "values", "ask", "output")
            ),
        }
        self.enter("train")

    def resting(self) -> Iterator[Encoder]:
        """None: the laboratory values are asked between the encoder's halves."""
        yield from ()

    def forward(self, batch: Batch) -> Output:
        if self.stage == "pretrain":
            return self._painted(batch)
        who = {"image": batch.who("image"), "table": batch.who("table")}
        images, values = self._thrown(batch, who)
        views = images.shape[1]
        features = self.image.through(self.image.stem(images.flatten(0, 1)), (0, 1))
        queries = features.flatten(2).transpose(1, 2)
        tokens = self.values(values).repeat_interleave(views, dim=0)
        for layer in self.ask:
            queries = layer(queries, tokens)
        features = queries.transpose(1, 2).unflatten(2, features.shape[-2:])
        pooled = self.image.pool(self.image.through(features, (2, 3)))
        two = self.output(pooled)
        each = (two[:, 1] - two[:, 0]).reshape(-1, views)
        if batch.slices is not None:
            # a patient without a single view is seen as one blank view, the first
            first = torch.arange(views, device=each.device) == 0
            there = batch.slices | (first & ~batch.slices.any(1, keepdim=True))
            each = each.masked_fill(~there, torch.finfo(each.dtype).min)
        best = each.max(1).indices
        rows = torch.arange(len(batch), device=best.device)
        return Output(each.amax(1), {"fused": pooled.reshape(-1, views, pooled.shape[-1])[rows, best]}, who)

    def _views(self, batch: Batch) -> torch.Tensor | None:
        """(B, V, C, H, W), standardised; a single view as V = 1."""
        if (image := batch.image) is None:
            return None
        views = image[:, None] if image.ndim == 4 else image
        scaled: torch.Tensor = self.standardise(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return scaled

    def _thrown(self, batch: Batch, who: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (B, V, C, H, W) and standardised values (B, D); what a patient lacks is `thrown` everywhere.

        In training, with chance `throw`, so is one of the two of a patient who has both; never both.
        """
        dtype, device, options = self.output.weight.dtype, self.output.weight.device, self.options
        keep = dict(who)
        if self.training and options.throw:
            draw = torch.rand(len(batch), device=device)
            both = who["image"] & who["table"]
            keep["image"] = who["image"] & ~(both & (draw < options.throw / 2))
            keep["table"] = who["table"] & ~(both & (draw >= options.throw / 2) & (draw < options.throw))
        images = self._views(batch)
        if images is None:
            side = options.masked_patch
            images = torch.zeros(len(batch), 1, options.image.channels, side, side, dtype=dtype, device=device)
        values = torch.zeros(len(batch), len(self.input.fill), dtype=dtype, device=device)
        if batch.table is not None:
            values = self.input(batch.table)
        stand_in = torch.full((), options.thrown, dtype=dtype, device=device)
        return (
            torch.where(keep["image"].reshape(-1, 1, 1, 1, 1), images, stand_in),
            torch.where(keep["table"][:, None], values, stand_in),
        )

    def _painted(self, batch: Batch) -> Output:
        images = self._views(batch)
        if images is None:
            raise ValueError("the stage pretrain needs images | leave out hospitals that have none")
        who, options = batch.who("image"), self.options
        views, side = images.shape[1], options.masked_patch
        patches = _patches(images.flatten(0, 1), side)
        height, width = images.shape[-2] // side, images.shape[-1] // side
        hidden = _hide(len(patches), height * width, options.masked, images.device)
        visible = (~hidden).reshape(-1, 1, height, width).to(images.dtype)
        features = self.image.through(self.image.stem(images.flatten(0, 1), visible), range(4), visible)
        errors = masked_patches(self.decoder(features, visible), patches, hidden).reshape(-1, views)
        there = torch.ones_like(errors, dtype=torch.bool) if batch.slices is None else batch.slices
        there = there & who[:, None]
        return Output(torch.full_like(errors[:, 0], torch.nan), {"errors": errors, "there": there}, {"image": who})

    def _pixels(self, output: Output, batch: Batch) -> PerSample:
        """Mean over a patient's views of the error on hidden patches."""
        errors, there = output.embeddings["errors"], output.embeddings["there"]
        values = torch.where(there, errors, torch.zeros_like(errors)).sum(1) / there.sum(1).clamp(min=1)
        return PerSample(values, there.any(1))


def mednvc(options: MedNvc, columns: int) -> MedNvcNetwork:
    """MedNVC for `columns` laboratory values."""
    return MedNvcNetwork(options, columns)


def _patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, C, H, W) -> (N, patches, C * side * side), patches row by row."""
    windows: Any = images.unfold(2, side, side).unfold(3, side, side)  # (N, C, h, w, side, side)
    patches: torch.Tensor = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return patches


def _hide(count: int, patches: int, share: float, device: torch.device) -> torch.Tensor:
    """(N, P) bool: the same number of patches of each image, by lot; at least one hidden, at least one not."""
    number = min(max(1, round(patches * share)), max(1, patches - 1))
    order = torch.rand(count, patches, device=device).argsort(dim=1)
    return order.argsort(dim=1) < number
