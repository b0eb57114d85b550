"""Hospitals' tables: what is read, and every way in which a table or its mapping is refused, message by message."""

import gzip
import lzma
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow
import pytest
from openpyxl.chart import BarChart, Reference
from pyarrow import parquet

from ich_client.hospital import HospitalConfig
from ich_client.tables import Hospital, load_hospitals
from ich_models.batch import Patients
from ich_models.errors import ConfigurationError, DataError
from ich_models.federation import load_federation
from ich_models.yaml_config import load

STUDY = """\
name: study
task: {timeline: [admission, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    variables:
      age: {type: number, unit: years, range: [18, 110], known_at: admission}
      gcs: {type: integer, range: [3, 15], known_at: admission}
      ivh: {type: yes_no, known_at: admission}
      mrs: {type: integer, range: [0, 6], known_at: 90 days}
      site: {type: category, levels: [lobar, deep], known_at: admission}
      stay: {type: integer, unit: days, range: [0, 400], known_at: admission}
    predictors: [age, gcs, ivh]
network: {name: logistic}
training: {stages: [{rounds: 1, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.1}}]}
"""
MAPPING = """\
hospital: north
table:
  file: north.csv
  patient: MRN
  columns:
    age: {from: AGE_Y}
    gcs: {from: GCS, missing: [99, n/a]}
    ivh: {from: IVH, codes: {J: yes, N: no}}
    mrs: MRS
"""
TABLE = """\
MRN,AGE_Y,GCS,IVH,MRS
a1,71,15,J,1
a2,64.5,9,N,4
a3,80,99,J,6
a4,55,n/a,,0
a5,90,3,N,5
"""

