"""The round engine through the real ClientApp: exact arithmetic, quarantine, quorum, resume, held-out hospitals."""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import statsmodels.api as sm
import torch
from flwr.app import Array, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import fbeta_score

from ich_client import train as training
from ich_client.hospital import Limits
from ich_client.tables import Hospital
from ich_deploy.grid import InProcessGrid
from ich_models.batch import Patients
from ich_models.curves import Decision
from ich_models.errors import RunError
from ich_models.files import read_arrays
from ich_models.metrics import Evaluation, evaluate, youden_threshold
from ich_models.protocol import (
    EVALUATE,
    RECALIBRATE,
    THRESHOLD,
    TRAIN,
    Answer,
    EvaluateReply,
    RecalibrationReply,
    Rows,
    StatisticsReply,
    ThresholdReply,
    TrainReply,
    TrainTask,
    from_record,
    to_record,
)
from ich_server import members as meeting
from ich_server.rounds import Quarantine
from ich_server.study import RoundReport, StudyResult, run_study

ALL_STRATEGIES: list[dict[str, Any]] = [
    {"name": "fedavg"},
    {"name": "fedprox", "mu": 0.1},
    {"name": "scaffold"},
    {"name": "fedavgm"},
    {"name": "fedadam"},
    {"name": "fedbn"},
]


def settings_for(strategy: dict[str, Any], **more: Any) -> Any:
    """A federation with that strategy; FedBN needs layers to keep."""
    network = {"name": "logistic"}
    if strategy["name"] == "fedbn":
        network = {"name": "mlp", "hidden": [4], "normalisation": "batch"}
    return small.federation(strategy=strategy, network=network, **more)


def same(first: StudyResult, second: StudyResult) -> bool:
    """Every number the same to the byte."""
    return (
        {name: rows.tobytes() for name, rows in first.rows.items()}
        == {name: rows.tobytes() for name, rows in second.rows.items()}
        and first.thresholds == second.thresholds
        and first.answers == second.answers
        and list(first.history) == list(second.history)
    )


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_full_batch_fedavg_with_one_step_a_round_is_central_gradient_descent(tmp_path: Path) -> None:
    """The weighted mean of one full-batch step each is one step on all patients (McMahan et al. 2017, section 2)."""
    settings = small.federation(
        network={"name": "logistic", "dtype": "float64", "bias": "zero"},
        stage={"rounds": 25, "epochs": 1, "batch": "all"},
        evaluation={"leave_one_hospital_out": False, "test": 0.3},
        table={"scaling": "none"},
    )
    members = [replace(h, patients=complete(h.patients)) for h in small.hospitals()]
    found = small.study(settings, members, tmp_path)

    plan = small.Plan(settings, 42)
    taken = [site.hospital.patients.take(site.split(0).train) for site in small.sites(plan, members, tmp_path).values()]
    x = np.concatenate([patients.table for patients in taken])
    y = np.concatenate([patients.labels for patients in taken])
    weights, bias = np.zeros(3), 0.0
    for _ in range(25):
        residual = 1 / (1 + np.exp(-(x @ weights + bias))) - y
        weights, bias = weights - 0.1 * residual @ x / len(y), bias - 0.1 * residual.mean()
    assert found.of(["all"])["weights"][0] == pytest.approx([*weights, bias], abs=1e-12)


def complete(patients: Patients) -> Patients:
    """The same patients with nothing missing."""
    return replace(patients, table=np.nan_to_num(patients.table))


def test_the_start_is_the_training_hospitals_log_odds(tmp_path: Path) -> None:
    """With a learning rate of nearly nothing the model stays at the federated log-odds, per fold."""
    members = small.hospitals()
    found = small.study(small.federation(stage={"optimizer": {"name": "sgd", "lr": 1e-12}}), members, tmp_path)
    for fold, excluded in (("all", None), ("without:north", "north")):
        learning = [member.patients.labels for member in members if member.name != excluded]
        events, patients = sum(labels.sum() for labels in learning), sum(map(len, learning))
        expected = np.log((events + 0.5) / (patients - events + 0.5))
        assert found.of([fold])["weights"][0, -1] == pytest.approx(expected, rel=1e-6)


def test_class_weights_are_the_training_hospitals_patients_without_over_with_the_outcome(tmp_path: Path) -> None:
    """Gradient descent by hand on the weighted loss. East has too few with the outcome to tell: it trains, and is not counted."""
    members = [
        replace(member, limits=Limits(small_cells=10), patients=complete(member.patients))
        for member in small.hospitals()
    ]
    few = np.zeros(50, np.int64)
    few[:4] = 1
    members[0] = replace(members[0], patients=replace(members[0].patients, labels=few))
    settings = small.federation(
        network={"name": "logistic", "class_weights": "federation", "bias": "zero", "dtype": "float64"},
        stage={"rounds": 4, "epochs": 1, "batch": "all"},
        table={"scaling": "none"},
    )
    found = small.study(settings, members, tmp_path)
    for fold, learning in (("all", members), ("without:south", members[:2])):
        told = np.concatenate([member.patients.labels for member in learning[1:]])
        weight = (told == 0).sum() / (told == 1).sum()
        assert abs(weight - 1) > 0.05
        assert found.of([fold])["constants"][0, -1] == pytest.approx(weight, rel=1e-12)
        x = np.concatenate([member.patients.table for member in learning])
        y = np.concatenate([member.patients.labels for member in learning])
        weights, bias = np.zeros(3), 0.0
        for _ in range(4):
            p = 1 / (1 + np.exp(-(x @ weights + bias)))
            slope = np.where(y == 1, weight * (p - 1), p) / len(y)
            weights, bias = weights - 0.1 * slope @ x, bias - 0.1 * slope.sum()
        assert found.of([fold])["weights"][0] == pytest.approx([*weights, bias], abs=1e-12)


def test_the_threshold_is_the_patient_weighted_mean_of_the_training_hospitals_youden(tmp_path: Path) -> None:
    members = small.hospitals()
    found = small.study(small.federation(), members, tmp_path)
    plan = small.Plan(small.federation(), 42)
    total = 0.0
    for member in (members[0], members[2]):
        scores = plain_logistic(found.of(["without:north"]), member.patients.table)
        cuts = np.unique(scores)
        middles = (cuts[1:] + cuts[:-1]) / 2
        labels = member.patients.labels == 1
        gains = [(scores[labels] >= cut).mean() - (scores[~labels] >= cut).mean() for cut in middles]
        total += middles[int(np.argmax(np.round(gains, 12)))] * len(member.patients)
    assert plan.federation.evaluation.validation is None
    assert found.thresholds["without:north"] == pytest.approx(total / (50 + 65), abs=1e-6)


