"""The template: a patient's variables to sentences, the same at every hospital; what is missing is left out.

Version 1 (`text_spec.VERSION`). A sentence is the variable's name, its value and its unit: "age 71 years." Underscores of
names and levels are read as spaces. What it may speak of is decided by `TextSpec.spoken` alone, which is checked for leaks
when the study is loaded: a value of another variable, the outcome's among them, has no way into a sentence.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ich_models.clinical import Value
from ich_models.text_spec import TextSpec
from ich_models.variables import Table

BANDS: Final = ("lowest", "very low", "low", "middle", "high", "very high", "highest")
"""Seven equal parts of a variable's range; a value between two belongs to the upper one."""

_MOST_PLACES: Final = 6
"""Decimals of a small number."""


@dataclass(frozen=True)
class Measured:
    """A quantity that was measured in the image. `range`: for words; without it the number is said in digits."""

    name: str
    value: float
    unit: str = ""
    range: tuple[float, float] | None = None


def write(values: Mapping[str, Value], spec: TextSpec, table: Table, measured: Iterable[Measured] = ()) -> str:
    """The sentences of one patient; empty if nothing is known.

    `values`: by variable, in the study's units; those that the study does not speak of are passed over.
    Raises ValueError for a measured quantity that is named like a variable, or that is not finite.
    """
    sentences = []
    for name, variable in spec.spoken(table).items():
        value = values.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, str):
            sentences.append(_sentence(name, value))
        elif variable.type == "integer" and spec.numbers == "digits":
            sentences.append(_sentence(name, str(int(value)), variable.unit or ""))
        else:
            sentences.append(_number(name, value, variable.unit or "", variable.range, spec))
    for one in measured:
        if one.name in table.variables:
            raise ValueError(f"'{one.name}' is a variable of the table")
        sentences.append(_number(one.name, one.value, one.unit, one.range, spec))
    return " ".join(sentences)


def _sentence(*parts: str) -> str:
    return " ".join(part.replace("_", " ") for part in parts if part) + "."


def _number(name: str, value: float, unit: str, limits: tuple[float, float] | None, spec: TextSpec) -> str:
    if spec.numbers == "words" and limits is not None:
        return _sentence(name, band(value, *limits))
    return _sentence(name, digits(value), unit)


def band(value: float, low: float, high: float) -> str:
    """The word for a number by the part of its range that it lies in."""
    part = math.floor((value - low) / (high - low) * len(BANDS))
    return BANDS[min(max(part, 0), len(BANDS) - 1)]


def digits(value: float) -> str:
    """Three significant digits without an exponent, whole numbers in full: 64.5, 7.25, 0.012, 1204.

    A unit's conversion leaves noise far behind the third digit; hospitals with different units must say the same.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    exponent = int(f"{value:.2e}".partition("e")[2])
    places = min(max(2 - exponent, 0), _MOST_PLACES)
    text = f"{value:.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
