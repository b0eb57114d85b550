"""F copies of one network, trained or evaluated in one pass: the folds of a hospital side by side."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_models.batch import Batch, Output


def stackable(network: nn.Module) -> bool:
    """Whether `torch.func.vmap` can train it: layers that update running statistics in place cannot be mapped."""
    return not any(getattr(module, "track_running_stats", False) for module in network.modules())


class Stack:
    """F copies of a network; tensors carry the copy as their first axis: (F, *shape).

    One copy is the module itself, without the cost of the mapping; the numbers agree to rounding. Random layers draw
    the same numbers in every copy, as they would in one copy after another from the same seed.
    """

    def __init__(self, network: nn.Module, copies: int) -> None:
        self.network = network
        self.copies = copies
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        if copies == 1:
            self._views()
            return
        for name, parameter in network.named_parameters():
            self.parameters[name] = parameter.detach().expand(copies, *parameter.shape).clone().requires_grad_()
        for name, buffer in network.named_buffers():
            self.buffers[name] = buffer.expand(copies, *buffer.shape).clone()

    def _views(self) -> None:
        """With one copy the stack's tensors are the module's own."""
        self.parameters = dict(self.network.named_parameters())
        self.buffers = dict(self.network.named_buffers())

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

    def losses(self, batch: Batch) -> torch.Tensor:
        """Mean loss of the batch under each copy: (F,). Differentiable."""
        if self.copies == 1:
            return binary_cross_entropy_with_logits(self._call(batch).logits, batch.label)[None]

        def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
            output = functional_call(self.network, {**parameters, **buffers}, (batch,), tie_weights=False)
            return binary_cross_entropy_with_logits(output.logits, batch.label)

        return vmap(one, randomness="same")(self.parameters, self.buffers)

    @torch.no_grad()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits in evaluation mode: (F, B)."""
        training = self.network.training
        self.network.eval()
        try:
            if self.copies == 1:
                return self._call(batch).logits[None]

            def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
                return functional_call(self.network, {**parameters, **buffers}, (batch,), tie_weights=False).logits  # type: ignore[no-any-return]

            return vmap(one)(self.parameters, self.buffers)
        finally:
            self.network.train(training)
