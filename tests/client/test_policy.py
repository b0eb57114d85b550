"""What the hospital alone decides, and the record of what left: through the real ClientApp, before anything leaves."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import image_hospital
import numpy as np
import pytest
import small
import small_slices
from flwr.app import Message, RecordDict
from phantom import write
from processes import write_study

from ich_client import audit, policy, work
from ich_client.app import app as node_app
from ich_client.app import build_app
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tasks import RefusedError
from ich_deploy.grid import InProcessGrid
from ich_models.batch import Patients
from ich_models.errors import Code, DataError
from ich_models.federation import load_federation
from ich_models.protocol import (
    EVALUATE,
    RECALIBRATE,
    STATISTICS,
    THRESHOLD,
    TRAIN,
    EvaluateTask,
    Question,
    RecalibrationTask,
    Rows,
    StatisticsReply,
    StatisticsTask,
    Task,
    ThresholdTask,
    TrainReply,
    TrainTask,
    from_record,
    is_refusal,
    to_record,
)
from ich_strategies.plan import Plan


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Plan(small.federation(), 42), small.hospital("north", 80), tmp_path)


def rows(site: Site) -> Rows:
    """Start weights and constants of one fold."""
    constants = site.moments(0).constants(scaled=True).reshape(1, -1).astype(np.float32)
    return {"weights": site.plan.start.numpy(), "constants": constants}


def limited(site: Site, **limits: Any) -> None:
    """Give the hospital these limits."""
    site.hospital = replace(site.hospital, limits=Limits(small_cells=0, **limits))


def ask(site: Site, folder: Path, kind: str, task: Task, given: Rows | None = None) -> RecordDict:
    """The reply of a client that was just started with this folder."""
    app = build_app(lambda context, seed: site, policy.guard(folder))
    network = InProcessGrid(app, {1: {}})
    return next(iter(network.send_and_receive([Message(to_record(task, given), 1, kind)]))).content


def train(site: Site, number: int = 1) -> TrainTask:
    return TrainTask(federation=site.plan.hash, seed=42, round=number, folds=["all"], final=number == 3)


def evaluate(site: Site) -> EvaluateTask:
    question = Question(arm="loho", folds=["without:north"], thresholds=[0.5])
    return EvaluateTask(federation=site.plan.hash, seed=42, folds=["without:north"], questions=[question])


def approve(site: Site, folder: Path) -> None:
    policy.approve(folder / "approvals.jsonl", site.plan.hash, site.hospital.limits)


# --- approval ---------------------------------------------------------------------------------------------------------


def test_without_an_approval_everything_is_refused(site: Site, tmp_path: Path) -> None:
    statistics = StatisticsTask(federation=site.plan.hash, seed=42, parts=[0])
    for kind, task, given in (
        (STATISTICS, statistics, None),
        (TRAIN, train(site), rows(site)),
        (EVALUATE, evaluate(site), rows(site)),
        (TRAIN, train(site, 9), None),  # not even what the study never asks is looked into
    ):
        assert is_refusal(ask(site, tmp_path, kind, task, given)) is Code.APPROVAL
    approve(site, tmp_path)
    assert is_refusal(ask(site, tmp_path, STATISTICS, statistics)) is None
    policy.withdraw(tmp_path / "approvals.jsonl", site.plan.hash)
    assert is_refusal(ask(site, tmp_path, STATISTICS, statistics)) is Code.APPROVAL


def test_an_approval_is_of_one_study_and_one_version(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approvals = tmp_path / "approvals.jsonl"
    approve(site, tmp_path)
    assert policy.approved(approvals, site.plan.hash)
    assert not policy.approved(approvals, "0" * 64)
    for what, other in (("PACKAGE", "99.0"), ("PROTOCOL", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(policy, what, other)
            assert not policy.approved(approvals, site.plan.hash)


def test_a_hospital_may_leave_approving_to_the_kit(site: Site, tmp_path: Path) -> None:
    limited(site, approval="all")
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is None


def test_a_changed_log_of_approvals_permits_nothing(site: Site, tmp_path: Path) -> None:
    approve(site, tmp_path)
    policy.withdraw(tmp_path / "approvals.jsonl", site.plan.hash)
    path = tmp_path / "approvals.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(DataError, match="the log has been changed"):
        policy.approved(path, site.plan.hash)
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is Code.DATA


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_study_that_is_not_named_is_refused(site: Site, tmp_path: Path) -> None:
    approve(site, tmp_path)
    limited(site, studies=["another"])
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is Code.POLICY
    limited(site, studies=["another", "small"])
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is None


def test_metrics_may_be_kept_back(site: Site, tmp_path: Path) -> None:
    approve(site, tmp_path)
    limited(site, send_metrics=False)
    assert is_refusal(ask(site, tmp_path, EVALUATE, evaluate(site), rows(site))) is Code.POLICY
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is None


@pytest.mark.parametrize(
    ("hours", "clock", "inside"),
    [
        ("19:00-06:00", "18:59", False),
        ("19:00-06:00", "19:00", True),
        ("19:00-06:00", "00:00", True),
        ("19:00-06:00", "05:59", True),
        ("19:00-06:00", "06:00", False),
        ("08:00-17:30", "08:00", True),
        ("08:00-17:30", "17:30", False),
        ("08:00-17:30", "07:59", False),
        ("00:00-23:59", "12:00", True),
    ],
)
def test_hours_may_go_over_midnight(hours: str, clock: str, inside: bool) -> None:
    assert policy._within(hours, datetime.fromisoformat(f"2027-03-01T{clock}:30")) is inside


def test_outside_the_hours_nothing_is_trained(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(site, tmp_path)
    limited(site, hours="19:00-06:00")
    monkeypatch.setattr(policy, "_within", lambda hours, moment: False)
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is Code.POLICY
    assert is_refusal(ask(site, tmp_path, EVALUATE, evaluate(site), rows(site))) is None


def test_the_same_is_answered_so_often_and_no_more_also_after_a_restart(site: Site, tmp_path: Path) -> None:
    """A server that sends other weights or thresholds each time would learn more from each answer."""
    approve(site, tmp_path)
    limited(site, answers=2)
    for expected in (None, None, Code.POLICY, Code.POLICY):
        assert is_refusal(ask(site, tmp_path, EVALUATE, evaluate(site), rows(site))) is expected
        assert is_refusal(ask(site, tmp_path, TRAIN, train(site), rows(site))) is expected
    assert is_refusal(ask(site, tmp_path, TRAIN, train(site, 2), rows(site))) is None, "another round"
    statistics = StatisticsTask(federation=site.plan.hash, seed=42, parts=[0])
    for _ in range(4):
        assert is_refusal(ask(site, tmp_path, STATISTICS, statistics)) is None, "the answer is always the same"


def test_thresholds_and_recalibrations_are_counted_too_each_by_itself(tmp_path: Path) -> None:
    settings = small.federation(evaluation={"recalibrate": "slope"}, training={"seeds": [42, 43]})
    sites = [Site(Plan(settings, seed), small.hospital("north", 80), tmp_path) for seed in (42, 43)]
    for expected in (None, Code.POLICY):
        for site in sites:
            approve(site, tmp_path)
            limited(site, answers=1)
            for kind, task in ((THRESHOLD, ThresholdTask), (RECALIBRATE, RecalibrationTask)):
                asked = task(federation=site.plan.hash, seed=site.plan.seed, folds=["all"])
                assert is_refusal(ask(site, tmp_path, kind, asked, rows(site))) is expected


def test_a_study_cannot_have_more_models_than_hospitals(site: Site, tmp_path: Path) -> None:
    """Each invented hospital would be one more model, and one more answer about the same patients."""
    approve(site, tmp_path)
    limited(site, hospitals=3)

    def asked(*names: str) -> Code | None:
        folds = [f"without:{name}" for name in names]
        given = {name: block.repeat(len(folds), 0) for name, block in rows(site).items()}
        task = ThresholdTask(federation=site.plan.hash, seed=42, folds=folds)
        return is_refusal(ask(site, tmp_path, THRESHOLD, task, given))

    assert asked("a", "b", "c", "d") is Code.POLICY
    assert asked("a", "b") is None
    assert asked("c") is None
    assert asked("d") is Code.POLICY
    assert asked("a") is None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("small_cells: 5", None),
        ("small_cells: 5\n  privacy: required", Code.POLICY),
        ("small_cells: 5\n  studies: [another]", Code.POLICY),
        ("small_cells: 5\nprivacy: {ledger: /srv/ich/privacy}", Code.DATA),
    ],
)
def test_under_flowers_own_programs_hospital_yaml_holds_too(tmp_path: Path, line: str, code: Code | None) -> None:
    """Nobody approves there, but what the hospital has ruled out stays so; a ledger that would not be used is not passed over."""
    study = write_study(tmp_path / "study", hospitals=("north",))
    hospital = study.parent / "hospitals/north.yaml"
    hospital.write_text(hospital.read_text().replace("small_cells: 5", line))
    assert ask_node(study, tmp_path) is code


def test_under_flowers_own_programs_a_node_is_one_hospital_and_a_seed_the_studys(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", hospitals=("north",))
    assert ask_node(study, tmp_path) is None
    assert ask_node(study, tmp_path, seed=8) is Code.FEDERATION
    table, hospital = study.parent / "data/north.csv", study.parent / "hospitals/north.yaml"
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},ward", *(f"{line},{'ab'[n % 2]}" for n, line in enumerate(lines))]))
    hospital.write_text(hospital.read_text().replace("table:\n", "table:\n  split_by: ward\n"))
    assert ask_node(study, tmp_path / "two") is Code.DATA


def ask_node(study: Path, tmp_path: Path, seed: int = 7) -> Code | None:
    """What a node of north's says to the question for statistics."""
    hospital = study.parent / "hospitals/north.yaml"
    node = {"federation": study, "hospital": hospital, "data": study.parent / "data", "state": tmp_path / "state"}
    network = InProcessGrid(node_app, {1: {name: str(value) for name, value in node.items()}})
    task = StatisticsTask(federation=load_federation(study).value.hash, seed=seed, parts=[0])
    (reply,) = network.send_and_receive([Message(to_record(task), 1, STATISTICS)])
    return is_refusal(reply.content)


