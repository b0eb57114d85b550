"""Subgroups: who belongs to which, and an attacker who subtracts the ones that are told from all patients."""

from itertools import chain, combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ich_models.subgroups import Grouping, Groupings, divided, few, hidden, levels, members
from ich_models.variables import Variable

AGE = Variable(type="number", unit="years")
SEX = Variable(type="category", levels=["female", "male"])


def test_a_number_is_cut_and_a_missing_value_is_a_subgroup() -> None:
    age = Grouping(variable="age", cut=[65, 80])
    assert levels(age, AGE) == ("< 65", "65 to < 80", ">= 80", "missing")
    assert members(age, AGE, [64.9, 65, 79.9, 80, None, float("nan")]).tolist() == [0, 1, 1, 2, 3, 3]


def test_levels_make_subgroups() -> None:
    sex = Grouping(variable="sex")
    assert levels(sex, SEX) == ("female", "male", "missing")
    assert members(sex, SEX, ["male", None, "female"]).tolist() == [1, 2, 0]
    ivh = Variable(type="yes_no")
    assert levels(Grouping(variable="ivh"), ivh) == ("no", "yes", "missing")


def test_a_name_alone_is_a_grouping_and_cuts_rise() -> None:
    read = TypeAdapter(Groupings).validate_python
    assert read(["sex", {"variable": "age", "cut": [65]}]) == [
        Grouping(variable="sex"),
        Grouping(variable="age", cut=[65]),
    ]
    for cut in ([80, 65], [65, 65]):
        with pytest.raises(ValidationError, match="do not rise"):
            read([{"variable": "age", "cut": cut}])


# --- an attacker ------------------------------------------------------------------------------------------------------


def of(*sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Levels and outcomes of groups with so many patients, so many of them with the event."""
    level = np.repeat(np.arange(len(sizes)), [n for n, _ in sizes])
    event = np.concatenate([np.arange(n) < events for n, events in sizes])
    return level, event


@pytest.mark.parametrize(
    ("sizes", "withheld"),
    [
        ([(50, 20), (60, 30)], set()),
        ([(50, 20), (60, 30), (0, 0)], set()),  # nobody: points at nobody
        ([(50, 20), (60, 30), (3, 1)], {0, 2}),  # the three follow from the others: the next smallest goes too
        ([(50, 20), (60, 30), (7, 3), (8, 4)], {0, 2, 3}),  # fifteen together, and seven events
        ([(80, 40), (60, 30), (25, 9), (24, 12)], {2, 3}),  # the nine events hide among 21
        ([(50, 20), (60, 30), (30, 25)], {0, 2}),  # thirty, but five without the event
        ([(50, 0), (60, 30)], set()),
        ([(15, 8), (14, 7)], {0, 1}),
    ],
)
def test_what_is_hidden(sizes: list[tuple[int, int]], withheld: set[int]) -> None:
    level, event = of(*sizes)
    assert hidden({"x": level}, event, 10, {})["x"] == withheld
    assert hidden({"x": level}, event, 0, {})["x"] == set()


def test_the_attack_succeeds_without_complementary_suppression() -> None:
    """All less those told are the one that is hidden: its patients, its events and, from Brier or O/E, its scores."""
    level, event = of((50, 20), (60, 30), (1, 1))
    told = [place for place in (0, 1, 2) if not few(level == place, event, 10)]
    assert told == [0, 1]
    assert len(level) - sum((level == place).sum() for place in told) == 1
    assert event.sum() - sum(event[level == place].sum() for place in told) == 1


def reachable(level: np.ndarray, own: frozenset[int]) -> list[np.ndarray]:
    """Every group whose sums follow from the told levels and the sums of all patients."""
    told = sorted(set(level.tolist()) - own)
    blocks = [level == place for place in told]
    rest = np.isin(level, sorted(own))
    blocks += [rest] if rest.any() and told else []
    subsets = chain.from_iterable(combinations(blocks, size) for size in range(1, len(blocks) + 1))
    return [np.any(np.stack(one), axis=0) for one in subsets]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), min_size=1, max_size=6),
    st.integers(2, 12),
)
def test_no_few_follow_from_the_levels_that_are_told(groups: list[tuple[int, float]], k: int) -> None:
    level, event = of(*((n, round(n * rate)) for n, rate in groups))
    if few(np.ones(len(level), bool), event, k) or not len(level):
        return  # nothing at all is told of such a hospital
    own = hidden({"x": level}, event, k, {})["x"]
    for mask in reachable(level, own):
        assert not few(mask, event, k), (own, mask.sum())


def test_two_variables_that_make_nearly_the_same_groups() -> None:
    """Over 65 and retired: all but two of the retired are over 65, so the two follow by subtraction."""
    old = np.repeat([0, 1], [60, 40])
    retired = old.copy()
    retired[58:60] = 1
    event = np.arange(100) % 2 == 0
    found = hidden({"old": old, "retired": retired}, event, 10, {})
    assert found == {"old": frozenset(), "retired": frozenset({0, 1})}
    assert hidden({"retired": retired}, event, 10, {}) == {"retired": frozenset()}
    apart = np.arange(100) % 2  # crosses the other: no subtraction leads to a few
    assert hidden({"old": old, "sex": apart}, np.arange(100) % 4 < 2, 10, {})["sex"] == frozenset()


def test_levels_that_together_make_nearly_the_same_groups() -> None:
    """50 are retired. 25 are 65 to 80 and 27 over 80, these 52 being the retired and two more, who follow by adding and
    subtracting though neither level alone lies within the other variable's."""
    event = np.arange(100) % 2 == 0
    retired = np.repeat([1, 0], [50, 50])
    age = np.repeat([1, 2, 0, 3], [25, 27, 24, 24])
    assert hidden({"retired": retired, "age": age}, event, 10, {})["age"] == frozenset({0, 1, 2, 3})
    assert hidden({"age": age, "retired": retired}, event, 10, {})["retired"] == frozenset({0, 1})
    twenty = np.repeat([1, 2, 0], [25, 45, 30])  # twenty more, ten of them with the event
    assert hidden({"retired": retired, "age": twenty}, event, 10, {})["age"] == frozenset()


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 5), st.integers(0, 30), st.integers(2, 10))
def test_no_few_follow_from_the_levels_of_two_variables(seed: int, first: int, second: int, moved: int, k: int) -> None:
    """The second goes by the first, up to a few patients: whatever is told of both, no group within another leaves a few."""
    generator = np.random.default_rng(seed)
    level = generator.integers(0, first, 150)
    other = generator.integers(0, second, first)[level] * 2 + generator.integers(0, 2, 150)
    other[generator.choice(150, moved, replace=False)] = generator.integers(0, 2 * second)
    event = generator.random(150) < 0.5
    own = hidden({"x": level, "y": other}, event, k, {})
    groups = [reachable(values, own[name]) for name, values in (("x", level), ("y", other))]
    for one, two in product(*groups):
        for inner, outer in ((one, two), (two, one)):
            assert np.any(inner & ~outer) or not few(outer & ~inner, event, k)


