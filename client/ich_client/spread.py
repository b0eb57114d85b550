"""The hospital's own patients as points on a plane: t-SNE of what a finished model makes of each, coloured by outcome."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ich_client.newcomers import Newcomers
from ich_client.prediction import other, title
from ich_client.work import load_stack
from ich_models.batch import Batch
from ich_models.errors import ConfigurationError, DataError
from ich_models.explain import FEWEST, spread_out
from ich_models.stack import LARGEST_PIECE
from ich_strategies.models import Model

SIDE: Final = 600
"""Pixels of the picture."""
EDGE: Final = 20
"""Pixels around the points."""
RADIUS: Final = 5

COLOURS: Final[Mapping[bool | None, tuple[int, int, int]]] = {
    True: (213, 94, 0),
    False: (0, 114, 178),
    None: (170, 170, 170),
}
"""By positive outcome, the other, and not known: orange, blue and grey, told apart by colour-blind eyes too (Okabe and Ito)."""

Colours = NDArray[np.uint8]


@dataclass(frozen=True)
class Points:
    """N patients. `places`: (N, 2) float32, of no unit; `outcomes`: whether positive, None where it is not recorded."""

    ids: tuple[str, ...]
    places: NDArray[np.float32]
    outcomes: tuple[bool | None, ...]


def spread(model: Model, given: Newcomers, outcomes: Sequence[bool | None]) -> Points:
    """Everybody who can be predicted. `outcomes`: of `given.patients`, in their order; they colour points and move none.

    Raises DataError for fewer than `FEWEST` patients, and ConfigurationError for a model that learns nothing of patients.
    """
    if model.plan.federation.network.name == "ich_score":
        raise ConfigurationError("the ICH score has no embedding", hint="t-SNE is of what a network has learnt")
    if len(given.patients) < FEWEST:
        message = f"t-SNE of {len(given.patients)} patients, and it needs at least {FEWEST}"
        raise DataError(message, hint="ich-client predict says who cannot be predicted, and why")
    torch.set_num_threads(given.threads)  # as in training: sums in a fixed order
    places = spread_out(embeddings(model, given.patients.batch(model.plan.dtype)), model.plan.seed)
    return Points(given.patients.ids, places, tuple(outcomes))


@torch.no_grad()
def embeddings(model: Model, patients: Batch) -> NDArray[np.float64]:
    """(N, D): what the network's last layer reads of each patient.

    Of networks of slices what their image encoders say (of `dlmi` both, side by side), the mean over the patient's slices.
    """
    network = load_stack(model.plan, model.rows).network.eval()
    found = []
    for piece in patients.pieces(LARGEST_PIECE):
        said = network(piece.to(model.plan.dtype, torch.device("cpu"))).embeddings
        if "fused" in said:
            whole = said["fused"].flatten(1)
        else:
            names = [name for name in said if name != "sequence" and not name.endswith("_logits")]
            whole = torch.cat([said[name] for name in names], dim=-1)
        if whole.ndim == 3:
            real = (torch.ones(whole.shape[:2]) if piece.slices is None else piece.slices).to(whole.dtype)[..., None]
            whole = (whole * real).sum(1) / real.sum(1).clamp(min=1)
        found.append(whole.double().numpy())
    return np.concatenate(found)


# --- files ------------------------------------------------------------------------------------------------------------


def picture(points: Points) -> Colours:
    """(SIDE, SIDE, 3): a disc for each patient, the vertical axis upwards; those whose outcome is not known lie below."""
    low, high = points.places.min(0), points.places.max(0)
    room = SIDE - 1 - 2 * EDGE
    # one scale for both axes: distances are all that the picture shows
    scaled = (points.places - (low + high) / 2) / max(float((high - low).max()), 1e-9) * room
    across, down = SIDE / 2 + scaled[:, 0], SIDE / 2 - scaled[:, 1]
    out = np.full((SIDE, SIDE, 3), 255, np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for place in sorted(range(len(points.ids)), key=lambda place: points.outcomes[place] is not None):
        disc = (columns - across[place]) ** 2 + (rows - down[place]) ** 2 <= RADIUS**2
        out[disc] = COLOURS[points.outcomes[place]]
    return out


def as_csv(model: Model, points: Points) -> str:
    """patient, x, y, outcome (empty where it is not recorded)."""
    words = {True: title(model), False: other(model), None: ""}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient", "x", "y", "outcome"])
    for name, (x, y), outcome in zip(points.ids, points.places.tolist(), points.outcomes, strict=True):
        writer.writerow([name, f"{x:.4f}", f"{y:.4f}", words[outcome]])
    return text.getvalue()
