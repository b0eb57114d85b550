"""The template: what it says, that missing things never break it, and that nothing that may not be known gets in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_models.clinical import Value
from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.report_text import BANDS, Measured, band, digits, write
from ich_models.text_spec import TextSpec
from ich_models.variables import Table

TABLE = Table.model_validate(
    {
        "variables": {
            "age": {"type": "number", "unit": "years", "range": [18, 110], "known_at": "admission"},
            "gcs": {"type": "integer", "range": [3, 15], "known_at": "admission"},
            "ivh": {"type": "yes_no", "known_at": "admission"},
            "came_from": {"type": "category", "levels": ["home", "nursing_home"], "known_at": "admission"},
            "mrs": {"type": "integer", "range": [0, 6], "known_at": "90 days"},
        },
        "predictors": ["age", "gcs", "ivh", "came_from"],
    }
)
PATIENT: dict[str, Value] = {"age": 71.04, "gcs": 9.0, "ivh": "no", "came_from": "nursing_home", "mrs": 5.0}


def spec(**settings: Any) -> TextSpec:
    return TextSpec.model_validate(settings)


def test_every_variable_is_a_short_sentence_in_the_order_of_the_study() -> None:
    assert write(PATIENT, spec(), TABLE) == "age 71 years. gcs 9. ivh no. came from nursing home."
    assert write(PATIENT, spec(variables=["gcs", "age"]), TABLE) == "gcs 9. age 71 years."


def test_what_is_missing_is_left_out() -> None:
    assert write({**PATIENT, "age": None, "ivh": None}, spec(), TABLE) == "gcs 9. came from nursing home."
    assert write({"age": float("nan")}, spec(), TABLE) == ""


def test_numbers_in_words_are_sevenths_of_the_range() -> None:
    # 18-110 is 92 years, a seventh 13.14: 71 lies in the fifth; GCS 3-15 is 12, a seventh 1.71: 9 lies in the fourth
    assert write(PATIENT, spec(numbers="words", variables=["age", "gcs"]), TABLE) == "age high. gcs middle."
    assert [band(value, 0, 7) for value in (0, 0.99, 1, 2.5, 3, 4, 5, 6, 7)] == [
        *("lowest", "lowest", "very low", "low", "middle", "high", "very high", "highest", "highest")
    ]
    assert (band(-5, 0, 7), band(99, 0, 7)) == (BANDS[0], BANDS[-1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (71.04, "71"),
        (64.5, "64.5"),
        (7.254, "7.25"),
        (0.0123, "0.0123"),
        (1204.0, "1204"),
        (99.96, "100"),
        (29.999999999999996, "30"),
        (0.0, "0"),
        (-0.0, "0"),
        (-3.1, "-3.1"),
        (1e-12, "0"),
        (1e9, "1000000000"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert digits(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9))
def test_digits_tell_the_number_without_an_exponent(value: float) -> None:
    text = digits(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=5e-3, abs=5e-7)


def test_measured_quantities_follow() -> None:
    measured = [Measured("haematoma volume", 31.27, "mL"), Measured("shift", 6, "mm", (0, 14))]
    assert write({"gcs": 9.0}, spec(), TABLE, measured) == "gcs 9. haematoma volume 31.3 mL. shift 6 mm."
    assert write({}, spec(numbers="words"), TABLE, measured) == "haematoma volume 31.3 mL. shift middle."
    with pytest.raises(ValueError, match="'mrs' is a variable of the table"):
        write({}, spec(), TABLE, [Measured("mrs", 3)])


values = st.fixed_dictionaries(
    {},
    optional={
        "age": st.none() | st.floats(18, 110) | st.just(float("nan")),
        "gcs": st.none() | st.integers(3, 15).map(float),
        "ivh": st.none() | st.sampled_from(["yes", "no"]),
        "came_from": st.none() | st.sampled_from(["home", "nursing_home"]),
        "mrs": st.none() | st.integers(0, 6).map(float),
        "another": st.text(),
    },
)


@given(values, st.sampled_from(["digits", "words"]), st.permutations(TABLE.predictors))
def test_missing_anything_never_breaks_and_the_outcome_never_appears(
    patient: Mapping[str, Value], numbers: str, order: list[str]
) -> None:
    chosen = spec(numbers=numbers, variables=order)
    text = write(patient, chosen, TABLE)
    assert "mrs" not in text
    assert "another" not in text
    for outcome in (None, 0.0, 3.0, 6.0):
        assert write({**patient, "mrs": outcome}, chosen, TABLE) == text
    known = [name for name in order if patient.get(name) is not None and patient[name] == patient[name]]
    assert text.count(". ") + text.endswith(".") == len(known)


# --- what a study may ask for -----------------------------------------------------------------------------------------

STUDY = """\
name: study
task: {timeline: [admission, day 1, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    predictors: [age]
    variables:
      age: {type: number, unit: years, range: [18, 110], known_at: admission}
      ivh: {type: yes_no, known_at: admission}
      undated: {type: number}
      endless: {type: number, known_at: admission}
      growth: {type: number, known_at: day 1}
      mrs: {type: integer, range: [0, 6], known_at: 90 days, derived_from: [walks]}
      walks: {type: yes_no, known_at: admission}
      guess: {type: number, known_at: admission, derived_from: [mrs]}
  text: {variables: [age, ivh], tokens: 32}
network: {name: ichpro, size: tiny, modalities: [text]}
training: {stages: [{rounds: 1, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.1}}]}
"""


def read(folder: Path, *changes: tuple[str, str]) -> Federation:
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "federation.yaml").write_text(text)
    return load_federation(folder / "federation.yaml").value


def refused(folder: Path, *changes: tuple[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, *changes)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_hospital_maps_what_the_template_speaks_of(tmp_path: Path) -> None:
    federation = read(tmp_path)
    assert list(federation.predictors) == ["age"]
    assert list(federation.spoken) == ["age", "ivh"]
    assert list(federation.needed) == ["age", "ivh", "mrs"]
    assert list(read(tmp_path, ("variables: [age, ivh], ", "")).spoken) == ["age"]
    report = read(tmp_path, ("variables: [age, ivh]", "source: report, known_at: admission"))
    assert list(report.needed) == ["age", "mrs"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mrs", "text variable 'mrs' is the outcome\n    remove it from the text variables"),
        ("walks", "text variable 'walks' defines the outcome 'mrs'\n    remove it from the text variables"),
        ("guess", "text variable 'guess' derives from the outcome 'mrs'\n    remove it from the text variables"),
        (
            "growth",
            "text variable 'growth' is known at day 1, after the prediction (admission)"
            "\n    remove it from the text variables, or predict later",
        ),
        ("undated", "text variable 'undated' does not say when it is known\n    add known_at: one of"),
        ("age", "text variable 'age' is named twice"),
        ("agee", "no variable 'agee'\n    did you mean 'age'?"),
    ],
)
def test_leaks_are_refused_by_name(name: str, message: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, ("[age, ivh]", f"[age, {name}]"))
    assert problem.startswith(f"federation.yaml:15:27: modalities.text.variables.1: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("[age, ivh]", "[endless], numbers: words"),
            "'endless' has no range, so no words for it\n    give it a range",
        ),
        (("variables: [age, ivh]", "source: report"), "a report must say when it is written\n    add known_at, one of"),
        (("variables: [age, ivh]", "source: report, known_at: 90 days"), "written at 90 days, after the prediction"),
        (("variables: [age, ivh]", "source: report, known_at: day 2"), "'day 2' is not in the timeline"),
        (("variables: [age, ivh]", "source: report, variables: [age]"), "variables belong to the template"),
        (("variables: [age, ivh]", "known_at: admission"), "known_at belongs to a report"),
        (("tokens: 32", "tokens: 64"), "the network takes 32 (network.text.positions)"),
        (("size: tiny", "size: tiny, text: {vocabulary: 300}"), "write network.text.vocabulary: 311, or more"),
        (("size: tiny", "size: tiny, losses: {mask_token: 4}"), "4 is not the vocabulary's id of [MASK], which is 103"),
        (("size: tiny", "size: tiny, losses: {first_token: 107}"), "first id that is a word, which is 106"),
    ],
)
def test_contradictions_are_refused_with_a_way_out(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    # 300 for any study, 6 of the bands (lowest very low middle high highest), age, years, ivh, yes, no
    assert message in "\n".join(refused(tmp_path, change))


def test_the_mask_does_not_matter_to_who_masks_nothing(tmp_path: Path) -> None:
    read(tmp_path, ("size: tiny", "size: tiny, losses: {mlm: 0, mask_token: 4}"))