# --- the record -------------------------------------------------------------------------------------------------------


def test_everything_that_leaves_is_on_record_as_it_left(site: Site, tmp_path: Path) -> None:
    approve(site, tmp_path)
    reply = ask(site, tmp_path, TRAIN, train(site), rows(site))
    said, blocks = from_record(reply, TrainReply)
    (entry,) = audit.entries(tmp_path / "log.jsonl")
    assert (entry.content["task"], entry.content["round"], entry.content["folds"]) == ("TrainTask", 1, ["all"])
    assert entry.content["reply"] == "TrainReply"
    assert entry.content["message"] == json.loads(said.model_dump_json())
    block = entry.content["blocks"]["weights"]
    assert (block["dtype"], block["shape"], block["bytes"]) == ("float32", [1, 4], 16)
    assert block["norm"] == pytest.approx(float(np.linalg.norm(blocks["weights"])))
    assert audit.size(entry.content) == 16


def test_what_was_withheld_is_not_on_record_as_sent(site: Site, tmp_path: Path) -> None:
    """40 of the 80 patients at the most have the rarer outcome, so with k = 41 no number of events leaves."""
    site.hospital = replace(site.hospital, limits=Limits(small_cells=41))
    approve(site, tmp_path)
    reply = ask(site, tmp_path, STATISTICS, StatisticsTask(federation=site.plan.hash, seed=42, parts=[0]))
    said, _ = from_record(reply, StatisticsReply)
    (entry,) = audit.entries(tmp_path / "log.jsonl")
    assert said.events is None
    assert entry.content["message"] == json.loads(said.model_dump_json())


