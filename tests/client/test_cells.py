"""Cells as text: numbers are parsed strictly, and codes compare by what they mean."""

import math
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_client.cells import as_text, meaning, number

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (-0.5, "-0.5"),
        (1e300, "1e+300"),
        (7, "7"),
        (None, ""),
        (math.nan, ""),
        (True, "true"),
        ("  a b ", "a b"),
        (date(2027, 1, 31), "2027-01-31"),
        (datetime(2027, 1, 31), "2027-01-31"),  # noqa: DTZ001  # as workbooks give it
        (datetime(2027, 1, 31, 7, 5), "2027-01-31 07:05:00"),  # noqa: DTZ001
    ],
)
def test_typed_values_as_text(value: object, text: str) -> None:
    assert as_text(value) == text


@given(FINITE)
def test_a_number_survives_its_text(value: float) -> None:
    assert number(as_text(value)) == value
    assert number(as_text(value).replace(".", ","), ",") == value
    assert number(f"+{abs(value)!r}") == abs(value)


@given(st.text(max_size=8))
def test_what_is_read_as_a_number_is_one(text: str) -> None:
    value = number(text)
    if value is not None:
        assert set(text) <= set("+-.eE0123456789")
        assert float(text) == value
        assert math.isfinite(value)


@pytest.mark.parametrize(
    "text", ["", " ", "1 000", "1,000", "1_000", "nan", "inf", "1e999", "0x1F", "12 mg", "1.2.3", "٣", "--1", "e5", "."]
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


def test_one_decimal_mark_at_a_time() -> None:
    assert number("1,5", ",") == 1.5
    assert number("1.5", ",") is None
    assert number("1,5") is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6))
def test_a_code_is_the_same_number_however_it_is_written(value: Decimal) -> None:
    text = f"{value:f}"
    padded = text.replace("-", "-00") if value.is_signed() else f"00{text}"
    assert meaning(text) == meaning(f"{text}00") == meaning(padded) == meaning(text.replace(".", ","), decimal=",")
    assert hash(meaning(text)) == hash(meaning(f"{text}00"))


@given(st.text(max_size=6), st.text(max_size=6))
def test_other_codes_are_the_same_only_if_their_text_is(one: str, other: str) -> None:
    if number(one) is None:
        assert (meaning(one) == meaning(other)) == (one == other)
        assert meaning(one, ignore_case=True) == meaning(one.casefold(), ignore_case=True)


@given(st.integers(min_value=10**15, max_value=10**30))
def test_long_codes_are_not_rounded(value: int) -> None:
    assert meaning(str(value)) != meaning(str(value + 1))
