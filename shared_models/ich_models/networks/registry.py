"""Networks by name: `network: {name: ...}` of a federation to a torch module with its start values."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

from ich_models.networks.options import NetworkOptions
from ich_models.networks.tabular import logistic, mlp

_BUILDERS: Final[dict[str, Callable[[Any, int], nn.Module]]] = {"logistic": logistic, "mlp": mlp}

OUTPUT_BIAS: Final = "output.bias"
"""Every network's last bias has this name."""

DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}


def build(options: NetworkOptions, columns: int, seed: int) -> nn.Module:
    """The network for `columns` table columns, on the CPU.

    Its start values depend on `seed` alone: server and hospitals build the same network without sending it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _BUILDERS[options.name](options, columns).to(DTYPES[options.dtype])
