"""Gradients of single patients, clipped and added: two engines with the same answer, and the choice between them.

The unit is the patient: one gradient over all scans, slices and views, of all parameters that learn together, scaled to
at most the clip (Abadi et al., CCS 2016, Algorithm 1). What a patient adds depends on no other patient:

- `loop`: forward and backward for one patient after another. Right for every network, since there is nobody else in the
  batch; of large networks as fast as ordinary training, and it needs the memory of one patient.
- `ghost`: for heads on kept features, tables, and small networks: patients in one pass of `torch.func.vmap`. A linear layer's
  weight is not differentiated patient by patient: its gradient is that of the output times the input, from which both its
  norm (Goodfellow 2015) and the clipped sum (Bu et al., ICML 2023) follow without its ever being written down.

Opacus' own hooks are not used: they need layers of its own for attention and LSTMs, and are silently wrong on the cases
that privacy tests list (docs/privacy.md).
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from ich_models import augment
from ich_models.batch import Batch
from ich_models.losses import Objective
from ich_models.recipes import Recipe
from ich_models.stack import Stack

log = logging.getLogger(__name__)

EngineName = Literal["auto", "loop", "ghost"]
Tensors = dict[str, torch.Tensor]

SMALL: Final = 4_000_000
"""Parameters of a network with encoders up to which `ghost` is tried: above, `loop` is as fast, and needs less memory."""

_LARGEST: Final = 2**28
"""Bytes of single patients' gradients that `ghost` holds at once."""

_IMAGES: Final = 8
"""Patients with images in one pass of `ghost`: more are not faster, and need memory."""

_BLOCK: Final = 4096
"""Numbers whose squares are added in float32."""

_AGREE: Final = 1e-3
"""Largest difference between the engines' gradients of the patient on whom they differ least, over the gradient's norm."""

_ASTRAY: Final = 0.05
"""The same for every patient. The engines add float32 numbers in another order: mostly they differ by 1e-6, but where a ReLU is
within rounding of its corner, by 0.01 (in float64 by 1e-15). A weight that is used past the mapped pass gives more."""


@dataclass(frozen=True)
class Draw:
    """A step's batch. `rows`: (B,) int64, row numbers. `seeds`: (B,) int64, what their random layers begin with."""

    rows: torch.Tensor
    seeds: torch.Tensor


class Engine(Protocol):
    """Clipped gradients of single patients, added."""

    @property
    def name(self) -> str:
        """Of the two, in the log."""
        ...

    def clipped(self, draw: Draw, clip: float, epoch: float, without: int | None = None) -> Tensors:
        """By parameter, the sum over the batch of gradients scaled to a norm of at most `clip`, all parameters together.

        A gradient that is not finite counts as zero. `without`: the place in the batch of a patient to leave out; the
        others then meet the same random numbers as before.
        """
        ...


def learning(stack: Stack) -> Tensors:
    """The parameters that ask for a gradient, by name."""
    return {name: parameter for name, parameter in stack.parameters.items() if parameter.requires_grad}


def choose(stack: Stack, patients: Batch, recipe: Recipe, wanted: EngineName, trial: Draw) -> Engine:
    """The engine for these patients; `auto` takes `ghost` where it can be had. What was taken, and why, is in the log.

    `trial`: some patients, on whom `ghost` must agree with `loop`.
    """
    loop = Loop(stack, patients, recipe)
    why = "asked for"
    if wanted != "loop":
        ghost, why = _ghost(loop, trial)
        if ghost is not None:
            log.info("private gradients: ghost, all patients of a step in one pass (%s)", why)
            return ghost
    log.info("private gradients: loop, one patient at a time (%s)", why)
    return loop


def _ghost(loop: "Loop", trial: Draw) -> tuple["Ghost | None", str]:
    """The engine `ghost` and what speaks for it, or None and what speaks against it."""
    size = sum(parameter.numel() for parameter in learning(loop.stack).values())
    encoded = loop.patients.image is not None or loop.patients.text is not None
    if encoded and size > SMALL:
        return None, f"encoders learn, {size:,} parameters in all"
    if any(isinstance(part, nn.RNNBase) and part.weight_ih_l0.requires_grad for part in loop.stack.network.modules()):
        return None, "an LSTM learns, which torch.func maps one patient at a time as well"
    if not len(trial.rows):
        return None, "no patient to try it on"
    try:
        ghost = Ghost.of(loop.stack, loop.patients, loop.recipe, trial)
        singles = zip(trial.rows.split(1), trial.seeds.split(1), strict=True)
        apart = [_apart(loop, ghost, Draw(rows, seeds)) for rows, seeds in singles]
    except RuntimeError as problem:  # what torch.func says of control flow that depends on a patient's numbers
        log.debug("ghost was tried: %s", str(problem).split("\n", 1)[0])
        return None, "torch.func cannot map the network for these patients"
    if min(apart) > _AGREE or max(apart) > _ASTRAY:
        return None, "the network uses a weight in a way that only the loop follows"
    return ghost, f"{size:,} parameters, encoders included" if encoded else "a table and kept features alone"


