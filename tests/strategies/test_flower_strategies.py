"""Flower's robust aggregations in our engine: the papers' formulas in numpy, and a hospital that sends nonsense."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from pydantic import TypeAdapter, ValidationError

from ich_models.errors import RunError
from ich_models.protocol import TRAIN, TrainReply, from_record, to_record
from ich_models.strategy_options import StrategyOptions
from ich_strategies.flower_strategies import FlowerStrategy

START = np.array([10.0, -20.0, 30.0], np.float32)
CLOSE = [[1.0, 2.0, 3.0], [1.1, 2.2, 2.9], [0.9, 1.9, 3.1], [1.2, 2.1, 3.3], [0.8, 1.8, 2.8], [1.05, 2.05, 3.05]]
FAR = [100.0, -100.0, 50.0]
PATIENTS = [10, 20, 30, 40, 50, 60, 70]


@pytest.fixture(autouse=True)
def identity() -> None:
    """A message belongs to a run, also one that never travels."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


LOSSES = [0.3, 0.5, 0.7, 0.2, 0.6, 0.4, 2.0]


def combined(name: str, **options: Any) -> Any:
    rows = [(START + np.array(row, np.float32)).astype(np.float32) for row in [*CLOSE, FAR]]
    found = FlowerStrategy(name, options).combine(START, rows, PATIENTS, LOSSES)
    assert found.dtype == np.float32
    return found - START


def test_the_median_counts_hospitals() -> None:
    assert combined("fedmedian") == pytest.approx(np.median([*CLOSE, FAR], axis=0), abs=1e-5)


def test_the_trimmed_mean_cuts_both_ends() -> None:
    """beta .2 of 7 hospitals: one at either end."""
    expected = np.sort(np.array([*CLOSE, FAR]), axis=0)[1:-1].mean(axis=0)
    assert combined("fedtrimmedavg", beta=0.2) == pytest.approx(expected, abs=1e-5)


def test_q_fedavg_is_its_paper() -> None:
    """Li et al. 2020, Algorithm 2: steps, weighted by the loss to the power of q, over the sum of the h."""
    q, rate = 0.5, 0.1
    steps = -np.array([*CLOSE, FAR]) / rate
    powers = np.array(LOSSES) ** q
    h = q * np.array(LOSSES) ** (q - 1) * (steps**2).sum(1) + powers / rate
    expected = -(powers[:, None] * steps).sum(0) / h.sum()
    assert combined("qfedavg", q=q, client_learning_rate=rate) == pytest.approx(expected, abs=1e-5)


def test_central_privacy_cuts_each_update_and_counts_hospitals_alike() -> None:
    updates = np.array([*CLOSE, FAR])
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    expected = (updates * np.minimum(1, 2 / norms)).mean(0)
    found = combined("central_dp", clipping_norm=2.0, noise_multiplier=1e-9)
    assert found == pytest.approx(expected, abs=1e-5)


def test_central_privacy_has_the_noise_that_it_says() -> None:
    """Standard deviation: multiplier x clip / hospitals, and other noise each time."""
    rows = [np.zeros(100_000, np.float32)] * 5
    strategy = FlowerStrategy("central_dp", {"clipping_norm": 2.0, "noise_multiplier": 1.5})
    first, second = (strategy.combine(rows[0], rows, [10] * 5, [0.1] * 5) for _ in range(2))
    assert first.std() == pytest.approx(1.5 * 2 / 5, rel=0.01)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_the_exact_loss_is_that_of_the_weights_received(tmp_path: Path) -> None:
    """Zero weights give every patient even odds: ln 2, whatever the training makes of it."""
    common = {
        "network": {"name": "logistic", "bias": "zero"},
        "evaluation": {"leave_one_hospital_out": False, "test": 0.2},
    }
    settings = small.federation(
        strategy={"name": "qfedavg", "client_learning_rate": 0.1},
        **common,
    )
    exact: list[float | None] = []
    small.study(settings, members(), tmp_path / "exact", around=losses_of(exact))
    assert exact[: len(members())] == pytest.approx([np.log(2)] * len(members()))
    plain = small.federation(**common)
    mean: list[float | None] = []
    small.study(plain, members(), tmp_path / "plain", around=losses_of(mean))
    assert all(loss is not None and loss < np.log(2) - 0.001 for loss in mean)


def test_an_update_without_the_loss_that_weighs_it_is_set_aside(tmp_path: Path) -> None:
    """q-FedAvg weighs by losses: one that is missing would make the whole model no number."""

    def silent(answer: TrainReply) -> TrainReply:
        return answer.model_copy(update={"losses": [None] * len(answer.losses)})

    around = small.saying(TRAIN, TrainReply, silent, node=1)
    settings = small.federation(
        strategy={"name": "qfedavg", "client_learning_rate": 0.1},
        stage={"rounds": 1},
        evaluation={"leave_one_hospital_out": False, "test": 0.2},
    )
    found = small.study(settings, members(), tmp_path, around=around)
    assert [(each.when, each.reason) for each in found.quarantined] == [("round 1", "malformed reply")]
    assert np.isfinite(found.rows["weights"]).all()


def losses_of(found: list[float | None]) -> Any:
    """Notes the losses that hospitals report."""

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type == TRAIN:
                found.extend(from_record(reply.content, TrainReply)[0].losses)
            return reply

        return call  # type: ignore[return-value]

    return around


