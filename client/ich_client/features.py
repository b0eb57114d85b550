"""What frozen encoders say of a hospital's patients: computed once, kept on disk, used in every round and fold."""

import hashlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ich_models.batch import Patients
from ich_models.files import write_atomic_with
from ich_models.networks.staged import Encoder, StagedNetwork
from ich_models.stack import LARGEST_PIECE
from ich_strategies.plan import Plan

log = logging.getLogger(__name__)


def with_frozen_features(plan: Plan, patients: Patients, folder: Path) -> Patients:
    """The patients with the features of the network's frozen encoders in place of their images and texts.

    `folder`: where they are kept, (N, ...) float32 per modality, under a hash of the encoder's numbers and of the data.
    A network without frozen encoders gets the patients as they are. Raises OSError if the disk is full.
    """
    network = plan.network
    if not isinstance(network, StagedNetwork):
        return patients
    found: dict[str, NDArray[np.floating]] = {}
    for encoder in network.resting():
        data = getattr(patients, encoder.modality)
        if not encoder.frozen or data is None:
            continue
        path = folder / f"features-{encoder.modality}-{_hash(encoder, patients, data)}.npy"
        if not path.exists():
            log.info("%s: features of %d patients are computed once", encoder.modality, len(patients))
            kept = _compute(network, encoder, patients, plan.dtype)
            write_atomic_with(path, partial(np.save, arr=kept, allow_pickle=False))
            for old in set(folder.glob(f"features-{encoder.modality}-*.npy")) - {path}:
                old.unlink()
        found[encoder.modality] = np.load(path, mmap_mode="c", allow_pickle=False)
    if not found:
        return patients
    return replace(
        patients,
        features=found,
        image=None if "image" in found else patients.image,
        text=None if "text" in found else patients.text,
    )


def _hash(encoder: Encoder, patients: Patients, data: NDArray[np.generic]) -> str:
    digest = hashlib.sha256(f"{data.shape} {data.dtype}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"%d" % int(tensor)
        )
    for row in data:
        digest.update(np.ascontiguousarray(row).tobytes())
    digest.update(patients.holding(encoder.modality).tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _compute(network: StagedNetwork, encoder: Encoder, patients: Patients, dtype: torch.dtype) -> NDArray[np.float32]:
    like = next(encoder.parameters())
    pieces = patients.batch(dtype).pieces(LARGEST_PIECE)
    kept = [network.features(encoder, piece.to(like.dtype, like.device)).float().cpu().numpy() for piece in pieces]
    return np.concatenate(kept)