Loader = Callable[..., tuple[Hospital, ...]]


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Writes north.csv and its mapping (and further files), and loads them for the study; texts may be replaced."""
    monkeypatch.chdir(tmp_path)

    def load_them(
        table: str | bytes | None = TABLE,
        mapping: str = MAPPING,
        study: str = STUDY,
        more: Mapping[str, str] | None = None,
    ) -> tuple[Hospital, ...]:
        Path("study.yaml").write_text(study)
        Path("hospital.yaml").write_text(mapping)
        if table is not None:
            Path("north.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        for name, text in (more or {}).items():
            Path(name).write_text(text)
        paths = [Path("hospital.yaml"), *(Path(name) for name in more or {} if name.endswith(".yaml"))]
        return load_hospitals(
            [load(path, HospitalConfig) for path in paths], Path(), load_federation(Path("study.yaml"))
        )

    return load_them


def refused(load_them: Loader, *arguments: object, **named: object) -> list[str]:
    """The problems that end a loading, as they are printed."""
    with pytest.raises(DataError) as caught:
        load_them(*arguments, **named)
    assert caught.value.exit_code == 3
    return [str(problem) for problem in caught.value.problems]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_table_becomes_numbers_in_the_order_of_the_file(hospitals: Loader) -> None:
    (north,) = hospitals()
    assert (north.name, north.excluded, north.warnings) == ("north", {}, ())
    assert north.patients.ids == ("a1", "a2", "a3", "a4", "a5")
    nan = np.nan
    expected = [[71, 15, 1], [64.5, 9, 0], [80, nan, 1], [55, nan, nan], [90, 3, 0]]
    np.testing.assert_array_equal(north.patients.table, expected)
    assert north.patients.labels.tolist() == [0, 1, 1, 0, 1]
    assert (north.limits.small_cells, north.limits.threads) == (10, 1)


def test_subgroups_come_from_any_variable_of_the_table(hospitals: Loader) -> None:
    """Age is a predictor, the site is not; cells of the table as they are mapped."""
    study = STUDY + "evaluation: {subgroups: [site, {variable: age, cut: [65, 80]}]}\n"
    mapping = MAPPING + "    site: {from: SITE, codes: {L: lobar, T: deep}}\n"
    lines = TABLE.splitlines()
    table = "\n".join(f"{line},{more}" for line, more in zip(lines, ["SITE", "L", "T", "", "T", "L"], strict=True))
    (north,) = hospitals(table, mapping, study)
    assert {name: level.tolist() for name, level in north.patients.groups.items()} == {
        "site": [0, 1, 2, 1, 0],  # lobar, deep, missing
        "age": [1, 0, 2, 0, 2],
    }
    assert north.patients.take(np.array([4, 2])).groups["site"].tolist() == [0, 2]
    assert Patients.join([north.patients, north.patients]).groups["age"].tolist() == [1, 0, 2, 0, 2] * 2
    (problem,) = refused(hospitals, TABLE, MAPPING, study)
    assert "the study needs 'site' (its subgroups), and it is not mapped" in problem


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ("subgroups: [sit]", "no variable 'sit'"),
        ("subgroups: [mrs]", "'mrs' is the outcome"),
        ("subgroups: [age]", "'age' is a number, and no cut is given"),
        ("subgroups: [{variable: site, cut: [1]}]", "'site' has levels, and cut is for numbers"),
        ("subgroups: [site, site]", "subgroups names a variable twice"),
        ("subgroups: [{variable: age, cut: [80, 65]}]", "do not rise"),
        ("decision_thresholds: [0.2, 0.2]", "decision_thresholds names one twice"),
        ("cross_site: true", "cross_site tests the local models, and there are none"),
        ("comparisons: {ich_score: {}}", "the ICH score's volume is to be predictor 'volume', and there is none"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_with_its_place(
    evaluation: str, message: str, hospitals: Loader
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        hospitals(study=STUDY + f"evaluation: {{{evaluation}}}\n")
    assert all(str(problem).startswith("study.yaml:15:") for problem in caught.value.problems)


def test_what_is_not_trained_cannot_be_recalibrated(hospitals: Loader) -> None:
    study = STUDY.replace("{name: logistic}", "{name: ich_score, volume: age, infratentorial: ivh}")
    with pytest.raises(ConfigurationError, match="network 'ich_score' has no one output that can be recalibrated"):
        hospitals(study=study + "evaluation: {recalibrate: slope}\n")


def test_formats_give_the_same_patients(hospitals: Loader, tmp_path: Path) -> None:
    (plain,) = hospitals()
    header, *rows = [line.split(",") for line in TABLE.splitlines()]
    typed = [[_typed(cell) for cell in row] for row in rows]

    book = openpyxl.Workbook()
    book.create_sheet("registry")
    for row in [[None] * 5, header, *typed]:
        book["registry"].append(row)
    book.save(tmp_path / "north.xlsx")
    columns: dict[str, list[Any]] = {name: [str(row[at]) for row in typed] for at, name in enumerate(header)}
    columns |= {"AGE_Y": [float(row[1]) for row in rows], "IVH": [row[3] or None for row in rows]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "north.parquet")
    (tmp_path / "semicolon.csv").write_text(
        "\ufeff" + TABLE.replace(",", ";").replace("64.5", "64,5").replace("a2", '"a2"') + "\n;;;;\n", "utf-8"
    )
    for setting in (
        "north.xlsx\n  sheet: registry",
        "north.parquet",
        "semicolon.csv\n  separator: ';'\n  decimal: ','",
        "north.xlsx\n  sheet: registry\n  decimal: ','",
    ):
        (other,) = hospitals(mapping=MAPPING.replace("north.csv", setting))
        assert other.patients.ids == plain.patients.ids, setting
        np.testing.assert_array_equal(other.patients.table, plain.patients.table, setting)
        np.testing.assert_array_equal(other.patients.labels, plain.patients.labels, setting)


def _typed(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell


def test_rows_without_an_outcome_or_with_missing_predictors_are_left_out_and_counted(hospitals: Loader) -> None:
    table = TABLE.replace("a5,90,3,N,5", "a5,90,3,N,\na6,44,8,J,3")
    (north,) = hospitals(table, study=STUDY.replace("predictors:", "complete_cases: true\n    predictors:"))
    assert north.patients.ids == ("a1", "a2", "a6")
    assert north.excluded == {"outcome unknown": 1, "a predictor missing": 2}


def test_missing_is_not_a_gap_where_it_is_a_level(hospitals: Loader) -> None:
    study = STUDY.replace("ivh: {type: yes_no,", "ivh: {type: yes_no, missing: level,")
    study = study.replace("predictors: [age, gcs, ivh]", "complete_cases: true\n    predictors: [age, ivh]")
    (north,) = hospitals(study=study)
    assert north.excluded == {}
    np.testing.assert_array_equal(north.patients.table[:, 1:], [[1, 0], [0, 0], [1, 0], [0, 1], [0, 0]])


def test_missing_codes_compare_as_numbers_and_stand_for_zero_too(hospitals: Loader) -> None:
    table = TABLE.replace(",9,", ",0,").replace(",n/a,", ",0.0,").replace(",15,", ",00,")
    (north,) = hospitals(table, MAPPING.replace("[99, n/a]", "[0, 99.0]"))
    np.testing.assert_array_equal(north.patients.table[:, 1], [np.nan, np.nan, np.nan, np.nan, 3])


def test_the_more_particular_rule_for_a_code_wins(hospitals: Loader) -> None:
    mapping = MAPPING.replace("  patient: MRN", "  patient: MRN\n  missing: [N, 3, 71]")
    (north,) = hospitals(mapping=mapping.replace("{from: GCS,", "{from: GCS, codes: {3: 4},"))
    nan = np.nan
    expected = [[nan, 15, 1], [64.5, 9, 0], [80, nan, 1], [55, nan, nan], [90, 4, 0]]
    np.testing.assert_array_equal(north.patients.table, expected)


def test_units_are_converted_to_the_study_s(hospitals: Loader) -> None:
    months = TABLE.replace("71", "852").replace("64.5", "774").replace(",80,", ",960,").replace(",55,", ",660,")
    (north,) = hospitals(months.replace(",90,", ",1320,"), MAPPING.replace("AGE_Y}", "AGE_Y, unit: months}"))
    assert north.patients.table[:, 0].tolist() == [71, 64.5, 80, 55, 110]

    heat = STUDY.replace("unit: years, range: [18, 110]", "unit: degC, range: [35, 45]")
    fahrenheit = MAPPING.replace("AGE_Y}", "AGE_Y, unit: degF, out_of_range: missing}")
    (north,) = hospitals(TABLE.replace("71", "98.6"), fahrenheit, heat)
    np.testing.assert_array_equal(north.patients.table[:, 0], [37, np.nan, np.nan, np.nan, np.nan])

    volume = STUDY.replace("unit: years", "unit: mL")
    (north,) = hospitals(mapping=MAPPING.replace("AGE_Y}", "AGE_Y, unit: cm3}"), study=volume)
    assert north.patients.table[:, 0].tolist() == [71, 64.5, 80, 55, 90]


def test_dates_become_intervals(hospitals: Loader) -> None:
    table = TABLE.replace("MRS\n", "MRS,IN,BORN\n").replace(",1\n", ",1,sty-96,03.05.1927\n")
    table = table.replace(",4\n", ",4,PA?-95,31.12.1950\n").replace(",6\n", ",6,,01.01.1950\n")
    table = table.replace(",0\n", ",0,gru-95,29.02.1936\n").replace(",5\n", ",5,maj-95,\n")
    study = STUDY.replace("[age, gcs, ivh]", "[age, stay]").replace("unit: days", "unit: months")
    study = study.replace("{type: number, unit: years", "{type: integer, unit: years")
    interval = """\
    stay: {date: IN, format: "%b-%y", months: {sty: 1, "pa?": 10, gr: 2, gru: 12, maj: 5}, since: 1995-01-01}
    age: {date: BORN, format: "%d.%m.%Y", since: 1900-03-01}
