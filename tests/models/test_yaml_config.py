"""A configuration file is read as its author meant it, and all its problems are reported together, each at its place."""

import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    create_model,
    model_validator,
)
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict  # typing's own is not enough for pydantic before Python 3.12

from ich_models import yaml_tree
from ich_models.errors import ConfigurationError, Problem
from ich_models.yaml_config import load, suggest

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FedAvg(Strict):
    name: Literal["fedavg"]


class FedProx(Strict):
    name: Literal["fedprox"]
    mu: float


Strategy = Annotated[FedAvg | FedProx, Field(discriminator="name")]


class Stage(Strict):
    epochs: int = 1
    batch: int = 16


class Training(Strict):
    rounds: int
    strategy: Strategy = FedAvg(name="fedavg")
    stages: list[Stage] = []


class Study(Strict):
    name: str
    training: Training


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str | bytes) -> Path:
    path = Path("f.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(text: str | bytes, model: type[M]) -> M:
    return load(write(text), model).value


def problems(text: str | bytes, model: type[BaseModel] = Anything) -> list[Problem]:
    with pytest.raises(ConfigurationError) as caught:
        load(write(text), model)
    return list(caught.value.problems)


def problem(text: str | bytes, model: type[BaseModel] = Anything) -> Problem:
    (only,) = problems(text, model)
    return only


def where(text: str | bytes, model: type[BaseModel] = Anything) -> list[str]:
    return [one.where for one in problems(text, model)]


def with_v(kind: Any) -> type[BaseModel]:
    """A model whose only key is `v`."""
    return create_model("WithV", __base__=Strict, v=(kind, ...))


def read_v(text: str, kind: Any = Any) -> Any:
    return read(text, with_v(kind)).v  # type: ignore[attr-defined]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-4", 1e-4),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+12", 12),
        ("-7", -7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        (".nan", float("nan")),
        ("true", True),
        ("True", True),
        ("TRUE", True),
        ("false", False),
        ("False", False),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("NULL", None),
        ("", None),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("!!bool true", True),
        ("!!null ~", None),
        ("'true'", "true"),
        ('"1"', "1"),
        ("''", ""),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("[1, two, {three: 3}]", [1, "two", {"three": 3}]),
    ],
)
def test_values_of_yaml_1_2(text: str, value: object) -> None:
    assert repr(read_v(f"v: {text}")) == repr(value)  # repr: 1, 1.0 and True are equal, and nan is not


@pytest.mark.parametrize(
    "text",
    [
        *"yYnN.=",
        "yes",
        "no",
        "Yes",
        "NO",
        "on",
        "off",
        "On",
        "OFF",
        "tRUE",
        "nULL",
        "inf",
        "-0x1F",
        "1_000",
        "1e",
        "e5",
    ],
)
def test_these_are_text(text: str) -> None:
    assert read_v(f"v: {text}") == text


@pytest.mark.parametrize("text", ["12:30", "1:2:3.5", "2020-01-01", "2020-01-01T10:00:00Z", "2020-01-01 10:00:00"])
def test_times_and_dates_are_text(text: str) -> None:
    assert read_v(f"v: {text}") == text


def test_keys_need_not_be_text() -> None:
    assert read_v("v: {1: a, false: b, 2.5: c, ~: d, '1': e}") == {1: "a", False: "b", 2.5: "c", None: "d", "1": "e"}


def test_an_alias_repeats_its_value() -> None:
    assert read_v("v:\n  a: &x [1, {k: 2}]\n  b: *x\n") == {"a": [1, {"k": 2}], "b": [1, {"k": 2}]}


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert read_v("\N{ZERO WIDTH NO-BREAK SPACE}v: ü") == "ü"


def like_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.startswith(("0o", "0x"))
    return True


# PyYAML leaves out the quotes of what is a number in YAML 1.2 but not in 1.1, such as "1e5" and "089".
QUOTED = [
    "10",
    "010",
    "1.5",
    "1_0",
    "0x1",
    "12:30",
    ".inf",
    "no",
    "on",
    "Yes",
    "2020-01-01",
    "~",
    "",
    "<<",
    "=",
    "!a",
    "&a",
]
UNQUOTED = ["inf", "nan", "Y", "n"]
texts = st.text(max_size=20).filter(lambda text: not like_a_number(text)) | st.sampled_from(QUOTED + UNQUOTED)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4), max_leaves=12
)


