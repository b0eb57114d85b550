"""What the page tells of the run: flow, table 1, communications, checklists; every number checked against the results."""

import copy
import re
from collections.abc import Callable
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest

from ich_server.report import checklists, facts, flow, table_one, traffic
from ich_server.report.page import render
from ich_server.report.parts import Table
from ich_server.results import Column, HospitalData, Results, Traffic

MakeResults = Callable[..., Results]
HTML = "{http://www.w3.org/1999/xhtml}"

SETTINGS: dict[str, Any] = {
    "task": {"predict_at": "admission"},
    "modalities": {
        "table": {
            "variables": {
                "age": {"type": "number", "unit": "years", "known_at": "admission", "missing": "impute"},
                "ivh": {"type": "yes_no", "known_at": "admission", "missing": "impute"},
                "site": {"type": "category", "levels": ["lobar", "deep", "pons"], "known_at": "CT", "missing": "level"},
            },
            "predictors": ["age", "ivh", "site"],
            "scaling": "federated",
        },
        "image": None,
        "text": None,
    },
    "training": {
        "stages": [{"name": "train", "rounds": 4, "epochs": 2, "batch": 16, "optimizer": {"name": "sgd", "lr": 0.05}}]
    },
    "evaluation": {"small_cells": 10, "leave_one_hospital_out": True, "validation": 0.2},
}
NAMES = ("age", "ivh=yes", "site=deep", "site=pons", "site=missing")


def columns(age: float, ivh: float, deep: float, pons: float, missing: float, n: float = 100) -> dict[str, Column]:
    """Counts of yes among n; the age with a standard deviation of 12.5."""
    shares = {
        name: Column(known=n, mean=yes / n, sd=0.1)
        for name, yes in zip(NAMES[1:], (ivh, deep, pons, missing), strict=True)
    }
    return {"age": Column(known=n, mean=age, sd=12.5), **shares}


def told(results: Results, per_hospital: dict[str, dict[str, Column]]) -> Results:
    hospitals = {
        name: HospitalData(n=120, events=40, excluded={"no outcome": 3}, training=100, columns=found)
        for name, found in per_hospital.items()
    }
    study = results.study.model_copy(update={"settings": SETTINGS})
    return results.model_copy(update={"study": study, "hospitals": hospitals})


@pytest.fixture
def described(three: Results) -> Results:
    return told(
        three,
        {
            "east": columns(70.25, 30, 40, 20, 0),
            "north": columns(64.0, 5, 40, 3, 0),  # few with ivh; 3 in the pons
            "south": columns(59.5, 96, 0, 0, 0) | {"age": Column(known=None, mean=None, sd=None)},
        },
    )


def cells(table: Table) -> dict[str, list[str]]:
    return {
        row.head: [f"{cell.value} ({cell.around})" if cell.around else cell.value for cell in row.cells]
        for row in table.rows
    }


