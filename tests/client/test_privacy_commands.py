"""What hospital IT sees of privacy: check, approve, ledger, audit and audit-privacy, in a real folder with a real ledger."""

import json
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
from ich_client.policy import guard
from ich_deploy.grid import InProcessGrid
from ich_models.accounting import Steps, epsilon, programme
from ich_models.errors import Code
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
    study = write_study(tmp_path / "study", PRIVATE)
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


def test_audit_writes_what_the_report_takes(opened: Home, tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    said = call("audit-privacy", opened, "--out", str(out))
    assert "nothing speaks against the promise" in said
    found = json.loads(out.read_text())
    assert set(found) == {"epsilon", "promised", "canaries", "right", "guesses"}
    assert found["epsilon"] < found["promised"] <= 3