@given(nested)
def test_what_pyyaml_writes_is_read_back(written: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.yaml")
        path.write_bytes(yaml.safe_dump({"v": written}, sort_keys=False, encoding="utf-8"))
        document = load(path, with_v(Any))
    assert repr(document.value.v) == repr(written)  # type: ignore[attr-defined]


# --- places of values -------------------------------------------------------------------------------------------------

STUDY = """\
# comment
name: ich
training:
  rounds: 40
  stages:
    - batch: 8
      epochs: 2
    - {batch: 4}
"""


@pytest.mark.parametrize(
    ("loc", "place"),
    [
        ((), "f.yaml:2:1"),
        (("name",), "f.yaml:2:7: name"),
        (("training",), "f.yaml:4:3: training"),
        (("training", "rounds"), "f.yaml:4:11: training.rounds"),
        (("training", "stages"), "f.yaml:6:5: training.stages"),
        (("training", "stages", 0), "f.yaml:6:7: training.stages.0"),
        (("training", "stages", 0, "epochs"), "f.yaml:7:15: training.stages.0.epochs"),
        (("training", "stages", 1), "f.yaml:8:7: training.stages.1"),
        (("training", "stages", 1, "batch"), "f.yaml:8:15: training.stages.1.batch"),
        (("training", "stages", 1, "epochs"), "f.yaml:8:7: training.stages.1.epochs"),
        (("training", "quorum", "rounds"), "f.yaml:4:3: training.quorum.rounds"),
        (("quorum",), "f.yaml:2:1: quorum"),
    ],
)
def test_where_a_value_is_written(loc: tuple[str | int, ...], place: str) -> None:
    assert load(write(STUDY), Study).where(*loc) == place


def test_lines_end_in_any_way() -> None:
    assert load(write(STUDY.replace("\n", "\r\n")), Study).where("training", "rounds") == "f.yaml:4:11: training.rounds"


def test_a_repeated_value_is_where_it_is_written_out() -> None:
    assert load(write("v:\n  - &x [1]\n  - *x"), with_v(Any)).where("v", 1, 0) == "f.yaml:2:9: v.1.0"


def test_a_document_holds_path_and_value() -> None:
    document = load(write("name: ich\ntraining: {rounds: 3}"), Study)
    assert document.path == Path("f.yaml")
    assert document.value == Study(name="ich", training=Training(rounds=3))


def test_a_document_with_another_value_is_still_the_same_file() -> None:
    document = load(write("name: ich\ntraining: {rounds: 3}"), Study)
    other = document.replace(Study(name="other", training=Training(rounds=1)))
    assert other.value.name == "other"
    assert other.where("training", "rounds") == "f.yaml:2:20: training.rounds"


def test_the_path_is_shown_as_given(tmp_path: Path) -> None:
    Path("sub").mkdir()
    Path("sub/g.yaml").write_text("v: 1")
    assert load(Path("sub/g.yaml"), with_v(int)).where("v") == "sub/g.yaml:1:4: v"
    assert load(tmp_path / "sub/g.yaml", with_v(int)).where("v") == f"{tmp_path}/sub/g.yaml:1:4: v"


def test_a_key_that_would_spoil_the_line_is_quoted() -> None:
    assert load(write('v: {"a\\nb": 1, "": 2}'), with_v(Any)).where("v", "a\nb") == "f.yaml:1:13: v.'a\\nb'"
    assert load(write('v: {"": 2}'), with_v(Any)).where("v", "") == "f.yaml:1:9: v.''"


# --- what the model does not allow ------------------------------------------------------------------------------------


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = """\
nam: ich
training:
  rounds: ten
  strategy:
    name: fedprx
  stages:
    - batch: 8.5
      batch: 16
      epoch: 3
"""
    assert problems(text, Study) == [
        Problem("this is required, but missing", "f.yaml:1:1: name", "add 'name: ...' here"),
        Problem("this key is not known", "f.yaml:1:1: nam", "did you mean 'name'? (known keys: name, training)"),
        Problem("'ten' is not a whole number", "f.yaml:3:11: training.rounds"),
        Problem(
            "'fedprx' is not one of the permitted values",
            "f.yaml:5:11: training.strategy.name",
            "did you mean 'fedprox'? (permitted: fedavg, fedprox)",
        ),
        Problem("8.5 is not a whole number", "f.yaml:7:14: training.stages.0.batch"),
        Problem(
            "this key is written twice",
            "f.yaml:8:7: training.stages.0.batch",
            "it is first written at f.yaml:7:7; keep one of the two",
        ),
        Problem(
            "this key is not known",
            "f.yaml:9:7: training.stages.0.epoch",
            "did you mean 'epochs'? (known keys: epochs, batch)",
        ),
    ]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("kind", "text", "message", "hint"),
    [
        (int, "ten", "'ten' is not a whole number", ""),
        (int, "[1]", "a list is not a whole number", ""),
        (int, "~", "an empty value is not a whole number", ""),
        (int, "1.5", "1.5 is not a whole number", ""),
        (float, "high", "'high' is not a number", ""),
        (float, "{a: 1}", "a mapping is not a number", ""),
        (Annotated[float, Field(allow_inf_nan=False)], ".nan", "nan is not a finite number", ""),
        (bool, "maybe", "'maybe' is neither true nor false", "write true or false, without quotes"),
        (bool, "[]", "a list is neither true nor false", "write true or false, without quotes"),
        (str, "10", "10 is not text", "put quotes around it if it is meant as text"),
        (str, "TRUE", "true is not text", "put quotes around it if it is meant as text"),
        (Annotated[str, Field(min_length=3)], "ab", "'ab' is shorter than 3 characters", ""),
        (Annotated[str, Field(max_length=1)], "ab", "'ab' is longer than 1 characters", ""),
        (Annotated[str, Field(pattern="^[a-z]+$")], "A", "'A' does not match the pattern ^[a-z]+$", ""),
        (list[int], "7", "7 is not a list", "write [a, b], or one item per line after '- '"),
        (tuple[int, int], "7", "7 is not a list", "write [a, b], or one item per line after '- '"),
        (set[int], "7", "7 is not a list", "write [a, b], or one item per line after '- '"),
        (frozenset[int], "7", "7 is not a list", "write [a, b], or one item per line after '- '"),
        (dict[str, int], "[7]", "a list is not a mapping", "write 'key: value' lines, indented below the key"),
        (Stage, "small", "'small' is not a mapping", "write 'key: value' lines, indented below the key"),
        (Strategy, "fedavg", "'fedavg' is not a mapping", "write 'key: value' lines, indented below the key"),
        (Annotated[list[int], Field(min_length=2)], "[1]", "a list of 1 is too short", "give at least 2"),
        (tuple[int, int], "[1, 2, 3]", "a list of 3 is too long", "give at most 2"),
        (Annotated[int, Field(gt=0)], "0", "0 is not greater than 0", ""),
        (Annotated[int, Field(ge=1)], "0", "0 is less than 1", ""),
        (Annotated[int, Field(lt=9)], "9", "9 is not less than 9", ""),
        (Annotated[int, Field(le=9)], "10", "10 is greater than 9", ""),
        (Annotated[int, Field(multiple_of=8)], "12", "12 is not a multiple of 8", ""),
        (Literal["a", 2, True], "b", "'b' is not one of the permitted values", "permitted: a, 2, true"),
        (
            Literal["CT", "MRI"],
            "ct",
            "'ct' is not one of the permitted values",
            "did you mean 'CT'? (permitted: CT, MRI)",
        ),
        (
            Colour | None,
            "bleu",
            "'bleu' is not one of the permitted values",
            "did you mean 'blue'? (permitted: red, blue)",
        ),
        (Colour, "~", "an empty value is not one of the permitted values", "permitted: red, blue"),
        (int, "x" * 58, "'" + "x" * 58 + "' is not a whole number", ""),
        (int, "x" * 59, "'" + "x" * 56 + "... is not a whole number", ""),
    ],
)
def test_the_common_mistakes_in_plain_words(kind: Any, text: str, message: str, hint: str) -> None:
    assert problem(f"v: {text}", with_v(kind)) == Problem(message, "f.yaml:1:4: v", hint)


