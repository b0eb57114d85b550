"""YAML files to plain values that remember where they were written; what YAML or we forbid is said with its place."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ich_models.errors import ConfigurationError, Problem

Loc = tuple[Hashable, ...]
"""Keys and indices from the top of a file to a value."""

_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
QUOTE = "put quotes around it if it is meant as text"


@dataclass(frozen=True)
class Spot:
    """Where one value was written (counted from 1), its key and that key's place, and the same for the values in it."""

    line: int
    column: int
    name: Hashable
    key: tuple[int, int]
    inside: Mapping[Hashable, "Spot"]

    def find(self, name: Hashable) -> "Spot | None":
        """The value under a key or index; pydantic's locations have keys such as 1.5 and null as text."""
        if name in self.inside:
            return self.inside[name]
        return next((spot for key, spot in self.inside.items() if str(key) == name), None)


class Found(NamedTuple):
    line: int
    column: int
    problem: Problem


def refusal(found: Iterable[Found]) -> ConfigurationError:
    """In the order of the file; what is wrong in a value that aliases repeat is said once."""
    once: dict[tuple[int, int, str, str], Found] = {}
    for one in found:
        once.setdefault((one.line, one.column, one.problem.message, one.problem.hint), one)
    return ConfigurationError(one.problem for one in sorted(once.values(), key=lambda one: one[:2]))


def where_in(path: Path, line: int, column: int, loc: Loc = ()) -> str:
    place = f"{path}:{line}:{column}"
    return f"{place}: {'.'.join(map(bare, loc))}" if loc else place


def bare(value: Hashable) -> str:
    """A key or a permitted value, as the file would show it."""
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, str):
        return value if value.isprintable() and value.strip() else repr(value)
    return "null" if value is None else str(value).lower()


def say(value: object) -> str:
    """A value inside a sentence."""
    if value is None:
        return "an empty value"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if not isinstance(value, bool) else bare(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- from the file to a tree of YAML nodes ----------------------------------------------------------------------------


def read_text(path: Path) -> str:
    def refuse(message: str, hint: str, place: str = str(path)) -> ConfigurationError:
        return ConfigurationError(message, where=place, hint=hint)

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse("there is no such file", f"it was looked for at {path.absolute()}; check the path") from None
    except IsADirectoryError:
        raise refuse("this is a directory, not a file", "give the path of the YAML file itself") from None
    except PermissionError:
        raise refuse("no permission to read this file", "make it readable for the user who runs this") from None
    except (OSError, ValueError) as error:
        raise refuse(f"this file cannot be read: {error}", "check the path") from None
    if len(data) > _MAX_BYTES:
        raise refuse(f"this file is larger than {_MAX_BYTES} bytes", "is it a configuration file? check the path")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start].decode(), error.object[error.start]
        place = where_in(path, *_position_after(before))
        raise refuse(f"the byte 0x{byte:02X} is not UTF-8 text", "save the file as UTF-8 text", place) from None


def _position_after(text: str) -> tuple[int, int]:
    lines = re.split(r"\r\n|\r|\n", text)
    return len(lines), len(lines[-1]) + 1


def _position(mark: yaml.Mark | None) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def compose(path: Path, text: str) -> yaml.MappingNode:
    def refuse(message: str, hint: str, position: tuple[int, int] | None = None) -> ConfigurationError:
        return ConfigurationError(message, where=where_in(path, *position) if position else str(path), hint=hint)

    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        message = f"YAML does not allow the character U+{error.character:04X}"
        raise refuse(message, "delete it", _position_after(text[: error.position])) from None
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise refuse(*_syntax(error), _position(error.problem_mark)) from None
    except (ValueError, OverflowError):  # PyYAML takes the number in "\UFFFFFFFF" or "%YAML 1.9..." on trust
        raise refuse("not valid YAML: a number out of range", "correct it", _position(loader.get_mark())) from None
    except RecursionError:
        raise refuse("the file is nested too deeply", f"nest at most {_MAX_DEPTH} levels") from None
    hint = "write 'key: value' lines, or check that this is the right file"
    if node is None:
        raise refuse("the file is empty", hint)
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise refuse(f"the file holds {kind} and not a mapping", hint, _position(node.start_mark))
    return node


def _syntax(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    """Message and hint for what PyYAML could not parse."""
    problem = str(error.problem)
    if "another document" in problem:
        return "a second document begins here", "keep one: delete the '---' and what follows it"
    if r"'\t'" in problem:
        return "there is a tab where YAML allows only spaces", "indent with spaces"
    hint = "check quotes, brackets, colons and indentation"
    if error.context_mark is not None:
        hint += " from line {}, column {} to here".format(*_position(error.context_mark))
    return f"not valid YAML: {problem}", hint


# --- from the nodes to plain values and their places ------------------------------------------------------------------


def _integer(text: str) -> int:
    if len(text) > 1000:  # Python refuses to print integers of more than 4300 digits
        raise ValueError(text)
    return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)


