"""`results.json` of a run, read with care: what is none, or of another version, is said to be so."""

import json
from pathlib import Path

from pydantic import ValidationError

from ich_models.errors import ConfigurationError, Problem
from ich_models.protocol import PACKAGE
from ich_server import results


def read(path: Path) -> results.Results:
    """A `results.json` of this version. Raises ConfigurationError if there is none, or what stands there is another."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        hint = "give the folder that ich-simulate wrote with --out"
        raise ConfigurationError("there is no such file", where=str(path), hint=hint) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        hint = "take the file from a backup, or run the study again with --resume"
        raise ConfigurationError(f"not a JSON file: {error}", where=str(path), hint=hint) from None
    version = content.get("schema") if isinstance(content, dict) else None
    if version != results.SCHEMA:
        says = "no version of a results file" if version is None else f"results of version {version!r}"
        message = f"{says}, and ich-server {PACKAGE} reads version {results.SCHEMA}"
        hint = "use the version of ich-federation that wrote the file"
        raise ConfigurationError(message, where=str(path), hint=hint)
    try:
        return results.read(path)
    except ValidationError as error:
        raise ConfigurationError(_faults(path, error)) from None


def _faults(path: Path, error: ValidationError) -> list[Problem]:
    hint = "the file was changed by hand or broken off: take it from a backup, or run the study again with --resume"
    return [
        Problem(f"{'.'.join(map(str, each['loc']))}: {each['msg']}", str(path), hint)
        for each in error.errors(include_url=False, include_input=False, include_context=False)
    ]
