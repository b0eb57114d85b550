"""Recalibration: the line against statsmodels, and a network whose last layer has taken it up."""

from typing import Any

import numpy as np
import pytest
import small
import statsmodels.api as sm
import torch
from scipy.special import expit, logit

from ich_client.work import predict
from ich_models import recalibration
from ich_models.batch import Patients
from ich_models.exchange import Layout
from ich_strategies.plan import Plan


def patients(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=n)
    return (generator.random(n) < expit(0.4 + 0.6 * x)).astype(int), expit(x)


def test_the_line_is_statsmodels() -> None:
    y, p = patients()
    slope = sm.Logit(y, sm.add_constant(logit(p))).fit(disp=0, tol=1e-14)
    large = sm.GLM(y, np.ones((300, 1)), family=sm.families.Binomial(), offset=logit(p)).fit(tol=1e-14)
    assert recalibration.fit(y, p, "slope") == pytest.approx(tuple(slope.params), abs=1e-8)
    assert recalibration.fit(y, p, "intercept") == pytest.approx((large.params[0], 1.0), abs=1e-8)


def test_the_order_of_patients_changes_no_bit() -> None:
    y, p = patients()
    mixed = np.random.default_rng(0).permutation(300)
    for kind in ("slope", "intercept"):
        assert recalibration.fit(y, p, kind) == recalibration.fit(y[mixed], p[mixed], kind)


@pytest.mark.parametrize("y", [[0] * 6, [1] * 6, [0, 0, 0, 1, 1, 1]])
def test_there_is_no_line_for_one_class_or_classes_apart(y: list[int]) -> None:
    assert recalibration.fit(y, [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], "slope") is None


NETWORKS: list[dict[str, Any]] = [
    {"name": "logistic", "dtype": "float64", "init": "random"},
    {"name": "mlp", "dtype": "float64", "hidden": [5]},
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: str(one["name"]))
def test_the_last_layer_says_the_line_of_what_it_said(network: dict[str, Any]) -> None:
    plan = Plan(small.federation(network=network), 1)
    rows = {"weights": plan.start.numpy(), "constants": np.tile([0.0, 0.0, 1.0], (3, 1)).T.reshape(1, -1)}
    someone = Patients(("a", "b"), np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]), np.array([0, 1]))
    before = predict(plan, rows, someone)[0]
    moved = {**rows, "weights": recalibration.apply(plan.weights, rows["weights"][0], (0.7, 1.3))[None]}
    assert logit(predict(plan, moved, someone)[0]) == pytest.approx(0.7 + 1.3 * logit(before), abs=1e-12)
    untouched = recalibration.apply(plan.weights, rows["weights"][0], recalibration.AS_IT_IS)
    assert untouched.tobytes() == rows["weights"][0].tobytes()


def test_two_outputs_whose_difference_counts() -> None:
    """As ICHPro and MedNVC have: logit = second minus first."""
    layer = torch.nn.Linear(3, 2).double()
    layout = Layout({"output.weight": layer.weight.shape, "output.bias": layer.bias.shape})
    row = torch.cat([layer.weight.flatten(), layer.bias]).detach().numpy()
    weight, bias = np.split(recalibration.apply(layout, row, (0.7, 1.3)), [6])
    x = np.array([0.3, -1.0, 2.0])
    two, before = weight.reshape(2, 3) @ x + bias, layer(torch.from_numpy(x)).detach().numpy()
    assert two[1] - two[0] == pytest.approx(0.7 + 1.3 * (before[1] - before[0]))
