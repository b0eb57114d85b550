"""Pictures of generated patients, kept beside the results so that the page comes out the same again."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from ich_models.errors import ConfigurationError
from ich_models.files import write_json

PHOTOS: Final = "pictures.json"
"""In a run's folder, where there are any."""

_DATA: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True)
class Photo:
    """A picture of a generated patient. `data`: a PNG as a data URI; `alt`: what is on it, in words."""

    title: str
    data: str
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not _DATA.fullmatch(self.data):
            raise ValueError("a picture of the report is part of the page")


def keep(photos: Sequence[Photo], run: Path) -> None:
    """Write the pictures into a run's folder; of a study that has none, those of an earlier one go."""
    if photos:
        write_json(run / PHOTOS, [asdict(photo) for photo in photos])
    else:
        (run / PHOTOS).unlink(missing_ok=True)


def kept(run: Path) -> list[Photo]:
    """The pictures in a run's folder. Raises ConfigurationError for a file that `keep` did not write."""
    path = run / PHOTOS
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[Photo]).validate_json(path.read_bytes())
    except ValidationError as error:
        hint = "run the study again with --resume, or remove the file: the report is then without pictures"
        raise ConfigurationError("not the pictures of a report", where=str(path), hint=hint) from error