def test_another_mistake_in_the_words_of_pydantic() -> None:
    (only,) = problems("v: x", with_v(Annotated[bytes, Field(min_length=2)]))
    assert only == Problem("Data should have at least 2 bytes", "f.yaml:1:4: v")


def test_a_missing_key_is_reported_at_the_mapping_that_lacks_it() -> None:
    missing = Problem("this is required, but missing", "f.yaml:3:3: training.rounds", "add 'rounds: ...' here")
    assert problem("name: ich\ntraining:\n  stages: []\n", Study) == missing


def test_a_missing_choice_is_reported_with_what_may_be_chosen() -> None:
    assert problem("{}", with_v(Literal["CT", "MRI"])).hint == "add 'v: ...' here (permitted: CT, MRI)"
    assert problem("{}", with_v(Strategy)).hint == "add 'v: ...' here"


def test_a_missing_item_is_reported_at_the_list() -> None:
    missing = Problem("this is required, but missing", "f.yaml:1:4: v.1", "the list is too short")
    assert problem("v: [1]", with_v(tuple[int, int])) == missing


def hints(text: str, kind: Any) -> list[str]:
    return [one.hint for one in problems(text, with_v(kind))]


class Tree(Strict):
    leaf: int = 0
    inner: "list[Tree]" = []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Stage, "{epoch: 1}"),
        (Stage | None, "{epoch: 1}"),
        (Annotated[Stage, AfterValidator(lambda stage: stage)] | None, "{epoch: 1}"),
        (list[Stage], "[{epoch: 1}]"),
        (tuple[int, Stage], "[1, {epoch: 1}]"),
        (tuple[Stage, ...], "[{}, {}, {epoch: 1}]"),
        (dict[str, Annotated[Stage | None, Field()]], "{a: {epoch: 1}}"),
        (dict[int, list[Stage]], "{3: [{}, {epoch: 1}]}"),
        (Stage | int, "{epoch: 1}"),
        (list[Stage | str], "[a, {epoch: 1}]"),
        (set[Stage], "[{epoch: 1}]"),
        (frozenset[Stage], "[{epoch: 1}]"),
        (deque[Stage], "[{epoch: 1}]"),
        (Sequence[Stage], "[{epoch: 1}]"),
        (Mapping[str, Stage], "{a: {epoch: 1}}"),
    ],
)
def test_the_known_keys_are_those_of_the_model_at_that_place(kind: Any, text: str) -> None:
    assert hints(f"v: {text}", kind) == ["did you mean 'epochs'? (known keys: epochs, batch)"]