_TAG = "tag:yaml.org,2002:"
_SCALARS: Mapping[str, tuple[str, Callable[[str], object]]] = {  # the core schema, YAML 1.2.2 section 10.3.2
    "null": (r"(~|null|Null|NULL|)\Z", lambda _: None),
    "bool": (r"(true|True|TRUE|false|False|FALSE)\Z", lambda text: text.lower() == "true"),
    "int": (r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", _integer),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z",
        lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
    ),
    "str": ("", str),
}


class _Loader(yaml.SafeLoader):
    """PyYAML, with YAML 1.2's idea of a plain scalar: `no`, `12:30` and `2020-01-01` are text, `1e-5` is a number."""

    yaml_implicit_resolvers: dict[str | None, Any] = {
        None: [(_TAG + kind, re.compile(pattern)) for kind, (pattern, _) in _SCALARS.items()]
    }


class Builder:
    """Turns YAML nodes into plain values with their places, and keeps the problems it meets.

    `broken` holds the paths of values that could not be understood: what a model says about those would mislead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[Found] = []
        self.broken: set[tuple[str, ...]] = set()
        self._open: list[yaml.Node] = []
        self._built = 0

    def build(self, node: yaml.Node, loc: Loc, key: tuple[int, int] | None = None) -> tuple[object, Spot]:
        """The value of a node, and its place.

        Raises:
            ConfigurationError: aliases or nesting make the value endless, or too large.
        """
        self._built += 1
        if any(node is parent for parent in self._open):
            raise self._stop(node, loc, "this value contains itself through an alias", "write the inner value out")
        if len(self._open) == _MAX_DEPTH:
            raise self._stop(node, loc, "this value is nested too deeply", f"nest at most {_MAX_DEPTH} levels")
        if self._built > _MAX_VALUES:
            message = f"the file holds more than {_MAX_VALUES} values, each alias counted in full"
            raise self._stop(node, loc, message, "use fewer aliases, or check that this is the right file")
        self._open.append(node)
        inside: dict[Hashable, Spot] = {}
        value = self._value(node, loc, inside)
        self._open.pop()
        here = _position(node.start_mark)
        return value, Spot(*here, loc[-1] if loc else None, key or here, inside)

    def _value(self, node: yaml.Node, loc: Loc, inside: dict[Hashable, Spot]) -> object:
        kind = node.tag.removeprefix(_TAG)
        kinds: Mapping[type, Iterable[str]] = {yaml.MappingNode: ["map"], yaml.SequenceNode: ["seq"]}
        if kind not in kinds.get(type(node), _SCALARS):
            tag = say(node.tag.replace(_TAG, "!!"))
            self._break(node, loc, f"the tag {tag} is not allowed here", "leave the tag out and write a plain value")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc, inside)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, loc, inside)
        pattern, convert = _SCALARS.get(kind, _SCALARS["str"])
        if not re.match(pattern, node.value):
            self._break(node, loc, f"{say(node.value)} does not fit its tag '!!{kind}'", "leave the tag out")
            return node.value
        try:
            return convert(node.value)
        except ValueError:
            self._break(node, loc, "this number has too many digits", QUOTE)
            return node.value

    def _sequence(self, node: yaml.SequenceNode, loc: Loc, inside: dict[Hashable, Spot]) -> list[object]:
        values = []
        for index, item in enumerate(node.value):
            value, inside[index] = self.build(item, (*loc, index))
            values.append(value)
        return values

    def _mapping(self, node: yaml.MappingNode, loc: Loc, inside: dict[Hashable, Spot]) -> dict[Hashable, object]:
        values: dict[Hashable, object] = {}
        for key_node, value_node in node.value:
            key, _ = self.build(key_node, loc)
            if key == "<<" and key_node.style is None:
                self._break(key_node, loc, "the merge key '<<' is not supported", "write out the keys it stands for")
            elif not isinstance(key, Hashable):
                self._break(key_node, loc, f"{say(key)} cannot be a key", QUOTE)
            else:
                value, spot = self.build(value_node, (*loc, key), _position(key_node.start_mark))
                if key in inside:
                    hint = f"it is first written at {where_in(self.path, *inside[key].key)}; keep one of the two"
                    self._note(key_node, (*loc, key), "this key is written twice", hint)
                else:
                    values[key], inside[key] = value, spot
        return values

    def _note(self, node: yaml.Node, loc: Loc, message: str, hint: str) -> None:
        line, column = _position(node.start_mark)
        self.found.append(Found(line, column, Problem(message, where_in(self.path, line, column, loc), hint)))

    def _break(self, node: yaml.Node, loc: Loc, message: str, hint: str) -> None:
        self._note(node, loc, message, hint)
        self.broken.add(tuple(map(bare, loc)))

    def _stop(self, node: yaml.Node, loc: Loc, message: str, hint: str) -> ConfigurationError:
        self._note(node, loc, message, hint)
        return refusal(self.found)
