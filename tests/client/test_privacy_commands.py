"""What hospital IT sees of privacy: check, approve, ledger, audit and audit-privacy, in a real folder with a real ledger."""

import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from processes import STUDY, write_study
from typer.testing import CliRunner

from ich_client import home as homes
from ich_client.app import build_app
from ich_client.cli import app
from ich_client.commands_join import load_hospital, site_of
from ich_client.home import Home
from ich_client.ledger import Ledger, anchors, spent
from ich_client.policy import guard
from ich_deploy.grid import InProcessGrid
from ich_models.accounting import Steps, epsilon, programme
from ich_models.errors import Code, ConfigurationError
from ich_models.protocol import CONSTANTS, WEIGHTS, StatisticsTask, TrainTask, is_refusal, to_record
from ich_server import home as server
from ich_strategies.plan import Plan

PRIVATE: dict[str, Any] = {
    **STUDY,
    "network": {"name": "logistic"},
    "training": {"stages": [{"rounds": 4, "epochs": 1, "batch": 16, "optimizer": {"name": "sgd", "lr": 0.5}}]},
    "evaluation": {"threshold": 0.5, "small_cells": 5},
    "privacy": {"epsilon": 3, "delta": 1e-3, "patients": 100, "hospitals": 4, "metrics": "not_sent"},
}


@pytest.fixture
def opened(tmp_path: Path) -> Home:
    """A hospital's folder with its kit, mapping and table."""
    return home_of(tmp_path, PRIVATE)


def home_of(tmp_path: Path, settings: dict[str, Any]) -> Home:
    """The same for any study; each has a server, and so a CA, of its own."""
    study = write_study(tmp_path / "study", settings)
    kit = server.make_kit(server.create(study, "localhost:8443", tmp_path / "server"), "north", "b" * 64)
    made = homes.create(kit, tmp_path / "north")
    made.hospital.write_text((tmp_path / "study/hospitals/north.yaml").read_text())
    (made.folder / "north.csv").write_bytes((tmp_path / "study/data/north.csv").read_bytes())
    return homes.open_home(made.folder)


def call(command: str, opened: Home, *more: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, [command, "--home", str(opened.folder), *more])
    expected = (0, 10) if command == "check" and not code else (code,)
    assert found.exit_code in expected, found.output + str(found.exception)
    return " ".join(found.stdout.split())


def limit(opened: Home, text: str) -> None:
    opened.hospital.write_text(opened.hospital.read_text().replace("small_cells: 5", f"small_cells: 5\n  {text}"))


def ask(opened: Home, kind: str, task: Any, rows: Any = None) -> RecordDict:
    client = build_app(site_of(opened, load_hospital(opened, opened.folder)), guard(opened.audit))
    return next(
        iter(InProcessGrid(client, {1: {}}).send_and_receive([Message(to_record(task, rows), 1, kind)]))
    ).content


def train(opened: Home, number: int) -> RecordDict:
    plan = Plan(opened.federation.value, 42)
    folds = ["all", "without:east", "without:south", "without:west"]
    task = TrainTask(federation=plan.hash, seed=42, round=number, folds=folds, final=number == 4)
    weights = np.add(plan.start_rows([0.0] * 4), [[0.0], [1e-3], [2e-3], [3e-3]])  # each model another
    rows = {WEIGHTS: weights.astype("float32"), CONSTANTS: plan.constants_row(_nothing(plan)).repeat(4, axis=0)}
    return ask(opened, "train", task, rows)


def _nothing(plan: Plan) -> Any:
    from ich_models.protocol import PartStatistics

    width = len(plan.columns)
    nothing = [0.0] * width
    return PartStatistics(patients=100, events=None, count=[None] * width, mean=nothing, m2=nothing).moments()