def test_places_inside_a_dataclass_and_a_typed_dict() -> None:
    @dataclass
    class Size:
        width: int
        stage: Stage | None = None

    class Named(TypedDict):
        stage: Stage

    assert where("v: {width: x, stage: {batch: x}}", with_v(Size)) == [
        "f.yaml:1:12: v.width",
        "f.yaml:1:30: v.stage.batch",
    ]
    assert hints("v: {stage: {epoch: 1}}", Named) == ["did you mean 'epochs'? (known keys: epochs, batch)"]


def test_the_known_keys_of_the_alternative_in_use() -> None:
    tagged = Annotated[Stage, Tag("a stage")] | Annotated[int, Tag("a number")]
    assert hints("v: {epoch: 1}", tagged) == ["did you mean 'epochs'? (known keys: epochs, batch)"]
    assert hints("v: {name: fedprox, mu: 1, muu: 2}", Strategy) == ["did you mean 'mu'? (known keys: name, mu)"]
    assert hints("v: {name: fedavg, nu: 2}", Strategy) == ["known keys: name"]


def test_the_known_keys_of_a_model_that_holds_itself() -> None:
    assert hints("v: {inner: [{inner: [{leav: 1}]}]}", Tree) == ["did you mean 'leaf'? (known keys: leaf, inner)"]
    assert hints("v: {leav: 1}", int | Tree) == ["did you mean 'leaf'? (known keys: leaf, inner)"]


def test_known_keys_are_named_as_in_the_file() -> None:
    class Column(Strict):
        source: Annotated[str, Field(alias="from")]

    assert problems("v: {form: x}", with_v(Column)) == [
        Problem("this is required, but missing", "f.yaml:1:4: v.from", "add 'from: ...' here"),
        Problem("this key is not known", "f.yaml:1:5: v.form", "did you mean 'from'? (known keys: from)"),
    ]
    assert where("v: {from: 1}", with_v(Column)) == ["f.yaml:1:11: v.from"]

    class Either(Strict):
        batch: Annotated[int, Field(validation_alias=AliasChoices("size", AliasPath("sizes", 0)))] = 1

    assert hints("v: {siez: 1}", Either) == ["did you mean 'size'? (known keys: size)"]


def test_known_keys_that_cannot_be_told_are_not_listed() -> None:
    kind = Annotated[Any, AfterValidator(Stage.model_validate)]
    assert problem("v: {epoch: 1}", with_v(kind)) == Problem(
        "this key is not known", "f.yaml:1:5: v.epoch", "check its spelling, or remove it"
    )


def test_a_missing_discriminator_lists_what_it_may_be() -> None:
    assert problem("v: {mu: 1}", with_v(Strategy)) == Problem(
        "this is required, but missing", "f.yaml:1:4: v.name", "add 'name: ...' here (permitted: fedavg, fedprox)"
    )


def test_a_validator_may_check_another_form_than_the_declared_one() -> None:
    kind = Annotated[tuple[int, int], BeforeValidator(Stage.model_validate)]
    assert where("v: {batch: x}", with_v(kind)) == ["f.yaml:1:12: v.batch"]
    hidden = Annotated[Any, AfterValidator(TypeAdapter(int | list[Training]).validate_python)]
    assert where("v: [{}]", with_v(hidden)) == ["f.yaml:1:4: v", "f.yaml:1:5: v.0.rounds"]
    nothing = Annotated[tuple[()], BeforeValidator(TypeAdapter(list[int]).validate_python)]
    assert where("v: [x]", with_v(nothing)) == ["f.yaml:1:5: v.0"]


