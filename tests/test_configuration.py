"""docs/configuration.md and docs/schema against the models: complete examples load, no key is forgotten, nothing is stale."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import ich_client.cli
import ich_server.cli
from ich_client.hospital import HospitalConfig
from ich_models.federation import load_federation
from ich_models.yaml_config import load
from ich_models.yaml_tree import _Loader

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "configuration.md").read_text()
SECTIONS = {
    "federation": TEXT.partition("## federation.yaml")[2].partition("## hospital.yaml")[0],
    "hospital": TEXT.partition("## hospital.yaml")[2],
}
COMPLETE = re.findall(r"^```yaml (federation|hospital)\.yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
GENERATED = {
    "federation": (ich_server.cli.app, ["schema", "federation"]),
    "hospital": (ich_client.cli.app, ["schema"]),
    "results": (ich_server.cli.app, ["schema", "results"]),
}


def committed(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((DOCS / f"schema/{kind}.schema.json").read_text())
    return schema


# --- the schemas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GENERATED)
def test_committed_schema_is_what_the_models_say_now(kind: str) -> None:
    app, arguments = GENERATED[kind]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.stdout == (DOCS / f"schema/{kind}.schema.json").read_text(), "run make schemas"


def shipped(kind: str) -> Iterator[Path]:
    root = DOCS.parent
    demos = root / "deploy/ich_deploy/demo"
    with_images = [path for path in demos.glob("studies/*/*.yaml") if path.name != "dictionary.yaml"]
    for path in [*root.glob("examples/*/*.yaml"), *demos.glob("study/*.yaml"), *with_images]:
        yield from sorted(path.parent.glob("hospitals/*.yaml")) if kind == "hospital" else [path]


def plain(text: str) -> Any:
    """YAML as `yaml_config` reads it, with keys as JSON has them."""
    return json.loads(json.dumps(yaml.load(text, _Loader)))  # noqa: S506  # a SafeLoader


@pytest.mark.parametrize("kind", ["federation", "hospital"])
def test_schema_accepts_every_file_that_is_shipped(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(committed(kind))
    validator.check_schema(validator.schema)
    texts = {str(path): path.read_text() for path in shipped(kind)}
    texts |= {f"block {index}": block for index, (name, block) in enumerate(COMPLETE) if name == kind}
    assert len(texts) >= 6
    faults = {
        name: [str(fault.message) for fault in validator.iter_errors(plain(text))] for name, text in texts.items()
    }
    assert faults == {name: [] for name in texts}


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("federation", "name: logistic", "name: logistik"),
        ("federation", "rounds: 12", "rounds: 0"),
        ("federation", "predict_at", "predict"),
        ("hospital", "patient: MRN", "patients: MRN"),
        ("hospital", "threads: 2", "threads: two"),
        ("hospital", "date: ADMITTED", "dat: ADMITTED"),
    ],
)
def test_schema_refuses_what_the_models_refuse(kind: str, old: str, new: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    block = next(block for name, block in COMPLETE if name == kind)
    assert old in block
    assert not jsonschema.Draft202012Validator(committed(kind)).is_valid(plain(block.replace(old, new, 1)))


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(COMPLETE)))
def test_complete_example_loads(number: int, tmp_path: Path) -> None:
    kind, text = COMPLETE[number]
    path = tmp_path / f"{kind}.yaml"
    path.write_text(text)
    if kind == "federation":
        load_federation(path)
    else:
        load(path, HospitalConfig)


def test_there_are_complete_examples_of_both() -> None:
    assert {kind for kind, _ in COMPLETE} == {"federation", "hospital"}


def said_in(schema: object) -> Iterator[str]:
    """Every key that a file may have, and every value that is chosen from a list."""
    if isinstance(schema, Mapping):
        yield from schema.get("properties", {})
        yield from (value for value in schema.get("enum", []) if isinstance(value, str))
        if isinstance(schema.get("const"), str):
            yield schema["const"]
        for key, inner in schema.items():
            if key not in ("default", "enum"):
                yield from said_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from said_in(inner)


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_key_and_every_choice_is_explained(kind: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", SECTIONS[kind], flags=re.MULTILINE | re.DOTALL)
    named = {word for code in re.findall(r"`([^`\n]+)`", prose) for word in [code, *re.findall(r"[\w.,]+", code)]}
    assert set(said_in(committed(kind))) - named == set()


def test_every_key_of_a_table_is_a_key_of_the_models() -> None:
    known = set(said_in(committed("federation"))) | set(said_in(committed("hospital")))
    rows = re.findall(r"^\| (`[^|]*`) \|", TEXT, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - known == set()
