"""The report: valid HTML, no request, the results' own numbers, the same bytes twice, names that cannot break out."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
from pages import HTML, parse, table, texts
from rich.console import Console

from ich_models.metrics import METRICS
from ich_server.report import facts, plots
from ich_server.report.page import AT_THRESHOLD, _cost_of_privacy, render, write_report
from ich_server.results import Figure, Quarantined, Results, write
from ich_server.summary import between, estimate, hospitals_of, metric, pooled, signed
from ich_server.terminal import summary_table

MakeResults = Callable[..., Results]
HOSTILE = ('<script>alert("1")</script>', 'a" onload="x', "$x_1$ & <!-- -->", "東京\n病院", "</svg></style>")


@pytest.fixture(scope="module")
def hostile(build: MakeResults) -> Results:
    """Hospitals, reasons and a study with names that no page should take at their word."""
    results = build(
        dict.fromkeys(HOSTILE, 60),
        arms=["loho", "pooled"],
        quarantined=[Quarantined(seed=42, when="round 1", hospital=HOSTILE[0], reason="<img src=x>")],
    )
    study = results.study.model_copy(update={"name": "<b>bold</b>", "description": "a < b && c > d"})
    return results.model_copy(update={"study": study})


@pytest.fixture(params=["three", "many_hospitals", "hostile", "alone", "nothing"])
def results(request: pytest.FixtureRequest, build: MakeResults) -> Results:
    """Every kind of results, down to a study in which no hospital answered."""
    if request.param == "alone":
        return build({"north": 80}, arms=["federated"])
    if request.param == "nothing":
        return build({"north": 80}, arms=["loho"]).model_copy(update={"arms": {}, "training": {}})
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Results)
    return found


def test_every_kind_of_results_gives_a_valid_page_that_asks_for_nothing(results: Results) -> None:
    tree = parse(render(results))
    assert tree.get("lang") == "en"
    assert not [
        each for each in tree.iter() if str(each.tag).endswith(("script", "iframe", "object", "embed", "foreignObject"))
    ]
    for element in tree.iter():
        for name, value in element.attrib.items():
            local = name.rpartition("}")[2]
            assert not local.startswith("on")
            if local in ("src", "href", "srcset", "data", "action", "poster"):
                assert value.startswith("#") or value == "data:,"
    page = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", render(results))
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert "Research use only" in texts(tree)


def test_ids_are_unique_and_references_resolve(results: Results) -> None:
    page = render(results)
    ids = re.findall(r'<[^>]* id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]*)', page) + re.findall(r'aria-labelledby="([^"]*)"', page)
    assert set(used) <= set(ids)


def test_figures_can_be_read_aloud(three: Results) -> None:
    tree = parse(render(three))
    pictures = [each for each in tree.iter() if str(each.tag).endswith("}svg")]
    assert [each.get("role") for each in pictures] == ["img"] * 4
    assert all(each.get("aria-label") for each in pictures)
    assert len(list(tree.iter(f"{HTML}figcaption"))) == 4
    assert all(each[0].tag == f"{HTML}caption" for each in tree.iter(f"{HTML}table"))


@pytest.mark.parametrize("arm", ["loho", "local"])
def test_the_page_has_the_numbers_of_the_results(many_hospitals: Results, arm: str) -> None:
    caption = {"loho": "Leave-one-hospital-out", "local": "Local only"}[arm]
    tree, found = parse(render(many_hospitals)), many_hospitals.arms[arm]
    rows, decided = table(tree, caption), table(tree, f"{caption}, at the threshold")
    assert list(rows)[:-1] == list(decided)[:-1] == list(hospitals_of(found))
    for hospital, figures in found.hospitals.items():
        n, events, *cells = rows[hospital]
        assert (n, events) == (f"{figures.n:,}", f"{figures.events:,}")
        assert decided[hospital][:2] == [n, events]
        others = [name for name in METRICS if name not in AT_THRESHOLD]
        for name, cell in zip([*others, *AT_THRESHOLD], cells + decided[hospital][2:], strict=True):
            figure = metric(figures, name)
            assert cell == estimate(name, figure.value, figure.low, figure.high)


def test_the_headline_is_the_meta_analysis(many_hospitals: Results) -> None:
    summary = pooled(many_hospitals.arms["loho"], "auroc").summary
    together = many_hospitals.arms["loho"].pooled
    assert summary is not None
    assert summary.prediction_low is not None
    assert together is not None
    page = texts(parse(render(many_hospitals)))
    assert f"{summary.estimate:.3f} 95 % CI {summary.low:.3f}–{summary.high:.3f}" in page
    assert f"Prediction interval {summary.prediction_low:.3f}–{summary.prediction_high:.3f}" in page
    assert f"All test patients together {together.auroc.value:.3f}" in page
    assert "Simulation only: 9,554 patients of 49 of 49 hospitals in one ranking." in page


def test_it_warns_of_what_is_uncertain(three: Results, many_hospitals: Results) -> None:
    few = texts(parse(render(three)))
    assert "rests on 3 hospitals: under 6" in few
    assert "needs 4 hospitals" in few
    assert "3 of 3 hospitals have under 100 events or under 100 non-events" in few
    page = texts(parse(render(many_hospitals)))
    assert "rests on" not in page
    assert "AUROC not estimable (a single class, or not in every seed): hospital-12." in page
    assert "takes 10 events and 10 non-events: kleinstadt." in page
    assert "2 replies were set aside" in page
    rows = table(parse(render(many_hospitals)), "Replies set aside")
    assert rows["hospital-2"] == ["44", "evaluation", "no answer within 2 h"]


@pytest.mark.parametrize(("hospitals", "few"), [(5, True), (6, False)])
def test_under_six_hospitals_is_few(build: MakeResults, hospitals: int, few: bool) -> None:
    page = texts(parse(render(build({f"hospital-{number}": 80 for number in range(hospitals)}, arms=["loho"]))))
    assert ("rests on 5 hospitals: under 6" in page) is few
    assert ("5 hospitals say little about the next one." in page) is few


@pytest.mark.parametrize(("other", "told"), [(0, True), (1, False)])
def test_the_cost_of_privacy_is_of_the_same_patients(build: MakeResults, other: int, told: bool) -> None:
    """Noise may let one arm's hospital tell, or withhold, what it would not in the other."""
    found = build(dict.fromkeys(("east", "north", "south"), 80), arms=["loho", "pooled"])
    twin = found.arms["pooled"]
    assert twin.pooled is not None
    assert found.arms["loho"].pooled is not None
    pooled_twin = twin.pooled.model_copy(update={"n": found.arms["loho"].pooled.n + other})
    twin = twin.model_copy(update={"pooled": pooled_twin})
    said = list(_cost_of_privacy(found.model_copy(update={"arms": {**found.arms, "without_privacy": twin}})))
    mine, its = found.arms["loho"].pooled.auroc.value, pooled_twin.auroc.value
    line = f"AUROC of all test patients together: {mine:.3f} with privacy, {its:.3f} without."
    assert said == ([line] if told else [])