def test_a_discriminator_is_named_as_in_the_file() -> None:
    class Image(Strict):
        kind: Annotated[Literal["image"], Field(alias="type")]

    class Table(Strict):
        kind: Annotated[Literal["table"], Field(alias="type")]

    class ImageByName(Image):
        model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    by_alias = Annotated[Image | Table, Field(discriminator="kind")]
    assert where("v: {type: pdf}", with_v(by_alias)) == ["f.yaml:1:11: v.type"]
    by_either = Annotated[ImageByName | Table, Field(discriminator="kind")]
    assert where("v: {type: pdf}", with_v(by_either)) == ["f.yaml:1:11: v.type"]


def test_the_permitted_values_as_pydantic_lists_them_where_the_model_cannot_be_told() -> None:
    training = Annotated[Any, AfterValidator(Training.model_validate)]
    assert problem("v: {rounds: 1, strategy: {name: x}}", with_v(training)) == Problem(
        "'x' is not one of the permitted values", "f.yaml:1:26: v.strategy", "permitted: 'fedavg', 'fedprox'"
    )
    colour = Annotated[Any, AfterValidator(with_v(Colour).model_validate)]
    assert hints("v: {v: green}", colour) == ["permitted: 'red' or 'blue'"]
    number = Annotated[Any, AfterValidator(with_v(Literal[1, 2]).model_validate)]
    assert hints("v: {v: 3}", number) == ["permitted: 1 or 2"]


def test_the_name_of_an_alternative_is_no_key() -> None:
    text = "v: {name: fedprox, fedprox: 1, mu: high}"
    assert where(text, with_v(Strategy)) == ["f.yaml:1:20: v.fedprox", "f.yaml:1:36: v.mu"]
    assert where("v: {int: x}", with_v(int | dict[str, int])) == ["f.yaml:1:10: v.int"]
    checked = Annotated[Stage, AfterValidator(lambda stage: stage)]
    assert where("v: {batch: x}", with_v(int | checked)) == ["f.yaml:1:12: v.batch"]
    assert where("v: {batch: x}", with_v(Annotated[int, AfterValidator(abs)] | checked)) == ["f.yaml:1:12: v.batch"]


def test_alternatives_that_are_told_apart_by_a_function() -> None:
    def form(value: object) -> str | None:
        return "a name" if isinstance(value, str) else "a stage" if isinstance(value, dict) else None

    kind = Annotated[Annotated[str, Tag("a name")] | Annotated[Stage, Tag("a stage")], Discriminator(form)]
    assert problem("v: [1]", with_v(kind)) == Problem(
        "a list has none of the permitted forms", "f.yaml:1:4: v", "permitted: a name, a stage"
    )
    assert where("v: {batch: x}", with_v(kind)) == ["f.yaml:1:12: v.batch"]
    assert problem("{}", with_v(kind)) == Problem("this is required, but missing", "f.yaml:1:1: v", "add 'v: ...' here")


def test_a_value_that_fits_no_alternative_is_one_problem() -> None:
    assert problem("v: all", with_v(int | list[int])) == Problem(
        "'all' is not a whole number, and 'all' is not a list",
        "f.yaml:1:4: v",
        "write [a, b], or one item per line after '- '",
    )


def test_the_hints_of_several_alternatives() -> None:
    assert hints("v: 1", list[int] | dict[str, int]) == [
        "write [a, b], or one item per line after '- '; write 'key: value' lines, indented below the key"
    ]


def test_the_alternative_that_came_furthest_speaks() -> None:
    assert where("v: [1, x]", with_v(int | list[int])) == ["f.yaml:1:8: v.1"]
    assert where("v: [[1], [x]]", with_v(int | list[int | list[int]])) == ["f.yaml:1:11: v.1.0"]


def test_keys_of_other_kinds_have_places() -> None:
    text = "v: {1: x, 2.5: x, ~: x, '1': x, -3: x}"
    assert where(text, with_v(dict[Any, int])) == [
        "f.yaml:1:8: v.1",
        "f.yaml:1:16: v.2.5",
        "f.yaml:1:22: v.null",
        "f.yaml:1:30: v.1",
        "f.yaml:1:37: v.-3",
    ]
    assert where("v: {false: x}", with_v(dict[Any, int])) == ["f.yaml:1:12: v.false"]


