"""Strategies by name: `training.strategy` of a federation to the algorithm."""

from collections.abc import Callable
from typing import Any, Final

from ich_models.strategy_options import StrategyOptions
from ich_strategies.fedavg import FedAvg
from ich_strategies.fedavgm import FedAvgM
from ich_strategies.fedbn import FedBN
from ich_strategies.fedopt import SECOND_MOMENTS, FedOpt
from ich_strategies.fedprox import FedProx
from ich_strategies.flower_strategies import FLOWERS, FlowerStrategy
from ich_strategies.scaffold import Scaffold
from ich_strategies.strategy import Strategy

_STRATEGIES: Final[dict[str, Callable[..., Strategy]]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedavgm": FedAvgM,
    "fedbn": FedBN,
}


def build(options: StrategyOptions) -> Strategy:
    """The algorithm with its options."""
    settings: dict[str, Any] = options.model_dump(exclude={"name"})
    if options.name in FLOWERS:
        return FlowerStrategy(options.name, settings)
    if options.name in SECOND_MOMENTS:
        return FedOpt(options.name, **settings)
    return _STRATEGIES[options.name](**settings)
