"""Converts a hospital's units to the study's."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def conversion(source: str, target: str) -> Callable[[float], float]:
    """The function from one unit to another, offsets (degC, degF) included. ValueError, as "message | hint", if none."""
    if source == target:
        return float
    old, new = _unit(source), _unit(target)
    if old.dimensionality != new.dimensionality:
        raise ValueError(
            f"{source} does not convert to {target} | the study's unit is {target}; is it the right column?"
        )

    def convert(value: float) -> float:
        result = float(_registry().Quantity(value, old).to(new).magnitude)
        return float(f"{result:.12g}")  # 36 months are 3 years, not 3.0000000000000004

    return convert


def unit_name(unit: str) -> str:
    """The unit's full name: 'month' for months, 'millimeter_Hg' for mmHg."""
    return str(_unit(unit))


def _unit(text: str) -> Any:  # pint's units carry no useful type
    try:
        return _registry().Unit(re.sub(r"(?<=[A-Za-z])([23])\b", r"**\1", text))  # cm3 is cm**3
    except Exception:  # pint's parser raises tokenizer, attribute and type errors of all kinds
        raise ValueError(f"no unit '{text}' | write it as in years, mL, mmHg, mg/dL, mmol/L, degC") from None


@cache
def _registry() -> Any:
    import pint  # slow to load, and most tables need none of it

    return pint.UnitRegistry()
