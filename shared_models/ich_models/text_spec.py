"""What `modalities.text` may say: where a patient's text comes from, and the tokens that every hospital makes of it."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ich_models.networks.options import Pinned
from ich_models.strict import Strict
from ich_models.variables import Complaint, Outcome, Table, Variable

VERSION: Final = 1
"""Of the template's sentences and of the built-in vocabulary: another sentence or another word is another version."""


class TextSpec(Strict):
    """A patient's text as token ids (L,), [CLS] first, cut off or filled up with 0."""

    source: Literal["template", "report"] = "template"
    """`template`: sentences made of the table's variables; `report`: the hospital's own text."""
    writer: Literal["template", "allowed"] = "template"
    """`allowed`: a hospital may have the text written from the image by a language model inside the hospital, where it has
    one; the template stands in wherever an answer is not taken."""
    version: Literal[1] = VERSION
    """Of the template and of the built-in vocabulary."""
    variables: Annotated[list[str], Field(min_length=1)] | None = None
    """What the template speaks of, in this order; the table's predictors if it is left out."""
    numbers: Literal["digits", "words"] = "digits"
    """How the template says numbers: as they are, or in words by the range of the variable (low, high, ...)."""
    known_at: str | None = None
    """The moment of the timeline at which a report is written. A report must state it."""
    tokens: Annotated[int, Field(ge=4, le=512)] = 64
    vocabulary: Pinned | None = None
    """A WordPiece vocabulary that every hospital has a copy of; the small built-in one if it is left out."""
    lower_case: bool = False
    """Whether the pinned vocabulary is of lower-case words; the built-in one always is."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.source == "report" and self.variables is not None:
            raise ValueError("variables belong to the template, and the source is report | leave them out")
        if self.source == "report" and self.writer == "allowed":
            raise ValueError(
                "a language model writes in place of the template, and the source is report | leave writer out"
            )
        if self.source == "template" and self.known_at is not None:
            raise ValueError("known_at belongs to a report; the template's variables have moments of their own")
        return self

    def spoken(self, table: Table) -> dict[str, Variable]:
        """What the template speaks of, in its order; nothing where the text is the hospital's own."""
        if self.source == "report":
            return {}
        return {name: table.variables[name] for name in self.variables or table.predictors}

    def contradictions(
        self, table: Table, outcome: Outcome, timeline: Sequence[str], predict_at: str
    ) -> Iterator[Complaint]:
        """Variables that would tell the outcome, numbers that have no words, a report that is written too late."""
        here = ("modalities", "text")
        if self.source == "report":
            where, moments = (*here, "known_at"), f"one of: {', '.join(timeline)}"
            if self.known_at is None:
                yield where, "a report must say when it is written", f"add known_at, {moments}"
            elif self.known_at not in timeline:
                yield where, f"'{self.known_at}' is not in the timeline", moments
            elif predict_at in timeline and timeline.index(self.known_at) > timeline.index(predict_at):
                message = f"the report is written at {self.known_at}, after the prediction ({predict_at})"
                yield where, message, "use an earlier report, or predict later"
            return
        names = self.variables or table.predictors
        if self.variables is not None:
            yield from table.leaks(names, (*here, "variables"), "text variable", outcome, timeline, predict_at)
        for index, name in enumerate(names):
            variable = table.variables.get(name)
            if self.numbers == "words" and variable and not variable.codes and variable.range is None:
                place = (*here, "variables", index) if self.variables is not None else (*here, "numbers")
                yield place, f"'{name}' has no range, so no words for it", "give it a range, or write numbers: digits"