"""
    mapping = MAPPING.replace("    age: {from: AGE_Y}\n", interval)
    (north,) = hospitals(table, mapping, study)
    expected = [[27, 12], [50, 9], [49, np.nan], [35, 11], [np.nan, 4]]
    np.testing.assert_array_equal(north.patients.table, expected)


def test_an_interval_between_two_columns_counts_days_and_completed_years(hospitals: Loader, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    birth = date(1950, 3, 1)
    days = [(birth, date(2020, 2, 29)), (birth, date(2020, 3, 1)), (birth, None), (None, date(2020, 3, 1))]
    for row in [("MRS", "BORN", "IN"), *((at, born, seen) for at, (born, seen) in enumerate(days, start=1))]:
        book.active.append(row)
    book.save(tmp_path / "north.xlsx")
    study = STUDY.replace("[age, gcs, ivh]", "[age]").replace(
        "{type: number, unit: years", "{type: integer, unit: years"
    )
    mapping = "hospital: north\ntable: {file: north.xlsx, columns: {age: {date: IN, since: BORN}, mrs: MRS}}\n"
    (north,) = hospitals(mapping=mapping, study=study)
    np.testing.assert_array_equal(north.patients.table, [[69], [70], [np.nan], [np.nan]])
    assert north.patients.ids == ("1", "2", "3", "4")
    (north,) = hospitals(
        mapping=mapping,
        study=study.replace("{type: integer, unit: years", "{type: number, unit: days").replace("110", "99999"),
    )
    np.testing.assert_array_equal(north.patients.table, [[25567], [25568], [np.nan], [np.nan]])


def test_cases_make_a_variable_of_several_columns(hospitals: Loader) -> None:
    cases = """\
    ivh:
      cases:
        - {value: yes, where: {IVH: J, GCS: {not: [15, 99]}}}
        - {value: no, where: {IVH: [N, ""]}}