def test_the_threshold_may_be_the_training_hospitals_f2(tmp_path: Path) -> None:
    members = small.hospitals()
    found = small.study(small.federation(evaluation={"threshold": "f2"}), members, tmp_path)
    total = 0.0
    for member in (members[0], members[2]):
        scores = plain_logistic(found.of(["without:north"]), member.patients.table)
        cuts = np.unique(scores)
        middles = (cuts[1:] + cuts[:-1]) / 2
        values = [fbeta_score(member.patients.labels, scores >= cut, beta=2) for cut in middles]
        total += middles[int(np.argmax(np.round(values, 12)))] * len(member.patients)
    assert found.thresholds["without:north"] == pytest.approx(total / (50 + 65), abs=1e-6)


def plain_logistic(rows: Rows, table: np.ndarray) -> np.ndarray:
    """Probabilities of a logistic model in plain NumPy."""
    fill, centre, scale = rows["constants"][0].reshape(3, -1).astype(float)
    weights = rows["weights"][0].astype(float)
    x = (np.where(np.isnan(table), fill, table) - centre) * scale
    return 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))


# --- held out means held out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ALL_STRATEGIES, ids=lambda s: s["name"])
def test_nothing_of_a_fold_depends_on_its_held_out_hospital(strategy: dict[str, Any], tmp_path: Path) -> None:
    """Replace all of a hospital's patients: its fold's statistics, weights and threshold stay the same to the byte."""
    settings = settings_for(strategy, evaluation={"validation": 0.25, "choose_round": "last"})
    members = small.hospitals()
    before = small.study(settings, members, tmp_path / "before")
    for index, member in enumerate(members):
        others = [*members]
        others[index] = small.hospital(member.name, patients=111, seed=9)
        after = small.study(settings, others, tmp_path / member.name)
        fold = f"without:{member.name}"
        for name, rows in before.of([fold]).items():
            assert rows.tobytes() == after.of([fold])[name].tobytes(), (fold, name)
        assert before.thresholds[fold] == after.thresholds[fold]
        assert before.of(["all"])["weights"].tobytes() != after.of(["all"])["weights"].tobytes()


def test_nothing_of_a_part_depends_on_the_patients_that_it_holds_out(tmp_path: Path) -> None:
    """Other values for every hospital's patients of part 2: its statistics, weights and threshold stay the same to the byte."""
    settings = small.federation(evaluation={"leave_one_hospital_out": False, "folds": 3, "validation": 0.25})
    members = small.hospitals()
    before = small.study(settings, members, tmp_path / "before")
    others = []
    for site in small.sites(small.Plan(settings, 42), members, tmp_path / "before").values():
        patients = site.hospital.patients
        table = patients.table.copy()
        table[site.split(2).test] += 3
        others.append(replace(site.hospital, patients=replace(patients, table=table)))
    after = small.study(settings, others, tmp_path / "after")
    same_part = [before.of(["part:2"])[name].tobytes() == rows.tobytes() for name, rows in after.of(["part:2"]).items()]
    assert same_part == [True, True], "weights and constants"
    assert before.thresholds["part:2"] == after.thresholds["part:2"]
    for name in ("part:1", "part:3", "all"):
        assert before.of([name])["constants"].tobytes() != after.of([name])["constants"].tobytes()


@pytest.mark.parametrize("kind", ["intercept", "slope"])
def test_nothing_of_a_folds_recalibration_depends_on_its_held_out_hospital(kind: str, tmp_path: Path) -> None:
    """Line, recalibrated weights and the threshold chosen after it: the same to the byte."""
    settings = small.federation(evaluation={"validation": 0.25, "recalibrate": kind})
    members = small.hospitals()
    before = small.study(settings, members, tmp_path / "before")
    others = [member if member.name != "north" else small.hospital("north", 111, 9) for member in members]
    after = small.study(settings, others, tmp_path / "after")
    fold = "without:north"
    assert before.lines[fold] == after.lines[fold] != (0.0, 1.0)
    assert before.of([fold])["weights"].tobytes() == after.of([fold])["weights"].tobytes()
    assert before.thresholds[fold] == after.thresholds[fold]
    assert before.lines["all"] != after.lines["all"]


def test_a_fold_is_recalibrated_by_the_patient_weighted_mean_of_its_hospitals_lines(tmp_path: Path) -> None:
    members = small.hospitals()
    plain = small.study(small.federation(), members, tmp_path / "plain")
    found = small.study(small.federation(evaluation={"recalibrate": "slope"}), members, tmp_path / "found")
    rows = plain.of(["without:north"])
    lines = []
    for member in (members[0], members[2]):
        p = plain_logistic(rows, member.patients.table)
        x = np.log(p / (1 - p))
        fitted = sm.Logit(member.patients.labels, sm.add_constant(x)).fit(disp=0, tol=1e-14)
        lines.append(fitted.params * len(member.patients))
    intercept, slope = sum(lines) / (50 + 65)
    assert found.lines["without:north"] == pytest.approx((intercept, slope), abs=1e-5)
    weights = rows["weights"][0] * slope
    weights[-1] += intercept
    assert found.of(["without:north"])["weights"][0] == pytest.approx(weights, abs=1e-5)
    (answer,) = found.answers["north"]
    p = plain_logistic(found.of(["without:north"]), members[1].patients.table)
    assert answer.metrics["brier"][0] == pytest.approx(np.mean((p - members[1].patients.labels) ** 2), abs=1e-6)


@pytest.mark.parametrize("slope", [-1.0, 0.0])
def test_a_line_that_would_turn_the_order_round_leaves_the_model_as_it_is(slope: float, tmp_path: Path) -> None:
    """Where higher probabilities go with fewer events, or with neither, no line is put into the last layer."""

    def turned(answer: RecalibrationReply) -> RecalibrationReply:
        return answer.model_copy(update={"lines": [(0.5, slope)] * len(answer.lines)})

    around = small.saying(RECALIBRATE, RecalibrationReply, turned)
    plain = small.study(small.federation(stage={"rounds": 1}), small.hospitals(), tmp_path / "plain")
    settings = small.federation(stage={"rounds": 1}, evaluation={"recalibrate": "slope"})
    found = small.study(settings, small.hospitals(), tmp_path / "found", around=around)
    assert found.lines == {}
    assert found.rows["weights"].tobytes() == plain.rows["weights"].tobytes()


