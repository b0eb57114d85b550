"""`results.json` and `results.csv`: Rubin's rules by hand, missing values, the files' numbers, the schema."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ich_models.metrics import METRICS, Estimate, Evaluation, evaluate
from ich_server.results import SCHEMA, Figure, Results, Z, combine, figures, json_schema, read, write


def test_one_seed_passes_through() -> None:
    found = combine("auroc", [Estimate(0.8, 0.7, 0.95)])
    assert found == Figure(value=0.8, low=0.7, high=0.95, per_seed=[0.8])


def test_rubins_rules_by_hand() -> None:
    found = combine("auroc", [Estimate(0.70, 0.60, 0.78), Estimate(0.72, 0.64, 0.82), Estimate(0.74, 0.65, 0.80)])
    between = 0.02**2  # the variance of 0.70, 0.72, 0.74
    lower = math.sqrt((0.10**2 + 0.08**2 + 0.09**2) / 3 + Z**2 * (4 / 3) * between)
    upper = math.sqrt((0.08**2 + 0.10**2 + 0.06**2) / 3 + Z**2 * (4 / 3) * between)
    assert found.value == pytest.approx(0.72)
    assert found.low == pytest.approx(0.72 - lower)
    assert found.high == pytest.approx(0.72 + upper)
    assert found.per_seed == [0.70, 0.72, 0.74]


def test_seeds_that_agree_keep_their_interval() -> None:
    found = combine("brier", [Estimate(0.2, 0.1, 0.35)] * 5)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.1, 0.35))


def test_spread_between_seeds_widens_the_interval() -> None:
    calm = combine("auroc", [Estimate(0.75, 0.70, 0.80)] * 2)
    torn = combine("auroc", [Estimate(0.72, 0.67, 0.77), Estimate(0.78, 0.73, 0.83)])
    assert calm.low is not None
    assert torn.low is not None
    assert torn.low < calm.low


def test_a_seed_without_a_value_leaves_none() -> None:
    found = combine("auroc", [Estimate(0.8, 0.7, 0.9), Estimate(None, None, None)])
    assert found == Figure(value=None, low=None, high=None, per_seed=[0.8, None])


def test_a_seed_without_an_interval_leaves_the_mean_alone() -> None:
    found = combine("auroc", [Estimate(0.8, 0.7, 0.9), Estimate(0.6, None, None)])
    assert (found.value, found.low, found.high) == (pytest.approx(0.7), None, None)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("auroc", 0.0, 1.0), ("calibration_slope", pytest.approx(0.5 - 1.5), pytest.approx(0.5 + 1.5))],
)
def test_ends_stay_within_the_metrics_range(name: str, low: Any, high: Any) -> None:
    found = combine(name, [Estimate(0.5, -1.0, 2.0)] * 2)
    assert (found.low, found.high) == (low, high)


def test_figures_take_every_metric_of_every_seed() -> None:
    labels = [0, 1] * 20
    evaluations: list[Evaluation] = [
        evaluate(labels, [0.3 + 0.01 * (index % shift) for index in range(40)], 0.35, resamples=20) for shift in (7, 9)
    ]
    found = figures(evaluations)
    assert (found.n, found.events) == (40, 20)
    for name in METRICS:
        assert getattr(found, name) == combine(name, [evaluation.metrics[name] for evaluation in evaluations])


def test_files_hold_the_results(many_hospitals: Results, tmp_path: Path) -> None:
    write(many_hospitals, tmp_path)
    assert read(tmp_path / "results.json") == many_hospitals
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    arms = many_hospitals.arms.values()
    assert len(rows) == len(METRICS) * sum(len(arm.hospitals) + (arm.pooled is not None) for arm in arms)
    for row in rows:
        arm = many_hospitals.arms[row["arm"]]
        measured = arm.pooled if row["hospital"] == "(all test patients)" else arm.hospitals[row["hospital"]]
        assert measured is not None
        assert (int(row["n"]), int(row["events"])) == (measured.n, measured.events)
        figure: Figure = getattr(measured, row["metric"])
        for end in ("value", "low", "high"):
            assert (float(row[end]) if row[end] else None) == getattr(figure, end)  # not one digit is lost


def test_the_same_results_give_the_same_files(three: Results, tmp_path: Path) -> None:
    write(three, tmp_path / "first")
    write(read(tmp_path / "first" / "results.json"), tmp_path / "second")
    for name in ("results.json", "results.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_json_says_its_version_and_keeps_to_its_schema(three: Results, tmp_path: Path) -> None:
    write(three, tmp_path)
    value = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert value["schema"] == SCHEMA
    schema = json_schema()
    check(value, schema, schema)
    with pytest.raises(AssertionError):
        check(value | {"seeds": "42"}, schema, schema)


def check(value: Any, schema: Any, root: Any) -> None:
    """As much of JSON Schema as ours uses."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        assert any(fits(value, option, root) for option in schema["anyOf"])
        return
    if "const" in schema:
        assert value == schema["const"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    assert isinstance(value, kinds[schema["type"]])
    if schema["type"] == "array":
        for item in value:
            check(item, schema["items"], root)
    elif schema["type"] == "object":
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        assert set(schema.get("required", ())) <= set(value)
        for name, item in value.items():
            assert name in known or isinstance(others, dict), name
            check(item, known.get(name, others), root)


def fits(value: Any, schema: Any, root: Any) -> bool:
    try:
        check(value, schema, root)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("change", [{"schema": 2}, {"more": 1}, {"seeds": None}])
def test_another_version_or_shape_is_refused(three: Results, tmp_path: Path, change: dict[str, Any]) -> None:
    write(three, tmp_path)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ValidationError):
        read(path)