"""
    mapping = MAPPING.replace("    ivh: {from: IVH, codes: {J: yes, N: no}}\n", cases)
    (north,) = hospitals(TABLE.replace("a2,64.5,9,N", "a2,64.5,9,J"), mapping)
    np.testing.assert_array_equal(north.patients.table[:, 2], [np.nan, 1, np.nan, 0, 0])


def test_case_is_ignored_only_where_the_mapping_says_so(hospitals: Loader) -> None:
    table = TABLE.replace("15,J", "15,j")
    (north,) = hospitals(table, MAPPING.replace("N: no}", "N: no}, ignore_case: true"))
    assert north.patients.table[0, 2] == 1
    (message,) = refused(hospitals, table)
    assert message.startswith("north.csv: line 2: ivh has the unknown code 'j'")


def test_a_file_is_split_into_its_hospitals_and_small_ones_are_not_looked_at(hospitals: Loader) -> None:
    table = TABLE + "a6,200,1,X,9\n"
    split = [
        f"{line},{site}"
        for line, site in zip(table.splitlines(), ["WARD", "A 1", "B", "A 1", "B", "B", "C"], strict=True)
    ]
    mapping = MAPPING.replace("  patient: MRN", "  patient: MRN\n  split_by: WARD\n  min_patients: 2")
    first, second = hospitals("\n".join(split), mapping)
    assert (first.name, first.patients.ids) == ("north-a-1", ("a1", "a3"))
    assert (second.name, second.patients.ids) == ("north-b", ("a2", "a4", "a5"))


def test_min_patients_counts_rows_before_the_unknown_outcomes_go(hospitals: Loader) -> None:
    mapping = MAPPING.replace("  patient: MRN", "  split_by: IVH\n  min_patients: 2")
    table = TABLE.replace("a1,71,15,J,1", "a1,71,15,J,").replace(",N,5", ",N,1").replace(",,0", ",J,0")
    assert [(one.name, len(one.patients)) for one in hospitals(table, mapping)] == [("north-j", 2), ("north-n", 2)]


def test_a_file_that_several_mappings_use_is_read_once(hospitals: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    mapping = MAPPING.replace("  patient: MRN", "  patient: MRN\n  split_by: IVH\n  min_patients: 2")
    other = mapping.replace("hospital: north", "hospital: east").replace("split_by: IVH", "split_by: MRS")
    assert refused(hospitals, TABLE, mapping, more={"a.yaml": other}), "five patients are no two hospitals"
    assert [path.name for path in reads].count("north.csv") == 1


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_warnings_for_what_may_be_meant(hospitals: Loader) -> None:
    mapping = MAPPING.replace("[99, n/a]", "[99, n/a, 15, 9, 3]") + "    sit: {from: SITE}\n"
    (north,) = hospitals(mapping=mapping)
    assert [str(warning) for warning in north.warnings] == [
        "hospital.yaml:7:10: table.columns.gcs: 'gcs' is missing for all 5 patients of hospital 'north'\n"
        "    check the mapping; if it was never measured, the other hospitals' values stand in",
        "hospital.yaml:10:10: table.columns.sit: the study has no variable 'sit'\n"
        "    did you mean 'site'? (variables: age, gcs, ivh, mrs, site, stay)",
    ]


@pytest.mark.parametrize("rows", [10, 9])
@pytest.mark.parametrize(("name", "line"), [("ivh", 8), ("gcs", 7)])
def test_a_predictor_that_tells_the_outcome_is_a_warning_from_ten_patients_of_each_class(
    hospitals: Loader, rows: int, name: str, line: int
) -> None:
    """A yes or no, or a number that is lower with the outcome."""
    lines = ["MRN,AGE_Y,GCS,IVH,MRS"]
    for i in range(2 * rows):
        gcs, ivh = (3 + i % 12, i < rows) if name == "ivh" else (7 + i // rows, i % 3 == 0)
        lines.append(f"p{i},{50 + i % 7},{gcs},{'NJ'[ivh]},{6 * (i < rows)}")
    (north,) = hospitals("\n".join(lines))
    message = (
        f"hospital.yaml:{line}:10: table.columns.{name}: "
        f"'{name}' alone tells the outcome at hospital 'north' (AUC 1.000)\n"
        "    make sure that it is recorded before the outcome, and not because of it"
    )
    assert [str(warning) for warning in north.warnings] == ([message] if rows == 10 else [])


def test_one_class_is_refused_or_kept_with_a_warning(hospitals: Loader) -> None:
    table = TABLE.replace(",4\n", ",2\n").replace(",6\n", ",0\n").replace(",5\n", ",1\n")
    place = (
        "hospital.yaml:9:10: table.columns.mrs: no patient of hospital 'north' has the positive outcome (5 patients)\n"
    )
    (message,) = refused(hospitals, table)
    hint = "check the codes of 'mrs'; if the outcome is rare, the study may say task.one_class_hospitals: keep"
    assert message == f"{place}    {hint}"
    (north,) = hospitals(table, study=STUDY.replace("task: {", "task: {one_class_hospitals: keep, "))
    assert [str(warning) for warning in north.warnings] == [f"{place}    if that cannot be, check the codes of 'mrs'"]
    assert len(north.patients) == 5
    every = table.replace(",2\n", ",6\n").replace(",0\n", ",6\n").replace(",1\n", ",6\n")
    assert "every patient of hospital 'north' has the positive outcome (5 patients)" in refused(hospitals, every)[0]


# --- refusals: text of the file, text of the mapping, the whole message ------------------------------------------------

FILE = "hospital.yaml:3:9: table.file: "
COLUMNS = "(columns: MRN, AGE_Y, GCS, IVH, MRS)"
RANGE_HINT = "\n    correct the value, check the unit, or set out_of_range: missing in the mapping"

REFUSALS: dict[str, tuple[str | bytes | None, str, list[str]]] = {
    "no such file": (
        None,
        MAPPING.replace("north.csv", "nroth.csv"),
        [
            f"{FILE}nroth.csv does not exist\n    did you mean 'north.csv'? (files there: "
            "broken.parquet, broken.xlsx, hospital.yaml, north.csv, old.xls, study.yaml)"
        ],
    ),
    "a folder": (
        None,
        MAPPING.replace("north.csv", "."),
        [
            f"{FILE}. is a folder\n    "
            "files there: broken.parquet, broken.xlsx, hospital.yaml, north.csv, old.xls, study.yaml"
        ],
    ),
    "a kind that is not read": (
        None,
        MAPPING.replace("north.csv", "old.xls"),
        [f"{FILE}old.xls is of a kind that is not read here\n    save it as CSV (UTF-8) or XLSX, and name that file"],
    ),
    "empty": (b"", MAPPING, [f"{FILE}north.csv is empty\n    export it again"]),
    "blank lines only": (b"\n , \n\n", MAPPING, [f"{FILE}north.csv is empty\n    export it again"]),
    "header only": (
        TABLE.splitlines()[0],
        MAPPING,
        [f"{FILE}north.csv has a header but no patients\n    export it again"],
    ),
    "a workbook named csv": (
        b"PK\x03\x04rest",
        MAPPING,
        [f"{FILE}north.csv is an Excel workbook or an archive, not CSV\n    give it its own ending (.xlsx, .parquet)"],
    ),
    "binary": (
        b"MRN\0\1\2",
        MAPPING,
        [f"{FILE}north.csv is not text\n    export it as CSV, or set table.encoding: utf-16"],
    ),
    "another encoding": (
        TABLE.replace("a3", "Müller").encode("latin-1"),
        MAPPING,
        [
            "north.csv: line 4: the byte 0xfc is not utf-8\n"
            "    set table.encoding to what the file was saved in (latin-1, cp1252, ...)"
        ],
    ),
    "an open quotation mark": (
        TABLE.replace("a2,", '"a2,'),
        MAPPING,
        [
            "north.csv: line 3: not CSV: unexpected end of data\n"
            "    look for a quotation mark that is not closed, or doubled inside a cell"
        ],
    ),
    "a broken workbook": (
        None,
        MAPPING.replace("north.csv", "broken.xlsx"),
        [f"{FILE}broken.xlsx is not an XLSX workbook: File is not a zip file\n    save it again as .xlsx, or as CSV"],
    ),
    "a broken parquet": (
        None,
        MAPPING.replace("north.csv", "broken.parquet"),
        [
            "broken.parquet: not a Parquet file: Parquet magic bytes not found in footer. "
            "Either the file is corrupted or this is not a parquet file.\n    export it again, or as CSV"
        ],
    ),
    "ragged": (
        TABLE.replace("a2,64.5,9,N,4", "a2,64,5,9,N,4").replace("a4,55,n/a,,0", "a4,55"),
        MAPPING,
        [
            "north.csv: line 3 (and 1 more): 6 cells where the header has 5\n"
            "    a cell that holds the separator needs quotation marks; check table.separator too"
        ],
    ),
    "names for another number of columns": (
        TABLE,
        MAPPING.replace("  patient", "  header: [MRN, AGE_Y]\n  patient"),
        ["hospital.yaml:4:11: table.header: 2 names for the 5 columns of north.csv\n    name every column, in order"],
    ),
    "a column twice": (
        TABLE.replace("IVH", "GCS"),
        MAPPING,
        ["north.csv: the header names 'GCS' more than once\n    rename or delete one of the columns"],
    ),
    "no such column": (
        TABLE,
        MAPPING.replace("GCS,", "GCS_ADM,"),
        [
            f"hospital.yaml:7:17: table.columns.gcs.from: no column 'GCS_ADM' in north.csv\n    did you mean 'GCS'? {COLUMNS}"
        ],
    ),
    "a misspelt column, by shorthand": (
        TABLE,
        MAPPING.replace("mrs: MRS", "mrs: MRSS"),
        [
            "hospital.yaml:9:10: table.columns.mrs.from: no column 'MRSS' in north.csv\n"
            f"    did you mean 'MRS'? {COLUMNS}"
        ],
    ),
    "a misspelt column in a case": (
        TABLE,
        MAPPING.replace("{from: IVH, codes: {J: yes, N: no}}", "{cases: [{value: yes, where: {IVHH: J}}]}"),
        [
            "hospital.yaml:8:46: table.columns.ivh.cases.0.where.IVHH: no column 'IVHH' in north.csv\n"
            f"    did you mean 'IVH'? {COLUMNS}"
        ],
    ),
    "another separator": (
        TABLE.replace(",", ";"),
        MAPPING.split("    gcs")[0].replace("  patient: MRN\n", "")
        + "    gcs: {cases: [{value: 3, where: {'MRN;AGE_Y;GCS;IVH;MRS': x}}]}\n"
        + "    ivh: {cases: [{value: yes, where: {'MRN;AGE_Y;GCS;IVH;MRS': x}}]}\n"
        + "    mrs: {cases: [{value: 3, where: {'MRN;AGE_Y;GCS;IVH;MRS': x}}]}\n",
        [
            "hospital.yaml:5:17: table.columns.age.from: no column 'AGE_Y' in north.csv\n"
            "    the header is one column, 'MRN;AGE_Y;GCS;IVH;MRS': set table.separator to ';'",
            "hospital.yaml:8:10: table.columns.mrs: hospital 'north' has no usable patient (outcome unknown: 5)\n"
            "    check the codes and missing values of 'mrs'",
        ],
    ),
    "a variable that is not mapped": (
        TABLE,
        MAPPING.replace("    ivh: {from: IVH, codes: {J: yes, N: no}}\n", "").replace("    mrs: MRS\n", ""),
        [
            "hospital.yaml:6:5: table.columns: the study needs 'ivh' (a predictor), and it is not mapped\n"
            "    add ivh: {from: IVH}",
            "hospital.yaml:6:5: table.columns: the study needs 'mrs' (the outcome), and it is not mapped\n"
            "    add mrs: {from: MRS}",
        ],
    ),
    "a predictor that is not mapped, and nothing else wrong": (
        TABLE,
        MAPPING.replace("    ivh: {from: IVH, codes: {J: yes, N: no}}\n", ""),
        [
            "hospital.yaml:6:5: table.columns: the study needs 'ivh' (a predictor), and it is not mapped\n"
            "    add ivh: {from: IVH}",
        ],
    ),
    "a hospital's name that is too long": (
        TABLE.replace("MRN,", "MRN,WARD,")
        .replace("a1,", f"a1,{'Ward ' * 20},")
        .replace("a2,", "a2,B,")
        .replace("a3,", "a3,B,")
        .replace("a4,", "a4,B,")
        .replace("a5,", "a5,B,"),
        MAPPING.replace("  patient: MRN", "  patient: MRN\n  split_by: WARD"),
        [
            f"north.csv: line 2: 'WARD' '{('Ward ' * 20)[:40]}' gives the hospital's name '{('north' + '-ward' * 20)[:80]}',"
            " which is too long\n    names have 64 characters at most: shorten it",
        ],
    ),
    "no patient column": (
        TABLE,
        MAPPING.replace("patient: MRN", "patient: MRNN"),
        [f"hospital.yaml:4:12: table.patient: no column 'MRNN' in north.csv\n    did you mean 'MRN'? {COLUMNS}"],
    ),
    "no identifier": (
        TABLE.replace("a2,", ",").replace("a5,", " ,"),
        MAPPING,
        [
            "north.csv: lines 3, 6: no patient identifier in 'MRN'\n"
            "    fill it in, or leave table.patient out if every row is a patient"
        ],
    ),
    "a patient twice": (
        TABLE.replace("a4,", "a1,").replace("a5,", "a1,").replace("a3,", "a2,"),
        MAPPING,
        [
            "north.csv: lines 2, 5, 6: one patient identifier ('MRN') has 3 rows; so do 1 more\n"
            "    keep one row per patient: delete the copy, or merge the rows"
        ],
    ),
    "no split column": (
        TABLE,
        MAPPING.replace("  patient: MRN", "  split_by: WARD"),
        [f"hospital.yaml:4:13: table.split_by: no column 'WARD' in north.csv\n    {COLUMNS[1:-1]}"],
    ),
    "an empty split column": (
        TABLE.replace(",n/a,,", ",n/a,J,").replace("9,N,4", "9,,4"),
        MAPPING.replace("  patient: MRN", "  split_by: IVH\n  min_patients: 2"),
        ["north.csv: line 3: no hospital: 'IVH' is empty\n    fill it in, or delete these rows"],
    ),
    "nobody has enough patients": (
        TABLE,
        MAPPING.replace("  patient: MRN", "  split_by: MRN\n  min_patients: 100"),
        [
            "hospital.yaml:5:17: table.min_patients: none of the 5 hospitals of north.csv has 100 patients\n"
            "    the largest has 1: lower min_patients"
        ],
    ),
    "out of range": (
        TABLE.replace("71", "212").replace(",80,", ",17,").replace(",55,", ",-55,").replace(",90,", ",111,"),
        MAPPING,
        [f"north.csv: line 2 (and 3 more): age 212 outside 18-110 years{RANGE_HINT}"],
    ),
    "out of range after conversion": (
        TABLE.replace("71", "2544")
        .replace("64.5", "240")
        .replace(",80,", ",960,")
        .replace(",55,", ",660,")
        .replace(",90,", ",999,"),
        MAPPING.replace("AGE_Y}", "AGE_Y, unit: months}"),
        [f"north.csv: line 2: age 2544 months = 212 years outside 18-110 years{RANGE_HINT}"],
    ),
    "an unknown unit": (
        TABLE,
        MAPPING.replace("AGE_Y}", "AGE_Y, unit: yaers}"),
        [
            "hospital.yaml:6:30: table.columns.age.unit: no unit 'yaers'\n"
            "    write it as in years, mL, mmHg, mg/dL, mmol/L, degC"
        ],
    ),
    "another kind of unit": (
        TABLE,
        MAPPING.replace("AGE_Y}", "AGE_Y, unit: mmHg}"),
        [
            "hospital.yaml:6:30: table.columns.age.unit: mmHg does not convert to years\n"
            "    the study's unit is years; is it the right column?"
        ],
    ),
    "a unit where the study has none": (
        TABLE,
        MAPPING.replace("{from: GCS,", "{from: GCS, unit: points,").replace("{from: IVH,", "{from: IVH, unit: mL,"),
        [
            "hospital.yaml:7:28: table.columns.gcs.unit: 'gcs' has no unit in the study, and here it is in points\n"
            "    map another column, or correct the study",
            "hospital.yaml:8:28: table.columns.ivh.unit: 'ivh' is no number in the study, and here it is in mL\n"
            "    map another column, or correct the study",
        ],
    ),
    "no number": (
        TABLE.replace("71", "1_000").replace(",80,", ",nan,"),
        MAPPING,
        [
            "north.csv: line 2: age '1_000' is not a number (1 row)\n"
            "    correct it, or say what it stands for: codes: {'1_000': NUMBER}; if nothing is known, missing: [1_000]",
            "north.csv: line 4: age 'nan' is not a number (1 row)\n"
            "    correct it, or say what it stands for: codes: {'nan': NUMBER}; if nothing is known, missing: [nan]",
        ],
    ),
    "a number with its unit": (
        TABLE.replace("71", "71 years").replace(",80,", ",80 y,"),
        MAPPING,
        [
            "north.csv: line 2 (and 1 more): age '71 years' is not a number\n"
            "    the cell holds more than the number: leave the unit out of it, and name it in the mapping (unit)"
        ],
    ),
    "a decimal comma": (
        TABLE.replace("64.5", '"64,5"'),
        MAPPING,
        [
            "north.csv: line 3: age '64,5' is not a number\n"
            "    if ',' is the decimal mark of the whole table, set table.decimal: ','"
        ],
    ),
    "not whole": (
        TABLE.replace(",15,", ",14.5,"),
        MAPPING,
        ["north.csv: line 2: gcs 14.5 is not a whole number\n    'gcs' counts in whole numbers in the study"],
    ),
    "unknown codes": (
        TABLE.replace("15,J", "15,Yes").replace("99,J", "99,?").replace("3,N", "3,?"),
        MAPPING,
        [
            "north.csv: lines 4, 6: ivh has the unknown code '?' (2 rows)\n"
            "    known: J, N, no, yes; add it to codes or to missing",
            "north.csv: line 2: ivh has the unknown code 'Yes' (1 row)\n"
            "    did you mean 'yes'? (known: J, N, no, yes); add it to codes or to missing",
        ],
    ),
    "a code for a level that there is not": (
        TABLE,
        MAPPING.replace("J: yes", "J: yess"),
        [
            "hospital.yaml:8:33: table.columns.ivh.codes.J: 'yess' is not a level of 'ivh'\n"
            "    did you mean 'yes'? (levels: no, yes)"
        ],
    ),
    "a code that is no number": (
        TABLE,
        MAPPING.replace("{from: GCS,", "{from: GCS, codes: {T: intubated},"),
        ["hospital.yaml:7:33: table.columns.gcs.codes.T: 'intubated' is not a number\n    'gcs' is one"],
    ),
    "two cases fit": (
        TABLE,
        MAPPING.replace("mrs: MRS", "mrs: {cases: [{value: 6, where: {IVH: J}}, {value: 0, where: {GCS: [15, 99]}}]}"),
        ["north.csv: line 2 (and 1 more): mrs: cases 1 and 2 both fit this row\n    make the cases exclude each other"],
    ),
    "no date": (
        TABLE.replace("MRN", "IN").replace("a1", "31.13.2020"),
        MAPPING.replace("  patient: MRN\n", "").replace(
            "{from: AGE_Y}", "{date: IN, format: '%d.%m.%Y', since: 1950-01-01}"
        ),
        [
            "north.csv: line 2 (and 4 more): age: '31.13.2020' is not a date like %d.%m.%Y\n"
            "    correct the date, add its code to missing, or set format and months"
        ],
    ),
    "an interval that is no time in the study": (
        TABLE,
        MAPPING.replace("gcs: {from: GCS, missing: [99, n/a]}", "gcs: {date: GCS, since: 1950-01-01}"),
        [
            "hospital.yaml:7:17: table.columns.gcs.date: 'gcs' has no unit in the study, and here it is in days\n"
            "    map another column, or correct the study"
        ],
    ),
    "no known outcome": (
        TABLE,
        MAPPING.replace("mrs: MRS", "mrs: {from: MRS, missing: [0, 1, 4, 5, 6]}"),
        [
            "hospital.yaml:9:10: table.columns.mrs: hospital 'north' has no usable patient (outcome unknown: 5)\n"
            "    check the codes and missing values of 'mrs'"
        ],
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_refused_with_place_and_hint(hospitals: Loader, fault: str) -> None:
    for name in ("broken.xlsx", "broken.parquet", "old.xls"):
        Path(name).write_bytes(b"garbage" * 9)
    table, mapping, messages = REFUSALS[fault]
    assert refused(hospitals, TABLE if table is None else table, mapping) == messages


def test_no_such_sheet(hospitals: Loader, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Patients"
    book.save(tmp_path / "north.xlsx")
    assert refused(hospitals, mapping=MAPPING.replace("north.csv", "north.xlsx\n  sheet: patient")) == [
        "hospital.yaml:4:10: table.sheet: no sheet 'patient' in north.xlsx\n    did you mean 'Patients'? (sheets: Patients)"
    ]


def test_a_workbook_counts_rows_as_excel_does(hospitals: Loader, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["title"], [], *(line.split(",") for line in TABLE.replace("71", "old").splitlines())):
        book.active.append(row)
    book.active.delete_rows(1)
    book.save(tmp_path / "north.xlsx")
    assert refused(hospitals, mapping=MAPPING.replace("north.csv", "north.xlsx")) == [
        "north.xlsx: row 3: age 'old' is not a number (1 row)\n"
        "    correct it, or say what it stands for: codes: {'old': NUMBER}; if nothing is known, missing: [old]"
    ]


def test_lines_are_counted_through_quoted_line_breaks_and_blank_lines(hospitals: Loader) -> None:
    table = TABLE.replace("a1", '"a\n1"').replace("a2", "\na2").replace("64.5", "old")
    assert refused(hospitals, table)[0].startswith("north.csv: line 5: age 'old' is not a number")


def test_many_unknown_codes_are_named_five_at_most(hospitals: Loader) -> None:
    rows = "".join(f"b{i},60,10,code{i},{i % 7}\n" for i in range(8))
    messages = refused(hospitals, "MRN,AGE_Y,GCS,IVH,MRS\n" + rows)
    assert len(messages) == 6
    assert messages[-1] == "north.csv: ivh has 3 more such values\n    is this the right column?"


def test_two_hospitals_with_one_name(hospitals: Loader) -> None:
    table = TABLE.replace("\na", "\nb")
    more = {"other.yaml": MAPPING.replace("north.csv", "other.csv"), "other.csv": table}
    assert refused(hospitals, more=more) == [
        "other.yaml:1:11: hospital: hospital 'north' is also at hospital.yaml:1:11: hospital\n"
        "    give every hospital a name of its own"
    ]


def test_one_table_cannot_be_two_hospitals(hospitals: Loader) -> None:
    """Whoever is held out would be in the other one's training: as a copied mapping, and as a copied file."""
    same = refused(hospitals, more={"other.yaml": MAPPING.replace("hospital: north", "hospital: west")})
    assert same[0].startswith("other.yaml:3:9: table.file: the same table is hospital 'north' already")
    mapping = MAPPING.replace("hospital: north", "hospital: west").replace("north.csv", "west.csv")
    copied = refused(hospitals, more={"west.yaml": mapping, "west.csv": TABLE.replace("a5,90", "c5,91")})
    assert copied == [
        "hospitals 'north' and 'west' have 4 patients with the same number and data\n"
        "    one table was taken for two hospitals: nobody would be held out of the other's training"
    ]
    other = TABLE.replace("a1,71", "a1,72").replace("a2,64.5", "a2,60").replace("a3,80", "a3,81")
    assert len(hospitals(more={"west.yaml": mapping, "west.csv": other})) == 2


