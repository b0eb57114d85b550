"""Networks at their tiny size and batches that fit them, for tests of the networks."""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from ich_models.batch import Batch
from ich_models.networks.options import NetworkOptions
from ich_models.networks.registry import build

COLUMNS = 6
NAMES = ["ichpro", "vdafm", "mednvc", "hohoho", "dlmi", "concat", "image_only"]
MODALITIES = {
    "ichpro": ["image", "text"],
    "vdafm": ["image", "text", "table"],
    "mednvc": ["image", "table"],
    "hohoho": ["image"],
    "dlmi": ["image"],
    "concat": ["image", "text", "table"],
    "image_only": ["image"],
}


def options(name: str, **settings: Any) -> Any:
    return TypeAdapter(NetworkOptions).validate_python({"name": name, **settings})


def tiny(name: str, seed: int = 1, **settings: Any) -> Any:
    """A network at its tiny size, some settings apart."""
    return build(options(name, size="tiny", **settings), COLUMNS, seed)


def patients(name: str, count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch for the network of that name; everyone has everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        label = (torch.arange(count) % 2).to(dtype)
        table = torch.randn(count, COLUMNS, dtype=dtype)
        table[0, 1] = torch.nan
        text = torch.randint(110, 500, (count, 32))
        text[0, 20:] = 0
        volumes = torch.randn(count, 1, 16, 32, 32, dtype=dtype)
        slices = torch.randn(count, 3, 3, 32, 32, dtype=dtype)
        types = torch.randint(0, 2, (count, 3, 5)).to(dtype)
    if name in ("hohoho", "dlmi"):
        return Batch(None, types, image=slices)
    if name == "mednvc":
        return Batch(table, label, image=torch.nn.functional.pad(slices, (16, 16, 16, 16)))
    return Batch(table, label, image=volumes, text=text)


def numbers(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def learning(module: nn.Module) -> int:
    """Parameters that ask for a gradient."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