def test_a_wrong_key_is_reported_at_the_key() -> None:
    assert problem("v: {left: 1, rihgt: 2}", with_v(dict[Literal["left", "right"], int])) == Problem(
        "'rihgt' is not one of the permitted values",
        "f.yaml:1:14: v.rihgt",
        "did you mean 'right'? (permitted: left, right)",
    )
    assert problem("v: 1\ntrue: 2", with_v(int)) == Problem(
        "this key is not text", "f.yaml:2:1: true", "put quotes around it if it is meant as text"
    )


def test_a_mistake_that_an_alias_repeats_is_reported_once_where_it_is_written() -> None:
    assert where("v:\n  - &x {batch: big}\n  - *x\n  - {batch: big}\n", with_v(list[Stage])) == [
        "f.yaml:2:16: v.0.batch",
        "f.yaml:4:13: v.2.batch",
    ]


# --- what the model's own validators say ------------------------------------------------------------------------------


def refuse(_: object) -> NoReturn:
    raise ValueError("'mRS >=3' is not a comparison | write it as '>= 3' | or '3-6'")


class Even(Strict):
    rounds: int

    @model_validator(mode="after")
    def _even(self) -> "Even":
        if self.rounds % 2:
            raise ValueError("odd")
        return self


def test_the_message_of_a_validator_and_its_hint() -> None:
    assert problem("v: mRS >=3", with_v(Annotated[str, AfterValidator(refuse)])) == Problem(
        "'mRS >=3' is not a comparison", "f.yaml:1:4: v", "write it as '>= 3' | or '3-6'"
    )


def test_a_validator_of_a_mapping_speaks_of_the_mapping() -> None:
    assert problem("v:\n  rounds: 3", with_v(Even)) == Problem("odd", "f.yaml:2:3: v")
    assert problem("\nrounds: 3", Even) == Problem("odd", "f.yaml:2:1")


def test_a_validator_is_heard_although_another_alternative_came_further() -> None:
    assert problems("v: {rounds: 3}", with_v(Even | Stage)) == [
        Problem("odd", "f.yaml:1:4: v"),
        Problem("this key is not known", "f.yaml:1:5: v.rounds", "known keys: epochs, batch"),
    ]


def test_a_failed_assertion_is_shown_without_its_preamble() -> None:
    def positive(value: int) -> int:
        if value <= 0:
            raise AssertionError("not positive")
        return value

    assert problem("v: 0", with_v(Annotated[int, AfterValidator(positive)])).message == "not positive"


def test_what_a_validator_puts_in_place_of_the_value_is_at_the_place_of_the_value() -> None:
    kind = Annotated[Stage, BeforeValidator(lambda size: {"batch": size})]
    assert problem("v: large", with_v(kind)) == Problem("'large' is not a whole number", "f.yaml:1:4: v.batch")
    wrong = Annotated[Stage, BeforeValidator(lambda size: {"batch": size, "epoch": 1})]
    assert hints("v: 1", wrong) == ["did you mean 'epochs'? (known keys: epochs, batch)"]


def test_a_hint_for_a_name_that_is_not_known() -> None:
    assert suggest("agee", ["age", "sex"]) == "did you mean 'age'? (known: age, sex)"
    assert suggest("SEX", ["age", "sex"], "columns") == "did you mean 'sex'? (columns: age, sex)"
    assert suggest("xyz", ["age", "sex"]) == "known: age, sex"


# --- what YAML allows and a configuration does not --------------------------------------------------------------------


def test_a_key_that_is_written_three_times_is_two_problems() -> None:
    twice, again = problems("a: 1\nb:\n  k: 1\na: 2\n'a': 3\n")
    assert twice == Problem(
        "this key is written twice", "f.yaml:4:1: a", "it is first written at f.yaml:1:1; keep one of the two"
    )
    assert again == Problem(
        "this key is written twice", "f.yaml:5:1: a", "it is first written at f.yaml:1:1; keep one of the two"
    )


def test_keys_that_are_equal_in_python_are_the_same_key() -> None:
    assert where("v: {1: a, true: b}") == ["f.yaml:1:11: v.true"]


def test_problems_inside_the_second_of_two_equal_keys_are_reported() -> None:
    assert where("a: 1\na: {b: 1, b: 2}") == ["f.yaml:2:1: a", "f.yaml:2:11: a.b"]


def test_the_first_of_two_equal_keys_is_checked() -> None:
    assert where("v: x\nv: 1", with_v(int)) == ["f.yaml:1:4: v", "f.yaml:2:1: v"]


@pytest.mark.parametrize(("text", "kind"), [("{a: b}", "a mapping"), ("[a]", "a list")])
def test_a_key_must_be_one_value(text: str, kind: str) -> None:
    assert problem(f"v:\n  ? {text}\n  : 1") == Problem(
        f"{kind} cannot be a key", "f.yaml:2:5: v", "put quotes around it if it is meant as text"
    )


