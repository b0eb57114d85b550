"""Networks by name: `network: {name: ...}` of a federation to a torch module with its start values."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

import torch
from torch import nn

from ich_models.errors import ConfigurationError
from ich_models.networks.constants import ClassWeights
from ich_models.networks.options import IchScore, NetworkOptions
from ich_models.networks.tabular import logistic, mlp

_ON_TABLES: Final[dict[str, Callable[[Any, int], nn.Module]]] = {"logistic": logistic, "mlp": mlp}

_WITH_TABLE: Final = {"vdafm": "vdafm", "mednvc": "mednvc", "concat": "baselines"}
_WITHOUT: Final = {"ichpro": "ichpro", "hohoho": "hohoho", "dlmi": "dlmi", "image_only": "baselines"}
"""Builder to its module, which is imported only when it is asked for: monai and transformers take seconds."""

OUTPUT_BIAS: Final = "output.bias"
"""Every network's last bias has this name, if its options let it start at the prevalence."""

DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}


def build(options: NetworkOptions, columns: int, seed: int, names: Sequence[str] = ()) -> nn.Module:
    """The network for `columns` table columns, on the CPU. `names`: of the columns, for networks that look for some.

    Its start values depend on `seed` alone: server and hospitals build the same network without sending it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _make(options, columns, names)
    if options.class_weights == "federation":
        made.class_weights = ClassWeights()
    return made.to(DTYPES[options.dtype])


def _make(options: NetworkOptions, columns: int, names: Sequence[str]) -> nn.Module:
    made: nn.Module
    if options.name in _ON_TABLES:
        return _ON_TABLES[options.name](options, columns)
    if isinstance(options, IchScore):
        made = _builder("baselines", "IchScoreNetwork")(options, names)
    elif options.name in _WITH_TABLE:
        made = _builder(_WITH_TABLE[options.name], options.name)(options, columns)
    else:
        made = _builder(_WITHOUT[options.name], options.name)(options)
    return made


def _builder(module: str, name: str) -> Callable[..., nn.Module]:
    try:
        found: Callable[..., nn.Module] = getattr(import_module(f"ich_models.networks.{module}"), name)
    except ModuleNotFoundError as problem:
        raise ConfigurationError(
            f"this network needs the package '{problem.name}', which is not installed",
            hint="pip install 'ich-federation[networks]'",
        ) from problem
    return found
