"""Two runs compared: paired within hospitals of the same patients, with the interval of scipy, on a page and in files."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import html5lib
import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from ich_server import comparison, results
from ich_server.cli import app
from ich_server.report.compare import render
from ich_server.results import Arm, Column, Results
from ich_server.summary import metric

MakeResults = Callable[..., Results]
SIZES = {"h1": 80, "h2": 90, "h3": 70, "h4": 120}


@pytest.fixture(scope="module")
def two(build: MakeResults) -> tuple[Results, Results]:
    """The same patients; the second run's models are other ones: its figures are those of the arm 'pooled'."""
    first = build(SIZES, arms=["loho", "pooled"])
    arms = {"loho": first.arms["pooled"], "federated": first.arms["loho"]}
    study = first.study.model_copy(
        update={"settings": {"training": {"rounds": 20, "stages": [{"lr": 0.1}]}, "name": "a"}}
    )
    second = study.model_copy(
        update={"settings": {"training": {"rounds": 25, "stages": [{"lr": 0.1}]}, "seed": 1, "name": "a"}}
    )
    return first.model_copy(update={"study": study}), first.model_copy(update={"arms": arms, "study": second})


def test_differences_are_paired_within_hospitals(two: tuple[Results, Results]) -> None:
    first, second = two
    found = comparison.compare(first, second)
    assert list(found.pairs) == ["loho"], "the arm that both have"
    ours = [metric(first.arms["loho"].hospitals[name], "auroc").value for name in SIZES]
    theirs = [metric(second.arms["loho"].hospitals[name], "auroc").value for name in SIZES]
    differences = np.subtract(theirs, ours)
    mean = found.mean("loho", "auroc")
    assert mean is not None
    low, high = stats.ttest_rel(theirs, ours).confidence_interval(0.95)
    np.testing.assert_allclose([mean.mean, mean.low, mean.high], [differences.mean(), low, high], atol=1e-12)
    assert [pair.difference for pair in found.pairs["loho"]["auroc"].values()] == pytest.approx(differences.tolist())


def test_other_patients_are_not_compared(two: tuple[Results, Results]) -> None:
    first, second = two
    fewer = second.arms["loho"].hospitals["h2"].model_copy(update={"n": 89})
    arm = second.arms["loho"].model_copy(update={"hospitals": {**second.arms["loho"].hospitals, "h2": fewer}})
    found = comparison.compare(first, second.model_copy(update={"arms": {"loho": arm}}))
    assert found.others["loho"] == ["h2"]
    assert "h2" not in found.pairs["loho"]["auroc"]
    assert "not the same patients, and so not compared, at h2" in render(found)


def test_one_cause_is_one_warning(build: MakeResults) -> None:
    """h2 and h3 brought others to both arms, and h4 to one of them."""
    first = build(SIZES, arms=["loho", "pooled"])

    def changed(arm: str, names: tuple[str, ...]) -> Arm:
        there = first.arms[arm].hospitals
        return first.arms[arm].model_copy(
            update={"hospitals": {**there, **{name: there[name].model_copy(update={"n": 60}) for name in names}}}
        )

    both = {arm: changed(arm, ("h2", "h3")) for arm in ("loho", "pooled")}
    said = comparison.warnings(comparison.compare(first, first.model_copy(update={"arms": both})))
    assert said == ["Leave-one-hospital-out, Pooled data: not the same patients, and so not compared, at h2, h3."]
    apart = {"loho": changed("loho", ("h2",)), "pooled": changed("pooled", ("h4",))}
    said = comparison.warnings(comparison.compare(first, first.model_copy(update={"arms": apart})))
    assert [each.split(":")[0] for each in said] == ["Leave-one-hospital-out", "Pooled data"]
    assert comparison.warnings(comparison.compare(first, first)) == []


def test_the_same_counts_with_other_means_are_other_patients(two: tuple[Results, Results]) -> None:
    def with_age(run: Results, age: float) -> Results:
        column = {"age": Column(known=80, mean=age, sd=1)}
        one = run.hospitals["h1"].model_copy(update={"training": 80, "columns": column})
        return run.model_copy(update={"hospitals": {**run.hospitals, "h1": one}})

    first, second = two
    assert comparison.compare(with_age(first, 60), with_age(second, 61)).others["loho"] == ["h1"]
    assert comparison.compare(with_age(first, 60), with_age(second, 60)).others["loho"] == []


def without_hospital(run: Results, name: str) -> Results:
    return run.model_copy(update={"hospitals": {each: one for each, one in run.hospitals.items() if each != name}})


def test_other_counts_are_other_patients_whichever_differs(two: tuple[Results, Results]) -> None:
    """An event more among as many tested; a patient more that took part; a hospital of which one run says nothing."""
    first, second = two
    tested = second.arms["loho"].hospitals
    more = tested["h2"].model_copy(update={"events": (tested["h2"].events or 0) + 1})
    arm = second.arms["loho"].model_copy(update={"hospitals": {**tested, "h2": more}})
    assert comparison.compare(first, second.model_copy(update={"arms": {"loho": arm}})).others["loho"] == ["h2"]
    for change in ({"n": 81}, {"events": 1}):
        brought = {**second.hospitals, "h1": second.hospitals["h1"].model_copy(update=change)}
        found = comparison.compare(first, second.model_copy(update={"hospitals": brought}))
        assert found.others["loho"] == ["h1"]
    assert comparison.compare(first, without_hospital(second, "h3")).others["loho"] == ["h3"]
    neither = comparison.compare(without_hospital(first, "h3"), without_hospital(second, "h3"))
    assert neither.others["loho"] == [], "files of an old version may say nothing of it"


