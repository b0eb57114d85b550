"""Each algorithm against numbers worked out by hand, SCAFFOLD against the paper's pseudocode, and the registry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ich_client.work import train as train_at
from ich_models.exchange import constants, exchanged, kept_local
from ich_models.networks.options import Mlp
from ich_models.networks.registry import build as build_network
from ich_models.protocol import TRAIN, TrainReply, TrainTask, from_record
from ich_models.strategy_options import StrategyOptions
from ich_strategies.aggregate import WeightedMeans
from ich_strategies.fedavg import FedAvg
from ich_strategies.fedavgm import FedAvgM
from ich_strategies.fedbn import FedBN
from ich_strategies.fedopt import SECOND_MOMENTS, FedOpt
from ich_strategies.fedprox import FedProx
from ich_strategies.flower_strategies import FLOWERS, FlowerStrategy
from ich_strategies.plan import Plan
from ich_strategies.registry import _STRATEGIES, build
from ich_strategies.scaffold import Scaffold
from ich_strategies.strategy import Report, Row, State, Strategy

# --- the server half, by hand -----------------------------------------------------------------------------------------

START = (1.0, -2.0)
"""The weights before the first step in every example below; `mean` is what the hospitals' weights average to."""


@dataclass(frozen=True)
class Example:
    """Two consecutive server steps from START: what came back, and the weights that must result."""

    strategy: Strategy
    means: tuple[tuple[float, float], tuple[float, float]]
    weights: tuple[tuple[float, float], tuple[float, float]]
    state: Mapping[str, tuple[float, float]]
    """After the second step."""


