"""`results.json` and `results.csv`: Rubin's rules by hand, missing values, the files' numbers, the schema."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from ich_client.hospital import Limits
from ich_models.curves import Decision
from ich_models.metrics import METRICS, TYPE_METRICS, Estimate, Evaluation, evaluate, evaluate_subgroup
from ich_models.protocol import TRAIN, rows_hash, size
from ich_server.results import (
    NO_FIGURE,
    SCHEMA,
    ArmFound,
    Column,
    Figure,
    Group,
    Results,
    TypeFigures,
    Z,
    answered,
    assemble,
    combine,
    figures,
    json_schema,
    macro,
    read,
    write,
)


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


def measured(n: int = 40, **more: Any) -> Evaluation:
    return replace(evaluate(np.arange(n) % 2, np.linspace(0.1, 0.9, n), 0.5, resamples=0), **more)


def test_the_net_benefit_is_of_all_patients() -> None:
    """80/1000 - 120/1000 * 0.2/0.8."""
    found = figures([measured(n=1000, decisions=(Decision(0.2, 80, 120),))])
    assert found.decisions[0][0].net_benefit == pytest.approx(0.05)


def test_a_subgroup_that_one_seed_withholds_is_withheld() -> None:
    told = evaluate_subgroup(np.arange(40) % 2, np.linspace(0.1, 0.9, 40))
    seeds = [measured(subgroups={"sex": {"male": told, "female": one}}) for one in (told, None)]
    found = figures(seeds).subgroups["sex"]
    assert (found["female"].n, found["female"].events, found["female"].auroc) == (None, None, NO_FIGURE)
    assert (found["male"].n, found["male"].events) == (40, 20)
    assert found["male"].brier.per_seed == [told.metrics["brier"].value] * 2


def test_a_mean_over_types_is_of_those_with_an_auroc() -> None:
    """0.9 and 0.7 make 0.8; the third has no AUROC, and its recall does not count either. Without a recall: no mean."""

    def group(auroc: float | None, recall: float | None) -> Group:
        nothing = dict.fromkeys(TYPE_METRICS, NO_FIGURE)
        given = {"auroc": auroc, "recall": recall}
        known = {name: Figure(value=value, low=None, high=None, per_seed=[value]) for name, value in given.items()}
        return Group(n=40, events=20, **{**nothing, **known})

    slices = {"epidural": group(0.9, 0.5), "subdural": group(0.7, 0.25), "subarachnoid": group(None, 1.0)}
    patients = {"epidural": group(0.6, None), "subdural": group(0.5, 1.0), "subarachnoid": group(None, None)}
    types = {name: TypeFigures(slices=slices[name], patients=patients[name]) for name in slices}
    found = figures([measured()]).model_copy(update={"types": types})
    assert macro(found, "slices", "auroc") == (pytest.approx(0.8), 2)
    assert macro(found, "slices", "recall") == (pytest.approx(0.375), 2)
    assert macro(found, "patients", "auroc") == (pytest.approx(0.55), 2)
    assert macro(found, "patients", "recall") == (None, 2)


def deployed(
    folder: Path, seeds: list[int], around: Callable[[ClientApp], ClientApp] = lambda client: client
) -> tuple[Any, list[Any]]:
    """A study on three hospitals, each held out by a fold, that keep 30 % for the test; with each seed."""
    evaluation = {"test": 0.3, "recalibrate": "slope"}
    settings = small.federation(evaluation=evaluation, stage={"rounds": 2}, quorum={"hospitals": 1})
    studies = [small.study(settings, small.hospitals(), folder / str(seed), seed=seed, around=around) for seed in seeds]
    return settings, studies


def test_results_tell_what_the_study_found(tmp_path: Path) -> None:
    """North has 80 patients, and trains with 56: known values, means and standard deviations are those of NumPy."""
    traffic: dict[int, list[list[int]]] = {}

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type == TRAIN:
                sizes = [size(message.content), size(reply.content)]
                traffic.setdefault(message.metadata.dst_node_id, []).append(sizes)
            return reply

        return call  # type: ignore[return-value]

    settings, (study,) = deployed(tmp_path, [42], around)
    results = assemble(settings, [42], [study], [answered(study)])
    site = small.sites(small.Plan(settings, 42), small.hospitals(), tmp_path)["north"]
    train = site.hospital.patients.take(site.split(0).train)
    told = results.hospitals["north"]
    assert (told.n, told.events, told.training) == (80, int(site.hospital.patients.labels.sum()), 56)
    for column, name in enumerate("abc"):
        values = train.table[:, column][~np.isnan(train.table[:, column])]
        assert told.columns[name].known == len(values) < 56
        assert told.columns[name].mean == pytest.approx(values.mean(), abs=1e-12)
        assert told.columns[name].sd == pytest.approx(values.std(ddof=1), abs=1e-12)
    sent, received = np.array(traffic[2]).T.tolist()
    assert (results.traffic["42"]["north"].sent, results.traffic["42"]["north"].received) == (sent, received)
    assert sent != received
    assert results.training["42"].recalibration == dict(study.lines) != {}
    assert len(results.training["42"].drift) == len(results.training["42"].losses["all"]) == 2
    assert results.models == {"42": rows_hash(study.of(["all"]))}
    assert results.arms["federated"].hospitals["north"].n == 24


def test_a_column_of_a_few_is_withheld_and_one_of_nobody_is_known_to_be_empty(tmp_path: Path) -> None:
    members = [replace(member, limits=Limits(small_cells=10)) for member in small.hospitals()]
    table = members[1].patients.table
    table[3:, 2], table[:3, 2] = np.nan, 1.0
    members[2].patients.table[:, 2] = np.nan
    settings = small.federation(stage={"rounds": 1})
    study = small.study(settings, members, tmp_path)
    hospitals = assemble(settings, [42], [study], [answered(study)]).hospitals
    assert hospitals["north"].columns["c"] == Column(known=None, mean=None, sd=None)
    assert hospitals["south"].columns["c"] == Column(known=0, mean=None, sd=None)


def test_a_hospital_counts_where_it_answered_with_every_seed(tmp_path: Path) -> None:
    """South gives no answer with seed 43: it is in no arm. Of all patients together nothing is known with that seed either."""
    settings, studies = deployed(tmp_path, [42, 43])
    arms = [answered(study) for study in studies]
    both = arms[1]["federated"]
    less = {name: one for name, one in both.hospitals.items() if name != "south"}
    differences = [{name: Estimate(0.1 * seed, None, None) for name in names} for seed, names in ((1, "ab"), (2, "a"))]
    pooled = measured()
    found = [
        {"federated": ArmFound(arms[0]["federated"].hospitals, pooled, "loho", differences[0])},
        {"federated": ArmFound(less, None, "loho", differences[1])},
    ]
    matrices = [
        {name: {other: Estimate(value, None, None) for other, value in row.items()} for name, row in one.items()}
        for one in (
            {"a": {"a": 0.8, "b": 0.7}, "b": {"a": 0.6, "b": 0.9}},
            {"a": {"a": 0.6, "b": 0.5}, "b": {"a": 0.8, "b": 0.7}},
        )
    ]
    results = assemble(settings, [42, 43], studies, found, matrices)
    arm = results.arms["federated"]
    assert list(arm.hospitals) == ["east", "north"]
    assert arm.pooled is None
    assert {name: one.value for name, one in arm.differences.items()} == {"a": pytest.approx(0.15)}
    aurocs = {name: [one["federated"].hospitals[name].metrics["auroc"].value for one in arms] for name in arm.hospitals}
    assert {name: one.auroc.per_seed for name, one in arm.hospitals.items()} == aurocs
    means = {name: {other: one.value for other, one in row.items()} for name, row in results.cross_site.items()}
    assert means == {"a": {"a": pytest.approx(0.7), "b": pytest.approx(0.6)}, "b": {"a": 0.7, "b": pytest.approx(0.8)}}


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