def test_a_forgotten_quote_around_braces_is_one_problem() -> None:
    assert where("v: {{ x }}\n", with_v(str)) == ["f.yaml:1:5: v"]


def test_merge_keys_are_refused_and_the_keys_they_stand_for_are_not_missed() -> None:
    text = "base: &b {rounds: 3}\nv:\n  <<: *b\n"
    model = create_model("M", base=(Any, ...), v=(Training, ...))
    assert problem(text, model) == Problem(
        "the merge key '<<' is not supported", "f.yaml:3:3: v", "write out the keys it stands for"
    )


def test_a_quoted_merge_key_is_a_key() -> None:
    assert read_v("v: {'<<': 1}") == {"<<": 1}


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("!!python/object/apply:os.system [ls]", "!!python/object/apply:os.system"),
        ("!!python/name:os.system ''", "!!python/name:os.system"),
        ("!!binary aGk=", "!!binary"),
        ("!!timestamp 2020-01-01", "!!timestamp"),
        ("!!set {a, b}", "!!set"),
        ("!env HOME", "!env"),
        ("!!map [1]", "!!map"),
        ("!!int [1]", "!!int"),
        ("!!str {a: 1}", "!!str"),
        ("!!seq x", "!!seq"),
    ],
)
def test_special_tags_are_refused_and_nothing_else_is_said_of_the_value(text: str, tag: str) -> None:
    assert problem(f"v: {text}", with_v(int)) == Problem(
        f"the tag '{tag}' is not allowed here", "f.yaml:1:4: v", "leave the tag out and write a plain value"
    )


def test_other_problems_are_reported_beside_a_refused_tag() -> None:
    assert where("training: !x {rounds: ten}\nname: 3\nnmae: 2", Study) == [
        "f.yaml:1:11: training",
        "f.yaml:2:7: name",
        "f.yaml:3:1: nmae",
    ]


def test_a_value_must_fit_its_tag() -> None:
    assert problem("v: !!int '12:30'") == Problem(
        "'12:30' does not fit its tag '!!int'", "f.yaml:1:4: v", "leave the tag out"
    )


def test_a_long_number_is_read() -> None:
    assert read_v("v: " + "9" * 1000) == 10**1000 - 1


@pytest.mark.parametrize("text", ["9" * 1001, "0x" + "f" * 999])
def test_a_number_of_a_thousand_digits_is_no_number(text: str) -> None:
    assert problem(f"v: {text}", with_v(str)).message == "this number has too many digits"


def test_a_value_that_contains_itself() -> None:
    only = problem("v: 1\nw: &a\n  - [*a]\n")
    assert only == Problem(
        "this value contains itself through an alias", "f.yaml:2:4: w.0.0", "write the inner value out"
    )
    assert problem("v: &a {k: *a}").where == "f.yaml:1:4: v.k"


def test_the_number_of_values_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_MAX_VALUES", 6)
    assert read_v("v: [1, 2, 3]") == [1, 2, 3]  # two mappings or lists, a key, three numbers
    assert problem("v: [1, 2, 3, 4]") == Problem(
        "the file holds more than 6 values, each alias counted in full",
        "f.yaml:1:14: v.3",
        "use fewer aliases, or check that this is the right file",
    )


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40)]
    only = problem("\n".join(lines))
    assert only.message == "the file holds more than 100000 values, each alias counted in full"


def test_nesting_has_a_limit() -> None:
    assert read_v("v: " + "[" * 48 + "1" + "]" * 48)  # with the mapping and the number, 50 levels
    only = problem("v: " + "[" * 49 + "1" + "]" * 49)
    assert (only.message, only.hint) == ("this value is nested too deeply", "nest at most 50 levels")
    by_aliases = ["a0: &a0 []", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60))]
    assert problem("\n".join(by_aliases)).message == "this value is nested too deeply"
    assert problem("v: " + "[" * 5000) == Problem("the file is nested too deeply", "f.yaml", "nest at most 50 levels")


def test_what_was_found_before_the_reading_stopped_is_reported() -> None:
    assert where("a: 1\na: 2\nb: &b [*b]") == ["f.yaml:2:1: a", "f.yaml:3:4: b.0"]


# --- files that cannot be read ----------------------------------------------------------------------------------------