def test_a_refusal_is_on_record_too(site: Site, tmp_path: Path) -> None:
    ask(site, tmp_path, TRAIN, train(site), rows(site))
    (entry,) = audit.entries(tmp_path / "log.jsonl")
    assert (entry.content["reply"], entry.content["message"]) == ("Refusal", {"code": "APPROVAL"})


def test_what_cannot_be_recorded_does_not_leave(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(site, tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit, "record", full)
    reply = ask(site, tmp_path, TRAIN, train(site), rows(site))
    assert is_refusal(reply) is Code.RESOURCES
    assert "weights" not in str(reply)


def test_a_log_that_was_cut_stops_everything(site: Site, tmp_path: Path) -> None:
    approve(site, tmp_path)
    ask(site, tmp_path, TRAIN, train(site), rows(site))
    ask(site, tmp_path, TRAIN, train(site, 2), rows(site))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    with pytest.raises(DataError, match="the log has been changed"):
        policy.guard(tmp_path)


# --- the same patients ------------------------------------------------------------------------------------------------


def with_one_more(site: Site, tmp_path: Path) -> Site:
    """The same hospital after a patient was added."""
    patients = site.hospital.patients
    more = patients.take(np.array([*range(len(patients)), 0]))
    return Site(
        site.plan, replace(site.hospital, patients=replace(more, ids=(*patients.ids, "new"))), tmp_path / "more"
    )


def test_one_patient_more_is_the_difference_of_two_answers(site: Site) -> None:
    """The attack: from exact answers about 80 and 81 patients the outcome and the probability of the 81st."""
    given = rows(site)
    question = evaluate(site)

    def answer(at: Site) -> tuple[int, int, float, float]:
        (found,) = work.evaluate(at, question, given)[0].answers
        n, events = found.patients, found.events or 0
        return n, events, n * found.metrics["brier"][0], events / found.metrics["observed_expected"][0]

    before, after = answer(site), answer(with_one_more(site, site.models))
    _, outcome, squared, probability = (b - a for a, b in zip(before, after, strict=True))
    assert outcome == site.hospital.patients.labels[0]
    assert (probability - outcome) ** 2 == pytest.approx(squared, abs=1e-9)


def test_a_table_that_changed_is_not_answered_about_until_somebody_agrees(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    approve(site, folder)
    assert is_refusal(ask(site, folder, EVALUATE, evaluate(site), rows(site))) is None
    later = with_one_more(site, tmp_path)
    assert is_refusal(ask(later, folder, EVALUATE, evaluate(site), rows(site))) is Code.DATA
    statistics = StatisticsTask(federation=site.plan.hash, seed=42, parts=[0])
    assert is_refusal(ask(later, folder, STATISTICS, statistics)) is Code.DATA
    assert is_refusal(ask(site, folder, EVALUATE, evaluate(site), rows(site))) is None
    approve(site, folder)
    assert is_refusal(ask(later, folder, EVALUATE, evaluate(site), rows(site))) is None
    assert is_refusal(ask(site, folder, EVALUATE, evaluate(site), rows(site))) is Code.DATA


def another(array: np.ndarray, place: int = 0) -> np.ndarray:
    """The same array with another value at one place."""
    changed = array.copy()
    changed.flat[place] = 1 - changed.flat[place]
    return changed


OTHERS: dict[str, Callable[[Patients], Patients]] = {
    "an identifier": lambda one: replace(one, ids=("new", *one.ids[1:])),
    "a value": lambda one: replace(one, table=another(one.table)),
    "an outcome": lambda one: replace(one, labels=another(one.labels)),
    "a subgroup": lambda one: replace(one, groups={"sex": another(one.groups["sex"])}),
    "a text": lambda one: replace(one, text=another(one.text)),
    "a slice": lambda one: replace(one, slices=another(one.slices)),
    "a slice's label": lambda one: replace(one, targets=another(one.targets)),
    "who has an image": lambda one: replace(one, present={"image": another(one.present["image"])}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_changed_of_a_patient_is_not_answered_about(what: str, tmp_path: Path) -> None:
    """A study of slices is about their labels: one more is told by two answers as one more patient is."""
    plan = Plan(small.federation(), 42)
    member = small_slices.hospital("north")
    zeros = np.zeros((24, 3), np.int64)
    patients = replace(
        member.patients, text=zeros, groups={"sex": zeros[:, 0]}, targets=np.zeros((24, 4, 5), np.float32)
    )
    began = Site(plan, replace(member, patients=patients), tmp_path)
    changed = Site(plan, replace(member, patients=OTHERS[what](patients)), tmp_path)
    policy.check_unchanged(tmp_path, began)
    policy.check_unchanged(tmp_path, began)
    with pytest.raises(RefusedError, match="has changed since this study began here") as no:
        policy.check_unchanged(tmp_path, changed)
    assert no.value.code is Code.DATA


def test_another_image_of_a_patient_is_not_answered_about(tmp_path: Path) -> None:
    """Of the same patients, in the same table: one scan has one image more."""
    folder = image_hospital.make(tmp_path / "data", 1, order=(0, 1))
    plan = Plan(load_federation(image_hospital.files(folder, image=image_hospital.SLICES)[0]).value, 42)

    def now() -> Site:
        return Site(plan, image_hospital.load_one(folder, image=image_hospital.SLICES), tmp_path)

    policy.check_unchanged(tmp_path, now())
    policy.check_unchanged(tmp_path, now())
    write(folder / "pacs" / "f0-0", image_hospital.scan_of(0, z=[130.0], SOPInstanceUID="1.2.9.0.1.7.27"))
    with pytest.raises(RefusedError, match="has changed since this study began here"):
        policy.check_unchanged(tmp_path, now())


def test_a_change_is_seen_by_each_of_several_studies(site: Site, tmp_path: Path) -> None:
    """Answers to one study make nobody forget what the patients were when the other began."""
    other = Site(Plan(small.federation(name="other"), 42), site.hospital, tmp_path)
    for one in (site, other, site):
        policy.check_unchanged(tmp_path, one)
    later = with_one_more(site, tmp_path)
    for one in (later, Site(other.plan, later.hospital, tmp_path)):
        with pytest.raises(RefusedError, match="has changed since this study began here"):
            policy.check_unchanged(tmp_path, one)
