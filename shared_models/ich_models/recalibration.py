"""Recalibration: the line that would make a model's log-odds right, found at training hospitals and put into its last layer.

logit P(event) = intercept + slope logit(p) (Cox, Biometrika 1958; Janssen et al., J Clin Epidemiol 2008). A network's last layer is
linear, so the line becomes part of the weights, and whatever is done with the model afterwards needs to know nothing of it.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ich_models import calibration
from ich_models.exchange import Layout

Kind = Literal["none", "intercept", "slope"]
Line = tuple[float, float]
"""Intercept and slope."""

AS_IT_IS: Final[Line] = (0.0, 1.0)

_WEIGHT: Final = "output.weight"
_BIAS: Final = "output.bias"
"""Of every network that says one thing of a patient: one output, or two of which the difference counts."""


def fit(labels: npt.ArrayLike, probabilities: npt.ArrayLike, kind: Kind) -> Line | None:
    """The line of these patients, both arrays (patients,); None with one class or where there is no maximum.

    `intercept` keeps the slope at 1.
    """
    event, p = np.asarray(labels) == 1, np.asarray(probabilities, dtype=np.float64)
    if not 0 < np.count_nonzero(event) < event.size:
        return None
    order = np.lexsort((event, p))
    find = calibration.slope if kind == "slope" else calibration.in_the_large
    line = find(event[order], p[order])
    return None if line is None else (line.intercept, line.slope)


def apply(layout: Layout, row: npt.NDArray[np.floating], line: Line) -> npt.NDArray[np.floating]:
    """A row of exchanged weights (size,) of which the last layer says intercept + slope times what it said before.

    Raises KeyError for a network without such a layer.
    """
    intercept, slope = line
    found = row.copy()
    places, start = {}, 0
    for name, shape in layout.shapes.items():
        places[name] = slice(start, start + shape.numel())
        start += shape.numel()
    for name in (_WEIGHT, _BIAS):
        found[places[name]] = row[places[name]] * slope
    found[places[_BIAS].stop - 1] += intercept  # of two outputs the second is the event's
    return found