def test_a_line_too_few_is_set_aside(tmp_path: Path) -> None:
    def short(answer: RecalibrationReply) -> RecalibrationReply:
        return answer.model_copy(update={"lines": answer.lines[1:]})

    around = small.saying(RECALIBRATE, RecalibrationReply, short, node=2)
    settings = small.federation(stage={"rounds": 1}, evaluation={"recalibrate": "slope"})
    found = small.study(settings, small.hospitals(), tmp_path, around=around)
    assert list(found.quarantined) == [Quarantine("recalibration", "north", "malformed reply")]


def test_a_threshold_is_chosen_after_the_recalibration(tmp_path: Path) -> None:
    """With `choose_round: best` thresholds come with the validation losses, before the line is known: they are asked anew.

    The last round is the best of every fold here, so both ways end with the same model.
    """
    ways = {}
    for way in ("last", "best"):
        evaluation = {"validation": 0.25, "recalibrate": "slope", "choose_round": way}
        ways[way] = small.study(small.federation(evaluation=evaluation), small.hospitals(), tmp_path / way)
    assert ways["best"].rows["weights"].tobytes() == ways["last"].rows["weights"].tobytes()
    assert ways["best"].thresholds == ways["last"].thresholds


def test_a_resumed_study_is_recalibrated_once(tmp_path: Path) -> None:
    settings = small.federation(evaluation={"recalibrate": "slope"})
    whole = small.study(settings, small.hospitals(), tmp_path)
    (tmp_path / "server" / "study.safetensors").unlink()
    again = small.study(settings, small.hospitals(), tmp_path, resume=True)
    assert same(whole, again)
    assert whole.lines == again.lines
    kept = small.study(settings, small.hospitals(), tmp_path, resume=True)
    assert kept.lines == whole.lines


