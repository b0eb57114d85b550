"""What a private study tells in place of figures: counts with noise that is really there, as much as epsilon was paid for."""

import math
from pathlib import Path

import numpy as np
import pytest
import small
import small_private

from ich_client import private_releases, work
from ich_client.budget import Budget
from ich_client.ledger import Ledger, spent
from ich_client.noise import Stream
from ich_client.site import Site, ledger_in
from ich_models.accounting import Steps
from ich_models.folds import questions
from ich_models.protocol import CONSTANTS, WEIGHTS, EvaluateTask, Question, Rows
from ich_strategies.plan import Plan


def budget(folder: Path, noise: float) -> Budget:
    member = small.hospital("north")
    study = small_private.federation({"metrics": "noised", "metrics_noise": noise})
    ledger = Ledger(folder / "privacy", folder / "log.jsonl")
    return Budget(study, "north", member.limits, member.patients.ids, ledger)


def test_figures_are_of_counts_with_the_noise_that_was_promised(tmp_path: Path) -> None:
    """Ten bins, each with patients with and without the event: events have the noise of 10 counts, patients of 20.

    2,000 answers about 1,000 patients, 300 with the event; standard deviations within five of their errors (1.6 %).
    """
    asked = budget(tmp_path, noise=4.0)
    labels = (np.arange(1000) < 300).astype(np.int64)
    scores = np.random.default_rng(0).random(1000)
    found = [private_releases.measured(asked, labels, scores, 0.5, Stream()) for _ in range(2000)]
    patients, events = (np.array([getattr(one, name) for one in found], float) for name in ("n", "events"))
    assert patients.mean() == pytest.approx(1000, abs=5 * 4 * math.sqrt(20 / 2000))
    assert patients.std() == pytest.approx(4 * math.sqrt(20), rel=0.08)
    assert events.std() == pytest.approx(4 * math.sqrt(10), rel=0.08)
    areas = np.array([one.metrics["auroc"].value for one in found])
    assert len(np.unique(areas)) > 1900, "each answer has noise of its own"


def test_less_noise_tells_more(tmp_path: Path) -> None:
    """With next to none the figures are those of the counts: 300 of 1,000, all of them above the threshold."""
    labels = (np.arange(1000) < 300).astype(np.int64)
    found = private_releases.measured(budget(tmp_path, 1e-6), labels, np.where(labels, 0.9, 0.1), 0.5, Stream())
    assert (found.n, found.events) == (1000, 300)
    assert found.metrics["auroc"].value == pytest.approx(1.0, abs=1e-6)


def test_each_evaluation_is_charged(tmp_path: Path) -> None:
    """A message that asks for two, of the model that never saw the hospital and of the parts, costs two steps."""
    study = small_private.federation({"metrics": "noised", "epsilon": 8.0}, evaluation={"folds": 2})
    plan = Plan(study, 42)
    site = Site(plan, small.hospital("north"), tmp_path)
    asked = questions(study.evaluation, "north")
    folds = [name for named in asked.values() for name in named]
    assert folds == ["without:north", "part:1", "part:2"]
    told = [Question(arm=arm, folds=named, thresholds=[0.5] * len(named)) for arm, named in asked.items()]
    task = EvaluateTask(federation=plan.hash, seed=42, folds=folds, questions=told)
    constants = plan.constants_row(site.moments(0))
    rows: Rows = {WEIGHTS: plan.start_rows([0.0] * 3), CONSTANTS: constants.repeat(3, axis=0)}
    reply, _ = work.evaluate(site, task, rows)
    assert len(reply.answers) == 2
    assert spent(ledger_in(tmp_path, "north").read().charges) == (Steps(10.0, 1.0, 2),)
    assert work.evaluate(site, task, rows)[0] == reply, "the same again is the same answer, and free"
    assert spent(ledger_in(tmp_path, "north").read().charges) == (Steps(10.0, 1.0, 2),)
    assert site.budget is not None
    assert site.budget.programme.figures == (Steps(10.0, 1.0, 2),), "which is what was planned"