def test_a_variable_is_held_against_all_before_it_that_are_told() -> None:
    """40 retired, 42 over 65, the two among them; whoever else is not over 65 is of two towns, in neither of which they stand out."""
    event = np.arange(100) % 2 == 0
    retired = np.repeat([0, 1], [60, 40])
    age = np.repeat([0, 2, 1], [30, 28, 42])
    sex = np.arange(100) // 2 % 2
    for names in (("retired", "sex", "age"), ("age", "sex", "retired")):
        given = {"retired": retired, "sex": sex, "age": age}
        found = hidden({name: given[name] for name in names}, event, 10, {})
        assert found[names[0]] == found["sex"] == frozenset()
        assert found[names[2]] == frozenset(given[names[2]].tolist())


def test_levels_that_are_hidden_together_are_told_together() -> None:
    """Two levels are hidden, of five events and of five others; all patients less the third are these forty. 42 over 65 are they and two."""
    event = np.concatenate([np.arange(60) % 2 == 0, np.arange(25) < 5, np.arange(15) < 10])
    ward = np.repeat([0, 1, 2], [60, 25, 15])
    age = np.repeat([0, 2, 1], [30, 28, 42])
    found = hidden({"ward": ward, "age": age}, event, 10, {})
    assert found == {"ward": frozenset({1, 2}), "age": frozenset({0, 1, 2})}
    assert hidden({"age": age}, event, 10, {}) == {"age": frozenset()}


def test_a_variable_that_is_hidden_betrays_nobody() -> None:
    """40, 49 and 60 patients, one within the other: nine and eleven lie between neighbours (of eleven, six with the event),
    twenty between the first and the last, which may both be told."""
    event = np.arange(120) % 2 == 0
    first, second, third = (np.repeat([1, 0], [n, 120 - n]) for n in (40, 49, 60))
    found = hidden({"first": first, "second": second, "third": third}, event, 10, {})
    assert found == {"first": frozenset(), "second": frozenset({0, 1}), "third": frozenset()}
    assert hidden({"second": second, "third": third}, event, 10, {})["third"] == frozenset({0, 1})


def test_a_level_of_which_a_few_are_told_of_elsewhere_is_hidden() -> None:
    """40 women, 37 of them in the training patients whose sums are told: the three others follow."""
    level, event = of((40, 20), (60, 30))
    trained = np.ones(100, bool)
    trained[:3] = False
    trained[50:75] = False
    also: dict[str, Any] = {"sex": divided(level, (trained,), 10)}
    assert also == {"sex": frozenset({0})}
    assert hidden({"sex": level}, event, 10, also)["sex"] == frozenset({0})
    assert divided(level, (~trained,), 10) == frozenset({0}), "three inside, 37 outside: it is the same three"