def test_drift_is_the_norm_of_what_each_hospital_returned(tmp_path: Path) -> None:
    """One round of FedAvg in float64: the updates by hand from what came back; the step is their weighted mean."""
    came: dict[str, np.ndarray] = {}

    def listening(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type == TRAIN:
                answer, rows = from_record(reply.content, TrainReply)
                sent = from_record(message.content, TrainTask)[1]
                came[answer.hospital] = rows["weights"][0] - sent["weights"][0]
            return reply

        return call  # type: ignore[return-value]

    settings = small.federation(network={"name": "logistic", "dtype": "float64"}, stage={"rounds": 1})
    found = small.study(settings, small.hospitals(), tmp_path, around=listening)
    (entry,) = found.history
    drift = entry["drift"]
    sizes = {"east": 50, "north": 80, "south": 65}
    assert drift["updates"] == pytest.approx({name: np.linalg.norm(moved) for name, moved in came.items()})
    mean = sum(sizes[name] * moved for name, moved in came.items()) / 195
    assert drift["step"] == pytest.approx(np.linalg.norm(mean), abs=1e-12)
    squares = sum(sizes[name] * moved @ moved for name, moved in came.items()) / 195
    assert drift["agreement"] == pytest.approx(np.linalg.norm(mean) / np.sqrt(squares), abs=1e-12)
    assert 0 < drift["agreement"] < 1


def test_permuted_labels_give_an_auroc_of_one_half_within_its_interval(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    members = []
    for name in ("east", "north", "south"):
        member = small.hospital(name, 400)
        shuffled = replace(member.patients, labels=generator.permutation(member.patients.labels))
        members.append(replace(member, patients=shuffled))
    found = small.study(small.federation(), members, tmp_path)
    for answers in found.answers.values():
        auroc = answers[0].evaluation().metrics["auroc"]
        assert auroc.low is not None
        assert auroc.high is not None
        assert auroc.low < 0.5 < auroc.high


def test_the_held_out_hospital_is_asked_once_and_never_trains_its_fold(tmp_path: Path) -> None:
    asked: list[tuple[int, str, str]] = []

    def listening(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            task = json.loads(str(message.content.config_records["message"]["json"]))
            asked.extend(
                (message.metadata.dst_node_id, message.metadata.message_type, fold) for fold in task.get("folds", [])
            )
            return client(message, context)

        return call  # type: ignore[return-value]  # the grid only ever calls it

    small.study(small.federation(), small.hospitals(), tmp_path, around=listening)
    names = {1: "east", 2: "north", 3: "south"}
    for node, name in names.items():
        kinds = [kind for asked_node, kind, fold in asked if asked_node == node and fold == f"without:{name}"]
        assert kinds == ["evaluate.test"]


# --- bad updates ------------------------------------------------------------------------------------------------------

Spoil = Callable[[TrainReply, Rows], tuple[TrainReply, Rows]]


def poisoned(node: int, spoil: Spoil) -> Callable[[ClientApp], ClientApp]:
    """A ClientApp whose node returns spoilt updates."""

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type != TRAIN or message.metadata.dst_node_id != node:
                return reply
            answer, rows = from_record(reply.content, TrainReply)
            return Message(
                to_record(*spoil(answer, {name: block.copy() for name, block in rows.items()})), reply_to=message
            )

        return call  # type: ignore[return-value]

    return around


def not_a_number(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    rows["weights"][0, 0] = np.nan
    return answer, rows


def wrong_shape(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    return answer, {"weights": rows["weights"][:, :-1]}


def huge_weight(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    return answer.model_copy(update={"patients": [10**9] * len(answer.patients)}), rows


def no_patients(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    return answer.model_copy(update={"patients": [0] * len(answer.patients)}), rows


def far_away(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    return answer, {"weights": rows["weights"] + 1e6}


def another_name(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    return answer.model_copy(update={"hospital": "north"}), rows


def too_few_losses(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
    return answer.model_copy(update={"losses": answer.losses[:-1]}), rows


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (not_a_number, "not finite"),
        (wrong_shape, "shape"),
        (huge_weight, "patients"),
        (no_patients, "patients"),
        (far_away, "norm"),
        (another_name, "replied under another hospital's name"),
        (too_few_losses, "malformed reply"),
    ],
)
def test_a_bad_update_is_named_and_the_round_goes_on_without_it(spoil: Spoil, reason: str, tmp_path: Path) -> None:
    settings = small.federation(
        checks={"update_norm": 100.0}, evaluation={"leave_one_hospital_out": False, "test": 0.2}
    )
    members = small.hospitals()
    reports: list[RoundReport] = []
    found = small.study(settings, members, tmp_path, around=poisoned(3, spoil), watch=reports.append)
    assert list(found.quarantined) == [Quarantine(f"round {number}", "south", reason) for number in (1, 2, 3)]
    assert [report.replied for report in reports] == [2, 2, 2]

    def lost(node: int, message: Message) -> Error | None:
        return Error(5, "gone") if node == 3 and message.metadata.message_type == TRAIN else None

    without = small.study(settings, members, tmp_path / "lost", failing=lost)
    assert found.rows["weights"].tobytes() == without.rows["weights"].tobytes()
    assert [q.reason for q in without.quarantined] == ["it went away"] * 3


@pytest.mark.parametrize("strategy", ["scaffold", "fedbn"])
def test_whatever_else_an_update_carries_is_held_to_a_norm(strategy: str, tmp_path: Path) -> None:
    """A variate, or layers that stayed at the hospital, would spoil every later round, or every held-out hospital."""
    block = {"scaffold": "variate", "fedbn": "local"}[strategy]

    def spoil(answer: TrainReply, rows: Rows) -> tuple[TrainReply, Rows]:
        return answer, {name: values * 0 + 1e9 if name == block else values for name, values in rows.items()}

    settings = settings_for({"name": strategy}, stage={"rounds": 1}, checks={"update_norm": 1e12, "state_norm": 1e6})
    found = small.study(settings, small.hospitals(), tmp_path, around=poisoned(3, spoil))
    assert list(found.quarantined) == [Quarantine("round 1", "south", "norm")]


def test_a_step_that_leaves_the_finite_numbers_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    settings = small.federation(
        strategy={"name": "fedavgm", "server_lr": 1e39}, evaluation={"leave_one_hospital_out": False, "test": 0.2}
    )
    with pytest.raises(RunError, match=r"round \d+: the server's step of fold 'all' left the finite numbers"):
        small.study(settings, small.hospitals(), tmp_path)
    for path in (tmp_path / "server").glob("*"):
        assert all(np.isfinite(block).all() for block in read_arrays(path)[0].values())


def test_too_few_good_updates_end_the_run_by_name_and_it_can_go_on(tmp_path: Path) -> None:
    """Two of three hospitals fail in round 2; once they are back, --resume ends where an undisturbed run would have."""
    settings, members = small.federation(), small.hospitals()
    trained = 0

    def failing(node: int, message: Message) -> Error | None:
        nonlocal trained
        if message.metadata.message_type == TRAIN:
            trained += 1
        return Error(1, "x") if trained > 3 and message.metadata.message_type == TRAIN and node != 1 else None

    with pytest.raises(RunError) as caught:
        small.study(settings, members, tmp_path, failing=failing)
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert "round 2: fold 'all' has 1 good replies, needs 2" in text
    assert "north: flower error 1" in text
    assert "south: flower error 1" in text
    assert "--resume" in text
    resumed = small.study(settings, members, tmp_path, resume=True)
    assert same(resumed, small.study(settings, members, tmp_path / "undisturbed"))


def test_a_hospital_that_fails_in_several_messages_is_one_hospital(tmp_path: Path) -> None:
    """South trains two folds and `all`, and gets a message for each."""
    reports: list[RoundReport] = []
    settings = small.federation(training={"message_limit": 1}, stage={"rounds": 1})
    small.study(settings, small.hospitals(), tmp_path, around=poisoned(3, not_a_number), watch=reports.append)
    (report,) = reports
    assert (report.hospitals, report.replied, len(report.quarantined)) == (3, 2, 3)


def test_where_nobody_can_choose_a_threshold_it_is_one_half(tmp_path: Path) -> None:
    def silent(answer: ThresholdReply) -> ThresholdReply:
        east = answer.hospital == "east"  # of its folds, `without:north` and `without:south` are left to it alone
        return answer if east else answer.model_copy(update={"thresholds": [None] * len(answer.thresholds)})

    around = small.saying(THRESHOLD, ThresholdReply, silent)
    members = small.hospitals()
    found = small.study(small.federation(stage={"rounds": 1}), members, tmp_path, around=around)
    assert found.thresholds["without:east"] == 0.5
    p = plain_logistic(found.of(["without:north"]), members[0].patients.table)
    assert found.thresholds["without:north"] == pytest.approx(youden_threshold(members[0].patients.labels, p), abs=1e-6)


def test_a_fold_without_any_update_ends_the_run_whatever_the_quorum(tmp_path: Path) -> None:
    """One hospital is enough for this study, and it is the one that a fold holds out."""
    settings = small.federation(quorum={"hospitals": 1})

    def failing(node: int, message: Message) -> Error | None:
        return Error(5, "x") if message.metadata.message_type == TRAIN and node != 1 else None

    with pytest.raises(RunError, match="round 1: fold 'without:east' has 0 good replies, needs 1"):
        small.study(settings, small.hospitals(), tmp_path, failing=failing)


def test_a_client_that_raises_says_a_code_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The traceback, which may hold paths and names, stays in the hospital's log."""
    settings, members = small.federation(), small.hospitals()
    plan = small.Plan(settings, 42)
    at_work = small.sites(plan, members, tmp_path)

    def broken(part: int) -> None:
        raise KeyError(f"/data/patients/Mustermann-{part}.csv")

    at_work["east"].moments = broken  # type: ignore[method-assign,assignment]
    network = small.grid(small.app(at_work), 3, serialise=True)
    with pytest.raises(RunError) as caught:
        small.run_study(network, plan, tmp_path / "server", hospitals=3, resume=False, watch=lambda report: None)
    assert "2 of 3 hospitals can take part" in str(caught.value)
    assert "node 1: refused with code INTERNAL" in str(caught.value)
    assert "Mustermann" not in str(caught.value)
    assert "Mustermann" in caplog.text


def test_two_hospitals_with_one_name_are_refused(tmp_path: Path) -> None:
    settings, members = small.federation(), small.hospitals()
    plan = small.Plan(settings, 42)
    at_work = small.sites(plan, members, tmp_path)
    at_work["south"].hospital = replace(at_work["south"].hospital, name="east")
    with pytest.raises(RunError, match="two hospitals call themselves 'east'"):
        small.run_study(
            small.grid(small.app(at_work), 3), plan, tmp_path, hospitals=3, resume=False, watch=lambda report: None
        )


# --- the same numbers whichever way ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ALL_STRATEGIES, ids=lambda s: s["name"])
def test_interrupted_after_any_round_and_resumed_gives_the_same_numbers(
    strategy: dict[str, Any], tmp_path: Path
) -> None:
    settings = settings_for(strategy, stage={"rounds": 4}, evaluation={"validation": 0.2, "folds": 2})
    members = small.hospitals()
    whole = small.study(settings, members, tmp_path / "whole")

    class PowerCutError(Exception):
        pass

    for last in (1, 2, 3, 4):

        def cut(report: RoundReport, last: int = last) -> None:
            if report.round == last:
                raise PowerCutError

        folder = tmp_path / f"cut-{last}"
        with pytest.raises(PowerCutError):
            small.study(settings, members, folder, watch=cut)
        assert same(whole, small.study(settings, members, folder, resume=True))


@pytest.mark.parametrize("strategy", ALL_STRATEGIES, ids=lambda s: s["name"])
def test_interrupted_before_the_checkpoint_the_round_is_done_again(strategy: dict[str, Any], tmp_path: Path) -> None:
    """Hospitals have saved their state of round 2, the server has not: the state before it must still be there."""
    settings = settings_for(strategy)
    members = small.hospitals()
    whole = small.study(settings, members, tmp_path / "whole")
    trained = 0

    class PowerCutError(Exception):
        pass

    def cut(node: int, message: Message) -> None:
        nonlocal trained
        if message.metadata.message_type == TRAIN:
            trained += 1
            if trained == 6:  # the last hospital of round 2
                raise PowerCutError

    with pytest.raises(PowerCutError):
        small.study(settings, members, tmp_path / "cut", failing=cut)
    assert same(whole, small.study(settings, members, tmp_path / "cut", resume=True))


def test_serialised_messages_change_nothing(tmp_path: Path) -> None:
    settings, members = settings_for({"name": "scaffold"}), small.hospitals()
    direct = small.study(settings, members, tmp_path / "direct")
    assert same(direct, small.study(settings, members, tmp_path / "wire", serialise=True))


def test_folds_in_one_message_or_in_many_give_the_same_numbers(tmp_path: Path) -> None:
    """All folds in one batched pass, or each in a message of its own, trained alone: equal to rounding."""
    members = small.hospitals()
    together = small.study(small.federation(), members, tmp_path / "together")
    apart = small.study(small.federation(training={"message_limit": 1}), members, tmp_path / "apart")
    assert together.rows["weights"] == pytest.approx(apart.rows["weights"], abs=1e-6)
    assert np.abs(together.rows["weights"]).max() > 0.1


def test_round_one_is_computed_once_where_the_folds_begin_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fold-specific scaling and bias every fold begins with the same numbers."""
    copies: list[int] = []

    def counting(stack: Any, *rest: Any, **options: Any) -> Any:
        copies.append(stack.copies)
        return training.fit(stack, *rest, **options)

    monkeypatch.setattr("ich_client.work.fit", counting)
    settings = small.federation(table={"scaling": "hospital"}, network={"name": "logistic", "bias": "zero"})
    shared = small.study(settings, small.hospitals(), tmp_path)
    assert copies == [
        1,
        1,
        1,
        3,
        3,
        3,
        3,
        3,
        3,
    ]  # three folds train at each hospital: all, and two that hold out another
    assert len({row.tobytes() for row in shared.rows["weights"]}) == 4


def test_a_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    settings, members = small.federation(), small.hospitals()

    def stop(report: RoundReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.study(settings, members, tmp_path, watch=stop)
    with pytest.raises(RunError, match="the data of these hospitals has changed since the study began: north"):
        small.study(settings, [members[0], small.hospital("north", 81), members[2]], tmp_path, resume=True)
    other = small.federation(stage={"rounds": 5})
    with pytest.raises(RunError, match="belongs to another federation file"):
        small.study(other, members, tmp_path, resume=True)


def test_a_finished_study_is_taken_over_only_by_the_same_study(tmp_path: Path) -> None:
    settings, members = small.federation(), small.hospitals()
    done = small.study(settings, members, tmp_path)

    def never(node: int, message: Message) -> Error | None:
        assert message.metadata.message_type == "query", "nothing is trained or evaluated again"
        return None

    assert same(done, small.study(settings, members, tmp_path, resume=True, failing=never))
    with pytest.raises(RunError, match="has changed since the study began: north"):
        small.study(settings, [members[0], small.hospital("north", 81), members[2]], tmp_path, resume=True)
    (tmp_path / "server" / "round-000003.safetensors").unlink()
    (tmp_path / "server" / "round-000002.safetensors").unlink()
    with pytest.raises(RunError, match="belongs to another federation file or seed"):
        small.study(small.federation(stage={"rounds": 5}), members, tmp_path, resume=True)
    with pytest.raises(RunError, match="belongs to another federation file or seed"):
        small.study(settings, members, tmp_path, seed=43, resume=True)


@pytest.mark.parametrize("name", ["study.safetensors", "round-000003.safetensors"])
def test_a_broken_file_is_said_in_words(name: str, tmp_path: Path) -> None:
    settings, members = small.federation(), small.hospitals()
    small.study(settings, members, tmp_path)
    path = tmp_path / "server" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=rf"{name}: the file cannot be read"):
        small.study(settings, members, tmp_path, resume=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_broken(tmp_path: Path) -> None:
    small.study(small.federation(), small.hospitals(), tmp_path)
    (tmp_path / "server" / "study.safetensors").chmod(0)
    with pytest.raises(PermissionError):
        small.study(small.federation(), small.hospitals(), tmp_path, resume=True)


# --- choices ----------------------------------------------------------------------------------------------------------


def test_the_best_round_is_the_one_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    """A learning rate that is too large: the second of four rounds is the best, and its weights and thresholds are kept."""
    evaluation = {"validation": 0.3, "leave_one_hospital_out": False, "test": 0.2}
    stage = {"rounds": 4, "epochs": 3, "batch": 4, "optimizer": {"name": "sgd", "lr": 3.0}}
    members = small.hospitals()
    best = small.study(
        small.federation(stage=stage, evaluation={**evaluation, "choose_round": "best"}), members, tmp_path / "best"
    )
    losses, thresholds = {}, {}
    plan = small.Plan(small.federation(stage=stage, evaluation=evaluation), 42)
    for rounds in range(5):  # stop after each round and look at the loss of what is there
        settings = small.federation(stage={**stage, "rounds": max(1, rounds)}, evaluation=evaluation)
        found = small.study(settings, members, tmp_path / str(rounds))
        rows = found.of(["all"])
        if rounds == 0:
            start = plan.start_rows([sum_log_odds(plan, members, tmp_path)])[0]
            rows = {**rows, "weights": start[None]}
        losses[rounds] = (validation_loss(plan, rows, members, tmp_path), rows["weights"])
        thresholds[rounds] = found.thresholds
    chosen = min(losses, key=lambda rounds: losses[rounds][0])
    assert 0 < chosen < 4
    assert best.thresholds == thresholds[chosen] != thresholds[4], "chosen for these weights, not for the last ones"
    assert best.of(["all"])["weights"].tobytes() == losses[chosen][1].tobytes()


def without_validation_losses(node: int | None) -> Callable[[ClientApp], ClientApp]:
    """One hospital, or every one, gives no validation loss."""

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            kinds = {TRAIN: TrainReply, THRESHOLD: ThresholdReply}
            kind = kinds.get(message.metadata.message_type)
            if kind is None or node not in (None, message.metadata.dst_node_id):
                return reply
            answer, rows = from_record(reply.content, kind)
            nothing = answer.model_copy(update={"validation_losses": [None] * len(answer.validation_losses)})
            return Message(to_record(nothing, rows), reply_to=message)

        return call  # type: ignore[return-value]

    return around


def test_a_hospital_without_validation_losses_does_not_decide_the_best_round(tmp_path: Path) -> None:
    """East, alone without losses, has no part in the choice; were all without, there is none, and that is said."""
    settings = small.federation(evaluation={"validation": 0.3, "choose_round": "best"})
    members = small.hospitals()
    found = small.study(settings, members, tmp_path / "one", around=without_validation_losses(1))
    plan = small.Plan(settings, 42)
    start = plan.start_rows([0.0])[0]
    assert not np.allclose(found.of(["all"])["weights"][0][:3], start[:3]), "not the start weights"
    with pytest.raises(RunError, match="no hospital has given a validation loss for all, without:east"):
        small.study(settings, members, tmp_path / "none", around=without_validation_losses(None))


@pytest.mark.parametrize("choose", ["last", "best"])
def test_thresholds_need_the_quorum_of_a_round(choose: str, tmp_path: Path) -> None:
    """With two hospitals each LOHO fold has one that learnt; without its threshold there is none, and 0.5 is no answer."""
    settings = small.federation(evaluation={"validation": 0.25, "choose_round": choose})
    members = small.hospitals()[:2]

    def failing(node: int, message: Message) -> Error | None:
        return Error(1, "x") if node == 2 and message.metadata.message_type == THRESHOLD else None

    with pytest.raises(RunError) as caught:
        small.study(settings, members, tmp_path, failing=failing)
    assert "thresholds: fold 'all' has 1 good replies, needs 2" in str(caught.value)
    assert "north: flower error 1" in str(caught.value)
    resumed = small.study(settings, members, tmp_path, resume=True)
    assert same(resumed, small.study(settings, members, tmp_path / "undisturbed"))


def sum_log_odds(plan: small.Plan, members: list[Hospital], folder: Path) -> float:
    labels = [
        site.hospital.patients.labels[site.split(0).train] for site in small.sites(plan, members, folder).values()
    ]
    events, patients = sum(map(np.sum, labels)), sum(map(len, labels))
    return float(np.log((events + 0.5) / (patients - events + 0.5)))


def validation_loss(plan: small.Plan, rows: Rows, members: list[Hospital], folder: Path) -> float:
    """Weighted by training patients, as the server weights."""
    total = weight = 0.0
    for site in small.sites(plan, members, folder).values():
        chosen = site.hospital.patients.take(site.split(0).validation)
        p = torch.from_numpy(plain_logistic(rows, chosen.table)).clamp(1e-300, 1 - 1e-16)
        loss = torch.nn.functional.binary_cross_entropy(p, torch.from_numpy(chosen.labels).double())
        total += float(loss) * len(site.split(0).train)
        weight += len(site.split(0).train)
    return total / weight


def test_fedbn_gives_the_unseen_hospital_the_mean_of_the_others_layers(tmp_path: Path) -> None:
    settings, members = settings_for({"name": "fedbn"}), small.hospitals()
    found = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    kept = {name: site.state.load() for name, site in small.sites(plan, members, tmp_path).items()}
    layers = {name: kept[name]["without:north"]["local"] for name in ("east", "south")}
    mean = (layers["east"].astype(float) * 50 + layers["south"].astype(float) * 65) / 115
    assert "without:north" not in kept["north"]
    assert found.of(["without:north"])["local"][0] == pytest.approx(mean, rel=1e-6)
    assert not np.allclose(layers["east"], layers["south"], atol=1e-3)


def test_a_record_in_a_bottle() -> None:
    """A refusal is a code alone on the wire."""
    from ich_models.errors import Code
    from ich_models.protocol import Refusal, is_refusal

    record = to_record(Refusal(code=Code.DATA))
    assert json.loads(str(record.config_records["message"]["json"])) == {"code": "DATA"}
    assert is_refusal(record) is Code.DATA
    assert is_refusal(RecordDict()) is None


# --- strangers' bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record["message"].update(json="{"),
        lambda record: record["message"].update(json="[]"),
        lambda record: record["message"].update(json='{"hospital": "east"}'),
        lambda record: record["message"].update(widths=["four"]),
        lambda record: record["message"].update(widths=[-1]),
        lambda record: record["message"].update(widths=[4, 0], blocks=["weights", "weights"]),
        lambda record: record["message"].update(blocks=[]),
        lambda record: record.pop("message"),
        lambda record: record.pop("arrays"),
        lambda record: record["arrays"].update(
            rows=Array("float32", (1, 4), "numpy.ndarray", b"PK\x03\x04 not an array")
        ),
        lambda record: record["arrays"].update(rows=Array("float32", (1, 4), "numpy.ndarray", b"")),
        lambda record: record["arrays"].update(rows=Array(np.array([["text"]]))),
        lambda record: record["arrays"].update(rows=Array(np.zeros(4))),
    ],
)
def test_whatever_a_reply_holds_it_is_set_aside_and_the_study_goes_on(
    spoil: Callable[[RecordDict], Any], tmp_path: Path
) -> None:
    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type == TRAIN and message.metadata.dst_node_id == 1:
                spoil(reply.content)
            return reply

        return call  # type: ignore[return-value]

    found = small.study(small.federation(stage={"rounds": 1}), small.hospitals(), tmp_path, around=around)
    assert list(found.quarantined) == [Quarantine("round 1", "east", "malformed reply")]
    assert set(found.answers) == {"east", "north", "south"}


@pytest.mark.parametrize("name", ["", "..", "a/b", "East", "<script>", "x" * 65, "north\n"])
def test_a_hospital_cannot_call_itself_just_anything(name: str) -> None:
    answer = {"hospital": name, "schema_hash": "", "parts": {}}
    with pytest.raises(ValueError, match="hospital"):
        StatisticsReply.model_validate(answer)


def test_who_has_not_replied_by_the_deadline_is_passed_over(tmp_path: Path) -> None:
    """One hospital takes the training task and is never heard of again; each round waits for it, and goes on."""

    class SilentGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            silent = [m for m in message_ids if is_training_of(self._waiting.get(m), node=2)]
            return [] if silent else super().pull_messages(message_ids)

    def is_training_of(message: Message | None, node: int) -> bool:
        return message is not None and (message.metadata.dst_node_id, message.metadata.message_type) == (node, TRAIN)

    settings = small.federation(quorum={"deadline": 0.5}, stage={"rounds": 2})
    plan = small.Plan(settings, 42)
    network = SilentGrid(
        small.app(small.sites(plan, small.hospitals(), tmp_path)), {n + 1: {"partition-id": n} for n in range(3)}
    )
    begin = time.monotonic()
    found = run_study(network, plan, tmp_path / "server", hospitals=3, resume=False, watch=lambda report: None)
    assert time.monotonic() - begin >= 1.0
    assert list(found.quarantined) == [
        Quarantine(f"round {n}", "north", "no reply before the deadline") for n in (1, 2)
    ]
    assert set(found.answers) == {"east", "north", "south"}, "it is asked again for the evaluation"


def test_each_fold_is_judged_by_its_own_threshold(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "evaluate.test":
                asked.append(json.loads(str(message.content.config_records["message"]["json"])))
            return client(message, context)

        return call  # type: ignore[return-value]

    found = small.study(small.federation(), small.hospitals(), tmp_path, around=around)
    given = [task["questions"][0] for task in asked]
    assert [q["folds"] for q in given] == [["without:east"], ["without:north"], ["without:south"]]
    assert [q["thresholds"] for q in given] == [[found.thresholds[q["folds"][0]]] for q in given]
    assert len(set(found.thresholds.values())) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"schema_hash": "0" * 64},
        {"parts": {}},
        {
            "parts": {
                part: {"patients": 50, "events": 5, "count": [9] * 3, "mean": [0] * 3, "m2": [0] * 3} for part in (0, 1)
            }
        },
        {"parts": {1: {"patients": 50, "events": 5, "count": [9] * 3, "mean": [0] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 0, "events": 0, "count": [0] * 3, "mean": [0] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 50, "events": 51, "count": [1] * 3, "mean": [0] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [51] * 3, "mean": [0] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [50] * 3, "mean": [0] * 3, "m2": [-1] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [50] * 2, "mean": [0] * 2, "m2": [0] * 2}}},
        {"parts": {0: {"patients": 10**9, "events": 5, "count": [50] * 3, "mean": [0] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [50] * 3, "mean": [1e308] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [50] * 3, "mean": [0] * 3, "m2": [1e308] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [0] * 3, "mean": [1e308] * 3, "m2": [0] * 3}}},
        {"parts": {0: {"patients": 50, "events": 5, "count": [49.5] * 3, "mean": [0] * 3, "m2": [0] * 3}}},
        {"patients": 49},
        {"events": 1},
    ],
)
def test_statistics_that_cannot_be_keep_a_hospital_out(change: dict[str, Any], tmp_path: Path) -> None:
    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type == "query" and message.metadata.dst_node_id == 1:
                answer, _ = from_record(reply.content, StatisticsReply)
                spoilt = StatisticsReply.model_validate({**answer.model_dump(), **change})
                return Message(to_record(spoilt), reply_to=message)
            return reply

        return call  # type: ignore[return-value]

    with pytest.raises(RunError, match="2 of 3 hospitals can take part"):
        small.study(small.federation(), small.hospitals(), tmp_path, around=around)
    few = small.federation(quorum={"hospitals": 2})
    found = small.study(few, small.hospitals(), tmp_path / "few", around=around)
    assert set(found.answers) == set(found.hospitals) == {"north", "south"}
    assert [(q.when, q.hospital) for q in found.quarantined] == [("statistics", "node 1")]
    assert all(np.isfinite(block).all() for block in found.rows.values())


@pytest.mark.parametrize(
    ("mean", "m2", "possible"), [(0, 4999, True), (0, 5001, False), (10, 0, True), (10.1, 0, False), (-10.1, 0, False)]
)
def test_statistics_lie_within_the_variables_range(mean: float, m2: float, possible: bool, tmp_path: Path) -> None:
    """Of 50 values within -10 to 10 half may be at either end: squared deviations of 50 * 10^2 = 5000 together."""
    number = {"type": "number", "known_at": "admission", "range": [-10, 10]}
    variables = {**dict.fromkeys("abc", number), "mrs": {"type": "integer", "known_at": "90 days"}}
    settings = small.federation(table={"variables": variables}, stage={"rounds": 1}, quorum={"hospitals": 2})

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type != "query" or message.metadata.dst_node_id != 1:
                return reply
            answer, _ = from_record(reply.content, StatisticsReply)
            part = {"patients": 50, "events": 5, "count": [50] * 3, "mean": [mean] * 3, "m2": [m2] * 3}
            said = StatisticsReply.model_validate({**answer.model_dump(), "parts": {0: part}})
            return Message(to_record(said), reply_to=message)

        return call  # type: ignore[return-value]

    found = small.study(settings, small.hospitals(), tmp_path, around=around)
    assert ("east" in found.hospitals) is possible


def test_one_hospital_alone_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="1 of 1 hospitals can take part, and the study needs 2"):
        small.study(small.federation(quorum={"hospitals": 1}), small.hospitals()[:1], tmp_path)


def test_a_study_goes_on_with_more_than_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three hospitals one is no majority, and two are; a fourth waits for another study."""
    monkeypatch.setattr(meeting, "PATIENCE", 0.1)
    settings = small.federation(evaluation={"leave_one_hospital_out": False, "test": 0.3})
    members = small.hospitals()
    small.study(settings, members, tmp_path)
    with pytest.raises(RunError, match="1 of 3 hospitals can take part, and the study needs 2"):
        small.study(settings, members[:1], tmp_path, resume=True)
    for there in (members[:2], [*members, small.hospital("west")]):
        found = small.study(settings, there, tmp_path, resume=True)
        assert list(found.hospitals) == ["east", "north", "south"]


def test_a_hospital_that_is_known_cannot_take_anothers_name(tmp_path: Path) -> None:
    settings = small.federation(quorum={"hospitals": 2})
    plan = small.Plan(settings, 42)
    network = small.grid(small.app(small.sites(plan, small.hospitals(), tmp_path)), 3)
    names = {1: "east", 2: "south", 3: "west"}  # 2 calls itself north, 3 calls itself south
    with pytest.raises(RunError) as caught:
        run_study(
            *(network, plan, tmp_path / "server"),
            hospitals=3,
            resume=False,
            watch=lambda report: None,
            names=lambda: names,
        )
    assert "1 of 3 hospitals can take part" in str(caught.value)
    assert "south: replied under another hospital's name" in str(caught.value)
    assert "west: replied under another hospital's name" in str(caught.value)


ANSWERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "an AUROC of 7": lambda answer: answer["metrics"].update(auroc=[7.0, 6.0, 8.0]),
    "an AUROC that is no count of pairs": lambda answer: answer["metrics"].update(auroc=[1e-300, 0.0, 0.5]),
    "a Brier score of 1e308": lambda answer: answer["metrics"].update(brier=[1e308, None, None]),
    "a slope of 1e200": lambda answer: answer["metrics"].update(calibration_slope=[1e200, 9e199, 1.1e200]),
    "an interval the wrong way round": lambda answer: answer["metrics"].update(recall=[0.5, 0.6, 0.4]),
    "half an interval": lambda answer: answer["metrics"].update(recall=[0.5, 0.4, None]),
    "an interval of nothing": lambda answer: answer["metrics"].update(recall=[None, 0.4, 0.6]),
    "a metric left out": lambda answer: answer["metrics"].pop("f1"),
    "a patient more than it has": lambda answer: answer.update(patients=answer["patients"] + 1),
    "nobody": lambda answer: answer.update(patients=0, events=0),
    "an event less than it has": lambda answer: answer.update(events=answer["events"] - 1),
    "another arm": lambda answer: answer.update(arm="pooled"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_figures_that_cannot_be_are_set_aside(case: str, tmp_path: Path) -> None:
    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type != EVALUATE or message.metadata.dst_node_id != 2:
                return reply
            said = json.loads(str(reply.content.config_records["message"]["json"]))
            for answer in said["answers"]:
                ANSWERS[case](answer)
            return Message(RecordDict({"message": ConfigRecord({"json": json.dumps(said)})}), reply_to=message)

        return call  # type: ignore[return-value]

    found = small.study(small.federation(stage={"rounds": 1}), small.hospitals(), tmp_path, around=around)
    assert list(found.quarantined) == [Quarantine("evaluation", "north", "malformed reply")]
    assert set(found.answers) == {"east", "south"}


def answering(*said: Answer) -> Callable[[ClientApp], ClientApp]:
    """Node 2 evaluates nothing, and says this."""

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type != EVALUATE or message.metadata.dst_node_id != 2:
                return reply
            return Message(to_record(EvaluateReply(hospital="north", answers=list(said))), reply_to=message)

        return call  # type: ignore[return-value]

    return around


def made_up(patients: int, events: int) -> Evaluation:
    """Figures that are consistent in themselves, of so many."""
    return evaluate(np.arange(patients) < events, np.linspace(0.1, 0.9, patients), 0.5, resamples=0)


DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    "a fold held it out": ("loho", {}),
    "a share is kept for the test": ("federated", {"leave_one_hospital_out": False, "test": 0.3}),
    "each part is tested in turn": ("federated", {"leave_one_hospital_out": False, "folds": 2}),
}


@pytest.mark.parametrize(("patients", "events"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("design", DESIGNS)
def test_figures_of_others_than_the_hospital_has_are_set_aside(
    design: str, patients: int, events: int, tmp_path: Path
) -> None:
    """North has said how many it has, and how many train: what is left of them can be tested, not one patient or event more."""
    arm, evaluation = DESIGNS[design]
    settings = small.federation(stage={"rounds": 1}, evaluation=evaluation)
    members = small.hospitals()
    site = small.sites(small.Plan(settings, 42), members, tmp_path)["north"]
    labels = site.hospital.patients.labels[site.split(0).test if "test" in evaluation else slice(None)]
    assert len(labels) == (24 if "test" in evaluation else 80)
    figures = made_up(len(labels) + patients, int(labels.sum()) + events)
    found = small.study(settings, members, tmp_path, around=answering(Answer.of(arm, figures)))
    set_aside = [Quarantine("evaluation", "north", "malformed reply")] if patients or events else []
    assert list(found.quarantined) == set_aside


@pytest.mark.parametrize(
    "groups",
    [
        {"decisions": (Decision(0.12, 1, 1),)},
        {"subgroups": {"b": {"< 0": None, ">= 0": None, "missing": None}}},
        {"subgroups": {"a": {"< 0": None, ">= 0": None}}},
        {"subgroups": {"a": {"< 0": None, ">= 0": None, "missing": None, "more": None}}},
    ],
)
def test_thresholds_and_subgroups_that_the_study_does_not_have_are_set_aside(
    groups: dict[str, Any], tmp_path: Path
) -> None:
    evaluation = {"subgroups": [{"variable": "a", "cut": [0]}], "decision_thresholds": [0.1, 0.2]}
    settings = small.federation(stage={"rounds": 1}, evaluation=evaluation)
    assert settings.subgroups == {"a": ("< 0", ">= 0", "missing")}
    members = [
        replace(member, patients=replace(member.patients, groups={"a": np.zeros(len(member.patients), np.int64)}))
        for member in small.hospitals()
    ]
    plain = made_up(80, int(members[1].patients.labels.sum()))
    sound = {"decisions": (Decision(0.1, 1, 1),), "subgroups": {"a": dict.fromkeys(settings.subgroups["a"])}}
    for given, set_aside in ((sound, []), (groups, [Quarantine("evaluation", "north", "malformed reply")])):
        answer = Answer.of("loho", replace(plain, **given))
        found = small.study(settings, members, tmp_path, around=answering(answer))
        assert list(found.quarantined) == set_aside


def test_without_resume_a_study_begins_anew(tmp_path: Path) -> None:
    members = small.hospitals()
    small.study(small.federation(), members, tmp_path)
    other = small.federation(stage={"rounds": 2})
    again = small.study(other, members, tmp_path)
    assert same(again, small.study(other, members, tmp_path / "fresh"))


def test_a_hospital_with_a_new_key_goes_on_in_the_next_round(tmp_path: Path) -> None:
    """North is node 2. It is revoked in round 1, and admitted with another key, as node 4, in round 3."""
    settings = small.federation(quorum={"hospitals": 2}, stage={"rounds": 4})
    plan = small.Plan(settings, 42)
    names = {1: "east", 2: "north", 3: "south"}

    class Connected(InProcessGrid):
        def get_node_ids(self) -> Iterable[int]:
            return list(names)

    app = small.app(small.sites(plan, small.hospitals(), tmp_path))
    network = Connected(app, {node: {"partition-id": n} for node, n in ((1, 0), (2, 1), (3, 2), (4, 1))})

    def watch(report: RoundReport) -> None:
        if report.round == 1:
            del names[2]
        if report.round == 2:
            names[4] = "north"

    found = run_study(
        *(network, plan, tmp_path / "server"), hospitals=3, resume=False, watch=watch, names=lambda: names
    )
    assert list(found.quarantined) == [Quarantine("round 2", "north", "not admitted any more")]
    assert set(found.answers) == {"east", "north", "south"}
