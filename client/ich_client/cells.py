"""One cell of a hospital's table: its text, the number in it, and when two cells mean the same."""

import math
import re
from datetime import date, datetime
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def as_text(value: object) -> str:
    """A typed value as a CSV file would hold it: 3.0 is '3', midnight is left out of a date, nothing is ''."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return ""
        case float() if value.is_integer() and abs(value) < 1e16:
            return str(int(value))
        case datetime():
            text = value.isoformat(sep=" ")
            return text.removesuffix(" 00:00:00")
        case date():
            return value.isoformat()
    return str(value).strip()


def number(text: str, decimal: str = ".") -> float | None:
    """The number that a text is, or None: no thousands separators, no 'nan', no units, nothing after the digits."""
    if decimal != ".":
        if "." in text:
            return None
        text = text.replace(decimal, ".")
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def meaning(text: str, ignore_case: bool = False, decimal: str = ".") -> Decimal | str:
    """What a code is compared by: '0', '0.0' and '00' are one number; other text stands for itself."""
    if number(text, decimal) is not None:
        return Decimal(text.replace(decimal, "."))
    return text.casefold() if ignore_case else text