def texts(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


# --- table 1 ----------------------------------------------------------------------------------------------------------


def test_table_one_says_what_the_hospitals_told(described: Results) -> None:
    (table,) = table_one.tables(described)
    assert table.columns == ("", "east", "north", "south")
    rows = cells(table)
    assert rows["Learnt from"] == ["100", "100", "100"]
    assert rows["age, years"] == ["70.2 (12.5)", "64.0 (12.5)", "withheld"]
    assert rows["ivh: yes"] == ["30 (30 %)", "few", "nearly all"]
    assert rows["ivh: no"] == ["70 (70 %)", "nearly all", "few"], "100 - 96 = 4 patients"
    assert [rows[f"site: {level}"][0] for level in ("lobar", "deep", "pons")] == ["40 (40 %)", "40 (40 %)", "20 (20 %)"]


def test_a_hidden_level_cannot_be_computed_from_the_others(described: Results) -> None:
    """lobar 57, deep 40, pons 3 of 100: with the pons alone hidden it would be what is left of 100."""
    rows = cells(table_one.tables(described)[0])
    north = [rows[f"site: {level}"][1] for level in ("lobar", "deep", "pons", "missing")]
    assert north == ["57 (57 %)", "withheld", "few", "0 (0 %)"]
    shown = sum(int(each.split()[0]) for each in north if each[0].isdigit())
    assert 100 - shown == 43, "two numbers hide behind this one"


def test_a_count_that_may_be_half_of_a_larger_k_is_marked(three: Results) -> None:
    """North asks for k = 30 and has 12 with ivh: told as 15, and everything else is 0 or 30 and more. East's 15 is one: 20 is told, too."""
    (table,) = table_one.tables(
        told(
            three,
            {
                "east": columns(70, 15, 40, 20, 0),
                "north": columns(64, 15, 40, 30, 0),
                "south": columns(60, 15.5, 40, 20, 0),
            },
        )
    )
    rows = cells(table)
    assert rows["ivh: yes"] == ["15 (15 %)", "≈ 15 (15 %)", "≈ 16 (16 %)"], "15.5 patients are nobody's count"
    assert rows["ivh: no"] == ["85 (85 %)", "≈ 85 (85 %)", "≈ 84 (84 %)"]
    assert rows["site: pons"] == ["20 (20 %)", "30 (30 %)", "20 (20 %)"]
    assert rows["site: lobar"][1] == "30 (30 %)"
    assert "≈ may stand for fewer" in table.note
    (plain,) = table_one.tables(told(three, {"east": columns(70, 15, 40, 20, 0)}))
    assert "≈" not in plain.note


def test_of_many_hospitals_the_table_tells_how_they_differ(three: Results) -> None:
    many = {f"h{place}": columns(60 + place, 30 + place, 40, 20, 0) for place in range(9)}
    summary, each = table_one.tables(told(three, many))
    rows = cells(summary)
    assert rows["age, years"] == ["9", "64.0", "62.0–66.0", "60.0", "68.0"]  # 60 ... 68: quartiles 62 and 66
    assert rows["ivh: yes, %"] == ["9", "34", "32–36", "30", "38"]
    assert len(each.rows) == 10
    assert cells(each)["h3"][2:4] == ["63.0 (12.5)", "67 (67 %)"]


def test_results_of_an_older_version_have_no_table_one(three: Results) -> None:
    assert table_one.tables(three) == []
    assert "not kept by the version" in render(three)


# --- flow -------------------------------------------------------------------------------------------------------------


def test_the_flow_adds_up(described: Results) -> None:
    label = flow.flow(described).svg
    said = re.search(r'aria-label="([^"]*)"', label)
    assert said
    assert "In the hospitals’ tables: 369 patients, 3 hospitals." in said[1]
    assert "Took part: 360 patients, 120 with the event." in said[1]
    assert "learnt from: 300 patients." in said[1]
    tested = sum(one.n for one in described.arms["loho"].hospitals.values())
    assert f"Leave-one-hospital-out: {tested:,} patients, 3 hospitals" in said[1]
    assert "Left out: 9 no outcome." in said[1]


def test_what_is_withheld_makes_a_sum_the_least(described: Results) -> None:
    changed = {
        name: one.model_copy(update={"excluded": {"no outcome": None, "age out of range": 12}, "events": None})
        for name, one in described.hospitals.items()
    }
    label = flow.flow(described.model_copy(update={"hospitals": changed})).svg
    assert "≥ 396 patients" in label
    assert "36 age out of range" in label
    assert "few: no outcome" in label


# --- communications ---------------------------------------------------------------------------------------------------


def test_communications_are_the_sums(three: Results) -> None:
    found = {
        "42": {
            "east": Traffic(sent=[1000, 1000, 1200], received=[500, 0, 700]),
            "north": Traffic(sent=[2000, 2000, 2000], received=[900, 900, 900]),
        },
        "43": {"east": Traffic(sent=[1000], received=[500]), "north": Traffic(sent=[2_000_000], received=[900])},
    }
    table = traffic.table(three.model_copy(update={"traffic": found}))
    assert table is not None
    rows = cells(table)
    assert rows["east"] == ["3 of 4", "1.0 kB", "500 B", "4.2 kB", "1.7 kB"]
    assert rows["north"] == ["4 of 4", "2.0 kB", "900 B", "2.0 MB", "3.6 kB"]
    assert rows["All hospitals"][0] == "7 of 8"
    assert traffic.table(three) is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_940, "99.9 kB"), (99_960, "100 kB"), (999_700, "1.0 MB")],
)
def test_sizes_are_written_with_three_figures(number: int, text: str) -> None:
    assert traffic.size(number) == text


