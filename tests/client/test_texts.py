"""A hospital's texts: the template and reports from column and files reach the patients, and what is noticed in them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from typer.testing import CliRunner

from ich_client import check, cli
from ich_client.hospital import HospitalConfig
from ich_client.site import Site
from ich_client.tables import Hospital, load_hospitals
from ich_deploy.grid import InProcessGrid
from ich_models.errors import ConfigurationError, DataError
from ich_models.federation import Federation, load_federation
from ich_models.losses import Objective
from ich_models.tokens import built_in
from ich_models.yaml_config import Document, load
from ich_strategies.plan import Plan

STUDY = """\
name: study
task: {timeline: [admission, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    variables:
      age: {type: number, unit: years, range: [18, 110], known_at: admission}
      ivh: {type: yes_no, known_at: admission}
      mrs: {type: integer, range: [0, 6], known_at: 90 days}
    predictors: [age]
  text: {variables: [age, ivh], tokens: 32}
network: {name: ichpro, size: tiny, modalities: [text]}
training: {stages: [{rounds: 1, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.1}}]}
"""
REPORTS = STUDY.replace("variables: [age, ivh], ", "source: report, known_at: admission, ")
MAPPING = """\
hospital: north
table:
  file: north.csv
  patient: MRN
  columns:
    age: {from: AGE}
    ivh: {from: IVH, codes: {J: yes, N: no}}
    mrs: MRS
"""
TABLE = """\
MRN,AGE,IVH,MRS,REPORT
a1001,71,J,1,"Small deep
haemorrhage."
a1002,64.5,N,4,n/a
a1003,,,6,
a1004,80,N,,lost
a1005,55,,0,"Seen on 2024-03-09, see a1005"
"""

Loader = Callable[..., Hospital]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Document[Federation]]:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Document[Federation]:
        Path("study.yaml").write_text(text)
        return load_federation(Path("study.yaml"))

    return write


@pytest.fixture
def hospital(study: Callable[[str], Document[Federation]]) -> Loader:
    def load_it(text: str = STUDY, mapping: str = MAPPING) -> Hospital:
        Path("hospital.yaml").write_text(mapping)
        Path("north.csv").write_text(TABLE)
        (one,) = load_hospitals([load(Path("hospital.yaml"), HospitalConfig)], Path(), study(text))
        return one

    return load_it


def said(at: Hospital, study: Federation) -> list[str]:
    """Each patient's text as words; empty where there is none."""
    assert study.modalities.text is not None
    assert at.patients.text is not None
    words = built_in(study.modalities.text, study.modalities.table).words
    return [" ".join(words[number] for number in row if number) for row in at.patients.text]


def refused(load_it: Loader, *arguments: str) -> list[str]:
    with pytest.raises((DataError, ConfigurationError)) as caught:
        load_it(*arguments)
    return [str(problem) for problem in caught.value.problems]


# --- template ---------------------------------------------------------------------------------------------------------


def test_the_template_speaks_of_mapped_values_predictors_or_not(hospital: Loader) -> None:
    north = hospital()
    assert north.patients.ids == ("a1001", "a1002", "a1003", "a1005")
    assert said(north, load_federation(Path("study.yaml")).value) == [
        "[CLS] age 71 years . ivh yes . [SEP]",
        "[CLS] age 64 . 5 years . ivh no . [SEP]",
        "",
        "[CLS] age 55 years . [SEP]",
    ]
    assert north.patients.present["text"].tolist() == [True, True, False, True]
    assert north.patients.table.shape == (4, 1), "ivh is in the text alone"
    assert north.text is not None
    # pieces 7, 9, 4: 20 / 3 and [CLS], [SEP]
    assert (north.text.patients, north.text.tokens) == (3, pytest.approx(20 / 3 + 2))
    assert (north.text.cut, north.text.unknown, north.text.identifiers) == (0, 0, {})


def test_without_a_text_modality_nothing_is_made(hospital: Loader) -> None:
    north = hospital(
        STUDY.replace("  text: {variables: [age, ivh], tokens: 32}\n", "").replace(
            "{name: ichpro, size: tiny, modalities: [text]}", "{name: logistic}"
        )
    )
    assert (north.patients.text, north.text, north.patients.present) == (None, None, {})


def test_a_variable_of_the_text_must_be_mapped(hospital: Loader) -> None:
    (problem,) = refused(hospital, STUDY, MAPPING.replace("    ivh: {from: IVH, codes: {J: yes, N: no}}\n", ""))
    assert "the study needs 'ivh' (its text's template), and it is not mapped\n    add ivh: {from: IVH}" in problem


def test_a_network_learns_from_the_text(hospital: Loader, tmp_path: Path) -> None:
    """One step of the tiny published network on what was loaded; the patient without a text changes nothing."""
    north = hospital()
    plan = Plan(load_federation(Path("study.yaml")).value, 42)
    batch = Site(plan, north, tmp_path).batch(0, "train")
    plan.network.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = Objective(plan.network)(batch)
    loss.backward()
    embedding = dict(plan.network.named_parameters())["text.bert.embeddings.word_embeddings.weight"]
    assert torch.isfinite(loss)
    assert embedding.grad is not None
    used = {number for row in north.patients.text.tolist() for number in row if number}  # type: ignore[union-attr]
    moved = set(embedding.grad.abs().sum(1).nonzero().flatten().tolist())
    assert moved == used


# --- the hospital's own reports ---------------------------------------------------------------------------------------


def test_reports_stand_in_a_column(hospital: Loader) -> None:
    north = hospital(REPORTS, MAPPING.replace("  file:", "  missing: [n/a]\n  file:") + "text: {column: REPORT}\n")
    federation = load_federation(Path("study.yaml")).value
    assert said(north, federation)[:3] == ["[CLS] small deep haemorrhage . [SEP]", "", ""]
    assert north.patients.present["text"].tolist() == [True, False, False, True]
    assert north.text is not None
    assert north.text.identifiers == {"the patient's own identifier": 1, "a date": 1}
    own, date = [str(warning) for warning in north.warnings]
    assert own.startswith(
        "north.csv: line 7, character 25: 1 of 2 reports of hospital 'north' hold what looks like the patient's own"
    )
    assert date.startswith(
        "north.csv: line 7, character 9: 1 of 2 reports of hospital 'north' hold what looks like a date"
    )
    assert "2024" not in own + date, "a warning shows where it is, not what it is"


def test_reports_stand_in_files(hospital: Loader) -> None:
    folder = Path("reports")
    folder.mkdir()
    (folder / "a1001.txt").write_bytes("Blutung, Ödem".encode("latin-1"))
    (folder / "a1003.txt").write_text("Mr Mustermann\nhas a deep haemorrhage")
    mapping = MAPPING + "text: {folder: reports, encoding: latin-1}\n"
    north = hospital(REPORTS, mapping)
    federation = load_federation(Path("study.yaml")).value
    assert said(north, federation)[0] == "[CLS] b ##l ##u ##t ##u ##n ##g , o ##d ##e ##m [SEP]"
    assert north.patients.present["text"].tolist() == [True, False, True, False]
    assert [str(warning).partition(": ")[0] for warning in north.warnings] == ["reports/a1003.txt, character 1"]
    (problem,) = refused(hospital, REPORTS, mapping.replace("latin-1", "utf-8"))
    assert problem.startswith("reports/a1001.txt: line 1: the byte 0xd6 is not utf-8\n    set text.encoding")


def test_a_hospital_without_reports_takes_part_and_is_told(hospital: Loader) -> None:
    north = hospital(REPORTS)
    assert not north.patients.present["text"].any()
    assert north.patients.text is not None
    assert not north.patients.text.any()
    (warning,) = north.warnings
    assert warning.message == "the study reads reports, and hospital 'north' names none"
    Path("reports").mkdir()
    (warning,) = hospital(REPORTS, MAPPING + "text: {folder: reports, pattern: 'ct/{patient}.rpt'}\n").warnings
    assert warning.message == "hospital 'north' has no text of any patient"
    assert warning.hint == "looked for files ct/{patient}.rpt in reports"


def test_text_of_another_language_is_noticed(hospital: Loader) -> None:
    folder = Path("reports")
    folder.mkdir()
    (folder / "a1001.txt").write_text("кровоизлияние слева, без смещения")
    north = hospital(REPORTS, MAPPING + "text: {folder: reports}\n")
    (warning,) = north.warnings
    assert warning.message == "80 % of the words of hospital 'north' are unknown"  # 4 words and a comma


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{column: REPORTS}",
            "hospital.yaml:9:16: text.column: no column 'REPORTS' in north.csv\n    did you mean 'REPORT'?",
        ),
        ("{folder: reports}", "hospital.yaml:9:16: text.folder: there is no folder reports"),
    ],
)
def test_places_that_are_not_there_are_refused(hospital: Loader, text: str, message: str) -> None:
    (problem,) = refused(hospital, REPORTS, MAPPING + f"text: {text}\n")
    assert problem.startswith(message)


