"""Folds by name."""

import pytest

from ich_models.federation import Evaluation
from ich_models.folds import Fold, folds_of, parse

HOSPITALS = ["c", "a", "b"]


def evaluation(**settings: object) -> Evaluation:
    return Evaluation.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "hospital", "part"),
    [
        ("all", None, None),
        ("without:a", "a", None),
        ("without:st.mary-s_2", "st.mary-s_2", None),
        ("without:all", "all", None),
        ("part:1", None, 1),
        ("part:10", None, 10),
    ],
)
def test_parse(name: str, hospital: str | None, part: int | None) -> None:
    assert parse(name) == Fold(name, hospital, part)


@pytest.mark.parametrize(
    "name",
    [
        *("", "All", "all ", "allx", "xall", "all\n", "without:", "without", "without:a\nb", "xwithout:a"),
        *("without:St. Mary's", "without:part:1", "without:../x", "without:" + "a" * 65, "part:10000"),
        *("part:", "part:0", "part:01", "part:-1", "part:1.5", "part:1 ", "part:1٣", "part:a"),
    ],
)
def test_any_other_name_is_refused(name: str) -> None:
    """One spelling per fold: a name that means the same but differs would be another model."""
    with pytest.raises(ValueError, match="is not a fold"):
        parse(name)


def test_trains_at() -> None:
    assert {
        name: [parse(name).trains_at(hospital) for hospital in "ab"] for name in ("all", "without:a", "part:1")
    } == {
        "all": [True, True],
        "without:a": [False, True],
        "part:1": [True, True],
    }


def names(evaluation: Evaluation) -> list[str]:
    return [fold.name for fold in folds_of(evaluation, HOSPITALS)]


def test_folds_of_a_study() -> None:
    """The order is the order of rows in a message: it depends on names, not on who registered first."""
    loho = ["without:a", "without:b", "without:c"]
    assert names(evaluation()) == ["all", *loho]
    assert names(evaluation(folds=3)) == ["all", *loho, "part:1", "part:2", "part:3"]
    assert names(evaluation(leave_one_hospital_out=False, folds=2)) == ["all", "part:1", "part:2"]
    assert names(evaluation(leave_one_hospital_out=False, test=0.2)) == ["all"]
    assert folds_of(evaluation(), ["b", "a"]) == folds_of(evaluation(), ["a", "b"])
    assert folds_of(evaluation(), iter("ba"))[1] == Fold("without:a", "a")


def test_each_hospital_is_held_out_once() -> None:
    folds = folds_of(evaluation(), HOSPITALS)
    missing = {fold.name: [hospital for hospital in HOSPITALS if not fold.trains_at(hospital)] for fold in folds}
    assert missing == {"all": [], "without:a": ["a"], "without:b": ["b"], "without:c": ["c"]}