EXAMPLES = {
    "fedavg": Example(FedAvg(), ((8.0, -3.0), (0.5, 4.0)), ((8.0, -3.0), (0.5, 4.0)), {}),
    # beta .25, eta 2.
    # w - mean = (1, -1) = v; w = (1, -2) - 2 v = (-1, 0)
    # w - mean = (-1, -4); v = .25 (1, -1) + (-1, -4) = (-.75, -4.25); w = (-1, 0) - 2 v
    "fedavgm": Example(
        FedAvgM(server_lr=2.0, momentum=0.25),
        ((0.0, -1.0), (0.0, 4.0)),
        ((-1.0, 0.0), (0.5, 8.5)),
        {"velocity": (-0.75, -4.25)},
    ),
    # beta1 = beta2 = .75, tau 4, eta 21, v starts at 16.
    # D = (11, -1): m = (2.75, -.25), v = 12 + .25 (121, 1) = (42.25, 12.25), sqrt v + tau = (10.5, 7.5)
    # w = (1, -2) + 21 (2.75 / 10.5, -.25 / 7.5) = (6.5, -2.7)
    # D = (41.5, 11.5): m = (2.0625 + 10.375, -.1875 + 2.875) = (12.4375, 2.6875)
    # v = (31.6875 + 430.5625, 9.1875 + 33.0625) = (462.25, 42.25), sqrt v + tau = (25.5, 10.5)
    # w = (6.5 + 261.1875 / 25.5, -2.7 + 5.375)
    "fedadam": Example(
        FedOpt("fedadam", server_lr=21.0, beta1=0.75, beta2=0.75, tau=4.0),
        ((12.0, -3.0), (48.0, 8.8)),
        ((6.5, -2.7), (16.742647058823529, 2.675)),
        {"m": (12.4375, 2.6875), "v": (462.25, 42.25)},
    ),
    # beta1 .75, beta2 .4375 (1 - beta2 = .5625 = .75^2), tau 1, eta 9, v starts at 1.
    # D = (3.2, -.8): D^2 = (10.24 > 1, .64 < 1): v = (1 + 5.76, 1 - .36) = (6.76, .64), sqrt v + tau = (3.6, 1.8)
    # m = (.8, -.2); w = (1 + 9 * .8 / 3.6, -2 - 9 * .2 / 1.8) = (3, -3)
    # D = (2.08, 2): D^2 = (4.3264 < 6.76, 4 > .64): v = (6.76 - 2.4336, .64 + 2.25) = (4.3264, 2.89)
    # m = (.6 + .52, -.15 + .5) = (1.12, .35), sqrt v + tau = (3.08, 2.7); w = (3 + 36/11, -3 + 7/6)
    "fedyogi": Example(
        FedOpt("fedyogi", server_lr=9.0, beta1=0.75, beta2=0.4375, tau=1.0),
        ((4.2, -2.8), (5.08, -1.0)),
        ((3.0, -3.0), (6.272727272727273, -1.8333333333333333)),
        {"m": (1.12, 0.35), "v": (4.3264, 2.89)},
    ),
    # beta1 .75, tau 3, eta 16, v starts at 9; beta2 plays no part.
    # D = (4, -1.6): m = (1, -.4), v = (25, 11.56), sqrt v + tau = (8, 6.4); w = (1 + 16 / 8, -2 - 6.4 / 6.4)
    # D = (12, 6.375): m = (.75 + 3, -.3 + 1.59375) = (3.75, 1.29375), v = (169, 11.56 + 40.640625)
    # sqrt v + tau = (16, 10.225); w = (3 + 60 / 16, -3 + 20.7 / 10.225)
    "fedadagrad": Example(
        FedOpt("fedadagrad", server_lr=16.0, beta1=0.75, beta2=0.3, tau=3.0),
        ((5.0, -3.6), (15.0, 3.375)),
        ((3.0, -3.0), (6.75, -0.9755501222493888)),
        {"m": (3.75, 1.29375), "v": (169.0, 52.200625)},
    ),
    # eta 1.5; the variates' mean change counts by the replying hospitals' share, here .25 and then .5.
    # w = (1, -2) + 1.5 (2, -4) = (4, -8), c = .25 (8, -4) = (2, -1)
    # w = (4, -8) + 1.5 (-2, 6) = (1, 1), c = (2, -1) + .5 (-2, 4) = (1, 1)
    "scaffold": Example(
        Scaffold(server_lr=1.5), ((3.0, -6.0), (2.0, -2.0)), ((4.0, -8.0), (1.0, 1.0)), {"variate": (1.0, 1.0)}
    ),
}
CHANGES = ((8.0, -4.0), (-2.0, 4.0))
SHARES = (0.25, 0.5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_two_server_steps_by_hand(name: str) -> None:
    example = EXAMPLES[name]
    weights = np.array(START)
    state = example.strategy.start(weights)
    for mean, change, share, expected in zip(example.means, CHANGES, SHARES, example.weights, strict=True):
        before = weights.copy()
        sent = {"weights": np.array(mean), "variate": np.array(change)}
        new, state = example.strategy.step(weights, sent, state, share)
        np.testing.assert_allclose(new, expected, rtol=1e-14)
        np.testing.assert_array_equal(weights, before, err_msg="the round's start was overwritten")
        weights = new
    assert state.keys() == example.state.keys()
    for key, value in example.state.items():
        np.testing.assert_allclose(state[key], value, rtol=1e-14)


@pytest.mark.parametrize("name", EXAMPLES)
def test_float32_stays_float32(name: str) -> None:
    """Stock FedAdam returns float64; here weights and state keep the exchanged dtype, which doubles no message."""
    example = EXAMPLES[name]
    weights = np.array(START, dtype=np.float32)
    state = example.strategy.start(weights)
    sent = {"weights": np.array(example.means[0], np.float32), "variate": np.array(CHANGES[0], np.float32)}
    new, after = example.strategy.step(weights, sent, state, SHARES[0])
    assert {new.dtype, *(row.dtype for row in state.values()), *(row.dtype for row in after.values())} == {
        np.dtype(np.float32)
    }
    np.testing.assert_allclose(new, example.weights[0], rtol=1e-6)


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_unmoved_weights_stay(name: str) -> None:
    """A zero update moves nothing, and divides by no zero."""
    strategy = FedOpt(name, server_lr=0.1, beta1=0.9, beta2=0.99, tau=1e-8)
    weights = np.array(START, np.float32)
    new, _ = strategy.step(weights, {"weights": weights}, strategy.start(weights), 1.0)
    np.testing.assert_array_equal(new, weights)


def test_fedavg_is_the_patient_weighted_mean() -> None:
    """3 patients at (1, 2) and 1 at (5, -2): ((3 + 5) / 4, (6 - 2) / 4)."""
    means = WeightedMeans()
    means.add(["all"], {"weights": np.array([[1.0, 2.0]])}, [3])
    means.add(["all"], {"weights": np.array([[5.0, -2.0]])}, [1])
    weights, state = FedAvg().step(np.array(START), means.mean("all"), {}, 1.0)
    np.testing.assert_array_equal(weights, [2.0, 1.0])
    assert state == {}


def test_defaults_of_the_base() -> None:
    """What an algorithm does not change is federated averaging: nothing local, nothing added, nothing kept."""
    gradient, weight = torch.ones(2, 3), torch.zeros(2, 3)
    base = Strategy()
    assert base.direction(gradient, weight, weight + 1, {}, {}) is gradient
    report = base.report(weight, weight, {}, {}, 1.0)
    assert (dict(report.sent), dict(report.kept), base.sends, base.start(np.ones(3))) == ({}, {}, (), {})
    assert not base.local(nn.BatchNorm1d(3))


# --- FedProx ----------------------------------------------------------------------------------------------------------


def proximal(mu: float, weight: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """(mu / 2) ||w - w_t||^2, the term of eq. 2."""
    return mu / 2 * ((weight - start) ** 2).sum()


def test_fedprox_adds_the_gradient_of_its_term() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, start, gradient = torch.randn((3, 2, 4, 5), generator=generator, dtype=torch.float64)
    mu = 0.7
    added = FedProx(mu).direction(gradient, weight, start, {}, {}) - gradient

    leaf = weight.clone().requires_grad_()
    proximal(mu, leaf, start).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(added, leaf.grad, rtol=1e-12, atol=1e-12)

    step = 1e-6
    for index in np.ndindex(*weight.shape):
        nudge = torch.zeros_like(weight)
        nudge[index] = step
        slope = (proximal(mu, weight + nudge, start) - proximal(mu, weight - nudge, start)) / (2 * step)
        assert added[index].item() == pytest.approx(slope.item(), abs=1e-8)


def test_fedprox_by_hand() -> None:
    """g = 1, w = 3, w_t = 1, mu = .5: 1 + .5 (3 - 1) = 2; at the start itself nothing is added."""
    one, three = torch.tensor([1.0]), torch.tensor([3.0])
    assert FedProx(0.5).direction(one, three, one, {}, {}).item() == 2.0
    assert torch.equal(FedProx(0.5).direction(three, one, one, {}, {}), three)


# --- SCAFFOLD ---------------------------------------------------------------------------------------------------------

Vector = NDArray[np.float64]
Gradient = Callable[[Vector], Vector]
ROUNDS: tuple[tuple[int, ...], ...] = ((0, 1, 2), (0, 1), (1, 2), (2,), (0, 2), (0, 1, 2))
RATES = ((0.1, 0.1, 0.05), (0.2, 0.1), (0.15, 0.1, 0.05, 0.05))
"""Learning rate of each local step, per hospital: they differ in number, and a schedule lowers them."""
SIZES = (5, 20, 11)


def hospital_gradients(loss: str) -> list[Gradient]:
    """Full-batch gradients of three hospitals whose optima differ."""
    rng = np.random.default_rng(7)
    gradients: list[Gradient] = []
    for number, size in enumerate(SIZES):
        x = rng.normal(size=(size, 4)) + 0.5 * number
        noise = rng.normal(size=size)
        signal = x @ rng.normal(size=4) + noise
        y = signal if loss == "squares" else (signal > 0).astype(float)

        def gradient(w: Vector, x: Vector = x, y: Vector = y) -> Vector:
            predicted = x @ w if loss == "squares" else 1 / (1 + np.exp(-x @ w))
            return x.T @ (predicted - y) / len(y) / 4

        gradients.append(gradient)
    return gradients


def weighted(vectors: Mapping[int, Vector]) -> Vector:
    """Mean over these hospitals by patients."""
    total = np.zeros(4)
    for i, vector in vectors.items():
        total += SIZES[i] * vector
    return total / sum(SIZES[i] for i in vectors)


def twin(gradients: Sequence[Gradient], members: Sequence[int], server_lr: float) -> list[tuple[Vector, Vector]]:
    """Karimireddy et al. 2020, Algorithm 1 with option II, line by line; (x, c) after each round.

    Means over hospitals are weighted by patients. Instead of line 17's increment c is what it stands for: the mean of
    all hospitals' variates, the absent ones' old ones included.
    """
    x = np.zeros(4)
    c = np.zeros(4)
    variates = {i: np.zeros(4) for i in members}
    history = []
    for sampled in ROUNDS:
        present = [i for i in sampled if i in members]
        models = {}
        for i in present:
            y = x.copy()
            for rate in RATES[i]:
                y = y - rate * (gradients[i](y) - variates[i] + c)
            models[i] = y
        for i, y in models.items():
            variates[i] = variates[i] - c + (x - y) / sum(RATES[i])
        if present:
            x = x + server_lr * (weighted(models) - x)
            c = weighted(variates)
        history.append((x, c))
    return history


def train(strategy: Strategy, gradients: Sequence[Gradient], folds: Mapping[str, Sequence[int]], rounds: Any) -> Any:
    """The same rounds through the strategy's own halves, all folds of a hospital in one (F, size) row block."""
    weights: dict[str, Vector] = {fold: np.zeros(4) for fold in folds}
    states = {fold: strategy.start(weights[fold]) for fold in folds}
    kept = {i: {name: torch.zeros(len(folds), 4, dtype=torch.float64) for name in strategy.sends} for i in range(3)}
    names = list(folds)
    history: dict[str, list[tuple[Vector, Any]]] = {fold: [] for fold in folds}
    for sampled in rounds:
        means = WeightedMeans()
        for i in sampled:
            mine = [fold for fold in names if i in folds[fold]]
            rows = [names.index(fold) for fold in mine]
            start = torch.from_numpy(np.stack([weights[fold] for fold in mine]))
            server = {name: torch.from_numpy(np.stack([states[f][name] for f in mine])) for name in strategy.sends}
            client = {name: value[rows] for name, value in kept[i].items()}
            y = start.clone()
            for rate in RATES[i]:
                gradient = torch.from_numpy(np.stack([gradients[i](row) for row in y.numpy()]))
                y -= rate * strategy.direction(gradient, y, start, server, client)
            report = strategy.report(start, y, server, client, sum(RATES[i]))
            for name, value in report.kept.items():
                kept[i][name][rows] = value
            sent = {"weights": y.numpy(), **{name: value.numpy() for name, value in report.sent.items()}}
            means.add(mine, sent, [SIZES[i]] * len(mine))
        for fold in means.weights:
            share = means.weights[fold] / sum(SIZES[i] for i in folds[fold])
            new, states[fold] = strategy.step(weights[fold], means.mean(fold), states[fold], share)
            weights[fold] = new.astype(np.float64, copy=False)
        for fold in folds:
            history[fold].append((weights[fold], states[fold]))
    return history


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
@pytest.mark.parametrize("loss", ["squares", "logistic"])
def test_scaffold_equals_the_papers_pseudocode(loss: str, server_lr: float) -> None:
    gradients = hospital_gradients(loss)
    folds = {"all": (0, 1, 2), "without:2": (0, 1), "without:0": (1, 2)}
    history = train(Scaffold(server_lr), gradients, folds, ROUNDS)
    for fold, members in folds.items():
        for (weights, state), (x, c) in zip(history[fold], twin(gradients, members, server_lr), strict=True):
            np.testing.assert_allclose(weights, x, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(state["variate"], c, rtol=1e-12, atol=1e-14)
        assert np.abs(weights).max() > 0.03, "nothing was learnt: the comparison says nothing"
        assert np.abs(state["variate"]).max() > 1e-3


def test_scaffold_removes_client_drift() -> None:
    """Least squares: SCAFFOLD ends where the pooled gradient vanishes; FedAvg, with these unequal hospitals, does not."""
    gradients = hospital_gradients("squares")

    def pooled_gradient(w: Vector) -> float:
        return float(np.linalg.norm(weighted({i: gradient(w) for i, gradient in enumerate(gradients)})))

    folds, rounds = {"all": (0, 1, 2)}, [(0, 1, 2)] * 1500
    assert pooled_gradient(train(Scaffold(1.0), gradients, folds, rounds)["all"][-1][0]) < 1e-9
    assert pooled_gradient(train(FedAvg(), gradients, folds, rounds)["all"][-1][0]) > 1e-3


def test_scaffold_starts_as_fedavg() -> None:
    """Before any variate is known the first round is FedAvg's."""
    gradients = hospital_gradients("logistic")
    folds, first = {"all": (0, 1, 2)}, ROUNDS[:1]
    ours, plain = (train(strategy, gradients, folds, first)["all"][0][0] for strategy in (Scaffold(1.0), FedAvg()))
    np.testing.assert_allclose(ours, plain, rtol=1e-14)


def refused(strategy: dict[str, Any], **settings: Any) -> list[str]:
    """What a strategy has against the rest of the federation file."""
    federation = small.federation(strategy=strategy, **settings)
    return [message for _, message, _ in federation.training.strategy.contradictions(federation)]


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "adam", "lr": 0.1}, {"name": "sgd", "lr": 0.1, "momentum": 0.9}],
    ids=["adam", "momentum"],
)
def test_scaffold_refuses_what_its_variates_cannot_undo(optimizer: dict[str, Any]) -> None:
    """(x - y) / (K eta) is the mean gradient under plain SGD; momentum .9 makes it up to ten times as large."""
    (message,) = refused({"name": "scaffold"}, stage={"optimizer": optimizer})
    assert message.startswith("scaffold needs plain sgd")
    assert not refused({"name": "fedavg"}, stage={"optimizer": optimizer})
    assert not refused({"name": "scaffold"}, stage={"optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.01}})


def test_fedbn_refuses_what_would_mix_layers_of_two_rounds() -> None:
    network = {"name": "mlp", "hidden": [4], "normalisation": "batch"}
    best = {"choose_round": "best", "validation": 0.2}
    (message,) = refused({"name": "fedbn"}, network=network, evaluation=best)
    assert "cannot go back to the best round" in message
    assert not refused({"name": "fedbn"}, network=network)
    assert not refused({"name": "fedavg"}, network=network, evaluation=best)
    assert len(refused({"name": "fedbn"})) == 1


# --- a strategy of one's own (docs/extending.md) ------------------------------------------------------------------------


@dataclass(frozen=True)
class FedNova(Strategy):
    """x <- x - (sum p_i a_i) sum p_i d_i, d_i = (x - y_i) / a_i, a_i the learning rates' sum (Wang et al. 2020, eq. 6)."""

    def report(self, start: torch.Tensor, end: torch.Tensor, server: Any, client: Any, rate: float) -> Report:
        return Report(sent={"direction": (start - end) / rate, "rate": start.new_full((len(start), 1), rate)})

    def returns(self, size: int) -> Mapping[str, int]:
        return {"direction": size, "rate": 1}

    def step(self, weights: Row, mean: State, state: State, share: float) -> tuple[Row, State]:
        return weights - mean["rate"] * mean["direction"], state


def test_a_strategy_may_return_more_than_the_server_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FedNova in a whole study, against its formula on the weights that FedAvg's hospitals end at."""
    settings = small.federation(stage={"rounds": 1}, evaluation={"leave_one_hospital_out": False, "test": 0.2})
    ends: dict[int, Any] = {}
    sizes: dict[int, int] = {}

    def watched(client: Any) -> Any:
        def call(message: Any, context: Any) -> Any:
            reply = client(message, context)
            if message.metadata.message_type == TRAIN:
                answer, rows = from_record(reply.content, TrainReply)
                ends[message.metadata.dst_node_id] = rows["weights"][0].astype(float)
                sizes[message.metadata.dst_node_id] = answer.patients[0]
                ends[0] = from_record(message.content, TrainTask)[1]["weights"][0].astype(float)
            return reply

        return call

    small.study(settings, small.hospitals(), tmp_path / "fedavg", around=watched)
    monkeypatch.setitem(_STRATEGIES, "fedavg", FedNova)
    found = small.study(settings, small.hospitals(), tmp_path / "fednova")
    start = ends.pop(0)
    steps = {node: 2 * -(-size // 16) * 0.1 for node, size in sizes.items()}  # 2 epochs, batches of 16, rate 0.1
    assert len(set(steps.values())) > 1
    p = {node: size / sum(sizes.values()) for node, size in sizes.items()}
    tau = sum(p[node] * steps[node] for node in p)
    expected = start - tau * sum(p[node] * (start - ends[node]) / steps[node] for node in p)
    np.testing.assert_allclose(found.rows["weights"][0], expected, rtol=1e-5)
    assert not np.allclose(expected, sum(p[node] * ends[node] for node in p), rtol=1e-3), "FedAvg would be the same"


def test_a_report_that_was_not_declared_is_a_defect_of_the_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Forgetful(FedNova):
        def returns(self, size: int) -> Mapping[str, int]:
            return {"direction": size}

    monkeypatch.setitem(_STRATEGIES, "fedavg", Forgetful)
    plan = Plan(small.federation(), 1)
    site = small.sites(plan, small.hospitals(), tmp_path)["north"]
    rows = {"weights": plan.start.numpy(), "constants": site.constants(0).numpy()}
    task = TrainTask(federation=plan.hash, seed=1, round=1, folds=["all"], final=False)
    with pytest.raises(ValueError, match=r"Forgetful.report and .returns do not agree"):
        train_at(site, task, rows)


# --- FedBN ------------------------------------------------------------------------------------------------------------


def test_fedbn_keeps_normalisation_and_nothing_else() -> None:
    network = build_network(Mlp(name="mlp", hidden=[4, 3], normalisation="batch", dropout=0.1), 5, seed=0)
    local = kept_local(network, FedBN().local)
    assert {name: tuple(shape) for name, shape in local.shapes.items()} == {
        "body.1.weight": (4,),
        "body.1.bias": (4,),
        "body.1.running_mean": (4,),
        "body.1.running_var": (4,),
        "body.5.weight": (3,),
        "body.5.bias": (3,),
        "body.5.running_mean": (3,),
        "body.5.running_var": (3,),
    }
    assert list(exchanged(network, FedBN().local).shapes) == [
        *("body.0.weight", "body.0.bias", "body.4.weight", "body.4.bias", "output.weight", "output.bias"),
    ]
    assert list(constants(network).shapes) == ["input.fill", "input.centre", "input.scale"]


@pytest.mark.parametrize(
    ("module", "stays"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm3d(4), True),
        (nn.InstanceNorm3d(4, affine=True), True),
        (nn.LayerNorm(4), True),
        (nn.GroupNorm(2, 4), True),
        (nn.Linear(4, 4), False),
        (nn.Dropout(0.1), False),
        (nn.Sequential(nn.BatchNorm1d(4)), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fedbn_asks_the_module(module: nn.Module, stays: bool) -> None:
    assert FedBN().local(module) is stays


# --- the registry -----------------------------------------------------------------------------------------------------

UNION, *_ = get_args(StrategyOptions)
NAMED = {name: model for model in get_args(UNION) for name in get_args(model.model_fields["name"].annotation)}
REQUIRED = {
    "fedprox": {"mu": 0.01},
    "qfedavg": {"client_learning_rate": 0.1},
    "central_dp": {"noise_multiplier": 1.0, "clipping_norm": 1.0},
}


@pytest.mark.parametrize("name", NAMED)
def test_every_option_builds_its_strategy(name: str) -> None:
    options = TypeAdapter(StrategyOptions).validate_python({"name": name, **REQUIRED.get(name, {})})
    strategy = build(options)
    assert type(options) is NAMED[name]
    if isinstance(strategy, FlowerStrategy):
        assert strategy == FlowerStrategy(name, options.model_dump(exclude={"name"}))
        return
    assert type(strategy).__name__ == type(options).__name__
    for key, value in options.model_dump(exclude={"name"}).items():
        assert getattr(strategy, key) == value
    if name in SECOND_MOMENTS:
        assert vars(strategy)["name"] == name


def test_every_registered_name_is_an_option() -> None:
    assert {*_STRATEGIES, *SECOND_MOMENTS, *FLOWERS} == NAMED.keys()
    assert not _STRATEGIES.keys() & SECOND_MOMENTS.keys()


@pytest.mark.parametrize(
    "options",
    [
        {"name": "fedprox"},
        {"name": "fedprox", "mu": -0.1},
        {"name": "scaffold", "server_lr": 0},
        {"name": "fedavgm", "momentum": 1},
        {"name": "fedadam", "beta1": 1},
        {"name": "fedyogi", "beta2": 1},
        {"name": "fedadagrad", "tau": 0},
        {"name": "fedavg", "mu": 0.1},
        {"name": "fednova"},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(StrategyOptions).validate_python(options)