def test_a_formula_without_a_stored_value_is_not_missing(hospitals: Loader, tmp_path: Path) -> None:
    """openpyxl, and many an export, writes formulas without their values; only a spreadsheet program computes them."""
    book = openpyxl.Workbook()
    for line in TABLE.splitlines():
        book.active.append(line.split(","))
    book.active["E3"] = "=3+1"
    book.active["B4"] = "=70+10"
    book.save(tmp_path / "north.xlsx")
    found = refused(hospitals, mapping=MAPPING.replace("north.csv", "north.xlsx"))
    assert [message.splitlines()[0] for message in found] == [
        "north.xlsx: row 4: age '=70+10' is not a number",
        "north.xlsx: row 3: mrs '=3+1' is not a number",
    ]
    assert "open it in Excel or LibreOffice and save it" in found[0]


def test_a_sheet_whose_name_ends_in_a_space_can_be_named(hospitals: Loader, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Register "
    for line in TABLE.splitlines():
        book.active.append(line.split(","))
    book.save(tmp_path / "north.xlsx")
    (north,) = hospitals(mapping=MAPPING.replace("north.csv", "north.xlsx\n  sheet: Register"))
    assert len(north.patients) == 5


@pytest.mark.parametrize(
    ("later", "hours"),
    [
        ("2023-01-03T16:28:00Z", 3 + 7 / 60),
        ("2023-01-03T18:28:00+02:00", 3 + 7 / 60),
        ("2023-01-03T16:28:00+02:00", 1 + 7 / 60),
        ("2023-01-03T16:28:00", None),
    ],
)
def test_time_zones_count(hospitals: Loader, later: str, hours: float | None) -> None:
    """15:21 two hours east of Greenwich is 13:21 there."""
    study = STUDY.replace("{type: integer, unit: days, range: [0, 400]", "{type: number, unit: hours, range: [0, 400]")
    study = study.replace("[age, gcs, ivh]", "[age, stay]")
    table = TABLE.replace("MRS\n", "MRS,ONSET,CT\n")
    for number in (1, 4, 6, 0, 5):
        table = table.replace(f",{number}\n", f",{number},2023-01-03T15:21:00+02:00,{later}\n")
    mapping = MAPPING + "    stay: {date: CT, since: ONSET}\n"
    if hours is None:
        (message,) = refused(hospitals, table, mapping, study)
        assert "one has a time zone and one has none" in message
        return
    (north,) = hospitals(table, mapping, study)
    assert north.patients.table[:, 1] == pytest.approx(hours)


def test_everything_wrong_in_all_mappings_and_tables_is_said_at_once(hospitals: Loader) -> None:
    broken = MAPPING.replace("north\n", "east\n", 1).replace("north.csv", "east.csv").replace("GCS,", "GSC,")
    lost = MAPPING.replace("north\n", "west\n", 1).replace("north.csv", "west.csv").replace("    ivh", "    iv")
    messages = refused(
        hospitals,
        TABLE.replace("71", "212").replace("a2", "a1").replace(",5\n", ",7\n"),
        more={"east.yaml": broken, "east.csv": TABLE.replace("N,4", "M,4"), "west.yaml": lost},
    )
    assert [message.splitlines()[0] for message in messages] == [
        "north.csv: line 2: age 212 outside 18-110 years",
        "north.csv: line 6: mrs 7 outside 0-6",
        "north.csv: lines 2, 3: one patient identifier ('MRN') has 2 rows",
        "east.yaml:7:17: table.columns.gcs.from: no column 'GSC' in east.csv",
        "east.csv: line 3: ivh has the unknown code 'M' (1 row)",
        "west.yaml:3:9: table.file: west.csv does not exist",
        "west.yaml:6:5: table.columns: the study needs 'ivh' (a predictor), and it is not mapped",
    ]


def test_messages_hold_no_identifier(hospitals: Loader) -> None:
    table = TABLE.replace("a1,71", "Schmidt,212").replace("a2,", "Schmidt,").replace(",J,", ",X,")
    assert "Schmidt" not in "".join(refused(hospitals, table))


def test_no_mapping_at_all(hospitals: Loader, tmp_path: Path) -> None:
    hospitals()
    with pytest.raises(DataError, match="there are no hospitals"):
        load_hospitals([], tmp_path, load_federation(tmp_path / "study.yaml"))


# --- files that say what they are --------------------------------------------------------------------------------------

MADE_BY_EXCEL = "sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")


