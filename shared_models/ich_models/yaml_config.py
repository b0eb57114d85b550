"""Reads the YAML files that people write, checks them against a pydantic model, and gives every problem its place."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ich_models.errors import ConfigurationError, Problem

M = TypeVar("M", bound=BaseModel)
_Loc = tuple[Hashable, ...]
_Schema = Mapping[str, Any]  # one of pydantic_core.core_schema: what the model's validator was built from

_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_QUOTE = "put quotes around it if it is meant as text"


@dataclass(frozen=True)
class _Spot:
    """Where one value was written (counted from 1), its key and that key's place, and the same for the values in it."""

    line: int
    column: int
    name: Hashable
    key: tuple[int, int]
    inside: Mapping[Hashable, "_Spot"]

    def find(self, name: Hashable) -> "_Spot | None":
        """The value under a key or index; pydantic's locations have keys such as 1.5 and null as text."""
        if name in self.inside:
            return self.inside[name]
        return next((spot for key, spot in self.inside.items() if str(key) == name), None)


@dataclass(frozen=True)
class Document(Generic[M]):
    """A configuration file that was read and fits its model; it remembers where everything in it was written."""

    path: Path
    value: M
    _top: _Spot = field(repr=False, compare=False)

    def where(self, *loc: str | int) -> str:
        """The place of a value, as "federation.yaml:9:17: task.outcome.poor"; keys are named as in the file.

        If the file leaves the value out, line and column are those of the nearest parent that it holds.
        """
        spot = self._top
        for name in loc:
            inner = spot.find(name)
            if inner is None:
                break
            spot = inner
        return _where(self.path, spot.line, spot.column, loc)

    def replace(self, value: M) -> "Document[M]":
        """The same file with another value, when what it includes has been filled in."""
        return Document(self.path, value, self._top)


def load(path: Path, model: type[M]) -> Document[M]:
    """Read the file at `path` as YAML 1.2 (no merge keys, no special tags) and check it against `model`.

    A ValueError raised by one of the model's validators may carry a hint, as "message | hint".

    Raises:
        ConfigurationError: with every problem, in the order of the file. If the file cannot be read to its end
            (missing, not UTF-8, not YAML, endless aliases), with what was found up to there.
    """
    builder = _Builder(path)
    value, top = builder.build(_compose(path, _read(path)), ())
    found = builder.found
    try:
        result = model.model_validate(value)
    except ValidationError as error:
        found = found + _model_problems(error, _Schemas(model), path, top, builder.broken)
    if found:
        raise _refusal(found)
    return Document(path, result, top)


def suggest(name: str, known: Iterable[str], title: str = "known") -> str:
    """The hint for a name that is not known: the nearest one that is, and the list."""
    return _choice(name, known, title)


class _Found(NamedTuple):
    line: int
    column: int
    problem: Problem


def _refusal(found: Iterable[_Found]) -> ConfigurationError:
    """In the order of the file; what is wrong in a value that aliases repeat is said once."""
    once: dict[tuple[int, int, str, str], _Found] = {}
    for one in found:
        once.setdefault((one.line, one.column, one.problem.message, one.problem.hint), one)
    return ConfigurationError(one.problem for one in sorted(once.values(), key=lambda one: one[:2]))


def _where(path: Path, line: int, column: int, loc: _Loc = ()) -> str:
    place = f"{path}:{line}:{column}"
    return f"{place}: {'.'.join(map(_bare, loc))}" if loc else place


def _bare(value: Hashable) -> str:
    """A key or a permitted value, as the file would show it."""
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, str):
        return value if value.isprintable() and value.strip() else repr(value)
    return "null" if value is None else str(value).lower()


