"""Where a simulation's federation and hospitals come from: paths, so that every process can read them for itself."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ich_client.hospital import load_mappings
from ich_client.images import Ask, user_cache
from ich_client.progress import watched
from ich_client.tables import Hospital, load_hospitals
from ich_models.federation import Federation, load_federation
from ich_models.yaml_config import Document


@dataclass(frozen=True)
class Source:
    """A federation file, the folder of hospital files, and the root of the hospitals' relative paths.

    `cache`: where what is made of images is kept, for all studies; by default the user's cache folder.
    """

    federation: Path
    mappings: Path
    data: Path
    cache: Path = field(default_factory=user_cache)


@lru_cache(maxsize=4)
def load(source: Source) -> tuple[Document[Federation], tuple[Hospital, ...]]:
    """The study and its hospitals, sorted by name; read once per process.

    Raises ConfigurationError or DataError with every problem found.
    """
    federation = load_federation(source.federation)
    mappings = load_mappings(source.mappings)
    with watched() as watch:
        return federation, load_hospitals(mappings, source.data, federation, source.cache, Ask(watch=watch))


def locate(federation: Path, data: Path, mappings: Path | None) -> Source:
    """The usual places: hospital files in `hospitals/` beside the federation file, tables below `data`.

    `data` may also be a folder of data sets: a folder in it that is named like the federation file's is then meant.
    """
    folder = federation.resolve().parent.name
    below = data / folder
    return Source(federation, mappings or federation.parent / "hospitals", below if below.is_dir() else data)
