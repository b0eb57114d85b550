"""Secret chance: the noise of differential privacy and who is in a batch, from AES in counter mode keyed by the system.

Whoever can guess the numbers can take the noise away again: so nothing here comes from a study's seed, and a generator
of 32 bits of state per seed, which can be tried out, would not do either (docs/privacy.md, "Noise").
"""

import math
import os
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_UNIT: Final = 2.0**-53
"""Step of the uniform numbers: what float64 resolves below 1."""

_PIECE: Final = 2**15
"""Normal numbers made at a time: they stay in the processor's cache."""


class Stream:
    """An endless stream of secret random numbers: AES-256-CTR, key and counter from the operating system.

    Each stream is its own; none can be repeated. Not to be shared by processes: a fork would draw the same numbers.
    """

    def __init__(self) -> None:
        self._cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def _bits(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype=np.uint64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """(count,) multiples of 2^-53 in [0, 1)."""
        return (self._bits(count) >> np.uint64(11)).astype(np.float64) * _UNIT

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers of this shape, float64, on the CPU (Box and Muller 1958).

        None is larger than 8.66 in size: the smallest uniform number is 2^-54. Of a true normal number that is
        5e-18 of the cases.
        """
        count = math.prod(shape)
        numbers = torch.empty(count, dtype=torch.float64)
        for start in range(0, count, _PIECE):
            half = (min(_PIECE, count - start) + 1) // 2
            first, second = torch.from_numpy(self.uniform(2 * half)).split(half)
            radius = first.add_(_UNIT / 2).log_().mul_(-2).sqrt_()
            angle = second.mul_(2 * math.pi)
            numbers[start : start + 2 * half] = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])[
                : count - start
            ]
        return numbers.reshape(shape)

    def seeds(self, count: int) -> torch.Tensor:
        """(count,) int64, for torch's generator: what random layers and augmentations of single patients begin with."""
        return torch.from_numpy((self._bits(count) >> np.uint64(1)).astype(np.int64))

    def poisson(self, patients: int, rate: float) -> torch.Tensor:
        """Row numbers, int64, of a batch in which each of the patients is with chance `rate`, by himself; maybe nobody."""
        return torch.from_numpy((self.uniform(patients) < rate).nonzero()[0])


def add_noise(total: torch.Tensor, scale: float, stream: Stream) -> torch.Tensor:
    """`total` plus normal noise of standard deviation `scale`, of the same form, type and device.

    Added in float64 and rounded to float32's 24 bits, whatever the type: some 2^29 of the noise's float64 values then
    lead to each number that can be seen, so that none can be told apart by the gaps between them (Mironov 2012).
    `scale` 0 leaves every bit as it is.
    """
    if scale == 0:
        return total
    noise = stream.normal(tuple(total.shape)).to(total.device)
    return noise.mul_(scale).add_(total).float().to(total.dtype)
