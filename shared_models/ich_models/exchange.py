"""Which tensors of a network travel, in which order: a module's tensors to one flat row of numbers and back."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ich_models.networks.constants import Constants, Told
from ich_models.networks.staged import Encoder, frozen_modules


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that make up a flat row, in order.

    One flat array per message costs a third of one array per tensor (docs/decisions.md), so rows are how weights travel.
    """

    shapes: Mapping[str, torch.Size]

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def schema(self) -> str:
        """SHA-256 of names and shapes: two sides with the same schema mean the same numbers."""
        text = ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in self.shapes.items())
        return hashlib.sha256(text.encode()).hexdigest()

    def unpack(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """(F, size) -> each tensor as a view (F, *shape)."""
        if rows.shape[-1] != self.size:
            raise ValueError(f"{rows.shape[-1]} numbers for a layout of {self.size}")
        parts = rows.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape(len(rows), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def pack(self, tensors: Mapping[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Tensors (F, *shape) -> (F, size); an empty layout gives (F, 0) of `like`'s dtype."""
        if not self.shapes:
            return like.new_empty((len(like), 0))
        return torch.cat([tensors[name].detach().reshape(len(like), -1) for name in self.shapes], dim=-1)


def _layout(network: nn.Module, keep: Callable[[nn.Module, str], bool]) -> Layout:
    """Frozen encoders are in no layout: both sides have them, from the seed or from pinned weights."""
    frozen = frozen_modules(network)
    shapes: dict[str, torch.Size] = {}
    for prefix, module in network.named_modules():
        if module in frozen:
            continue
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and keep(module, name):
                shapes[f"{prefix}.{name}" if prefix else name] = tensor.shape
    return Layout(shapes)


def _travels(module: nn.Module, name: str) -> bool:
    """Constants are sent apart. Integer buffers (BatchNorm's step counter) matter only with momentum None: local."""
    tensor = {**module._parameters, **module._buffers}[name]
    return not isinstance(module, Constants) and tensor is not None and tensor.is_floating_point()


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer; those of the batch and instance family all track statistics, or could."""
    return hasattr(module, "track_running_stats") or isinstance(module, nn.LayerNorm | nn.GroupNorm)


def exchanged(network: nn.Module, local: Callable[[nn.Module], bool]) -> Layout:
    """Floating-point tensors that travel every round: all but the constants and the modules that stay local."""
    return _layout(network, lambda module, name: _travels(module, name) and not local(module))


def seen_by(network: nn.Module, layout: Layout) -> dict[str, str]:
    """Tensors of a layout that belong to an encoder -> its modality: they learn from the patients who have that one."""
    return {
        name: encoder.modality
        for prefix, encoder in (
            (f"{path}.", part) for path, part in network.named_modules() if isinstance(part, Encoder)
        )
        for name in layout.shapes
        if name.startswith(prefix)
    }


def segments(network: nn.Module, layout: Layout) -> list[tuple[slice, str]]:
    """The stretches of a row that belong to an encoder, each with its modality; neighbours are put together."""
    modality_of = seen_by(network, layout)
    found: list[tuple[slice, str]] = []
    start = 0
    for name, shape in layout.shapes.items():
        end = start + shape.numel()
        modality = modality_of.get(name)
        if modality is not None and found and found[-1] == (slice(found[-1][0].start, start), modality):
            found[-1] = (slice(found[-1][0].start, end), modality)
        elif modality is not None:
            found.append((slice(start, end), modality))
        start = end
    return found


def kept_local(network: nn.Module, local: Callable[[nn.Module], bool]) -> Layout:
    """Floating-point tensors of the modules that stay at the hospital."""
    return _layout(network, lambda module, name: _travels(module, name) and local(module))


def constants(network: nn.Module) -> Layout:
    """What is made of statistics: fill, centre and scale of the table, scaling of images, weights of classes."""
    return _layout(network, lambda module, _: isinstance(module, Constants))


def needed(network: nn.Module) -> tuple[str, ...]:
    """The numbers per patient, beside the table's columns, that the network's constants are made of."""
    return tuple(
        dict.fromkeys(name for module in network.modules() if isinstance(module, Constants) for name in module.needs)
    )


def constants_of(network: nn.Module, layout: Layout, told: Told) -> NDArray[np.float64]:
    """The numbers of the layout `constants`, (size,), for a fold whose training hospitals have told this."""
    found = {
        f"{prefix}.{name}" if prefix else name: values
        for prefix, module in network.named_modules()
        if isinstance(module, Constants)
        for name, values in module.made_of(told).items()
    }
    return np.concatenate([np.zeros(0), *(found[name].ravel() for name in layout.shapes)])


def row(network: nn.Module, layout: Layout) -> torch.Tensor:
    """A network's tensors as one row (1, size), copied."""
    state = network.state_dict()
    tensors = {name: state[name][None] for name in layout.shapes}
    like = next(tensor for tensor in state.values() if tensor.is_floating_point())
    return layout.pack(tensors, like.reshape(1, -1))
