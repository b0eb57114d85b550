"""Reads the YAML files that people write, checks them against a pydantic model, and gives every problem its place."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ich_models.errors import Problem
from ich_models.yaml_tree import QUOTE, Builder, Found, Loc, Spot, bare, compose, read_text, refusal, say, where_in

M = TypeVar("M", bound=BaseModel)
_Schema = Mapping[str, Any]  # one of pydantic_core.core_schema: what the model's validator was built from


@dataclass(frozen=True)
class Document(Generic[M]):
    """A configuration file that was read and fits its model; it remembers where everything in it was written."""

    path: Path
    value: M
    _top: Spot = field(repr=False, compare=False)

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
        return where_in(self.path, spot.line, spot.column, loc)

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
    builder = Builder(path)
    value, top = builder.build(compose(path, read_text(path)), ())
    found = builder.found
    try:
        result = model.model_validate(value)
    except ValidationError as error:
        found = found + _model_problems(error, _Schemas(model), path, top, builder.broken)
    if found:
        raise refusal(found)
    return Document(path, result, top)


def suggest(name: str, known: Iterable[str], title: str = "known") -> str:
    """The hint for a name that is not known: the nearest one that is, and the list."""
    return _choice(name, known, title)


def _choice(got: object, options: Iterable[Hashable], title: str) -> str:
    """The hint that lists what may stand here and asks for the nearest to what was written."""
    names = [bare(option) for option in options]
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(str(got).lower(), by_lower, n=1)
    listing = f"{title}: {', '.join(names)}"
    return f"did you mean '{by_lower[close[0]]}'? ({listing})" if close else listing


@dataclass(frozen=True)
class _Trace:
    """A place reached in the file and in the model's schema, by following the location of an error in both."""

    path: Loc
    spot: Spot
    schema: _Schema  # of the value; empty where it cannot be told
    parent: _Schema  # of what holds the value
    unions: tuple[Loc, ...] = ()  # the values on the way that may have several forms

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

    def trace(self, error: ErrorDetails, top: Spot) -> _Trace:
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
    "string": ("{got} is not text", QUOTE),
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
    "invalid_key": ("this key is not text", QUOTE),
}


def _words(error: ErrorDetails, at: _Trace) -> tuple[str, str]:
    """Message and hint."""
    kind, context, got = error["type"], error.get("ctx", {}), say(error["input"])
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
            return f"{got} has none of the permitted forms", f"permitted: {', '.join(map(bare, options))}"
    if kind == "extra_forbidden" and _fields(at.parent):
        hint = _choice(at.path[-1], _fields(at.parent), "known keys")
    elif kind in {"literal_error", "enum", "union_tag_invalid"} and options:
        hint = _choice(context.get("tag", error["input"]), options, "permitted")
    elif kind in {"missing", "union_tag_not_found"} and isinstance(at.path[-1], str):
        hint = f"add '{bare(at.path[-1])}: ...' here"
        hint += f" (permitted: {', '.join(map(bare, options))})" if options else ""
    return message, hint


def _model_problems(
    error: ValidationError, schemas: _Schemas, path: Path, top: Spot, broken: set[tuple[str, ...]]
) -> list[Found]:
    """One problem per value or key; if a value may have several forms, the one that came furthest speaks for it."""
    traced = [(one, schemas.trace(one, top)) for one in error.errors(include_url=False)]
    came_further = {union for _, at in traced for union in at.unions if len(at.path) > len(union)}
    said: dict[tuple[int, int, Loc], list[tuple[str, str]]] = {}
    for one, at in traced:
        names = tuple(map(bare, at.path))
        outdone = at.path in came_further and one["type"] != "value_error"
        if not outdone and not any(names[:length] in broken for length in range(len(names) + 1)):
            said.setdefault((at.spot.line, at.spot.column, at.path), []).append(_words(one, at))
    found = []
    for (line, column, loc), words in said.items():
        message = ", and ".join(dict.fromkeys(message for message, _ in words))
        hint = "; ".join(dict.fromkeys(hint for _, hint in words if hint))
        found.append(Found(line, column, Problem(message, where_in(path, line, column, loc), hint)))
    return found
