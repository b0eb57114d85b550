"""What `modalities.text` may say: where a patient's text comes from, and the tokens that every hospital makes of it."""

from typing import Annotated, Literal

from pydantic import Field

from ich_models.networks.options import Pinned
from ich_models.strict import Strict


class TextSpec(Strict):
    """A patient's text as token ids (L,), [CLS] first, cut off or filled up with 0."""

    source: Literal["template", "report"] = "template"
    """`template`: sentences made of the table's variables; `report`: the hospital's own text."""
    variables: list[str] | None = None
    """What the template speaks of; the table's predictors if it is left out."""
    numbers: Literal["digits", "words"] = "digits"
    """How the template says numbers: as they are, or in words by the range of the variable (low, high, ...)."""
    tokens: Annotated[int, Field(ge=4, le=512)] = 64
    vocabulary: Pinned | None = None
    """A WordPiece vocabulary that every hospital has a copy of; the small built-in one if it is left out."""
    lower_case: bool = False
    """Whether the vocabulary is of lower-case words."""