def _say(value: object) -> str:
    """A value inside a sentence."""
    if value is None:
        return "an empty value"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if not isinstance(value, bool) else _bare(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _choice(got: object, options: Iterable[Hashable], title: str) -> str:
    """The hint that lists what may stand here and asks for the nearest to what was written."""
    names = [_bare(option) for option in options]
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(str(got).lower(), by_lower, n=1)
    listing = f"{title}: {', '.join(names)}"
    return f"did you mean '{by_lower[close[0]]}'? ({listing})" if close else listing


# --- from the file to a tree of YAML nodes ----------------------------------------------------------------------------


def _read(path: Path) -> str:
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
        place = _where(path, *_position_after(before))
        raise refuse(f"the byte 0x{byte:02X} is not UTF-8 text", "save the file as UTF-8 text", place) from None


def _position_after(text: str) -> tuple[int, int]:
    lines = re.split(r"\r\n|\r|\n", text)
    return len(lines), len(lines[-1]) + 1


def _position(mark: yaml.Mark | None) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _compose(path: Path, text: str) -> yaml.MappingNode:
    def refuse(message: str, hint: str, position: tuple[int, int] | None = None) -> ConfigurationError:
        return ConfigurationError(message, where=_where(path, *position) if position else str(path), hint=hint)

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


class _Builder:
    """Turns YAML nodes into plain values with their places, and keeps the problems it meets.

    `broken` holds the paths of values that could not be understood: what a model says about those would mislead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[_Found] = []
        self.broken: set[tuple[str, ...]] = set()
        self._open: list[yaml.Node] = []
        self._built = 0

    def build(self, node: yaml.Node, loc: _Loc, key: tuple[int, int] | None = None) -> tuple[object, _Spot]:
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
        inside: dict[Hashable, _Spot] = {}
        value = self._value(node, loc, inside)
        self._open.pop()
        here = _position(node.start_mark)
        return value, _Spot(*here, loc[-1] if loc else None, key or here, inside)

    def _value(self, node: yaml.Node, loc: _Loc, inside: dict[Hashable, _Spot]) -> object:
        kind = node.tag.removeprefix(_TAG)
        kinds: Mapping[type, Iterable[str]] = {yaml.MappingNode: ["map"], yaml.SequenceNode: ["seq"]}
        if kind not in kinds.get(type(node), _SCALARS):
            tag = _say(node.tag.replace(_TAG, "!!"))
            self._break(node, loc, f"the tag {tag} is not allowed here", "leave the tag out and write a plain value")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc, inside)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, loc, inside)
        pattern, convert = _SCALARS.get(kind, _SCALARS["str"])
        if not re.match(pattern, node.value):
            self._break(node, loc, f"{_say(node.value)} does not fit its tag '!!{kind}'", "leave the tag out")
            return node.value
        try:
            return convert(node.value)
        except ValueError:
            self._break(node, loc, "this number has too many digits", _QUOTE)
            return node.value

    def _sequence(self, node: yaml.SequenceNode, loc: _Loc, inside: dict[Hashable, _Spot]) -> list[object]:
        values = []
        for index, item in enumerate(node.value):
            value, inside[index] = self.build(item, (*loc, index))
            values.append(value)
        return values

    def _mapping(self, node: yaml.MappingNode, loc: _Loc, inside: dict[Hashable, _Spot]) -> dict[Hashable, object]:
        values: dict[Hashable, object] = {}
        for key_node, value_node in node.value:
            key, _ = self.build(key_node, loc)
            if key == "<<" and key_node.style is None:
                self._break(key_node, loc, "the merge key '<<' is not supported", "write out the keys it stands for")
            elif not isinstance(key, Hashable):
                self._break(key_node, loc, f"{_say(key)} cannot be a key", _QUOTE)
            else:
                value, spot = self.build(value_node, (*loc, key), _position(key_node.start_mark))
                if key in inside:
                    hint = f"it is first written at {_where(self.path, *inside[key].key)}; keep one of the two"
                    self._note(key_node, (*loc, key), "this key is written twice", hint)
                else:
                    values[key], inside[key] = value, spot
        return values

    def _note(self, node: yaml.Node, loc: _Loc, message: str, hint: str) -> None:
        line, column = _position(node.start_mark)
        self.found.append(_Found(line, column, Problem(message, _where(self.path, line, column, loc), hint)))

    def _break(self, node: yaml.Node, loc: _Loc, message: str, hint: str) -> None:
        self._note(node, loc, message, hint)
        self.broken.add(tuple(map(_bare, loc)))

    def _stop(self, node: yaml.Node, loc: _Loc, message: str, hint: str) -> ConfigurationError:
        self._note(node, loc, message, hint)
        return _refusal(self.found)


# --- from pydantic's errors to problems -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trace:
    """A place reached in the file and in the model's schema, by following the location of an error in both."""

    path: _Loc
    spot: _Spot
    schema: _Schema  # of the value; empty where it cannot be told
    parent: _Schema  # of what holds the value
    unions: tuple[_Loc, ...] = ()  # the values on the way that may have several forms

    def step(self, name: Hashable, below: _Schema) -> "_Trace":
        spot = self.spot.find(name)
        path = (*self.path, spot.name if spot else name)
        return _Trace(path, spot or replace(self.spot, inside={}), below, self.schema, self.unions)

    def on_key(self) -> "_Trace":
        line, column = self.spot.key
        return replace(self, spot=replace(self.spot, line=line, column=column))


class _Schemas:
    """The schema of a model; it tells the keys in a location from the names of the alternatives that pydantic tried."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._refs: dict[str, _Schema] = {}
        self._top = self._core(model.__pydantic_core_schema__)

    def trace(self, error: ErrorDetails, top: _Spot) -> _Trace:
        """Follow the location of an error from the top to the value or key that is wrong, or to what lacks it."""
        kind, loc = error["type"], error["loc"]
        at = _Trace((), top, self._top, {})
        for index, name in enumerate(loc, start=1):
            below = self._below(at.schema, name)
            if at.schema.get("type") == "tagged-union":
                at = replace(at, schema=below)
            elif at.schema.get("type") == "union":
                at = replace(at, schema=below, unions=(*at.unions, at.path))
            elif at.spot.find(name) or below or (kind in {"missing", "extra_forbidden"} and index == len(loc)):
                at = at.step(name, below)
            elif name == "[key]":
                at = replace(at, schema=self._core(at.parent.get("keys_schema"))).on_key()
        tag = at.schema.get("discriminator") if kind.startswith("union_tag_") else None
        while isinstance(tag, list):
            tag = tag[-1]
        if isinstance(tag, str):
            return replace(at.step(tag, {}), schema=at.schema)
        return at.on_key() if kind in {"extra_forbidden", "invalid_key"} else at

    def _core(self, schema: _Schema | None) -> _Schema:
        """What remains of a schema without its defaults, validators, Optional and the like."""
        while schema:
            self._refs.update({one["ref"]: one for one in schema.get("definitions", ())})
            if schema["type"] == "definition-ref":
                schema = self._refs.get(schema["schema_ref"])
            elif inner := schema.get("schema") or schema.get("json_schema"):  # the latter for Sequence[...]
                schema = inner
            else:
                return schema
        return {}

    def _below(self, schema: _Schema, name: Any) -> _Schema:
        match schema.get("type"):
            case "union":
                return self._alternative(schema["choices"], str(name))
            case "tagged-union":
                return self._core(schema["choices"].get(name))
            case "tuple" if isinstance(name, int) and schema["items_schema"]:
                return self._core(schema["items_schema"][min(name, len(schema["items_schema"]) - 1)])
            case "dict":
                return self._core(schema.get("values_schema"))
            case "list" | "set" | "frozenset" | "deque":
                return self._core(schema.get("items_schema"))
        return self._core(_fields(schema).get(name))

    def _alternative(self, choices: Iterable[Any], label: str) -> _Schema:
        """The alternative of a union that pydantic calls `label`, if only one can be meant."""
        fits: list[_Schema] = []
        for choice in choices:
            given, name = choice if isinstance(choice, tuple) else (choice, None)
            schema = self._refs[given["schema_ref"]] if "schema_ref" in given else given
            name = name or (schema["cls"].__name__ if schema["type"] == "model" else schema["type"])
            if label == name or label.startswith(f"{name}["):
                fits.append(schema)
        return self._core(fits[0]) if len(fits) == 1 else {}


def _fields(schema: _Schema) -> dict[Hashable, _Schema]:
    """The fields of a model or typed dict, by the key that a file has for them."""
    fields = schema.get("fields")
    result: dict[Hashable, _Schema] = {}
    for name, one in fields.items() if isinstance(fields, Mapping) else ():
        alias = one.get("validation_alias", name)
        while isinstance(alias, list):  # AliasChoices, AliasPath
            alias = alias[0]
        result[alias] = one
    return result


_LIST = ("{got} is not a list", "write [a, b], or one item per line after '- '")
_MAPPING = ("{got} is not a mapping", "write 'key: value' lines, indented below the key")
_VALUE = "{got} is not one of the permitted values"
_MESSAGES: Mapping[str, tuple[str, str]] = {  # pydantic's error type without "_type" or "_parsing": message, hint
    "int": ("{got} is not a whole number", ""),
    "int_from_float": ("{got} is not a whole number", ""),
    "float": ("{got} is not a number", ""),
    "finite_number": ("{got} is not a finite number", ""),
    "bool": ("{got} is neither true nor false", "write true or false, without quotes"),
    "string": ("{got} is not text", _QUOTE),
    "string_too_short": ("{got} is shorter than {min_length} characters", ""),
    "string_too_long": ("{got} is longer than {max_length} characters", ""),
    "string_pattern_mismatch": ("{got} does not match the pattern {pattern}", ""),
    **dict.fromkeys(["list", "tuple", "set", "frozen_set"], _LIST),
    **dict.fromkeys(["dict", "model", "model_attributes"], _MAPPING),
    "too_short": ("{got} of {actual_length} is too short", "give at least {min_length}"),
    "too_long": ("{got} of {actual_length} is too long", "give at most {max_length}"),
    "greater_than": ("{got} is not greater than {gt}", ""),
    "greater_than_equal": ("{got} is less than {ge}", ""),
    "less_than": ("{got} is not less than {lt}", ""),
    "less_than_equal": ("{got} is greater than {le}", ""),
    "multiple_of": ("{got} is not a multiple of {multiple_of}", ""),
    "literal_error": (_VALUE, "permitted: {expected}"),
    "enum": (_VALUE, "permitted: {expected}"),
    "union_tag_invalid": ("'{tag}' is not one of the permitted values", "permitted: {expected_tags}"),
    "union_tag_not_found": ("this is required, but missing", ""),
    "missing": ("this is required, but missing", "the list is too short"),
    "extra_forbidden": ("this key is not known", "check its spelling, or remove it"),
    "invalid_key": ("this key is not text", _QUOTE),
}


def _words(error: ErrorDetails, at: _Trace) -> tuple[str, str]:
    """Message and hint."""
    kind, context, got = error["type"], error.get("ctx", {}), _say(error["input"])
    if kind == "value_error":
        message, _, hint = error["msg"].removeprefix("Value error, ").partition(" | ")
        return message, hint
    message, hint = _MESSAGES.get(kind.removesuffix("_type").removesuffix("_parsing"), ("", ""))
    if not message:
        return error["msg"].removeprefix("Assertion failed, "), ""
    message, hint = message.format(got=got, **context), hint.format(**context)
    options = at.schema.get("expected") or at.schema.get("members") or ()
    if kind.startswith("union_tag_"):
        options = at.schema.get("choices", ())
        if callable(at.schema.get("discriminator")):
            return f"{got} has none of the permitted forms", f"permitted: {', '.join(map(_bare, options))}"
    if kind == "extra_forbidden" and _fields(at.parent):
        hint = _choice(at.path[-1], _fields(at.parent), "known keys")
    elif kind in {"literal_error", "enum", "union_tag_invalid"} and options:
        hint = _choice(context.get("tag", error["input"]), options, "permitted")
    elif kind in {"missing", "union_tag_not_found"} and isinstance(at.path[-1], str):
        hint = f"add '{_bare(at.path[-1])}: ...' here"
        hint += f" (permitted: {', '.join(map(_bare, options))})" if options else ""
    return message, hint


def _model_problems(
    error: ValidationError, schemas: _Schemas, path: Path, top: _Spot, broken: set[tuple[str, ...]]
) -> list[_Found]:
    """One problem per value or key; if a value may have several forms, the one that came furthest speaks for it."""
    traced = [(one, schemas.trace(one, top)) for one in error.errors(include_url=False)]
    came_further = {union for _, at in traced for union in at.unions if len(at.path) > len(union)}
    said: dict[tuple[int, int, _Loc], list[tuple[str, str]]] = {}
    for one, at in traced:
        names = tuple(map(_bare, at.path))
        outdone = at.path in came_further and one["type"] != "value_error"
        if not outdone and not any(names[:length] in broken for length in range(len(names) + 1)):
            said.setdefault((at.spot.line, at.spot.column, at.path), []).append(_words(one, at))
    found = []
    for (line, column, loc), words in said.items():
        message = ", and ".join(dict.fromkeys(message for message, _ in words))
        hint = "; ".join(dict.fromkeys(hint for _, hint in words if hint))
        found.append(_Found(line, column, Problem(message, _where(path, line, column, loc), hint)))
    return found
