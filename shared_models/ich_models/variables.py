"""The data dictionary: what each variable of the table is, when it is known, and which may predict the outcome."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from ich_models.strict import Strict
from ich_models.yaml_config import suggest

Complaint = tuple[tuple[str | int, ...], str, str]
"""Key path in the federation file, message, hint."""

MISSING: Final = "missing"
"""The level that missing values form where a variable says `missing: level`."""


class Variable(Strict):
    """One variable as the study understands it; hospitals map their columns to it."""

    type: Literal["number", "integer", "category", "yes_no"]
    unit: str | None = None
    """Unit of a number, in words that `pint` knows (years, mL, mmHg, mg/dL)."""
    range: tuple[float, float] | None = None
    """Smallest and largest believable value, inclusive, in `unit`."""
    levels: list[str] | None = None
    """Levels of a category. The first is the reference: it gets no column of its own."""
    known_at: str | None = None
    """The moment of the timeline at which the value is known. A predictor must state it."""
    derived_from: list[str] = []
    """Variables that this one is computed from."""
    missing: Literal["impute", "level"] = "impute"
    """`impute`: the training hospitals' mean (numbers) or shares (levels); `level`: missing is a level of its own."""
    description: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "category" and not self.levels:
            raise ValueError("a category needs its levels | add levels: [first, second, ...], the reference first")
        if self.type != "category" and self.levels is not None:
            raise ValueError(f"levels belong to a category, and this is a {self.type} | use type: category")
        if self.levels is not None and len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels must differ: {self.levels}")
        if self.levels is not None and MISSING in self.levels:
            raise ValueError(f"'{MISSING}' cannot be named as a level | leave it out, and write missing: level")
        if self.type in ("category", "yes_no") and (self.range or self.unit):
            raise ValueError(f"range and unit belong to numbers, and this is a {self.type}")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"the range {list(self.range)} is empty | write [smallest, largest]")
        if self.missing == "level" and self.type in ("number", "integer"):
            raise ValueError(
                "a number has no level for missing | use missing: impute (modalities.table.missing_indicators"
                " adds a column that says whether it was known)"
            )
        return self

    @property
    def codes(self) -> tuple[str, ...]:
        """The levels that a value may take, the reference first; empty for numbers."""
        if self.type == "yes_no":
            return ("no", "yes")
        return tuple(self.levels or ())


class Dictionary(Strict):
    """A file of variables that several federations share."""

    variables: dict[str, Variable]