CHECK = "check quotes, brackets, colons and indentation"
PAIRS = "write 'key: value' lines, or check that this is the right file"


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        (
            "a: [1,\n  2\n",
            "f.yaml:3:1",
            "not valid YAML: expected ',' or ']', but got '<stream end>'",
            f"{CHECK} from line 1, column 4 to here",
        ),
        (
            "a: 1\nb: 'x\nc: 2\n",
            "f.yaml:4:1",
            "not valid YAML: found unexpected end of stream",
            f"{CHECK} from line 2, column 4 to here",
        ),
        ("a: b: c", "f.yaml:1:5", "not valid YAML: mapping values are not allowed here", CHECK),
        ("a: 1\nb: *x", "f.yaml:2:4", "not valid YAML: found undefined alias 'x'", CHECK),
        ("a:\n\t- 1", "f.yaml:2:1", "there is a tab where YAML allows only spaces", "indent with spaces"),
        (
            "a: 1\n---\nb: 2",
            "f.yaml:2:1",
            "a second document begins here",
            "keep one: delete the '---' and what follows it",
        ),
        ('a: 1\nb: "\\UFFFFFFFF"', "f.yaml:2:7", "not valid YAML: a number out of range", "correct it"),
        ("a: 1\r\nb: \x07", "f.yaml:2:4", "YAML does not allow the character U+0007", "delete it"),
        (
            b"a: \xc3\xa9\nb: \xc3\xa9\xe9",
            "f.yaml:2:5",
            "the byte 0xE9 is not UTF-8 text",
            "save the file as UTF-8 text",
        ),
        (b"\xef\xbb\xbfa: \xff", "f.yaml:1:4", "the byte 0xFF is not UTF-8 text", "save the file as UTF-8 text"),
        ("# list\n- a", "f.yaml:2:1", "the file holds a list and not a mapping", PAIRS),
        ("  text", "f.yaml:1:3", "the file holds a single value and not a mapping", PAIRS),
        ("", "f.yaml", "the file is empty", PAIRS),
        ("# nothing\n", "f.yaml", "the file is empty", PAIRS),
        (
            " " * (2**20 + 1),
            "f.yaml",
            "this file is larger than 1048576 bytes",
            "is it a configuration file? check the path",
        ),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_problem(
    text: str | bytes, place: str, message: str, hint: str
) -> None:
    assert problem(text) == Problem(message, place, hint)


def test_a_file_of_the_largest_size_is_read() -> None:
    assert read_v("v: 1 #" + "x" * (2**20 - 6)) == 1


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    for path, message, hint in [
        (Path("no.yaml"), "there is no such file", f"it was looked for at {tmp_path}/no.yaml; check the path"),
        (Path(), "this is a directory, not a file", "give the path of the YAML file itself"),
        (
            write("a: 1") / "b.yaml",
            "this file cannot be read: [Errno 20] Not a directory: 'f.yaml/b.yaml'",
            "check the path",
        ),
        (Path("a\0b"), "this file cannot be read: embedded null byte", "check the path"),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            load(path, Anything)
        assert caught.value.problems == (Problem(message, str(path), hint),)


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    path = write("a: 1")
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ConfigurationError) as caught:
        load(path, Anything)
    assert caught.value.problems == (
        Problem("no permission to read this file", "f.yaml", "make it readable for the user who runs this"),
    )


def test_a_defect_of_a_validator_is_not_hidden() -> None:
    def defect(_: object) -> NoReturn:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load(write("v: 1"), with_v(Annotated[int, AfterValidator(defect)]))


class Everything(Strict):
    a: Stage | list[int] | Strategy
    b: dict[Any, Annotated[Even, AfterValidator(lambda even: even)] | Colour]


TOKENS = [
    *" \n\t:-?,[]{}&*!|>'\"%#@~<1ab",
    ": ",
    "- ",
    "\n  ",
    "a: ",
    "b: ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "---\n",
    '"\\U9',
    "%YAML 1.",
]


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.lists(st.sampled_from(TOKENS), max_size=30).map("".join).map(str.encode),
        nested.map(lambda value: yaml.safe_dump({"a": value, "b": value}, encoding="utf-8")),
        nested.map(lambda value: yaml.safe_dump({"b": {"x": value}, "a": [value]}, encoding="utf-8")),
    )
)
@example(b"%YAML 1." + b"9" * 5000 + b"\n--- {}")
@example(b"a: 0x" + b"f" * 5000)
@example(b"? " * 3000)
@example(b"\xff\xfea\x00")
@example(b"a: 1e999\nb: {}")
@example(b'"\\ud800": "\\ud800"')
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.yaml")
        path.write_bytes(content)
        try:
            load(path, Everything)
            found: tuple[Problem, ...] = ()
        except ConfigurationError as error:
            found = error.problems or (Problem("none"),)
    assert all(one.message and one.where.startswith(str(path)) for one in found)
    assert len(set(found)) == len(found)
    assert all(f"{one.where}{one.message}{one.hint}".isprintable() for one in found)