def shifted(results: Results, name: str, by: float) -> Results:
    """The same with one metric of every hospital moved, and its interval with it."""
    loho = results.arms["loho"]
    moved = {}
    for hospital, figures in loho.hospitals.items():
        old = metric(figures, name)
        assert old.value is not None
        assert old.low is not None
        assert old.high is not None
        new = old.model_copy(update={"value": old.value + by, "low": old.low + by, "high": old.high + by})
        moved[hospital] = figures.model_copy(update={name: new})
    return results.model_copy(update={"arms": {"loho": loho.model_copy(update={"hospitals": moved})}})


@pytest.mark.parametrize(
    ("name", "by", "said"),
    [
        ("observed_expected", 2, "O/E ratio over hospitals is"),
        ("calibration_slope", 3, "predictions lie too near to the mean."),
        ("calibration_slope", -3, "predictions are too extreme."),
    ],
)
def test_it_warns_of_miscalibration(build: MakeResults, name: str, by: float, said: str) -> None:
    """An interval that leaves out 1; where it holds 1 nothing is said."""
    results = build(dict.fromkeys((f"h{place}" for place in range(8)), 200), arms=["loho"])
    summary = pooled(results.arms["loho"], name).summary
    assert summary is not None
    centred = shifted(results, name, 1 - summary.estimate)
    assert not [each for each in facts.miscalibration(centred.arms["loho"]) if said in each]
    (warning,) = [each for each in facts.miscalibration(shifted(results, name, by).arms["loho"]) if said in each]
    assert warning.startswith("Miscalibrated: the mean ")
    assert warning in texts(parse(render(shifted(results, name, by))))


def test_an_interval_without_width_is_none() -> None:
    assert estimate("auroc", 0.75, 0.75, 0.75) == "0.750"
    assert between("auroc", 0.0, 0.0) == ""
    assert signed("observed_expected", 0.123) == "+0.12"


