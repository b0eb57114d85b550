"""The data dictionary: what a variable and an outcome may say, and every predictor that would leak is refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.variables import Outcome, Table, Variable
from ich_models.yaml_config import Document

VARIABLES = """\
      age: {type: number, unit: years, range: [18, 110], known_at: admission}
      ivh: {type: yes_no, known_at: admission}
      site: {type: category, levels: [lobar, deep], known_at: admission}
      undated: {type: number}
      growth: {type: number, known_at: day 1}
      fever: {type: yes_no, known_at: admission, derived_from: [course]}
      course: {type: number, known_at: day 1}
      mrs: {type: integer, range: [0, 6], known_at: 90 days, derived_from: [walks]}
      walks: {type: yes_no, known_at: admission}
      steps: {type: yes_no, known_at: admission, derived_from: [walks]}
      score: {type: number, known_at: admission, derived_from: [guess]}
      guess: {type: number, known_at: admission, derived_from: [mrs]}
"""
STUDY = """\
name: study
task: {timeline: [admission, day 1, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    predictors: [age, ivh, site]
    variables:
""" + VARIABLES + """\
network: {name: logistic}
training: {stages: [{rounds: 1, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.1}}]}
"""  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(changes: Mapping[str, str], text: str = STUDY) -> Document[Federation]:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    Path("federation.yaml").write_text(text)
    return load_federation(Path("federation.yaml"))


def refused(changes: Mapping[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(changes)
    return [str(problem) for problem in caught.value.problems]


# --- predictors -------------------------------------------------------------------------------------------------------

AT = "federation.yaml:5:18: modalities.table.predictors.0: "
REMOVE = "\n    remove it from the predictors"


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        ("mrs", f"predictor 'mrs' is the outcome{REMOVE}"),
        ("walks", f"predictor 'walks' defines the outcome 'mrs'{REMOVE}"),
        ("guess", f"predictor 'guess' derives from the outcome 'mrs'{REMOVE}"),
        ("score", f"predictor 'score' derives from the outcome 'mrs'{REMOVE}"),
        ("steps", f"predictor 'steps' derives from 'walks', which defines the outcome 'mrs'{REMOVE}"),
        (
            "undated",
            "predictor 'undated' does not say when it is known\n    add known_at: one of admission, day 1, 90 days",
        ),
        ("growth", f"predictor 'growth' is known at day 1, after the prediction (admission){REMOVE}, or predict later"),
        (
            "fever",
            f"predictor 'fever' derives from 'course', known at day 1, after the prediction (admission){REMOVE}",
        ),
    ],
)
def test_a_predictor_that_leaks_is_refused_by_name(folder: Path, predictor: str, message: str) -> None:
    assert refused({"[age, ivh, site]": f"[{predictor}]"}) == [AT + message]


def test_predicting_later_admits_what_is_known_by_then(folder: Path) -> None:
    later = {"predict_at: admission": "predict_at: day 1", "[age, ivh, site]": "[growth, fever]"}
    assert list(read(later).value.predictors) == ["growth", "fever"]


def test_every_bad_predictor_is_named_at_once_in_its_place(folder: Path) -> None:
    messages = refused({"[age, ivh, site]": "[age, mrs, age, agee, growth]"})
    assert [message.splitlines()[0] for message in messages] == [
        "federation.yaml:5:23: modalities.table.predictors.1: predictor 'mrs' is the outcome",
        "federation.yaml:5:28: modalities.table.predictors.2: predictor 'age' is named twice",
        "federation.yaml:5:33: modalities.table.predictors.3: no variable 'agee'",
        "federation.yaml:5:39: modalities.table.predictors.4: predictor 'growth' is known at day 1, "
        "after the prediction (admission)",
    ]
    assert "did you mean 'age'?" in messages[2]


def test_moments_and_sources_must_be_known(folder: Path) -> None:
    broken = {"course: {type: number, known_at: day 1}": "course: {type: number, known_at: day 2}", "[guess]": "[gess]"}
    assert [message.splitlines()[0].partition(": ")[2] for message in refused(broken)] == [
        "modalities.table.variables.course.known_at: 'day 2' (of variable 'course') is not in the timeline",
        "modalities.table.variables.score.derived_from: 'score' is derived from 'gess', which is not defined",
    ]


def test_a_circle_of_derivations_ends(folder: Path) -> None:
    circle = {"derived_from: [mrs]": "derived_from: [score]", "[age, ivh, site]": "[age, score]"}
    assert list(read(circle).value.predictors) == ["age", "score"]


# --- the outcome ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("variable: mrs", "variable: mrss", "task.outcome.variable: no variable 'mrss'"),
        ("at: 90 days, poor", "at: 1 year, poor", "task.outcome.at: '1 year' is not in the timeline"),
        ("predict_at: admission", "predict_at: arrival", "task.predict_at: 'arrival' is not in the timeline"),
        ("predict_at: admission", "predict_at: 90 days", "the outcome is measured at 90 days, not after the prediction"),
        ("at: 90 days, poor", "at: day 1, poor", "at day 1, but 'mrs' is known at 90 days"),
        ("[admission, day 1, 90 days]", "[admission, day 1, 90 days, day 1]", "task.timeline: a moment stands twice"),
        ('poor: ">= 3"', "poor: [3, 4]", "task.outcome.poor"),
        ('poor: ">= 3"', 'poor: ["3", "4"]', "'mrs' is a number, and ['3', '4'] is a list"),
        ('variable: mrs, at: 90 days, poor: ">= 3"', 'variable: walks, at: 90 days, poor: ">= 3"', "'>= 3' compares numbers"),
        ('variable: mrs, at: 90 days, poor: ">= 3"', "variable: ivh, at: 90 days, poor: [no, yes]", "some, not all, of the levels"),
        ('variable: mrs, at: 90 days, poor: ">= 3"', "variable: ivh, at: 90 days, poor: []", "some, not all, of the levels"),
        ('variable: mrs, at: 90 days, poor: ">= 3"', "variable: site, at: 90 days, poor: [dep]", "some, not all, of the levels"),
    ],
)  # fmt: skip
def test_an_outcome_that_contradicts_the_rest(folder: Path, old: str, new: str, message: str) -> None:
    assert any(message in problem for problem in refused({old: new}))


@pytest.mark.parametrize(
    ("poor", "positives"),
    [
        (">= 3", [3, 4, 5, 6]),
        ("> 3", [4, 5, 6]),
        ("<= 3", [0, 1, 2, 3]),
        ("<3", [0, 1, 2]),
        ("3-5", [3, 4, 5]),
        ("3-3", [3]),
        ("2.5 - 4", [3, 4]),
        ("-1-0", [0]),
        ("-3--1", []),
    ],
)
def test_cuts(poor: str, positives: list[int]) -> None:
    outcome = Outcome(variable="mrs", at="90 days", poor=poor)
    assert [value for value in range(7) if outcome.is_positive(float(value))] == positives
    good = Outcome(variable="mrs", at="90 days", poor=poor, positive="good")
    assert [value for value in range(7) if not good.is_positive(float(value))] == positives


def test_levels_that_count_as_poor() -> None:
    outcome = Outcome(variable="occode", at="6 months", poor=["dead", "dependent"])
    assert [outcome.is_positive(level) for level in ("dead", "dependent", "recovered")] == [True, True, False]


@pytest.mark.parametrize("poor", ["mRS >=3", ">= x", "3", "=> 3", "", "6-3", "3-4-5"])
def test_what_is_no_cut(poor: str) -> None:
    with pytest.raises(
        ValidationError, match=r"is not a comparison \| write it as|holds no number \| write the smaller"
    ):
        Outcome(variable="mrs", at="90 days", poor=poor)


# --- variables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "category"}, "a category needs its levels | add levels"),
        ({"type": "category", "levels": []}, "a category needs its levels"),
        ({"type": "yes_no", "levels": ["a", "b"]}, "levels belong to a category, and this is a yes_no"),
        ({"type": "category", "levels": ["a", "a"]}, "levels must differ"),
        ({"type": "category", "levels": ["a", "missing"]}, "'missing' cannot be named as a level"),
        ({"type": "category", "levels": ["a", "b"], "unit": "mL"}, "range and unit belong to numbers"),
        ({"type": "yes_no", "range": (0, 1)}, "range and unit belong to numbers"),
        ({"type": "number", "range": (3, 3)}, "the range [3.0, 3.0] is empty"),
        ({"type": "integer", "missing": "level"}, "a number has no level for missing"),
        ({"type": "text"}, "Input should be"),
        ({"type": "number", "colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_variables_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Variable(**fields)
    assert message in str(caught.value)


def test_codes_start_with_the_reference() -> None:
    assert Variable(type="yes_no").codes == ("no", "yes")
    assert Variable(type="category", levels=["b", "a"]).codes == ("b", "a")
    assert Variable(type="number").codes == ()


# --- the dictionary's own file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/etc/variables.yaml", "../variables.yaml", "shared/../../variables.yaml"])
def test_a_dictionary_stays_beside_its_federation(path: str) -> None:
    with pytest.raises(ValidationError, match="leaves the folder of the federation file"):
        Table(dictionary=path, predictors=["age"])


@pytest.mark.parametrize("path", ["", " "])
def test_a_dictionary_has_a_name(path: str) -> None:
    with pytest.raises(ValidationError, match="the name of the file is missing"):
        Table(dictionary=path, predictors=["age"])


def test_a_dictionary_is_no_link_to_somewhere_else(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.yaml"
    elsewhere.write_text("variables:\n" + VARIABLES)
    Path("dictionary.yaml").symlink_to(elsewhere)
    (message,) = refused({"    variables:\n" + VARIABLES: "    dictionary: dictionary.yaml\n"})
    assert "dictionary.yaml is a link that leaves the folder of the federation file" in message


def test_a_dictionary_is_merged_and_part_of_the_hash(folder: Path) -> None:
    whole = read({}).value
    Path("dictionary.yaml").write_text("variables:\n" + VARIABLES)
    outside = {"    variables:\n" + VARIABLES: "    dictionary: dictionary.yaml\n"}
    split = read(outside).value
    assert split.hash == whole.hash
    Path("dictionary.yaml").write_text("variables:\n" + VARIABLES.replace("110", "111"))
    assert read(outside).value.hash != whole.hash


def test_a_variable_has_one_home(folder: Path) -> None:
    Path("dictionary.yaml").write_text("variables:\n" + VARIABLES)
    (message,) = refused({"    variables:\n": "    dictionary: dictionary.yaml\n    variables:\n"})
    assert "'age', 'course'" in message
    assert message.endswith("stand both here and in dictionary.yaml\n    keep each variable in one place")
