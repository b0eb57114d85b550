"""F copies of one network, trained or evaluated in one pass: the folds of a hospital side by side."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn
from torch.func import functional_call, vmap

from ich_models.batch import Batch, Output
from ich_models.losses import Objective, coupled, terms_of
from ich_models.networks.staged import StagedNetwork, frozen_modules, frozen_tensors

LARGEST_PIECE: Final = 16
"""Patients with images whose logits are computed at once: in evaluation mode they do not feel each other."""


def stackable(network: nn.Module) -> bool:
    """Whether `torch.func.vmap` can train it: running statistics that are updated in place and LSTMs cannot be mapped."""
    frozen = frozen_modules(network)  # in evaluation mode whatever happens
    return not any(
        isinstance(module, nn.RNNBase) or getattr(module, "track_running_stats", False)
        for module in network.modules()
        if module not in frozen
    )


def separable(network: nn.Module) -> bool:
    """Whether the loss of a batch is the mean of its patients' own: no term and no layer looks at several patients."""
    frozen = frozen_modules(network)
    batch_statistics = (hasattr(module, "track_running_stats") for module in network.modules() if module not in frozen)
    return not coupled(terms_of(network)) and not any(batch_statistics)


class Stack:
    """F copies of a network; tensors carry the copy as their first axis: (F, *shape).

    One copy is the module itself, without the cost of the mapping; the numbers agree to rounding. Random layers draw
    the same numbers in every copy, as they would in one copy after another from the same seed.
    What rests in the present stage is copied too, since folds may differ in it, and asks for no gradient. Frozen
    encoders are the same in every fold: they are not among the stack's tensors, and there is one of each.
    """

    def __init__(self, network: nn.Module, copies: int) -> None:
        self.network = network
        self.objective = Objective(network)
        self.copies = copies
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        frozen = frozen_tensors(network)
        self._views(frozen)
        if copies == 1:
            return
        for name, parameter in self.parameters.items():
            copied = parameter.detach().expand(copies, *parameter.shape).clone()
            self.parameters[name] = copied.requires_grad_(parameter.requires_grad)
        for name, buffer in self.buffers.items():
            self.buffers[name] = buffer.expand(copies, *buffer.shape).clone()

    def _views(self, frozen: set[str]) -> None:
        """With one copy the stack's tensors are the module's own."""
        self.parameters = {name: own for name, own in self.network.named_parameters() if name not in frozen}
        self.buffers = {name: own for name, own in self.network.named_buffers() if name not in frozen}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor as (F, *shape), sharing memory with the stack."""
        both = {**self.parameters, **self.buffers}
        return {name: t.detach() if self.copies > 1 else t.detach()[None] for name, t in both.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values (F, *shape) in by name."""
        mine = self.tensors()
        for name, value in tensors.items():
            mine[name].copy_(value)

    def _call(self, batch: Batch) -> Output:
        return self.network(batch)  # type: ignore[no-any-return]

    def losses(self, batch: Batch, epoch: float = 0.0) -> torch.Tensor:
        """Loss of the batch under each copy, by the network's own terms as weighted in `epoch`: (F,). Differentiable."""
        batch = self._ready(batch)
        if self.copies == 1:
            return self.objective(batch, epoch)[None]  # type: ignore[no-any-return]

        def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
            tensors = {Objective.PREFIX + name: tensor for name, tensor in {**parameters, **buffers}.items()}
            return functional_call(self.objective, tensors, (batch, epoch), tie_weights=False)  # type: ignore[no-any-return]

        return vmap(one, randomness="same")(self.parameters, self.buffers)

    @torch.no_grad()
    def with_features(self, patients: Batch) -> Batch:
        """The patients with what encoders that rest say of them in place of their images and texts, computed once.

        Of one copy alone: in several, encoders may differ. Each modality must have one encoder.
        """
        network = self.network
        if self.copies > 1 or not isinstance(network, StagedNetwork) or not len(patients):
            return patients
        for encoder in network.resting():
            if encoder.modality not in patients.features and patients.holds(encoder.modality):
                pieces = patients.pieces(LARGEST_PIECE)
                kept = [network.features(encoder, self._ready(piece)).cpu() for piece in pieces]
                patients = patients.with_features({encoder.modality: torch.cat(kept)})
        return patients

    @torch.no_grad()
    def own_losses(self, patients: Batch) -> torch.Tensor:
        """(F,) float64: the loss that is trained with, of the models as they are, over all patients; no random layers."""
        was_training = self.network.training
        self.network.eval()
        losses = self.losses(patients).double()
        self.network.train(was_training)
        return losses.cpu()

    def _ready(self, batch: Batch) -> Batch:
        """As the network computes; nothing is copied where it is so already."""
        like = next(self.network.parameters(), None)
        return batch if like is None else batch.to(like.dtype, like.device)

    @torch.no_grad()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits in evaluation mode, on the CPU: (F, B), or (F, B, S, 5)."""
        pieces = batch.pieces(LARGEST_PIECE) if batch.is_large and len(batch) else [batch]
        return torch.cat([self._logits(self._ready(piece)).cpu() for piece in pieces], dim=1)

    def _logits(self, batch: Batch) -> torch.Tensor:
        training = self.network.training
        self.network.eval()
        try:
            if self.copies == 1:
                return self._call(batch).logits[None]

            def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
                return functional_call(self.network, {**parameters, **buffers}, (batch,), tie_weights=False).logits  # type: ignore[no-any-return]

            return vmap(one, randomness="same")(self.parameters, self.buffers)
        finally:
            self.network.train(training)