def test_an_identifier_cannot_lead_out_of_the_folder(hospital: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("reports").mkdir()
    Path("secret.txt").write_text("secret")
    monkeypatch.setitem(globals(), "TABLE", TABLE.replace("a1001", "../secret"))
    (problem,) = refused(hospital, REPORTS, MAPPING + "text: {folder: reports}\n")
    assert problem.startswith("north.csv: line 2: the patient's identifier cannot be part of a file's name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "write one of column and folder"),
        ("{column: A, folder: b}", "write one of column and folder"),
        ("{column: A, encoding: latin-1}", "pattern and encoding are of files"),
        ("{folder: b, pattern: report.txt}", "'report.txt' is no name of a patient's file"),
        ("{folder: b, pattern: '../{patient}.txt'}", "is no name of a patient's file"),
        ("{folder: b, encoding: utf-42}", "no encoding 'utf-42'"),
    ],
)
def test_the_section_is_checked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hospital.yaml").write_text(MAPPING + f"text: {text}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "hospital.yaml", HospitalConfig)
    assert message in str(caught.value)


# --- a pinned vocabulary ----------------------------------------------------------------------------------------------

VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "age", "years", ".", "71", "ivh", "yes"]) + "\n"


def pinned(losses: str = "losses: {mask_token: 4, first_token: 5}") -> str:
    sha256 = hashlib.sha256(VOCABULARY.encode()).hexdigest()
    text = STUDY.replace("tokens: 32}", f"tokens: 32, vocabulary: {{name: bert, sha256: {sha256}}}}}")
    return text.replace("modalities: [text]", f"modalities: [text], {losses}")


