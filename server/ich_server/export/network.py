"""The network as one function of arrays, for exports: a patient's table, image and text as they are prepared -> probabilities."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ich_models import clinical
from ich_models.batch import Batch, Modality
from ich_models.errors import ConfigurationError
from ich_models.image_spec import Views
from ich_models.networks.options import Hohoho
from ich_strategies.models import Model, load_stack
from ich_strategies.plan import Plan

Array = NDArray[Any]

OUTPUT: Final = "probability"

PATIENTS: Final = 4
"""In the sample that the copies are compared on."""

STEPS: Final = 16
"""Grey levels of the sample's images: they compress."""


class _Everybody(Batch):
    """Patients of whom each has every modality: nothing in the network then depends on who is there."""

    def who(self, modality: Modality) -> torch.Tensor:
        return torch.ones(self.label.shape[0], dtype=torch.bool, device=self.label.device)


class Probabilities(nn.Module):
    """Arrays in the order of `names`, one row per patient -> probabilities (B,), or of single slices (B, S, 5)."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, arrays, strict=True))
        label = torch.zeros(arrays[0].shape[0])
        batch = _Everybody(given.get("table"), label, image=given.get("image"), text=given.get("text"))
        return torch.sigmoid(self.network(batch).logits)


def exportable(plan: Plan) -> None:
    """Raise ConfigurationError for a network that cannot be one function of arrays, with the reason."""
    if isinstance(plan.federation.network, Hohoho):
        raise ConfigurationError(
            "hohoho cannot be exported as ONNX or as a MONAI bundle: its LSTM walks along a patient's slices, and the"
            " number of slices is another for every patient",
            hint="export without --onnx and --monai: the weights by name, and ich-client predict uses the model itself",
        )


def function_of(model: Model) -> Probabilities:
    """The model's network with its weights and constants, in evaluation mode, on the CPU."""
    exportable(model.plan)
    network = load_stack(model.plan, model.rows).network.eval().requires_grad_(False)
    return Probabilities(network, inputs(model.plan)).eval()


def inputs(plan: Plan) -> tuple[Modality, ...]:
    """Names of the arrays that the network takes, in their order."""
    uses = set(plan.federation.network.uses)
    every: tuple[Modality, ...] = ("table", "image", "text")
    return tuple(name for name in every if name in uses)


def shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Of one patient's arrays."""
    modalities = plan.federation.modalities
    found: dict[str, tuple[int, ...]] = {}
    for name in inputs(plan):
        if name == "table":
            found[name] = (len(plan.columns),)
        elif name == "text":
            assert modalities.text is not None, "the network reads texts"
            found[name] = (modalities.text.tokens,)
        else:
            spec = modalities.image
            assert spec is not None, "the network sees images"
            single = (spec.channels, *spec.size)
            several = len(spec.size) == 2 and plan.federation.network.name != "image_only"
            found[name] = ((spec.most if isinstance(spec, Views) else 1), *single) if several else single
    return found


def sample(plan: Plan, patients: int = PATIENTS) -> dict[str, Array]:
    """Made-up patients that fit the network, the same for the same study; the first lacks a number that can be imputed."""
    generator = np.random.default_rng(plan.seed)
    found: dict[str, Array] = {}
    for name, shape in shapes(plan).items():
        whole = (patients, *shape)
        if name == "table":
            found[name] = _table(plan, generator.random(whole))
        elif name == "image":
            found[name] = (generator.integers(0, STEPS + 1, whole) / STEPS).astype(plan.number)
        else:
            text: Any = getattr(plan.federation.network, "text", None)
            found[name] = generator.integers(1, text.vocabulary, whole).astype(np.int64)
            found[name][0, shape[0] // 2 :] = 0
    return found


def _table(plan: Plan, chance: Array) -> Array:
    """Values within each column's bounds; yes or no where it has two values. `chance`: (N, D), 0 to 1."""
    table = plan.federation.modalities.table
    low, high = clinical.bounds(table)
    wide = high - low >= clinical.LARGEST_NUMBER
    values = np.where(wide, chance, low + chance * np.where(wide, 1, high - low))
    of_two = np.array([not _is_number(plan, name) for name in plan.columns])
    values = np.where(of_two, np.round(chance), values).astype(plan.number)
    imputed = [
        place
        for place, name in enumerate(plan.columns)
        if (variable := table.chosen.get(name)) is not None and not variable.codes and variable.missing == "impute"
    ]
    if imputed:
        values[0, imputed[0]] = np.nan
    return values


def _is_number(plan: Plan, column: str) -> bool:
    variable = plan.federation.modalities.table.chosen.get(column)
    return variable is not None and not variable.codes


def expected(function: Probabilities, arrays: dict[str, Array]) -> Array:
    """What the network itself says of them."""
    with torch.no_grad():
        said: Array = function(*(torch.from_numpy(arrays[name]) for name in function.names)).numpy()
    return said
