"""Local training: a stack of models over a hospital's patients by one recipe, with the strategy's client half."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ich_models import augment
from ich_models.batch import Batch
from ich_models.recipes import Recipe, build_optimizer
from ich_models.stack import Stack, separable

log = logging.getLogger(__name__)

Direction = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
"""Tensor name, gradient (F, *shape), weight (F, *shape) -> the gradient to step along."""


@dataclass(frozen=True)
class Fit:
    """What training reports: `losses` (F,) over the patients seen, and `rate`, the sum of all steps' learning rates."""

    losses: torch.Tensor
    rate: float


def fit(
    stack: Stack,
    patients: Batch,
    recipe: Recipe,
    *,
    rounds_before: int = 0,
    rounds: int = 1,
    epochs_before: int = 0,
    seed: tuple[int, ...],
    direction: Direction | None = None,
    micro_batch: int | None = None,
) -> Fit:
    """Train every model of the stack on the same batches, in place.

    Schedules count local epochs (with `updates`: rounds) over `rounds` rounds, of which `rounds_before` are done; terms
    that fade count those of earlier stages too, `epochs_before`. What rests in the present stage is not stepped along.
    The order of the patients and the random layers follow from `seed` alone, whatever the number of models.
    `micro_batch`: the gradient of a batch is added up over so many patients at a time, where they do not feel each other.
    """
    parameters = [parameter for parameter in stack.parameters.values() if parameter.requires_grad]
    if not parameters:  # a score that nothing is learnt of
        return Fit(stack.own_losses(patients), 0.0)
    optimizer = build_optimizer(recipe.optimizer, parameters)
    stack.network.train()
    patients = stack.with_features(patients)
    device = next(iter(stack.parameters.values())).device
    each = torch.ones(stack.copies, dtype=patients.label.dtype, device=device)  # the gradient of the losses' sum
    losses: list[torch.Tensor] = []
    sizes: list[int] = []
    rate = 0.0
    largest = micro_batch if separable(stack.network) else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        generator = np.random.default_rng(seed)
        # torch.manual_seed would also leave a note, with a traceback, for every kind of accelerator
        torch.default_generator.manual_seed(start := int(generator.integers(2**63)))
        if device.type == "cuda":
            torch.cuda.manual_seed(start)
        for epoch, plain in _batches(patients, recipe, generator):
            batch = augment.of_batch(recipe.augment, plain) if recipe.augment else plain
            done = rounds_before * (recipe.epochs or 1) + epoch
            lr = recipe.optimizer.lr * recipe.schedule.factor(done, rounds * (recipe.epochs or 1))
            for group in optimizer.param_groups:
                group["lr"] = lr
            for parameter in parameters:
                parameter.grad = None
            loss, largest = _backward(stack, batch, epochs_before + done, each, largest, recipe.amp)
            if recipe.clip is not None:
                _clip(stack, recipe.clip)
            if direction is not None:
                redirect(stack, direction)
            optimizer.step()
            losses.append(loss.cpu())
            sizes.append(len(batch))
            rate += lr
    return Fit(_mean(losses, sizes), rate)


def _backward(
    stack: Stack, batch: Batch, epoch: int, each: torch.Tensor, largest: int | None, amp: bool
) -> tuple[torch.Tensor, int | None]:
    """The gradient of a batch: its loss (F,), and how many patients the device holds at once, once it is known.

    A device that is out of memory gets half as many at a time, down to one, where the loss is the mean of the patients'
    own: the gradient is then the same to rounding (random layers draw other numbers). Raises torch.OutOfMemoryError
    elsewhere. `amp` means GPUs: on a CPU, torch 2.13 computes the gradient of some 3D convolutions in bfloat16 from memory
    that nobody has written (docs/decisions.md), and gains no time.
    """
    kind = each.device.type
    while True:
        size = len(batch) if largest is None else min(largest, len(batch))
        sizes = [min(size, len(batch) - start) for start in range(0, len(batch), size)]
        total = torch.zeros_like(each)
        try:
            for part in batch.split(sizes) if len(sizes) > 1 else [batch]:
                share = len(part) / len(batch)
                with torch.autocast(kind, torch.bfloat16, enabled=amp and kind == "cuda"):
                    loss = stack.losses(part, epoch)
                (loss if len(sizes) == 1 else loss * share).backward(each)
                total = loss.detach() if len(sizes) == 1 else total + loss.detach() * share
        except torch.OutOfMemoryError:
            if size == 1 or not separable(stack.network):
                raise
            largest = (size + 1) // 2
            log.warning("the device is out of memory with %d patients at once; %d from now on", size, largest)
            for parameter in stack.parameters.values():
                parameter.grad = None
        else:
            return total, largest


def _mean(losses: list[torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """(F,) float64: mean over all patients seen, of batch means (F,) over `sizes` patients; added in their order."""
    sums = torch.stack(losses).double().numpy() * np.array(sizes)[:, None]
    return torch.from_numpy(np.cumsum(sums, axis=0)[-1] / sum(sizes))


def _batches(patients: Batch, recipe: Recipe, generator: np.random.Generator) -> Iterator[tuple[int, Batch]]:
    """(Epoch, batch) until the recipe's epochs or updates are done; with `updates` everything is epoch 0."""
    size = len(patients) if recipe.batch == "all" else recipe.batch
    done = epoch = 0
    while epoch < recipe.epochs if recipe.epochs is not None else True:
        rows = augment.of_epoch(recipe.augment, patients)
        if size < len(patients) or rows is not None:
            batches = _shuffled(patients, rows, size, generator)
        else:
            batches = iter([patients])
        for batch in batches:
            if done == recipe.updates:
                return
            yield (epoch if recipe.epochs is not None else 0), batch
            done += 1
        epoch += 1


def _shuffled(patients: Batch, rows: torch.Tensor | None, size: int, generator: np.random.Generator) -> Iterator[Batch]:
    count = len(patients) if rows is None else len(rows)
    order = torch.from_numpy(generator.permutation(count))
    if rows is not None:
        order = rows[order]
    sizes = _sizes(count, size)
    if patients.is_large:
        yield from (patients.take(rows) for rows in order.split(sizes))
    else:
        yield from patients.take(order).split(sizes)


def _sizes(patients: int, size: int) -> list[int]:
    """Batches of `size`; a last one of a single patient joins the one before, since it has no batch statistics."""
    sizes = [min(size, patients - start) for start in range(0, patients, size)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def _clip(stack: Stack, largest: float) -> None:
    """Scale each model's gradient to at most this L2 norm."""
    gradients = [_rows(stack, p.grad) for p in stack.parameters.values() if p.grad is not None]
    norms = torch.sqrt(sum((g.reshape(stack.copies, -1).square().sum(1) for g in gradients), torch.zeros(())))
    factors = (largest / norms.clamp(min=1e-12)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.reshape(-1, *[1] * (gradient.ndim - 1)))


@torch.no_grad()
def redirect(stack: Stack, direction: Direction) -> None:
    """Put in the place of each gradient what the strategy's client half makes of it."""
    for name, parameter in stack.parameters.items():
        if parameter.grad is not None:
            gradient = _rows(stack, parameter.grad)
            gradient.copy_(direction(name, gradient, _rows(stack, parameter.detach())))


def _rows(stack: Stack, tensor: torch.Tensor) -> torch.Tensor:
    """(F, *shape), also for a single model, whose tensors have no such axis."""
    return tensor if stack.copies > 1 else tensor[None]