def test_the_way_of_a_private_study_through_a_hospital(opened: Home) -> None:
    plan = programme(opened.federation.value)
    said = call("check", opened)
    assert f"epsilon {plan.study:.2f} for the study" in said
    assert "limits.epsilon: none" in said
    assert not (opened.folder / "privacy").exists()  # a check leaves nothing behind
    said = call("approve", opened, "--yes")
    assert "one patient with all scans, at each hospital" in said
    assert "spent nothing so far" in said
    assert is_refusal(train(opened, 1)) is None
    assert is_refusal(train(opened, 2)) is None
    spent = epsilon([Steps(plan.sigma, 0.25, 2 * 4 * 4)], 1e-3)
    said = call("ledger", opened)
    assert f"spent epsilon {spent:.2f} (delta 0.001) by 1 studies" in said
    assert f"planned epsilon {plan.study:.2f}" in said
    whole = json.loads(call("ledger", opened, "--json"))
    assert whole["spent"]["epsilon"] == pytest.approx(spent)
    assert [(one["what"], one["reserved"], one["settled"]) for one in whole["history"]] == [
        ("round 1", 16, 16),
        ("round 2", 16, 16),
    ]
    assert f"head {whole['head']}" in call("ledger", opened, "--verify")
    said = call("audit", opened)
    assert "2 replies" in said
    assert f"epsilon {spent:.2f}" in call("approve", opened, "--yes")


def test_a_changed_ledger_stops_private_rounds_and_is_told(opened: Home) -> None:
    call("approve", opened, "--yes")
    assert is_refusal(train(opened, 1)) is None
    (opened.folder / "privacy" / "ledger.jsonl").unlink()
    (opened.folder / "privacy" / "ledger.jsonl.seal").unlink()
    assert is_refusal(train(opened, 2)) == Code.DATA
    assert "ledger has been changed" in str(CliRunner().invoke(app, ["ledger", "--home", str(opened.folder)]).exception)


# --- two federations, the same patients -------------------------------------------------------------------------------


@pytest.fixture
def both(opened: Home, tmp_path: Path) -> tuple[Home, Home]:
    """Two federations' folders at one hospital; the second was told where the first one's ledger is."""
    second = home_of(tmp_path / "another", {**PRIVATE, "name": "another"})
    (opened.folder / "privacy").mkdir()
    with second.hospital.open("a") as file:
        file.write(f"privacy: {{ledger: {opened.folder / 'privacy'}}}\n")
    return opened, homes.open_home(second.folder)


def test_two_federations_with_one_ledger_add_up(both: tuple[Home, Home]) -> None:
    first, second = both
    sigma = programme(first.federation.value).sigma
    for number, opened in enumerate(both, start=1):
        call("approve", opened, "--yes")
        assert is_refusal(train(opened, 1)) is None
        one = epsilon([Steps(sigma, 0.25, 16 * number)], 1e-3)
        assert f"spent epsilon {one:.2f} (delta 0.001) by {number} studies" in call("ledger", opened)
    ledger = first.folder / "privacy"
    assert f"ledger {ledger}: 1 other hospital folder wrote to it" in call("approve", first, "--yes")
    assert "1 other hospital folder wrote to it" in call("check", second)
    whole = json.loads(call("ledger", second, "--json"))
    assert (whole["folders"], len(whole["groups"]), len(whole["history"])) == (2, 1, 2)
    for opened in both:  # each audit log knows what its own folder wrote: a reservation, and what was used of it
        assert "audit log knows 2 of them" in call("ledger", opened, "--verify")
    limit(second, "epsilon: 3.1")  # enough for 3 by itself, and not with what the other study has had
    assert is_refusal(train(homes.open_home(second.folder), 2)) == Code.BUDGET


def test_either_folders_lost_audit_log_stops_that_folder(both: tuple[Home, Home]) -> None:
    for opened in both:
        call("approve", opened, "--yes")
        assert is_refusal(train(opened, 1)) is None
    for path in both[1].audit.glob("log.jsonl*"):
        path.unlink()
    assert is_refusal(train(both[1], 2)) == Code.DATA
    assert is_refusal(train(both[0], 2)) is None