def test_a_hospital_that_did_not_answer_is_named(three: Results) -> None:
    loho = three.arms["loho"]
    silent = loho.model_copy(update={"hospitals": {name: loho.hospitals[name] for name in ("east", "north")}})
    page = texts(parse(render(three.model_copy(update={"arms": {**three.arms, "loho": silent}}))))
    assert "no evaluation came back: south." in page


def test_one_arm_is_compared_with_nothing(build: MakeResults, three: Results) -> None:
    assert "Comparison of arms" in texts(parse(render(three)))
    assert "Comparison of arms" not in texts(parse(render(build(arms=["loho"]))))


def test_names_cannot_break_out(hostile: Results) -> None:
    page = render(hostile)
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>" not in page
    rows = table(parse(page), "Leave-one-hospital-out")
    assert {" ".join(name.split()) for name in HOSTILE} < set(rows)


def test_the_same_results_give_the_same_bytes(many_hospitals: Results, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        write(many_hospitals, folder)
    write_report(many_hospitals, first)
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):  # somebody's matplotlibrc
        write_report(Results.model_validate_json(many_hospitals.model_dump_json(by_alias=True)), second)
    assert (first / "report.html").read_bytes() == (second / "report.html").read_bytes()


def test_matplotlib_is_left_as_it_was(three: Results) -> None:
    before = dict(mpl.rcParams)
    render(three)
    assert dict(mpl.rcParams) == before


def test_a_report_can_be_written_beside_the_main_thread(three: Results) -> None:
    pages: list[str] = []
    thread = threading.Thread(target=lambda: pages.append(render(three)))
    thread.start()
    thread.join()
    assert pages == [render(three)]


def test_forest_has_a_line_per_hospital_and_hollow_markers_without_interval(many_hospitals: Results) -> None:
    arm = many_hospitals.arms["loho"]
    drawn = str(plots.forest(arm, pooled(arm, "auroc"), "x"))
    for name, figures in arm.hospitals.items():
        assert f">{name if len(name) <= 26 else name[:25] + '…'}</text>" in drawn
        found = figures.auroc
        assert (
            f">{estimate('auroc', found.value, found.low, found.high) if found.value else 'not estimable'}</text>"
            in drawn
        )
    assert drawn.count("fill: #ffffff; stroke: #1f5f99") == 1  # kleinstadt


def test_a_loss_that_is_missing_is_a_gap_and_seeds_may_differ_in_length(three: Results) -> None:
    training = three.training["42"].model_copy(update={"losses": {"all": [0.7, None, 0.5], "without:x": [None]}})
    page = render(three.model_copy(update={"training": {"42": training}}))
    parse(page)
    assert "model of all hospitals" in page
    assert "1 further model<" in page


def test_a_fixed_threshold_is_said(three: Results) -> None:
    study = three.study.model_copy(update={"threshold": 0.5})
    assert "Fixed at 0.5 in the federation file." in render(three.model_copy(update={"study": study}))
    assert "Youden" in render(three)


def test_without_any_interval_there_is_no_summary(build: MakeResults) -> None:
    results = build({"h1": 12, "h2": 12}, arms=["federated"])
    page = texts(parse(render(results)))
    assert "No hospital has an interval" in page
    assert "rests on 0 hospitals" in page


# --- on the terminal --------------------------------------------------------------------------------------------------


def shown(results: Results, width: int = 80) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(summary_table(results))
    return capture.get()


def test_terminal_lists_few_hospitals(three: Results) -> None:
    lines = shown(three).splitlines()
    found = three.arms["loho"].hospitals["north"]
    auroc: Figure = found.auroc
    assert lines[1].split() == ["held", "out", "n", "events", "AUROC", "(95", "%", "CI)", "calibration", "slope"]
    assert [line.split()[0] for line in lines[2:6]] == ["east", "north", "south", "summary"]
    assert lines[3].split()[:4] == ["north", "80", str(found.events), f"{auroc.value:.3f}"]
    assert f"({auroc.low:.3f}-{auroc.high:.3f})" in lines[3]
    assert "needs 4 hospitals" in lines[6]
    assert any(line.split()[:1] == ["pooled"] for line in lines)


def test_terminal_describes_many_hospitals_together(many_hospitals: Results) -> None:
    text = shown(many_hospitals)
    assert "hospital-1" not in text
    assert "Leave-one-hospital-out, 49 hospitals" in text
    for label in (
        "summary",
        "prediction interval",
        "median",
        "quartiles",
        "least",
        "greatest",
        "all (simulation only)",
    ):
        assert label in text
    assert len(text.splitlines()) < 20


def test_terminal_cuts_no_number_at_80_columns(results: Results) -> None:
    text = shown(results)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.isascii() or "東京" in text
