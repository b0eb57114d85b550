"""The base of everything that comes from a file or a message: frozen, and unknown keys and unprintable texts are refused."""

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

NAME: Final = r"[a-z0-9][a-z0-9._-]{0,63}"
"""Regular expression of `Name`."""

Name = Annotated[str, Field(pattern=f"^{NAME}$")]
"""Of a study or a hospital: safe in a path, a message and a page."""

_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys or a reader cannot see: control characters but tab and line feed, line and paragraph separators,
marks that turn the direction of writing, halves of a character."""


class Strict(BaseModel):
    """Pydantic model that is frozen and refuses keys that it does not know, and texts that could deceive their reader."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        if found := _unprintable(value):
            raise ValueError(f"a character that cannot be printed: U+{ord(found):04X} | remove it")
        return value


def _unprintable(value: object) -> str | None:
    """The first unprintable character of the texts in a value; what another `Strict` holds is that one's own business."""
    if isinstance(value, str):
        match = _UNPRINTABLE.search(value)
        return match[0] if match else None
    if isinstance(value, dict):
        return next((found for pair in value.items() for one in pair if (found := _unprintable(one))), None)
    if isinstance(value, list | tuple):
        return next((found for one in value if (found := _unprintable(one))), None)
    return None