class Outcome(Strict):
    """The label: which variable, when it is measured, where the cut lies and which side counts as positive."""

    variable: str
    scale: str = ""
    """The scale's name, as reports print it (mRS, GOS, ...)."""
    at: str
    """The moment of the timeline at which it is measured."""
    poor: str | list[str]
    """The poor outcomes: a comparison ('>= 3'), a range ('3-6') or a list of levels."""
    positive: Literal["poor", "good"] = "poor"

    @field_validator("poor")
    @classmethod
    def _readable(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            low, high, _, _ = _cut(value)
            if low > high:
                raise ValueError(f"'{value}' holds no number | write the smaller one first")
        return value

    def is_positive(self, value: float | str) -> bool:
        """Whether a recorded value counts as the positive class."""
        poor = value in self.poor if isinstance(self.poor, list) else _inside(float(value), *_cut(self.poor))
        return poor == (self.positive == "poor")

    def contradictions(
        self, variables: Mapping[str, Variable], timeline: Sequence[str], predict_at: str
    ) -> Iterator[Complaint]:
        """What the outcome, its variable and the timeline say against each other."""
        here = ("task", "outcome")
        if len(set(timeline)) != len(timeline):
            yield ("task", "timeline"), f"a moment stands twice: {list(timeline)}", "name each moment once"
        if predict_at not in timeline:
            yield ("task", "predict_at"), f"'{predict_at}' is not in the timeline", f"one of: {', '.join(timeline)}"
        if self.at not in timeline:
            yield (*here, "at"), f"'{self.at}' is not in the timeline", f"one of: {', '.join(timeline)}"
        elif predict_at in timeline and timeline.index(self.at) <= timeline.index(predict_at):
            yield (
                (*here, "at"),
                f"the outcome is measured at {self.at}, not after the prediction ({predict_at})",
                "there would be nothing to predict: correct task.predict_at or task.outcome.at",
            )
        variable = variables.get(self.variable)
        if variable is None:
            yield (*here, "variable"), f"no variable '{self.variable}'", "define it in modalities.table.variables"
        elif variable.codes and isinstance(self.poor, str):
            yield (
                (*here, "poor"),
                f"'{self.poor}' compares numbers, and '{self.variable}' has levels",
                f"write a list of levels: {list(variable.codes)}",
            )
        elif variable.codes and not set() < set(self.poor) < set(variable.codes):
            yield (
                (*here, "poor"),
                f"{self.poor} must be some, not all, of the levels of '{self.variable}'",
                f"levels: {list(variable.codes)}",
            )
        elif not variable.codes and isinstance(self.poor, list):
            yield (*here, "poor"), f"'{self.variable}' is a number, and {self.poor} is a list", "write '>= 3' or '3-6'"
        elif variable.known_at not in (None, self.at):
            yield (
                (*here, "at"),
                f"the outcome is measured at {self.at}, but '{self.variable}' is known at {variable.known_at}",
                "make the two agree",
            )


_NUMBER = r"(-?\d+(?:\.\d+)?)"


def _cut(text: str) -> tuple[float, float, bool, bool]:
    """A cut as (low, high, low included, high included)."""
    if match := re.fullmatch(rf"\s*(>=|>|<=|<)\s*{_NUMBER}\s*", text):
        sign, number = match[1], float(match[2])
        inf = float("inf")
        return (number, inf, sign == ">=", True) if ">" in sign else (-inf, number, True, sign == "<=")
    if match := re.fullmatch(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*", text):
        return float(match[1]), float(match[2]), True, True
    raise ValueError(f"'{text}' is not a comparison | write it as '>= 3', '3-6' or a list of values")


def _inside(value: float, low: float, high: float, low_included: bool, high_included: bool) -> bool:
    return (value > low or (low_included and value == low)) and (value < high or (high_included and value == high))


class Table(Strict):
    """The table modality: its variables, the ones that predict, and how they become numbers."""

    dictionary: str | None = None
    """A file of variables beside this one, shared by several federations."""
    variables: dict[str, Variable] = {}
    predictors: Annotated[list[str], Field(min_length=1)]
    scaling: Literal["federated", "hospital", "none"] = "federated"
    """Every column to mean 0 and standard deviation 1: by the training hospitals' sums, or by each hospital's own."""
    missing_indicators: bool = False
    """One more column for each imputed predictor: 1 where the value is missing."""
    complete_cases: bool = False
    """Patients with a missing predictor are left out, and counted."""

    @field_validator("dictionary")
    @classmethod
    def _near(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the name of the file is missing | name it, or leave dictionary out")
        if value is not None and (PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
            raise ValueError(f"'{value}' leaves the folder of the federation file | keep the dictionary beside it")
        return value

    @property
    def chosen(self) -> dict[str, Variable]:
        """The predictors with their definitions, in order."""
        return {name: self.variables[name] for name in self.predictors}

    def contradictions(self, outcome: Outcome, timeline: Sequence[str], predict_at: str) -> Iterator[Complaint]:
        """Predictors that are unknown, named twice, known too late, undated or derived from the outcome."""
        here = ("modalities", "table", "predictors")
        for name, variable in self.variables.items():
            if variable.known_at is not None and variable.known_at not in timeline:
                yield (
                    ("modalities", "table", "variables", name, "known_at"),
                    f"'{variable.known_at}' (of variable '{name}') is not in the timeline",
                    f"one of: {', '.join(timeline)}",
                )
            for source in variable.derived_from:
                if source not in self.variables:
                    yield (
                        ("modalities", "table", "variables", name, "derived_from"),
                        f"'{name}' is derived from '{source}', which is not defined",
                        "define it, so that its moment is known",
                    )
        yield from self.leaks(self.predictors, here, "predictor", outcome, timeline, predict_at)

    def leaks(
        self,
        names: Sequence[str],
        place: tuple[str, ...],
        role: str,
        outcome: Outcome,
        timeline: Sequence[str],
        predict_at: str,
    ) -> Iterator[Complaint]:
        """What makes variables of the list at `place` unfit to be shown to a network. `role`: what they are called."""
        for index, name in enumerate(names):
            if name in names[:index]:
                yield (*place, index), f"{role} '{name}' is named twice", "remove one"
            elif name not in self.variables:
                yield (*place, index), f"no variable '{name}'", suggest(name, self.variables, "variables")
            elif reason := self._leak(name, f"remove it from the {role}s", outcome, timeline, predict_at):
                yield (*place, index), f"{role} '{name}' {reason[0]}", reason[1]

    def _leak(
        self, name: str, remove: str, outcome: Outcome, timeline: Sequence[str], predict_at: str
    ) -> tuple[str, str] | None:
        """Why a variable would tell the model what it cannot know at the prediction time, and what to do."""
        variable = self.variables[name]
        if name == outcome.variable:
            return "is the outcome", remove
        ancestors = _ancestors(name, self.variables)
        if outcome.variable in ancestors:
            return f"derives from the outcome '{outcome.variable}'", remove
        definers = _ancestors(outcome.variable, self.variables)
        if name in definers:
            return f"defines the outcome '{outcome.variable}'", remove
        for source in ancestors:
            if source in definers:
                return (
                    f"derives from '{source}', which defines the outcome '{outcome.variable}'",
                    remove,
                )
        if variable.known_at is None:
            return "does not say when it is known", f"add known_at: one of {', '.join(timeline)}"
        if predict_at not in timeline or variable.known_at not in timeline:
            return None
        limit = timeline.index(predict_at)
        if timeline.index(variable.known_at) > limit:
            return (
                f"is known at {variable.known_at}, after the prediction ({predict_at})",
                f"{remove}, or predict later",
            )
        for source in ancestors:
            moment = self.variables[source].known_at if source in self.variables else None
            if moment in timeline and timeline.index(moment) > limit:
                return (
                    f"derives from '{source}', known at {moment}, after the prediction ({predict_at})",
                    remove,
                )
        return None


def _ancestors(name: str, variables: Mapping[str, Variable]) -> list[str]:
    """Every variable that `name` is derived from, directly or not, in a fixed order."""
    found: list[str] = []
    waiting = list(variables[name].derived_from) if name in variables else []
    while waiting:
        source = waiting.pop(0)
        if source not in found:
            found.append(source)
            waiting += variables[source].derived_from if source in variables else []
    return found