def _apart(loop: "Loop", ghost: "Ghost", draw: Draw) -> float:
    """How far the engines' sums of gradients differ, over the norm of the loop's."""
    one, other = (engine.clipped(draw, math.inf, 0.0) for engine in (loop, ghost))
    return norm([one[name] - other[name] for name in one]) / max(norm(list(one.values())), 1e-9)


def norm(tensors: Sequence[torch.Tensor]) -> float:
    """L2 norm of all numbers together."""
    if not tensors:
        return 0.0
    return float(torch.cat([_norms(one.reshape(1, -1)) for one in tensors]).norm())


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """(B, P) -> the norm of each row, (B,) float64.

    Of blocks in the numbers' own type, and of these in float64: of 46 million float32 right to 1e-8, where one norm in
    float32 is off by 1e-4, and one in float64 takes twenty times as long.
    """
    whole = rows.shape[1] // _BLOCK * _BLOCK
    blocks = torch.linalg.vector_norm(rows[:, :whole].reshape(len(rows), -1, _BLOCK), dim=2)
    rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)
    lengths: torch.Tensor = torch.linalg.vector_norm(torch.cat([blocks, rest], dim=1).double(), dim=1)
    return lengths


def _factor(length: float, clip: float) -> float:
    """What a gradient of this norm is scaled by: to at most `clip`, and to nothing if it is not finite."""
    if not math.isfinite(length):
        return 0.0
    return 1.0 if length <= clip else clip / length


def _begin(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


# --- one patient after another ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """One forward and backward per patient."""

    stack: Stack
    patients: Batch
    recipe: Recipe
    name: str = "loop"

    def clipped(self, draw: Draw, clip: float, epoch: float, without: int | None = None) -> Tensors:
        parameters = learning(self.stack)
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for place, (row, seed) in enumerate(zip(draw.rows, draw.seeds.tolist(), strict=True)):
            if place == without:
                continue
            found = self._gradient(row[None], seed, epoch, parameters)
            factor = _factor(norm(list(found.values())), clip)
            if factor:
                for name, gradient in found.items():
                    total[name].add_(gradient, alpha=factor)
        return total

    def _gradient(self, row: torch.Tensor, seed: int, epoch: float, parameters: Tensors) -> Tensors:
        """Of one patient; what the patient does not touch is left out."""
        device = next(iter(parameters.values())).device
        _begin(seed, device)
        patient = augment.of_batch(self.recipe.augment, self.patients.take(row))
        kind = device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.amp and kind == "cuda"):
            loss = self.stack.losses(patient, epoch).sum()
        if not loss.requires_grad:  # nothing of this patient reaches what learns
            return {}
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name: own for name, own in zip(parameters, found, strict=True) if own is not None}


