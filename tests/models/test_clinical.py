"""Clinical variables as columns: names, order, dummies, and the three ways of being missing."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_models.clinical import Value, columns, encode
from ich_models.variables import Table, Variable

NAN = np.nan
VARIABLES = {
    "AGE": Variable(type="number"),
    "STYPE": Variable(type="category", levels=["PACS", "LACS", "TACS"]),
    "SEX": Variable(type="yes_no"),
    "AF": Variable(type="yes_no", missing="level"),
    "CT": Variable(type="category", levels=["no", "yes"], missing="level"),
    "unused": Variable(type="number"),
}
VALUES: dict[str, Sequence[Value]] = {
    "AGE": [70, None, 81.5, NAN],
    "STYPE": ["LACS", "PACS", None, "TACS"],
    "SEX": ["yes", "no", "no", None],
    "AF": ["no", "yes", None, "no"],
    "CT": [None, "no", "yes", "yes"],
}


def table(*predictors: str, indicators: bool = False) -> Table:
    return Table(variables=VARIABLES, predictors=list(predictors), missing_indicators=indicators)


def test_names_follow_the_predictors_then_come_the_indicators() -> None:
    assert columns(table("SEX", "STYPE", "AF", "AGE")) == (
        "SEX=yes",
        "STYPE=LACS",
        "STYPE=TACS",
        "AF=yes",
        "AF=missing",
        "AGE",
    )
    assert columns(table("AF", "AGE", "STYPE", indicators=True)) == (
        "AF=yes",
        "AF=missing",
        "AGE",
        "STYPE=LACS",
        "STYPE=TACS",
        "AGE?",
        "STYPE?",
    )


def test_values_become_numbers() -> None:
    encoded = encode(VALUES, table("AGE", "STYPE", "SEX", "AF", "CT"))
    assert encoded.dtype == np.float64
    expected = [
        [70, 1, 0, 1, 0, 0, 0, 1],
        [NAN, 0, 0, 0, 1, 0, 0, 0],
        [81.5, NAN, NAN, 0, 0, 1, 1, 0],
        [NAN, 0, 1, NAN, 0, 0, 1, 0],
    ]
    np.testing.assert_array_equal(encoded, expected)


def test_indicators_say_what_was_missing() -> None:
    encoded = encode(VALUES, table("AF", "AGE", "STYPE", indicators=True))
    np.testing.assert_array_equal(encoded[:, -2:], [[0, 0], [1, 0], [0, 1], [1, 0]])


def test_a_value_that_is_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'STYPE' has no level 'POCS'"):
        encode({"STYPE": ["LACS", "POCS"]}, table("STYPE"))
    with pytest.raises(ValueError, match="'AF' has no level 'missing'"):
        encode({"AF": ["missing"]}, table("AF"))


def test_no_patients_are_an_empty_array_of_all_columns() -> None:
    chosen = table("AGE", "STYPE", "AF", indicators=True)
    assert encode({"AGE": [], "STYPE": [], "AF": []}, chosen).shape == (0, len(columns(chosen)))


@given(st.lists(st.tuples(st.none() | st.floats(-1e9, 1e9), st.sampled_from([None, "PACS", "LACS", "TACS"]))))
def test_every_value_can_be_read_back(rows: list[tuple[float | None, str | None]]) -> None:
    chosen = table("STYPE", "AGE")
    encoded = encode({"AGE": [age for age, _ in rows], "STYPE": [stype for _, stype in rows]}, chosen)
    for (age, stype), (lacs, tacs, number) in zip(rows, encoded, strict=True):
        assert (None if np.isnan(number) else number) == age
        assert (None if np.isnan(lacs) else ["PACS", "LACS", "TACS"][int(lacs + 2 * tacs)]) == stype
        assert np.isnan(lacs) == np.isnan(tacs)