def test_a_first_line_that_names_the_separator_is_no_row(hospitals: Loader) -> None:
    (plain,) = hospitals()
    semicolon = MAPPING.replace("north.csv", "north.csv\n  separator: ';'")
    (told,) = hospitals(MADE_BY_EXCEL, semicolon)
    np.testing.assert_array_equal(told.patients.table, plain.patients.table)
    assert refused(hospitals, MADE_BY_EXCEL.replace("64.5", "645"), semicolon)[0].startswith(
        "north.csv: line 4: age 645"
    )
    assert refused(hospitals, MADE_BY_EXCEL)[0] == (
        "north.csv: line 1: its first line says that the separator is ';', and it is read with ','\n"
        "    set table.separator to ';'"
    )


@pytest.mark.parametrize(
    ("content", "mapping", "message", "hint"),
    [
        (
            b"\xef\xbb\xbf" + TABLE.encode(),
            "north.csv\n  encoding: latin-1",
            "hospital.yaml:4:13: table.encoding: north.csv begins with the mark of utf-8, and it is read as latin-1",
            "set table.encoding: utf-8",
        ),
        (
            TABLE.encode("utf-16"),
            "north.csv",
            "north.csv begins with the mark of utf-16, and it is read as utf-8",
            "set table.encoding: utf-16",
        ),
        (gzip.compress(TABLE.encode()), "north.csv", "north.csv is compressed (gzip)", "unpack it (gunzip)"),
        (lzma.compress(TABLE.encode()), "north.csv", "north.csv is compressed (xz)", "unpack it (unxz)"),
    ],
    ids=["bom read as latin-1", "utf-16 read as utf-8", "gzip", "xz"],
)
def test_a_file_of_another_encoding_or_compressed_is_refused_by_name(
    content: bytes, mapping: str, message: str, hint: str, hospitals: Loader
) -> None:
    said = refused(hospitals, content, MAPPING.replace("north.csv", mapping))[0]
    assert message in said
    assert hint in said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mark_of_the_same_encoding_is_no_part_of_the_first_name(encoding: str, hospitals: Loader) -> None:
    content = TABLE.encode("utf-16" if encoding == "utf-16" else "utf-8-sig")
    (north,) = hospitals(content, MAPPING.replace("north.csv", f"north.csv\n  encoding: {encoding}"))
    assert north.patients.ids == ("a1", "a2", "a3", "a4", "a5")


def test_charts_are_no_tables(hospitals: Loader, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in TABLE.splitlines():
        book.active.append([_typed(cell) for cell in row.split(",")])
    book.active.title = "Patients"
    drawn = BarChart()
    drawn.add_data(Reference(book.active, min_col=2, min_row=1, max_row=5))
    book.create_chartsheet("Ages", 0).add_chart(drawn)
    book.save(tmp_path / "north.xlsx")
    workbook = MAPPING.replace("north.csv", "north.xlsx")
    (north,) = hospitals(mapping=workbook)
    assert north.patients.ids == ("a1", "a2", "a3", "a4", "a5")
    assert refused(hospitals, mapping=workbook.replace("north.xlsx", "north.xlsx\n  sheet: Ages"))[0] == (
        "hospital.yaml:4:10: table.sheet: sheet 'Ages' of north.xlsx is a chart\n    sheets: Patients"
    )
