"""Before the first private step: does one patient move the sum of clipped gradients by no more than the clip?

Tests of the network's parts pass cases that are not private (docs/privacy.md), so the property itself is measured, on the
hospital's own patients and with the network that will be trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from ich_client.gradients import Draw, Engine, norm
from ich_client.tasks import RefusedError
from ich_models.errors import Code
from ich_models.losses import coupled, terms_of
from ich_models.stack import Stack

LEEWAY: Final = 1e-6
"""What rounding may add to the ratio, which is 1 at most."""


def refuse_coupling(stack: Stack) -> None:
    """Raise RefusedError(PRIVACY) for what no clip can make private: losses and layers that compare patients.

    Federation files that ask for such are refused with the way out when they are read (`ich_models.private_rules`); this is
    the same question to the network itself.
    """
    if names := coupled(terms_of(stack.network)):
        raise RefusedError(Code.PRIVACY, f"losses that compare patients with one another: {', '.join(names)}")
    if names := tuple(_batch_statistics(stack.network)):
        raise RefusedError(Code.PRIVACY, f"layers that use or keep statistics of a batch: {', '.join(names)}")


def _batch_statistics(network: nn.Module) -> Iterator[str]:
    """Names of the layers that do so as they are now. One in evaluation mode, as in a frozen encoder, does not."""
    for name, module in network.named_modules():
        of_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (
            of_batch or getattr(module, "track_running_stats", False)
        ):  # the instance family may, too
            yield name


@contextmanager
def unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Raise RefusedError(PRIVACY) if what is done meanwhile changes a tensor of the network that is no parameter.

    Running means, queues and moving averages would carry patients out of the hospital past clip and noise.
    """
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    yield
    after = dict(network.named_buffers())
    changed = [
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    ]
    if changed:
        names = ", ".join(sorted(changed))
        raise RefusedError(Code.PRIVACY, f"training changes tensors that are no parameters, past the noise: {names}")


def leave_one_out(engine: Engine, draw: Draw, clip: float, epoch: float = 0.0) -> float:
    """The largest |sum clip(D) - sum clip(D without j)| / C over the patients j of a batch D; 0 for an empty one.

    Summed anew for every j: the time of B batches.
    """
    whole = engine.clipped(draw, clip, epoch)
    largest = 0.0
    for place in range(len(draw.rows)):
        rest = engine.clipped(draw, clip, epoch, without=place)
        largest = max(largest, norm([whole[name] - rest[name] for name in whole]) / clip)
    return largest


def run(engine: Engine, network: nn.Module, draw: Draw, clip: float, epoch: float = 0.0) -> None:
    """Raise RefusedError(PRIVACY) unless the engine is private on these patients."""
    with unchanged_buffers(network):
        ratio = leave_one_out(engine, draw, clip, epoch)
    if not ratio <= 1 + LEEWAY:
        message = (
            f"one patient moves the sum of clipped gradients by {ratio:.6f} times the clip, with engine {engine.name}"
        )
        raise RefusedError(Code.PRIVACY, message)
