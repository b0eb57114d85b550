"""The three commands as their users meet them: help and its place in the docs, exit codes, streams, and what they say."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

import ich_client.cli
import ich_deploy.cli
import ich_server.cli
from ich_models.errors import ConfigurationError
from ich_models.protocol import (
    Answer,
    CalibrationBin,
    DecisionPoint,
    EvaluateReply,
    PartStatistics,
    RecalibrationReply,
    Refusal,
    StatisticsReply,
    SubgroupAnswer,
    ThresholdReply,
    TrainReply,
    TypeAnswer,
)
from ich_server import results_file

SCRIPTS = {"ich-client": ich_client.cli.app, "ich-server": ich_server.cli.app, "ich-simulate": ich_deploy.cli.app}

REPLIES = (
    *(StatisticsReply, PartStatistics, TrainReply, RecalibrationReply, ThresholdReply, EvaluateReply, Answer),
    *(TypeAnswer, CalibrationBin, DecisionPoint, SubgroupAnswer, Refusal),
)

FEDERATION = """\
name: small
task: {timeline: [admission, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    variables:
      age: {type: number, unit: years, range: [18, 110], known_at: admission}
      ivh: {type: yes_no, known_at: admission}
      site: {type: category, levels: [lobar, deep], known_at: admission, missing: level}
      mrs: {type: integer, range: [0, 6], known_at: 90 days}
    predictors: [age, ivh, site]
network: {name: logistic}
training:
  strategy: {name: scaffold}
  stages: [{rounds: 2, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.1}}]
evaluation: {folds: 2, small_cells: 12, comparisons: {pooled: {epochs: 1, batch: all, optimizer: {name: sgd, lr: 0.1}}}}
"""

MAPPING = """\
hospital: {name}
table: {{file: {name}.csv, patient: id, columns: {{age: {{}}, ivh: {{}}, site: {{}}, mrs: {{}}}}}}
limits: {{small_cells: {k}}}
"""

EAST = "id,age,ivh,site,mrs\n" + "".join(
    f"{number},{age},{ivh},{site},{mrs}\n"
    for number, (age, ivh, site, mrs) in enumerate(
        [
            ("71.5", "yes", "deep", "4"),
            ("", "no", "lobar", "0"),
            ("80", "", "", "6"),
            ("55", "no", "deep", "1"),
            ("90", "yes", "lobar", "3"),
            ("62", "yes", "deep", "2"),
            ("62", "yes", "deep", ""),
        ]
    )
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a federation file and two hospitals, to be read only."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "hospitals").mkdir()
    (folder / "federation.yaml").write_text(FEDERATION)
    west = EAST.splitlines(keepends=True)
    for name, k, table in (
        ("east", 15, EAST),
        ("west", 3, west[0] + "".join(f"{ward}{row}" for ward in "89" for row in west[1:])),
    ):
        (folder / "hospitals" / f"{name}.yaml").write_text(MAPPING.format(name=name, k=k))
        (folder / f"{name}.csv").write_text(table)
    return folder


def run(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    script, *rest = map(str, arguments)
    program = Path(sys.executable).with_name(script)
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        [program, *rest], cwd=folder, capture_output=True, text=True, check=False, timeout=240, env=environment
    )


def call(script: str, *arguments: str | Path) -> str:
    """The standard output of a command that must succeed, run in this process."""
    found = CliRunner().invoke(SCRIPTS[script], list(map(str, arguments)), prog_name=script, catch_exceptions=False)
    assert found.exit_code in (0, *((10, 11) if arguments[0] == "check" else ())), found.output
    return found.stdout


# --- help, and its place in the docs ----------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, ...]]:
    """Every command and sub-command, as the words that are typed."""
    for script, app in SCRIPTS.items():
        yield (script,)
        command = typer.main.get_command(app)
        if isinstance(command, click.Group):
            yield from ((script, name) for name in command.commands)


def help_of(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """As on a terminal of 80 columns; typer's test runner would take two more."""
    monkeypatch.setenv("COLUMNS", "80")
    script, *rest = words
    typer.main.get_command(SCRIPTS[script])([*rest, "--help"], prog_name=script, standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_has_an_example_and_stands_in_the_docs(
    words: tuple[str, ...], repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(words, monkeypatch, capsys)
    assert f"Example: {' '.join(words)} " in text
    documented = f"```text\n$ {' '.join(words)} --help\n{text.rstrip()}\n```\n"
    assert documented in (repository / "docs/commands.md").read_text(), (
        f"docs/commands.md needs this block:\n{documented}"
    )


def test_the_docs_show_the_help_of_nothing_else(repository: Path) -> None:
    shown = re.findall(r"^\$ (.*) --help$", (repository / "docs/commands.md").read_text(), re.MULTILINE)
    assert shown == [" ".join(words) for words in commands()]


def test_every_option_says_what_it_is_for() -> None:
    for script, app in SCRIPTS.items():
        command = typer.main.get_command(app)
        for each in command.commands.values() if isinstance(command, click.Group) else [command]:
            assert each.help, (script, each.name)
            unsaid = [one.name for one in each.params if not getattr(one, "help", None)]
            assert not unsaid, (script, each.name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_installed_script_prints_the_same_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(script, "--help")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", help_of((script,), monkeypatch, capsys))


# --- exit codes and streams -------------------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """The exit code, a clean standard output, and words on the standard error, not a traceback."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("ich-client", "check", "--nonsense"),
        ("ich-server", "schema", "hospital"),
        ("ich-simulate", "--nonsense"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(words: tuple[str, ...]) -> None:
    refused(run(*words), 2, "Usage: ", "--help")


def test_every_problem_of_every_configuration_file_is_said_at_once(study: Path, tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(FEDERATION.replace("rounds: 2", "rounds: 0"))
    (tmp_path / "hospital.yaml").write_text("hospital: EAST\ntable: {file: east.csv, colums: {}}\n")
    done = run(
        *("ich-client", "check", "federation.yaml", "hospital.yaml", "none.yaml", "--data", "nowhere"), folder=tmp_path
    )
    refused(done, 2, "federation.yaml:14:21: training.stages.0.rounds", "hospital.yaml:1:11: hospital", "none.yaml")
    assert "did you mean 'columns'?" in done.stderr
    assert "nowhere: there is no such folder" in done.stderr
    assert done.stderr.splitlines()[-1] == "6 problems"


def test_no_hospital_and_an_empty_folder_of_hospitals_are_refused(study: Path, tmp_path: Path) -> None:
    refused(run("ich-client", "check", "federation.yaml", "--data", ".", folder=study), 2, "no hospital is named")
    done = run("ich-client", "check", study / "federation.yaml", "--data", study, "--hospitals", tmp_path)
    refused(done, 2, "no hospital mapping")


def test_every_problem_of_every_table_is_said_at_once(study: Path, tmp_path: Path) -> None:
    (tmp_path / "east.csv").write_text(EAST.replace("71.5", "715").replace("deep", "depp"))
    (tmp_path / "west.csv").write_text(EAST.replace("mrs", "MRS"))
    done = run(
        *(
            "ich-client",
            "check",
            study / "federation.yaml",
            "--hospitals",
            study / "hospitals",
            "--data",
            tmp_path,
            "--json",
        )
    )
    refused(done, 3, "age 715 outside 18-110 years", "'depp'", "no column 'mrs' in west.csv", "problems")


def test_a_hospital_too_small_to_be_split_is_refused_in_words(study: Path, tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(FEDERATION.replace("folds: 2", "folds: 7"))
    done = run(*("ich-client", "check", tmp_path / "federation.yaml", study / "hospitals/east.yaml", "--data", study))
    refused(done, 3, "hospital 'east' has too few patients (6) to be split by evaluation.folds: 7")


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """The command is held in the middle of its work by a file that never comes."""
    fifo = tmp_path / "federation.yaml"
    os.mkfifo(fifo)
    program = Path(sys.executable).with_name("ich-server")
    with (
        subprocess.Popen(
            [program, "check", fifo],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a test run in the background of a shell ignores Ctrl-C, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
        fifo.open("wb"),
    ):  # opens when the command does
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr


# --- ich-client check -------------------------------------------------------------------------------------------------


def found_at(study: Path, *options: str | Path) -> dict[str, Any]:
    """What `ich-client check --json` says."""
    result: dict[str, Any] = json.loads(
        call("ich-client", "check", study / "federation.yaml", "--data", study, "--json", *options)
    )
    return result


def test_check_says_what_the_table_holds(study: Path) -> None:
    found = found_at(study, study / "hospitals/east.yaml")
    (east,) = found["hospitals"]
    assert (east["name"], east["patients"], east["events"], east["prevalence"]) == ("east", 6, 3, 0.5)
    assert east["excluded"] == {"outcome unknown": 1}
    assert east["small_cells"] == {"federation": 12, "hospital": 15, "k": 15}
    assert east["warnings"] == []
    assert [problem["message"] for problem in east["refused"]] == [
        "hospital 'east' will not take part: sums over 3 patients would leave, and k is 15"
    ]
    assert (east["folds"], east["withheld"]) == ([], []), "nothing is trained or withheld where nobody takes part"
    empty = {"unit": None, "low": None, "high": None, "levels": {}, "known_at": "admission"}
    assert east["predictors"] == [
        {**empty, "name": "age", "unit": "years", "missing": 1, "low": 55.0, "high": 90.0},
        {**empty, "name": "ivh", "missing": 1, "levels": {"no": 2, "yes": 3}},
        {**empty, "name": "site", "missing": 1, "levels": {"lobar": 2, "deep": 3}},
    ]


def test_check_says_which_models_a_hospital_trains(study: Path, tmp_path: Path) -> None:
    east, west = found_at(study, "--hospitals", study / "hospitals")["hospitals"]
    assert (east["folds"], west["folds"]) == ([], [])
    assert west["small_cells"]["k"] == 12  # a hospital can only tighten
    (tmp_path / "federation.yaml").write_text(FEDERATION.replace("small_cells: 12", "small_cells: 0"))
    (tmp_path / "east.yaml").write_text(MAPPING.format(name="east", k=3))
    told = json.loads(
        call("ich-client", "check", tmp_path / "federation.yaml", tmp_path / "east.yaml", "--data", study, "--json")
    )
    (east,) = told["hospitals"]
    assert (told["verdict"], east["refused"]) == ("ready", [])
    assert east["withheld"] == ["how many were left out: outcome unknown"], (
        "one patient, and k is 3; 3 of 6 have events"
    )
    assert [tuple(fold.values()) for fold in east["folds"]] == [
        ("all", 6, 0, 0),
        ("without:OTHER", 6, 0, 0),
        ("without:east", 0, 0, 6),
        ("part:1", 3, 0, 3),
        ("part:2", 3, 0, 3),
    ]


def test_check_says_what_is_sent(study: Path) -> None:
    told = found_at(study, study / "hospitals/east.yaml")["study"]
    assert told["hash"] in call("ich-server", "check", study / "federation.yaml")
    assert told["columns"] == ["age", "ivh=yes", "site=deep", "site=missing"]
    sent = {each["when"]: each["what"] for each in told["sent"]}
    assert list(sent) == ["before round 1", "each round", "after training", "evaluation", "if it cannot"]
    assert "for each of 4 columns" in sent["before round 1"]
    assert "5 weights (float32), variate of the same size" in sent["each round"]
    assert "auroc" in sent["evaluation"]


def test_nothing_is_sent_that_check_does_not_tell_of() -> None:
    """Whoever adds to a reply adds to `ich_client.check`, then here."""
    assert {kind.__name__: " ".join(kind.model_fields) for kind in REPLIES} == {
        "StatisticsReply": "hospital schema_hash patients events excluded parts",
        "PartStatistics": "patients events count mean m2",
        "TrainReply": "hospital patients losses validation_losses seen",
        "ThresholdReply": "hospital thresholds validation_losses",
        "EvaluateReply": "hospital answers",
        "Answer": "arm patients events metrics types bins decisions subgroups",
        "TypeAnswer": "slices patients",
        "CalibrationBin": "patients events mean",
        "DecisionPoint": "threshold true_positives false_positives",
        "SubgroupAnswer": "patients events metrics",
        "RecalibrationReply": "hospital lines",
        "Refusal": "code",
    }


@pytest.mark.parametrize(
    ("old", "new", "when", "what"),
    [
        ("small_cells: 12", "threshold: 0.5", "after training", None),
        ("small_cells: 12", "threshold: 0.5", "recalibration", None),
        ("small_cells: 12", "recalibrate: slope", "recalibration", "the intercept and slope that would make"),
        ("small_cells: 12", "subgroups: [site]", "evaluation", "patients, events and 5 metrics by site (auroc, brier"),
        ("small_cells: 12", "small_cells: 12", "evaluation", "true and false positives at 10 thresholds at most"),
        ("small_cells: 12", "decision_thresholds: []", "evaluation", "in groups of patients by predicted probability"),
        ("small_cells: 12", "validation: 0.5, choose_round: best", "each round", "validation loss"),
        ("folds: 2", "test: 0.5", "evaluation", "for the model of all hospitals"),
        ("folds: 2", "leave_one_hospital_out: true", "before round 1", "of the training patients"),
        ("name: scaffold", "name: fedavg", "each round", "5 weights (float32), training patients, training loss"),
    ],
)
def test_what_is_sent_follows_the_study(
    study: Path, tmp_path: Path, old: str, new: str, when: str, what: str | None
) -> None:
    (tmp_path / "federation.yaml").write_text(FEDERATION.replace(old, new))
    text = call(
        *("ich-client", "check", tmp_path / "federation.yaml", study / "hospitals/west.yaml"), "--data", study, "--json"
    )
    sent = {each["when"]: each["what"] for each in json.loads(text)["study"]["sent"]}
    assert what in sent[when] if what else when not in sent


def test_layers_that_stay_at_the_hospital_are_sent_once(study: Path, tmp_path: Path) -> None:
    text = FEDERATION.replace("{name: logistic}", "{name: mlp, hidden: [3], normalisation: layer}")
    (tmp_path / "federation.yaml").write_text(text.replace("scaffold", "fedbn"))
    text = call(
        *("ich-client", "check", tmp_path / "federation.yaml", study / "hospitals/west.yaml"), "--data", study, "--json"
    )
    sent = {each["when"]: each["what"] for each in json.loads(text)["study"]["sent"]}
    assert "19 weights" in sent["each round"]  # 4 x 3 + 3, 3 + 1
    assert "6 weights of the layers that stayed here" in sent["last round"]


def test_check_on_the_terminal(study: Path) -> None:
    done = run("ich-client", "check", "federation.yaml", "--hospitals", "hospitals", "--data", ".", folder=study)
    assert done.returncode == 11
    assert done.stderr.count("not ready: hospital") == 2, "six and twelve patients, and k is 15 and 12"
    text = " ".join(done.stdout.split())
    assert "Hospital east patients 6 events 3 (50.0 %) left out outcome unknown: 1 small cells k = 15" in text
    assert "age admission 1 55 to 90 years" in text
    assert "site admission 1 lobar: 2, deep: 3" in text
    assert "takes part no: hospital 'east' will not take part: sums over 3 patients" in text
    assert "is held out" not in text, "a hospital that is refused trains nothing and is tested on nothing"
    assert "This machine GPU" in text
    assert text.endswith(" not ready")


def test_warnings_go_to_the_standard_error_and_stand_in_the_json(study: Path, tmp_path: Path) -> None:
    (tmp_path / "hospital.yaml").write_text(
        MAPPING.format(name="east", k=0).replace("columns: {", "columns: {ages: age, ")
    )
    command = ("ich-client", "check", study / "federation.yaml", tmp_path / "hospital.yaml", "--data", study)
    done = run(*command)
    assert done.returncode == 11, "k is the study's 12"
    assert "warning: " in done.stderr
    assert "the study has no variable 'ages'" in done.stderr
    assert "warning: " not in done.stdout
    told = json.loads(call(*command, "--json"))
    (unknown,) = told["hospitals"][0]["warnings"]
    assert unknown["message"] == "the study has no variable 'ages'"
    assert told["hospitals"][0]["refused"][0]["message"].endswith("sums over 3 patients would leave, and k is 12")
    (tmp_path / "federation.yaml").write_text(FEDERATION.replace("small_cells: 12", "small_cells: 0"))
    assert run(*command[:2], tmp_path / "federation.yaml", *command[3:]).returncode == 10


@pytest.mark.realdata
def test_check_on_heart_disease(repository: Path, shared_data: Path) -> None:
    folder = repository / "examples/heart_disease"
    done = run(
        *("ich-client", "check", folder / "loho.yaml", "--hospitals", folder / "hospitals"),
        *("--data", shared_data / "heart_disease", "--json"),
    )
    assert (done.returncode, done.stderr) == (10, ""), "one hospital never measured cholesterol"
    found = json.loads(done.stdout)
    hospitals = {one["name"]: one for one in found["hospitals"]}
    assert {name: one["patients"] for name, one in hospitals.items()} == {
        "cleveland": 303,
        "hungary": 294,
        "switzerland": 123,
        "va": 200,
    }
    assert {name: one["events"] for name, one in hospitals.items()} == {
        "cleveland": 139,
        "hungary": 106,
        "switzerland": 115,
        "va": 149,
    }
    chol = {name: one["predictors"][4] for name, one in hospitals.items()}
    assert {name: one["missing"] for name, one in chol.items()} == {
        "cleveland": 0,
        "hungary": 23,
        "switzerland": 123,
        "va": 56,
    }
    assert (chol["switzerland"]["low"], chol["cleveland"]["high"]) == (None, 564.0)
    assert [len(one["warnings"]) for one in hospitals.values()] == [0, 0, 1, 0]
    assert len(found["study"]["columns"]) == 13


@pytest.mark.realdata
def test_many_hospitals_have_one_line_each(repository: Path, shared_data: Path) -> None:
    folder = repository / "examples/ist"
    mapping, data = folder / "hospitals/ist.yaml", shared_data / "ist"
    text = call("ich-client", "check", folder / "death_or_dependency.yaml", mapping, "--data", data)
    lines = [line.split() for line in text.splitlines() if line.startswith(("ist-", "all "))]
    assert len(lines) == 50
    assert lines[-1] == ["all", "49", "8,149", "5,323", "29", "0"]


# --- ich-server -------------------------------------------------------------------------------------------------------


def test_server_check_says_what_the_study_is(study: Path) -> None:
    text = " ".join(call("ich-server", "check", study / "federation.yaml").split())
    for said in (
        "study small",
        "network logistic on 4 columns, 5 weights per message",
        "strategy scaffold rounds 2 (train 2)",
        "age admission number 18 to 110 years impute",
        "site admission category lobar, deep level",
        "models 1 + N + 2 for each seed, with N hospitals",
        "arms loho, federated in simulation pooled, pooled_within",
    ):
        assert said in text


def test_server_check_refuses_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(FEDERATION.replace("predictors: [age,", "predictors: [mrs,"))
    done = run("ich-server", "check", "federation.yaml", folder=tmp_path)
    refused(done, 2, "federation.yaml:10:18: modalities.table.predictors.0: predictor 'mrs' is the outcome")


@pytest.fixture(scope="module")
def results(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a simulation of the study wrote."""
    folder = tmp_path_factory.mktemp("simulated")
    out = folder / "out"
    shutil.copytree(study, folder, dirs_exist_ok=True)  # six patients are too few for any k
    for path in (folder / "federation.yaml", *(folder / "hospitals").iterdir()):
        path.write_text(re.sub(r"small_cells: \d+", "small_cells: 0", path.read_text()))
    done = run("ich-simulate", folder / "federation.yaml", "--data", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_report_writes_the_same_files_again(results: Path, tmp_path: Path) -> None:
    shutil.copy(results / "results.json", tmp_path)
    done = run("ich-server", "report", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Leave-one-hospital-out" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.csv", "results.json"]
    for name in ("results.json", "results.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes()


def test_server_check_names_the_arms_that_a_simulation_makes(study: Path, results: Path) -> None:
    text = call("ich-server", "check", study / "federation.yaml")
    named = re.findall(r"^(?:arms|in simulation) +(.*?) *$", text, re.MULTILINE)
    assert sorted(", ".join(named).split(", ")) == sorted(json.loads((results / "results.json").read_text())["arms"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("{", "not a JSON file"),
        ("[]", "no version of a results file"),
        ('{"schema": 2}', "results of version 2, and ich-server"),
        ('{"schema": 1}', "study: Field required"),
    ],
)
def test_report_refuses_what_is_no_results_file_of_this_version(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        results_file.read(tmp_path / "results.json")
    assert str(caught.value.problems[0]).startswith(f"{tmp_path / 'results.json'}: {said}")
    assert all(problem.hint for problem in caught.value.problems)


def test_a_refused_results_file_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 2}')
    refused(run("ich-server", "report", tmp_path), 2, "results of version 2")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