# --- all patients at once ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ghost:
    """All patients in one mapped pass. `linear`: by name, the layers whose weights are not written down per patient;

    `outputs`: the form of one patient's output of each, (1, ..., out).
    """

    stack: Stack
    patients: Batch
    recipe: Recipe
    linear: Mapping[str, nn.Linear]
    outputs: Mapping[str, torch.Size]
    name: str = field(default="ghost")

    @classmethod
    def of(cls, stack: Stack, patients: Batch, recipe: Recipe, trial: Draw) -> "Ghost":
        """With the linear layers that pay: called once in a pass, with more weights than outputs squared.

        2 T^2 <= in * out decides, T rows of input per patient (Bu et al., NeurIPS 2022, mixed ghost clipping).
        """
        calls: dict[str, list[torch.Size]] = {}
        layers = {name: layer for name, layer in stack.network.named_modules() if type(layer) is nn.Linear}

        def note(name: str, output: torch.Tensor) -> torch.Tensor:
            calls.setdefault(name, []).append(output.shape)
            return output

        with torch.no_grad(), _watching(layers, lambda name, _, output: note(name, output)):
            stack.losses(patients.take(trial.rows[:1]))
        outputs = {
            name: shapes[0]
            for name, shapes in calls.items()
            if len(shapes) == 1
            and layers[name].weight.requires_grad
            and 2 * shapes[0][:-1].numel() ** 2 <= layers[name].weight.numel()
        }
        return cls(stack, patients, recipe, {name: layers[name] for name in outputs}, outputs)

    def clipped(self, draw: Draw, clip: float, epoch: float, without: int | None = None) -> Tensors:
        parameters = learning(self.stack)
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        if not len(draw.rows):
            return total
        like = next(iter(parameters.values()))
        _begin(int(draw.seeds[0]), like.device)
        rows, counts = draw.rows, torch.ones(len(draw.rows), dtype=torch.bool)
        if without is not None:  # another stands there and adds nothing: the others' random numbers stay as they were
            rows = rows.clone()
            rows[without], counts[without] = rows[without - 1], False
        written = {name: own for name, own in parameters.items() if name.removesuffix(".weight") not in self.linear}
        most = max(1, _LARGEST // (4 * sum(own.numel() for own in written.values()) + 1))
        if self.patients.is_large:
            most = min(most, _IMAGES)
        for some, counted in zip(rows.split(most), counts.split(most), strict=True):
            batch = augment.of_batch(self.recipe.augment, self.patients.take(some)).to(like.dtype, like.device)
            self._add(total, batch, counted.to(like.device), written, clip, epoch)
        return total

    @torch.no_grad()  # torch.func.grad has a graph of its own
    def _add(
        self, total: Tensors, batch: Batch, counted: torch.Tensor, written: Tensors, clip: float, epoch: float
    ) -> None:
        """Add to `total` the clipped gradients of the patients in `counted` (B,) bool."""
        own, given, left = self._gradients(batch, written, epoch)
        squares = batch.label.new_zeros(len(batch), dtype=torch.float64)
        for values in own.values():
            squares += _norms(values).square()
        for name in given:
            squares += _square(given[name].double(), left[name].double())
        lengths = squares.sqrt()
        factors = torch.where(lengths > clip, clip / lengths, 1.0).to(batch.label.dtype)
        kept = counted & torch.isfinite(lengths)
        if not bool(kept.all()):  # 0 times what is not finite is not finite
            own, given, left = ({name: values[kept] for name, values in one.items()} for one in (own, given, left))
            factors = factors[kept]
        for name, values in own.items():
            total[name] += (factors @ values).reshape(total[name].shape)
        for name, values in left.items():
            scaled = values * factors[:, None, None]
            total[f"{name}.weight"] += scaled.flatten(0, 1).T @ given[name].flatten(0, 1)

    def _gradients(self, batch: Batch, written: Tensors, epoch: float) -> tuple[Tensors, Tensors, Tensors]:
        """Of each patient: the gradients that are written down, (B, P); what entered each linear layer, (B, T, in), and
        the gradient of what left it, (B, T, out).
        """
        taps = {name: batch.label.new_zeros(shape) for name, shape in self.outputs.items()}

        def loss(own: Tensors, taps: Tensors, place: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
            """Of one patient. A tap is a zero added to a layer's output: it has the output's gradient."""
            entered: Tensors = {}

            def tapped(name: str, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
                entered[name] = given
                return output + taps[name]

            named = {Objective.PREFIX + name: tensor for name, tensor in own.items()}
            with _watching(self.linear, tapped):
                patient = batch.take(place[None])
                value = functional_call(self.stack.objective, named, (patient, epoch), tie_weights=False)
            return value, entered

        mapped = vmap(grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0), randomness="different")
        plain = {name: parameter.detach() for name, parameter in written.items()}
        (own, left), given = mapped(plain, taps, torch.arange(len(batch), device=batch.label.device))
        return (
            {name: values.reshape(len(batch), -1) for name, values in own.items()},
            {name: values.flatten(1, -2) for name, values in given.items()},
            {name: values.flatten(1, -2) for name, values in left.items()},
        )


def _square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared norm of each patient's b^T a, for a (B, T, in) and b (B, T, out), from T x T products: (B,)."""
    return ((a @ a.transpose(1, 2)) * (b @ b.transpose(1, 2))).sum((1, 2)).clamp(min=0)


class _Watch(Protocol):
    def __call__(self, name: str, given: torch.Tensor, output: torch.Tensor, /) -> torch.Tensor: ...


@contextmanager
def _watching(layers: Mapping[str, nn.Module], watch: _Watch) -> Iterator[None]:
    """While it lasts, each layer's output is what `watch(name, input, output)` makes of it."""
    handles = [
        layer.register_forward_hook(lambda _, given, output, name=name: watch(name, given[0], output))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