def test_a_pinned_vocabulary_is_read_from_the_hospitals_copy(hospital: Loader) -> None:
    Path("vocab.txt").write_text(VOCABULARY)
    north = hospital(pinned(), MAPPING + "weights: {bert: vocab.txt}\n")
    assert north.patients.text is not None
    assert north.patients.text[0].tolist() == [2, 5, 8, 6, 7, 9, 10, 7, 3, *[0] * 23]


def test_a_pinned_vocabulary_that_does_not_fit_is_refused_where_it_is_first_seen(hospital: Loader) -> None:
    mapping = MAPPING + "weights: {bert: vocab.txt}\n"
    (problem,) = refused(hospital, pinned(), mapping)
    assert problem.startswith("vocab.txt: cannot be read: No such file")
    (problem,) = refused(hospital, pinned(), MAPPING)
    assert "the study needs the vocabulary 'bert', and no file is given for it\n    add bert: PATH" in problem
    Path("vocab.txt").write_text(VOCABULARY)
    mask, first = refused(hospital, pinned("losses: {}"), mapping)
    assert mask.startswith("study.yaml:11:")
    assert "103 is not the vocabulary's id of [MASK], which is 4\n    write mask_token: 4" in mask
    assert "write first_token: 5" in first
    Path("vocab.txt").write_text(VOCABULARY + "more\n")
    (problem,) = refused(hospital, pinned(), mapping)
    assert problem.startswith("vocab.txt: SHA-256 is ")


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_says_what_the_texts_are_like(hospital: Loader) -> None:
    mapping = MAPPING + "text: {column: REPORT}\n"
    north = hospital(REPORTS.replace("tokens: 32", "tokens: 5"), mapping)
    federation = load_federation(Path("study.yaml")).value
    told = check.as_json(check.asked(federation), check.examine(federation, [north]), [])
    assert told["study"]["text"] == "reports of admission; 5 tokens of the built-in vocabulary"
    (found,) = told["hospitals"]
    assert found["text"]["patients"] == 3
    # small deep haemorrhage . | n / a | seen on 20 ##24 - 0 ##3 - 0 ##9 , see a ##10 ##0 ##5 -> more than 3 pieces twice
    assert found["text"]["cut"] == pytest.approx(2 / 3)
    assert found["text"]["unknown"] == 0
    assert found["text"]["identifiers"] == {"the patient's own identifier": 1, "a date": 1}
    assert np.count_nonzero(north.patients.text) == 3 * 5


