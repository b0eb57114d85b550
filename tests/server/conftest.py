"""Made-up results of a study for the server's tests: 3 hospitals and one seed, 49 and five, one class, a single arm."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.special import expit

from ich_models.metrics import Evaluation, evaluate
from ich_server.results import ARMS, Arm, HospitalData, Quarantined, Results, Study, Training, figures

MakeResults = Callable[..., Results]

SKILL = {"loho": 1.0, "pooled": 1.05, "federated": 1.02, "pooled_within": 1.08, "local": 0.7}
"""How well each arm's score tells events from others."""

LOHO_TESTED = ("loho", "pooled")
"""Arms that are tested on all patients; the others on the last 30 %."""


def _evaluations(arm: str, labels: np.ndarray, risk: np.ndarray, seeds: Sequence[int]) -> list[Evaluation]:
    found = []
    for seed in seeds:
        generator = np.random.default_rng([seed, *arm.encode(), labels.size])
        score = SKILL[arm] * risk + generator.normal(0, 0.5, labels.size)
        found.append(evaluate(labels, expit(score), 0.5, seed=seed, resamples=40))
    return found


def _tested(arm: str, column: np.ndarray) -> np.ndarray:
    return column if arm in LOHO_TESTED else column[-max(2, round(0.3 * column.size)) :]


def make_results(
    hospitals: dict[str, int] | None = None,
    seeds: Sequence[int] = (42,),
    arms: Sequence[str] = ("loho", "pooled", "federated", "local"),
    one_class: Sequence[str] = (),
    quarantined: Sequence[Quarantined] = (),
    rounds: int = 12,
) -> Results:
    """Results as a study would write them: hospital -> patients; figures by `evaluate` from made-up patients."""
    sizes = {"north": 80, "east": 90, "south": 70} if hospitals is None else hospitals
    generator = np.random.default_rng(7)
    labels: dict[str, np.ndarray] = {}
    risks: dict[str, np.ndarray] = {}
    for name, patients in sizes.items():
        risks[name] = generator.normal(-0.3 + generator.normal(0, 0.3), 1.2 + 0.3 * generator.random(), patients)
        labels[name] = (generator.random(patients) < expit(risks[name])).astype(float)
        if name in one_class:
            labels[name][:] = 0
    found = {}
    for arm in arms:
        per_seed = {
            name: _evaluations(arm, _tested(arm, labels[name]), _tested(arm, risks[name]), seeds) for name in sizes
        }
        together = _evaluations(
            arm,
            np.concatenate([_tested(arm, labels[name]) for name in sizes]),
            np.concatenate([_tested(arm, risks[name]) for name in sizes]),
            seeds,
        )
        of_hospitals = {name: figures(evaluations) for name, evaluations in per_seed.items()}
        found[arm] = Arm(description=ARMS[arm], hospitals=of_hospitals, pooled=figures(together))
    folds = ["all", *(f"without:{name}" for name in sizes)]
    return Results(
        study=Study(
            name="demo",
            description="Made-up patients.",
            federation="3f2a" * 16,
            outcome="poor outcome at 90 days (mRS: poor is >= 3)",
            network="ichpro-tiny",
            strategy="fedavg",
            rounds=rounds,
            threshold="youden",
        ),
        seeds=list(seeds),
        hospitals={
            name: HospitalData(
                n=column.size, events=int(column.sum()), excluded={"no outcome": 3, "age out of range": 1}
            )
            for name, column in labels.items()
        },
        arms=found,
        training={str(seed): _training(folds, rounds, seed) for seed in seeds},
        quarantined=list(quarantined),
    )


def _training(folds: Sequence[str], rounds: int, seed: int) -> Training:
    generator = np.random.default_rng(seed)
    time = np.arange(1, rounds + 1)
    losses = {fold: (0.5 + 0.25 * np.exp(-time / 4) + generator.normal(0, 0.01)).tolist() for fold in folds}
    return Training(losses=losses, thresholds={fold: 0.4 + 0.05 * generator.random() for fold in folds})


@pytest.fixture(scope="session")
def build() -> MakeResults:
    """`make_results`, for a study of one's own."""
    return make_results


@pytest.fixture(scope="session")
def three() -> Results:
    """Three hospitals, one seed, four arms."""
    return make_results()


@pytest.fixture(scope="session")
def many_hospitals() -> Results:
    """49 hospitals with names that sort badly, five seeds; one has a single class, two are tiny; two replies set aside."""
    generator = np.random.default_rng(3)
    sizes = {f"hospital-{index}": int(100 + 300 * generator.random() ** 2) for index in range(1, 48)}
    sizes |= {"kleinstadt": 14, "universitaetsklinikum-mit-sehr-langem-namen": 60}
    return make_results(
        sizes,
        seeds=(42, 43, 44, 45, 46),
        one_class=["hospital-12"],
        quarantined=[
            Quarantined(
                seed=42, when="round 3", hospital="hospital-10", reason="an update with values that are not finite"
            ),
            Quarantined(seed=44, when="evaluation", hospital="hospital-2", reason="no answer within 2 h"),
        ],
        rounds=15,
    )