# --- checklists -------------------------------------------------------------------------------------------------------


def test_every_item_is_there_once_and_answered_where_the_run_knows(described: Results) -> None:
    (tripod,) = checklists.tables(described)
    numbers = [row.head for row in tripod.rows]
    assert len(numbers) == len(set(numbers)) == 52
    assert {int(re.match(r"\d+", number)[0]) for number in numbers} == set(range(1, 28))  # type: ignore[index]
    said = {row.head: row.cells[1].value for row in tripod.rows}
    assert said["8a"].startswith(described.study.outcome)
    assert said["9b"].startswith("Known by admission: age (admission), ivh (admission), site (CT).")
    assert "stands in; missing is a level" in said["11"]
    assert "leave-one-hospital-out" in said["12a"].lower()
    assert "sgd, learning rate 0.05" in said["12c"]
    assert said["17"] == said["18a"] == "For the authors."


def test_claim_is_for_images(described: Results) -> None:
    settings = copy.deepcopy(SETTINGS)
    settings["modalities"]["image"] = {"kind": "ct", "size": [32, 224, 224]}
    study = described.study.model_copy(update={"settings": settings})
    _, claim = checklists.tables(described.model_copy(update={"study": study}))
    assert [row.head for row in claim.rows] == [str(number) for number in range(1, 43)]
    assert "images (ct) are brought to 32 x 224 x 224" in next(
        row.cells[1].value for row in claim.rows if row.head == "9"
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_all_of_it_and_its_links_lead_somewhere(described: Results) -> None:
    hashed = {"42": "ab" * 32}
    software = {"ich-federation": "0.1.0", "torch": "2.13"}
    page = render(described.model_copy(update={"models": hashed, "software": software}))
    tree = html5lib.HTMLParser(strict=True).parse(page)
    titles = [texts(each) for each in tree.iter(f"{HTML}h2")]
    for title in ("Study flow and hospitals", "The run", "Limits", "How the numbers are made", "Reporting checklists"):
        assert title in titles
    ids = {each.get("id") for each in tree.iter() if each.get("id")}
    links = [each.get("href") for each in tree.iter(f"{HTML}a")]
    assert links
    assert all(link is not None and link[1:] in ids for link in links)
    body = texts(tree)
    assert "ab" * 32 in body
    assert described.study.federation in body
    assert "Counts from 1 to 9 were not told" in body
    assert "No differential privacy." in body


# --- what is said of privacy ------------------------------------------------------------------------------------------


def said_of_privacy(results: Results, **settings: Any) -> str:
    study = results.study.model_copy(update={"settings": {**SETTINGS, **settings}})
    return " ".join(facts.privacy(results.model_copy(update={"study": study})))


def test_what_is_said_of_small_cells_is_true_of_simulation_and_deployment(three: Results) -> None:
    deployed = three.model_copy(
        update={"arms": {"loho": three.arms["loho"].model_copy(update={"pooled": None, "reference": None})}}
    )
    simulation, deployment = said_of_privacy(three), said_of_privacy(deployed)
    for said in (simulation, deployment):
        assert "Counts from 1 to 9 were not told" in said
        assert "recall, precision, specificity, NPV, F1 and F2 are exact" in said
        assert "stayed at the hospitals" not in said
    assert "all patients were on one machine" in simulation
    assert "are of the hospitals that tell theirs" in simulation
    assert "one machine" not in deployment
    assert "together" not in deployment


def test_noised_figures_are_not_called_exact_and_k_0_is_said(three: Results) -> None:
    assert "are exact" not in said_of_privacy(three, privacy={"epsilon": 1.0, "metrics": "noised"})
    assert "are exact" in said_of_privacy(three, privacy={"epsilon": 1.0, "metrics": "exact"})
    assert "not withheld (k = 0)" in said_of_privacy(three, evaluation={"small_cells": 0})
