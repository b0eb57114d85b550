"""What the networks with encoders share: stages with terms of their own, frozen parts, and patients who lack a modality."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ich_models.batch import Batch, Modality
from ich_models.losses import Term
from ich_models.networks.options import Encoding


class Encoder(nn.Module):
    """Turns one modality into features.

    `modality`: which. `shape`: of one patient's features; a -1 is the text's length.
    `frozen`: never trained, so it stays in evaluation mode, does not travel, and its features may be kept.
    `pinned`: name and SHA-256 of the weights it starts from, or None (random from the study's seed).
    """

    def __init__(self, modality: Modality, shape: tuple[int, ...], options: Encoding) -> None:
        super().__init__()
        self.modality = modality
        self.shape = shape
        self.frozen = options.frozen
        self.pinned = options.weights

    def _settle(self) -> None:
        """To be called when the parameters are there."""
        if self.frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> "Encoder":
        # a frozen BatchNorm in training mode would still move its statistics
        super().train(mode and not self.frozen)
        return self


@dataclass(frozen=True)
class StageRule:
    """A stage of a network: the terms that it is trained with, and the names of the children that learn (None: all)."""

    terms: Sequence[Term]
    learns: tuple[str, ...] | None = None


class StagedNetwork(nn.Module):
    """A network trained in one or more stages. `stages`: by name, in order; it begins in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: Mapping[str, StageRule] = {}
        self.stage = ""

    @property
    def terms(self) -> Sequence[Term]:
        """The loss terms of the present stage."""
        return self.stages[self.stage].terms

    def enter(self, stage: str) -> None:
        """Go to a stage: only what learns in it asks for gradients, the rest is kept as it is.

        Raises ValueError for a stage that the network does not have.
        """
        if stage not in self.stages:
            raise ValueError(f"no stage '{stage}' | its stages are {', '.join(self.stages)}")
        self.stage = stage
        for name, child in self.named_children():
            child.requires_grad_(self._learns(name))
        for module in self.modules():
            if isinstance(module, Encoder) and module.frozen:
                module.requires_grad_(False)
        self.train(self.training)

    def resting(self) -> Iterator[Encoder]:
        """The encoders that do not learn in the present stage: what they say of a patient stays the same."""
        for _, encoder in self.encoders():
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                yield encoder

    def features(self, encoder: Encoder, batch: Batch) -> torch.Tensor:
        """What one of its encoders says of a batch, as `batch.features` holds it."""
        return encoded(encoder, batch)

    def _learns(self, child: str) -> bool:
        names = self.stages[self.stage].learns
        return names is None or child in names

    def train(self, mode: bool = True) -> "StagedNetwork":
        super().train(mode)
        if self.stage:
            for name, child in self.named_children():
                if not self._learns(name):
                    child.eval()
        return self

    def encoders(self) -> Iterator[tuple[str, Encoder]]:
        """Its encoders with their names."""
        for name, module in self.named_modules():
            if isinstance(module, Encoder):
                yield name, module


def enter(network: nn.Module, stage: str) -> None:
    """Bring a network to a stage. One without stages, or with a single one, is in it whatever the stage is called."""
    if isinstance(network, StagedNetwork) and len(network.stages) > 1:
        network.enter(stage)


def frozen_modules(network: nn.Module) -> set[nn.Module]:
    """The modules inside its frozen encoders: they neither travel nor differ between folds."""
    return {
        part
        for encoder in network.modules()
        if isinstance(encoder, Encoder) and encoder.frozen
        for part in encoder.modules()
    }


def frozen_tensors(network: nn.Module) -> set[str]:
    """Names of the parameters and buffers inside its frozen encoders."""
    frozen = frozen_modules(network)
    return {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if module in frozen
        for name in (*module._parameters, *module._buffers)
    }


def among(module: nn.Module, data: torch.Tensor, who: torch.Tensor | None, nothing: tuple[int, ...]) -> torch.Tensor:
    """`module(data)` for the patients in `who` (B,) bool (None: everyone), zeros of shape `nothing` for the others.

    The others do not pass through the module, so that they touch no batch statistics.
    """
    if who is None or bool(who.all()):
        result: torch.Tensor = module(data)
        return result
    rows = who.nonzero().squeeze(1)
    if not len(rows):
        dtype = next(module.parameters()).dtype
        return torch.zeros((len(data), *nothing), dtype=dtype, device=data.device)
    some = module(data[rows])
    spread = some[(who.cumsum(0) - 1).clamp(min=0)]
    return torch.where(who.reshape(-1, *[1] * (spread.ndim - 1)), spread, torch.zeros_like(spread))


def encoded(encoder: Encoder, batch: Batch) -> torch.Tensor:
    """One modality's features (B, *shape): the kept ones, or the encoder's; zeros for patients who lack it."""
    modality = encoder.modality
    who = batch.present.get(modality)
    if modality in batch.features:
        kept = batch.features[modality]
        return (
            kept if who is None else torch.where(who.reshape(-1, *[1] * (kept.ndim - 1)), kept, torch.zeros_like(kept))
        )
    data: torch.Tensor | None = getattr(batch, modality)
    if data is None:
        dtype = next(encoder.parameters()).dtype
        shape = tuple(1 if side == -1 else side for side in encoder.shape)
        return torch.zeros((len(batch), *shape), dtype=dtype, device=batch.label.device)
    shape = tuple(data.shape[1] if side == -1 else side for side in encoder.shape)
    return among(encoder, data, who, shape)


def only(values: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
    """Zeros for the patients who are not in `who` (B,) bool."""
    return torch.where(who.reshape(-1, *[1] * (values.ndim - 1)), values, torch.zeros_like(values))
