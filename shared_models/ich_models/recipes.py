"""How one hospital trains: optimisers and learning-rate schedules by name, and the recipe and stages that use them."""

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator

from ich_models.augment import Augmentation
from ich_models.errors import ConfigurationError
from ich_models.strict import Strict

Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegative = Annotated[float, Field(ge=0)]


class SGD(Strict):
    """Stochastic gradient descent, with momentum if asked for."""

    name: Literal["sgd"]
    lr: PositiveFloat
    momentum: Beta = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum | add momentum: 0.9")
        return self


class Lion(Strict):
    """Lion (Chen et al. 2023): the sign of a momentum."""

    name: Literal["lion"]
    lr: PositiveFloat
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NonNegative = 0.0


class Adam(Strict):
    """Adam and its relatives (Kingma and Ba 2015; Loshchilov and Hutter 2019; Liu et al. 2020)."""

    name: Literal["adam", "adamw", "radam"]
    lr: PositiveFloat
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegative = 0.0


OptimizerOptions = Annotated[SGD | Adam | Lion, Field(discriminator="name")]

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
}


def build_optimizer(options: SGD | Adam | Lion, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """A fresh torch optimiser; every one here works element by element, so stacked models stay independent.

    Raises ConfigurationError if its package is not installed.
    """
    settings: dict[str, Any] = options.model_dump(exclude={"name"})
    tensors = list(parameters)
    if isinstance(options, Lion):
        return _lion()(tensors, **settings)
    settings["foreach"] = any(tensor.is_cuda for tensor in tensors)  # what torch would find out anew at every step
    return _OPTIMIZERS[options.name](tensors, **settings)


def _lion() -> type[torch.optim.Optimizer]:
    try:
        module = import_module("lion_pytorch")
    except ModuleNotFoundError as problem:
        raise ConfigurationError(
            "the optimiser lion needs the package lion-pytorch, which is not installed",
            hint="pip install 'ich-federation[networks]'",
        ) from problem
    found: type[torch.optim.Optimizer] = module.Lion
    return found


class Constant(Strict):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, epoch: int, epochs: int) -> float:
        """Multiplier of the learning rate in local epoch `epoch` (from 0) of `epochs`."""
        return 1.0


class Cosine(Strict):
    """Linear warm-up over `warm_up` epochs, then half a cosine down to `final` (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"]
    warm_up: Annotated[int, Field(ge=0)] = 0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0

    def factor(self, epoch: int, epochs: int) -> float:
        """Multiplier of the learning rate in local epoch `epoch` (from 0) of `epochs`."""
        if epoch < self.warm_up:
            return (epoch + 1) / (self.warm_up + 1)
        done = (epoch - self.warm_up) / max(1, epochs - self.warm_up)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, done))) / 2


class Step(Strict):
    """Multiplied by `gamma` every `every` epochs."""

    name: Literal["step"]
    every: Count
    gamma: Annotated[float, Field(gt=0, le=1)]

    def factor(self, epoch: int, epochs: int) -> float:
        """Multiplier of the learning rate in local epoch `epoch` (from 0) of `epochs`."""
        return self.gamma ** (epoch // self.every)


ScheduleOptions = Annotated[Constant | Cosine | Step, Field(discriminator="name")]


class Recipe(Strict):
    """One stretch of local training: how long, in which batches, with which optimiser."""

    epochs: Count | None = None
    """Passes over the hospital's training patients."""
    updates: Count | None = None
    """Optimiser steps instead of passes; the patients are shuffled anew whenever they run out."""
    batch: Count | Literal["all"]
    """Patients per step; `all`: one full-batch step per epoch."""
    optimizer: OptimizerOptions
    schedule: ScheduleOptions = Constant()
    clip: PositiveFloat | None = None
    """Largest L2 norm of a step's gradient."""
    augment: list[Augmentation] = []
    """What is changed of the patients of each batch, in this order."""
    amp: bool = False
    """Mixed precision: products in bfloat16, which has float32's range and needs no scaling of the loss."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.updates is None):
            raise ValueError("give epochs or updates, one of the two | add epochs: 1")
        return self


class Stage(Recipe):
    """A phase of federated training; schedules count its local epochs over all its rounds and never restart."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = "train"
    rounds: Count