@pytest.mark.parametrize(
    "name",
    [
        "DifferentialPrivacyClientSideFixedClipping",
        "differential_privacy_server_side_adaptive_clipping",
        "fedxgbbagging",
    ],
)
def test_what_is_not_offered_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ValidationError, match=f"strategy '{name}' is not offered"):
        TypeAdapter(StrategyOptions).validate_python({"name": name})


def krum_scores(malicious: int) -> Any:
    """Sum of the squared distances to the n - f - 2 nearest others (Blanchard et al. 2017, section 3)."""
    rows = np.array([*CLOSE, FAR])
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    nearest = np.sort(distances, axis=1)[:, 1 : len(rows) - malicious - 1]
    return nearest.sum(1)


def test_krum_takes_the_one_among_its_neighbours() -> None:
    best = int(np.argmin(krum_scores(1)))
    assert combined("krum", num_malicious_nodes=1) == pytest.approx([*CLOSE, FAR][best], abs=1e-5)


def test_multikrum_averages_the_chosen_by_patients() -> None:
    chosen = np.argsort(krum_scores(1))[:3]
    weights = np.array(PATIENTS)[chosen]
    expected = (np.array([*CLOSE, FAR])[chosen] * weights[:, None]).sum(0) / weights.sum()
    found = combined("multikrum", num_malicious_nodes=1, num_nodes_to_select=3)
    assert found == pytest.approx(expected, abs=1e-5)


def test_bulyan_averages_what_is_nearest_to_the_median_of_the_chosen() -> None:
    """n = 7, f = 1: five chosen by MultiKrum, of which the three nearest to the median count, number by number."""
    chosen = np.array([*CLOSE, FAR])[np.argsort(krum_scores(1))[:5]]
    middle = np.median(chosen, axis=0)
    nearest = np.take_along_axis(chosen, np.argsort(np.abs(chosen - middle), axis=0)[:3], axis=0)
    assert combined("bulyan", num_malicious_nodes=1) == pytest.approx(nearest.mean(0), abs=1e-5)


def test_too_few_hospitals_for_the_malicious_ones_is_said() -> None:
    with pytest.raises(RunError, match="bulyan cannot combine 7 updates"):
        combined("bulyan", num_malicious_nodes=2)


def test_a_small_update_of_large_weights_is_not_lost_to_rounding() -> None:
    """1e6 + .1 in float32: distances between the weights themselves would be noise of 1e5."""
    start = np.full(3, 1e4, np.float32)
    rows = [(start + np.array(row, np.float32)).astype(np.float32) for row in [*CLOSE, FAR]]
    found = FlowerStrategy("krum", {"num_malicious_nodes": 1}).combine(start, rows, PATIENTS, LOSSES)
    best = int(np.argmin(krum_scores(1)))
    assert found == pytest.approx(rows[best], abs=1e-2)


# --- in a study -------------------------------------------------------------------------------------------------------


def poisoned(client: ClientApp) -> ClientApp:
    """The first hospital turns its update round and makes it a hundred times as large, within every limit."""

    def call(message: Message, context: Context) -> Message:
        reply = client(message, context)
        if message.metadata.message_type != TRAIN or message.metadata.dst_node_id != 1:
            return reply
        answer, rows = from_record(reply.content, TrainReply)
        return Message(to_record(answer, {**rows, "weights": rows["weights"] * -100}), reply_to=message)

    return call  # type: ignore[return-value]


def members() -> list[Any]:
    return [small.hospital(name, 60 + 5 * index, index % 2) for index, name in enumerate("abcdefgh")]


def alignment(strategy: dict[str, Any], folder: Path, around: Any = lambda client: client) -> float:
    """Cosine between the trained weights (without the bias) and those of undisturbed FedAvg."""
    settings = small.federation(strategy=strategy, evaluation={"leave_one_hospital_out": False, "test": 0.2})
    found = small.study(settings, members(), folder / "disturbed", around=around).of(["all"])["weights"][0][:-1]
    plain = small.federation(evaluation={"leave_one_hospital_out": False, "test": 0.2})
    true = small.study(plain, members(), folder / "plain").of(["all"])["weights"][0][:-1]
    return float(found @ true / np.linalg.norm(found) / np.linalg.norm(true))


ROBUST = [
    {"name": "fedmedian"},
    {"name": "fedtrimmedavg", "beta": 0.2},
    {"name": "krum", "num_malicious_nodes": 1},
    {"name": "multikrum", "num_malicious_nodes": 1, "num_nodes_to_select": 4},
    {"name": "bulyan", "num_malicious_nodes": 1},
]


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda strategy: strategy["name"])
def test_one_hospital_of_eight_cannot_turn_the_model_round(strategy: dict[str, Any], tmp_path: Path) -> None:
    assert alignment({"name": "fedavg"}, tmp_path / "mean", poisoned) < 0, "the mean is turned round"
    assert alignment(strategy, tmp_path / "robust", poisoned) > 0.9


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda strategy: strategy["name"])
def test_a_resumed_study_ends_with_the_same_bytes(strategy: dict[str, Any], tmp_path: Path) -> None:
    settings = small.federation(strategy=strategy, evaluation={"leave_one_hospital_out": False, "test": 0.2})
    whole = small.study(settings, members(), tmp_path / "whole")

    def cut(report: Any) -> None:
        if report.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.study(settings, members(), tmp_path / "cut", watch=cut)
    resumed = small.study(settings, members(), tmp_path / "cut", resume=True)
    assert resumed.rows["weights"].tobytes() == whole.rows["weights"].tobytes()