def test_without_it_the_second_would_begin_at_nothing(opened: Home, tmp_path: Path) -> None:
    """Which is why the program says so where it sends people to another folder."""
    call("approve", opened, "--yes")
    train(opened, 1)
    second = home_of(tmp_path / "another", {**PRIVATE, "name": "another"})
    assert f"ledger {second.folder / 'privacy'}: of this folder alone" in call("approve", second, "--yes")
    with pytest.raises(ConfigurationError) as problem:
        homes.create(next((tmp_path / "another/server").rglob("*.zip")), opened.folder)
    assert f"privacy: {{ledger: {(opened.folder / 'privacy').resolve()}}}" in str(problem.value)


def test_a_ledger_that_is_not_there_or_would_be_forgotten_is_refused(both: tuple[Home, Home], tmp_path: Path) -> None:
    first, second = both
    (first.folder / "privacy").rename(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="there is no ledger folder"):
        _ = second.ledger
    (tmp_path / "gone").rename(first.folder / "privacy")
    call("approve", first, "--yes")
    train(first, 1)
    with first.hospital.open("a") as file:
        file.write(f"privacy: {{ledger: {tmp_path}}}\n")
    with pytest.raises(ConfigurationError, match="would not be counted any more"):
        _ = homes.open_home(first.folder).ledger


def client(folder: Path, home: str, rounds: int, together: Barrier) -> None:
    """One of two programs that write to the same ledger at once, each round at the same moment."""
    book = Ledger(folder / "shared", folder / home / "log.jsonl", home)
    for number in range(rounds):
        together.wait(30)
        with book.writing(["a", "b"]) as writer:
            charge = writer.reserve("c" * 64, 1, f"round {number}", ["all"], Steps(2.0, 0.25, 10), 1e-3)
            assert charge.number == writer.book.lines + 1, "somebody wrote between looking and reserving"
        book.settle(charge, 7)


def test_two_clients_at_once_lose_no_charge(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    own = multiprocessing.get_context("fork")
    together = own.Barrier(2)
    programs = [own.Process(target=client, args=(tmp_path, home, 12, together)) for home in ("one", "other")]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
        assert program.exitcode == 0
    book = Ledger(tmp_path / "shared", tmp_path / "one/log.jsonl", "one").read()
    assert sorted(charge.what for charge in book.charges) == sorted(2 * [f"round {number}" for number in range(12)])
    assert spent(book.charges) == (Steps(2.0, 0.25, 2 * 12 * 7),)
    for home in ("one", "other"):
        assert len(list(anchors(tmp_path / home / "log.jsonl"))) == 2 * 12


def test_purge_keeps_the_ledger(opened: Home) -> None:
    call("approve", opened, "--yes")
    train(opened, 1)
    call("purge", opened, "--yes")
    assert (opened.folder / "privacy" / "ledger.jsonl").exists()
    assert not opened.state.exists()


def test_a_hospital_that_cannot_take_part_is_told_before_any_contact(opened: Home) -> None:
    limit(opened, "epsilon: 1.0")
    found = CliRunner().invoke(app, ["check", "--home", str(opened.folder)])
    assert found.exit_code == 11
    said = " ".join(found.output.split())
    assert "hospital 'north' will not take part (code BUDGET): this study would bring epsilon to 3" in said
    assert "limits.epsilon is 1" in said
    call("approve", opened, "--yes")
    plan = Plan(opened.federation.value, 42)
    task = StatisticsTask(federation=plan.hash, seed=42, parts=[0])
    assert is_refusal(ask(opened, "query", task)) == Code.BUDGET


def test_check_refuses_exact_figures_where_the_hospital_asks_for_privacy(tmp_path: Path) -> None:
    opened = home_of(tmp_path, {**PRIVATE, "privacy": {**PRIVATE["privacy"], "metrics": "exact"}})
    limit(opened, "privacy: required")
    found = CliRunner().invoke(app, ["check", "--home", str(opened.folder)])
    assert found.exit_code == 11
    assert "it asks for privacy, and this study asks for exact figures" in " ".join(found.output.split())


def test_audit_writes_what_the_report_takes(opened: Home, tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    said = call("audit-privacy", opened, "--out", str(out))
    assert "nothing speaks against the promise" in said
    found = json.loads(out.read_text())
    assert set(found) == {"epsilon", "promised", "canaries", "right", "guesses"}
    assert found["epsilon"] < found["promised"] <= 3
