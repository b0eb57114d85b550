"""Values that are Hounsfield units, and values that are not: both sides of each bound of `check_hounsfield`."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.stack import check_hounsfield


def head(air: int = -1000, brain: int = 35, *, metal: int = 0, rows: int = 50, side: int = 100) -> NDArray[np.int16]:
    """Three slices: a brain of half of each side, a skull around, air. `metal`: so many pixels of 20000 HU in each slice;
    `rows`: of 50 pixels of brain each, the others are bone."""
    values = np.full((3, side, side), air, np.int16)
    values[:, side // 5 : -side // 5, side // 5 : -side // 5] = 1000
    values[:, side // 4 : -side // 4, side // 4 : -side // 4][:, : rows * side // 100] = brain
    values[:, 0, :metal] = 20_000
    return values


@pytest.mark.parametrize(
    "values",
    [
        head(),
        head(metal=99),  # fewer than one in a hundred
        head(air=-1024),
        head(air=-860),
        head(brain=0),
        head(brain=79),
        head(rows=2),
        head(side=400),
    ],
)
def test_heads_in_hounsfield_units(values: NDArray[np.int16]) -> None:
    check_hounsfield(values)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.pad(head(), ((0, 0), (2, 0), (0, 0)), constant_values=20_000), "values above 15000 HU"),
        (head(air=-840), "air at -840 HU"),  # in another unit: a scale of 0.84
        (head(air=0), "no air"),
        (head(rows=1), "nearly nothing from -200 to 300 HU"),
        (head(brain=80), "most of the soft tissue at 85 HU"),
        (head(brain=-1), "most of the soft tissue at -5 HU"),
        (head(air=-840, side=400), "air at -840 HU"),
    ],
)
def test_heads_in_something_else(values: NDArray[np.int16], why: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_hounsfield(values)
    assert (caught.value.reason, caught.value.detail) == (Reason.HU_RANGE, why)