def test_check_on_the_terminal(hospital: Loader) -> None:
    hospital()
    command = ["check", "study.yaml", "hospital.yaml", "--data", "."]
    done = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    text = " ".join(done.stdout.split())
    assert "text sentences of age, ivh; 32 tokens of the built-in vocabulary" in text
    assert "text 3 of 4 patients, 8.7 tokens on average, 0.0 % cut off, 0.0 % of their words unknown" in text


# --- nothing of it leaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["federated", "hospital"])
@pytest.mark.parametrize("modalities", ["[text, table]", "[text]"])
def test_no_word_of_a_report_crosses_the_wire(
    modalities: str, scaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of a whole study on reports, in both directions, as it would be between machines."""
    crossed: list[bytes] = []
    real = InProcessGrid._through_the_wire

    def captured(grid: InProcessGrid, message: Message) -> Message:
        with no_object_id_recompute():
            crossed.extend(part.deflate() for part in get_all_nested_objects(message).values())
        return real(grid, message)

    monkeypatch.setattr(InProcessGrid, "_through_the_wire", captured)
    network = f"{{name: concat, size: tiny, modalities: {modalities}, text: {{layers: 1}}}}"
    text = REPORTS.replace("{name: ichpro, size: tiny, modalities: [text]}", network)
    text = text.replace("predictors: [age]", f"predictors: [age]\n    scaling: {scaling}")
    (tmp_path / "study.yaml").write_text(text + "evaluation: {small_cells: 0}\n")
    federation = load_federation(tmp_path / "study.yaml")
    mappings = []
    for name in ("north", "south"):
        rows = [f'CANARY-{n},{50 + n},J,{n % 7},"Mr Canary {n} has a deep haemorrhage"' for n in range(12)]
        (tmp_path / f"{name}.csv").write_text(
            "\n".join([TABLE.splitlines()[0], *rows]).replace("CANARY", name + "CANARY")
        )
        mapping = MAPPING.replace("hospital: north", f"hospital: {name}").replace("north.csv", f"{name}.csv")
        (tmp_path / f"{name}.yaml").write_text(mapping + "text: {column: REPORT}\nlimits: {small_cells: 0}\n")
        mappings.append(load(tmp_path / f"{name}.yaml", HospitalConfig))
    members = load_hospitals(mappings, tmp_path, federation)
    result = small.study(federation.value, members, tmp_path / "out", serialise=True)
    assert {name for name, answers in result.answers.items() if answers} == {"north", "south"}
    everything = b"".join(crossed)
    assert b"without:north" in everything, "it is the study's bytes that were looked at"
    for secret in (b"CANARY", b"Canary", b"canary", b"deep"):
        assert secret not in everything
    for member in members:
        assert member.patients.text is not None
        for row in member.patients.text:
            assert row.tobytes() not in everything
            assert row.astype(np.float32).tobytes() not in everything