def test_columns_of_other_training_patients_say_nothing(two: tuple[Results, Results]) -> None:
    """With another share kept for the test a hospital tells another mean, of the same patients."""

    def with_age(run: Results, training: int, age: float) -> Results:
        column = {"age": Column(known=training, mean=age, sd=1)}
        one = run.hospitals["h1"].model_copy(update={"training": training, "columns": column})
        return run.model_copy(update={"hospitals": {**run.hospitals, "h1": one}})

    first, second = two
    assert comparison.compare(with_age(first, 80, 60), with_age(second, 56, 61)).others["loho"] == []


def test_a_hospital_of_one_run_alone_is_no_other_patients(two: tuple[Results, Results]) -> None:
    first, second = two
    fewer = {name: one for name, one in second.arms["loho"].hospitals.items() if name != "h4"}
    arm = second.arms["loho"].model_copy(update={"hospitals": fewer})
    found = comparison.compare(first, second.model_copy(update={"arms": {"loho": arm}}))
    assert found.others["loho"] == []
    assert list(found.pairs["loho"]["auroc"]) == ["h1", "h2", "h3"]
    mean = found.mean("loho", "auroc")
    assert mean is not None
    differences = [pair.difference for pair in found.pairs["loho"]["auroc"].values()]
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (mean.k, mean.low, mean.high) == pytest.approx((3, interval.low, interval.high))


def test_runs_of_another_outcome_or_program_are_warned_of(two: tuple[Results, Results]) -> None:
    first, second = two
    other = second.study.model_copy(update={"outcome": "death"})
    said = comparison.warnings(comparison.compare(first, second.model_copy(update={"study": other})))
    assert "The two runs predict different outcomes: their differences mean nothing." in said
    versions = [run.model_copy(update={"software": {"torch": v}}) for run, v in ((first, "1"), (second, "2"))]
    assert "The two runs were computed by different software." in comparison.warnings(comparison.compare(*versions))
    unknown = comparison.compare(versions[0], second.model_copy(update={"software": {}}))
    assert "The two runs were computed by different software." not in comparison.warnings(unknown)


def test_seeds_and_lists_are_settings_too(two: tuple[Results, Results]) -> None:
    """A list is one setting, unless each of its places holds settings."""

    def with_list(run: Results, seeds: list[int], augment: list[str]) -> Results:
        study = run.study.model_copy(update={"settings": {"augment": augment}})
        return run.model_copy(update={"study": study, "seeds": seeds})

    first, second = two
    found = comparison.compare(with_list(first, [42], []), with_list(second, [42, 43], ["flip"])).settings
    assert [(each.path, each.first, each.second) for each in found] == [
        ("seeds", [42], [42, 43]),
        ("augment", [], ["flip"]),
    ]


def test_what_was_set_otherwise(two: tuple[Results, Results]) -> None:
    found = comparison.compare(*two).settings
    assert [(each.path, each.first, each.second) for each in found] == [("training.rounds", 20, 25), ("seed", None, 1)]
    again = comparison.compare(two[0], two[0])
    assert again.settings == []
    assert all(pair.difference == 0 for pair in again.pairs["loho"]["auroc"].values())


def test_two_hospitals_have_no_interval(two: tuple[Results, Results]) -> None:
    first, second = two
    kept = {name: second.arms["loho"].hospitals[name] for name in ("h1", "h2")}
    arm = second.arms["loho"].model_copy(update={"hospitals": kept})
    mean = comparison.compare(first, second.model_copy(update={"arms": {"loho": arm}})).mean("loho", "auroc")
    assert mean is not None
    assert (mean.k, mean.low, mean.high) == (2, None, None)


def test_the_command_writes_a_page_and_files(two: tuple[Results, Results], tmp_path: Path) -> None:
    for name, run in zip(("one", "two"), two, strict=True):
        results.write(run, tmp_path / name)
    done = CliRunner().invoke(app, ["report", "--compare", str(tmp_path / "one"), str(tmp_path / "two")])
    assert done.exit_code == 0, done.exception
    folder = tmp_path / "two/compared"
    found = json.loads((folder / "compare.json").read_text())
    mean = found["arms"]["loho"]["metrics"]["auroc"]["mean"]["mean"]
    assert f"{mean:+.3f}" in done.stdout
    assert "training.rounds" in done.stdout
    assert "warning: In one of the runs alone: Federated, Pooled data." in done.output
    page = (folder / "compare.html").read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert not re.search(r"https?:", re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page))
    assert f"{mean:+.3f}".replace("-", "−") in page
    lines = list(csv.DictReader((folder / "compare.csv").open()))
    aurocs = [float(line["difference"]) for line in lines if line["metric"] == "auroc"]
    assert np.mean(aurocs) == pytest.approx(mean)
    assert page == render(comparison.compare(*two)), "the same bytes"


@pytest.mark.parametrize("words", [["a"], ["a", "b", "c"]])
def test_two_runs_are_two(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["report", "--compare", *words])
    assert "cannot be compared" in str(done.exception)
