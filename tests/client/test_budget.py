"""What a hospital lets a study take: of whom, at which delta, and within its own limit at every reservation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import small
import small_private

from ich_client import work
from ich_client.budget import Budget, too_open
from ich_client.hospital import Limits
from ich_client.ledger import Ledger
from ich_client.site import Site, ledger_in
from ich_client.tasks import RefusedError
from ich_models.accounting import Steps, epsilon, programme
from ich_models.errors import Code
from ich_models.federation import Federation
from ich_models.protocol import CONSTANTS, WEIGHTS, TrainTask
from ich_strategies.plan import Plan

NORTH = small.hospital("north", 80).patients.ids


def budget(folder: Path, study: Federation | None = None, **limits: Any) -> Budget:
    ledger = Ledger(folder / "privacy", folder / "log.jsonl")
    return Budget(study or small_private.federation(), "north", Limits(**limits), NORTH, ledger)


def test_a_round_is_charged_to_every_patient_who_takes_part(tmp_path: Path) -> None:
    member = small.hospital("north", 80)
    plan = Plan(small_private.federation(), 42)
    site = Site(plan, member, tmp_path)
    task = TrainTask(federation=plan.hash, seed=42, round=2, folds=["all"], final=False)
    rows = {WEIGHTS: plan.start_rows([0.0]), CONSTANTS: plan.constants_row(site.moments(0))}
    work.train(site, task, rows)
    ledger = ledger_in(tmp_path, "north")
    assert [len(patients) for patients in ledger.read().cohorts.values()] == [80]
    another = small_private.federation(name="another")
    for patient in (NORTH[0], NORTH[41], NORTH[79]):  # each brings it along into whatever group comes next
        after = Budget(another, "north", Limits(), [patient, *map(str, range(50))], ledger)
        assert [charge.spent.steps for charge in after.charges()] == [8]
    assert Budget(another, "north", Limits(), [str(number) for number in range(50)], ledger).charges() == ()


def test_all_studies_together_are_counted_at_the_smallest_delta(tmp_path: Path) -> None:
    """What was promised at 1e-6 is not made harmless by a later study that is content with 1e-3."""
    now = budget(tmp_path)
    with now.ledger.writing(NORTH) as writer:
        earlier = Steps(3.0, 0.25, 100)
        writer.reserve("b" * 64, 42, "round 1", ["all"], earlier, 1e-6)
    both = [earlier, *now.programme.whole]
    strict, lax = epsilon(both, 1e-6), epsilon(both, 1e-3)
    found = now.terms()
    assert (found.delta, found.total) == (1e-6, pytest.approx(strict))
    assert strict > 1.3 * lax
    for limit, fits in ((strict * 1.001, True), (strict * 0.999, False), (lax * 1.001, False)):
        limited = replace(now, limits=Limits(epsilon=limit))
        assert (limited.refusal() is None) is fits


@pytest.mark.parametrize(
    ("privacy", "metrics", "send_metrics", "why"),
    [
        ("required", None, True, "this study has none"),
        ("required", None, False, "this study has none"),
        ("required", "exact", True, "this study asks for exact figures (privacy.metrics)"),
        ("required", "exact", False, None),  # it asks, and none leave
        ("required", "noised", True, None),
        ("required", "not_sent", True, None),
        ("optional", None, True, None),
        ("optional", "exact", True, None),
    ],
)
def test_what_a_hospital_that_asks_for_privacy_lets_a_study_ask(
    privacy: Literal["optional", "required"], metrics: str | None, send_metrics: bool, why: str | None
) -> None:
    study = small.federation() if metrics is None else small_private.federation({"metrics": metrics})
    assert too_open(Limits(privacy=privacy, send_metrics=send_metrics), study.privacy) == why


@pytest.mark.parametrize(
    ("known", "here", "warned"),
    [
        (range(100), range(100), ""),
        (range(100), range(100, 180), "0 of these 80 patients stand in the ledger, which knows 100"),
        (range(100), range(70, 170), "30 of these 100 patients stand in the ledger, which knows 100"),
        (range(100), range(40, 140), ""),  # 60 are there again: newcomers, and others left
        (range(20), range(100), ""),  # many newcomers: all who could be known are
        ([], range(100), ""),
    ],
)
def test_patients_who_are_not_known_again_are_told(
    tmp_path: Path, known: Sequence[int], here: Sequence[int], warned: str
) -> None:
    """Some of them are enough to be warned: a table in which half of the identifiers were changed has half a fresh budget."""
    now = replace(budget(tmp_path), patients=[f"p{number}" for number in here])
    if known:
        with now.ledger.writing([f"p{number}" for number in known]):
            pass
    found = [problem.message for problem in now.warnings() if "ledger" in problem.message]
    assert found == ([warned] if warned else [])


@pytest.mark.parametrize("earlier", [False, True], ids=["alone", "after a study with a smaller delta"])
def test_own_limit_holds_at_each_reservation(tmp_path: Path, earlier: bool) -> None:
    """With noise of its own for epsilon 1 a hospital has three rounds of three models; one that a crash has lost is lost.

    The study's own promise, 3, would allow many more.
    """
    here = budget(tmp_path, small_private.federation({"own_noise": True}), epsilon=1.0)
    before, delta = [], 1e-3
    if earlier:
        before, delta = [Steps(30.0, 0.25, 1)], 1e-6
        with here.ledger.writing(NORTH) as writer:
            writer.reserve("b" * 64, 42, "round 1", ["all"], before[0], delta)
    folds = ["all", "without:east", "without:south"]
    for number in (1, 2, 3):
        sigma, charge = here.training(42, number, folds)
        assert charge.reserved == Steps(sigma, 0.25, 24)
    assert 0.98 < epsilon([*before, Steps(sigma, 0.25, 72)], delta) <= 1.0
    with pytest.raises(RefusedError, match=r"round 3 would bring epsilon to 1\.\d+; this hospital's limit is 1$") as no:
        here.training(42, 3, folds)
    assert no.value.code == Code.BUDGET
    assert epsilon([Steps(sigma, 0.25, 96)], 1e-3) < programme(here.federation).study
    assert len(here.ledger.read().charges) == 3 + earlier, "what is refused is not written down"


def test_no_model_costs_more_than_was_promised_of_each(tmp_path: Path) -> None:
    """`per: model`: one of three models has three rounds, though the study has steps for nine."""
    here = budget(tmp_path, small_private.federation({"per": "model"}))
    plan, folds = here.programme, ["all", "without:east", "without:south"]
    _, charge = here.training(42, 1, folds)
    here.ledger.settle(charge, 8)  # all three began alike, and were trained once
    for number in (2, 3):
        here.training(42, number, ["all"])
    assert sum(plan.rounds) == 24
    with pytest.raises(
        RefusedError, match=r"round 3 would bring model all to epsilon 3\.\d+; it has promised (3|2\.99) of each"
    ):
        here.training(42, 3, ["without:east", "all"])
    here.training(42, 2, ["without:east", "without:south"])  # the study has room


def test_every_question_is_charged_as_a_step_of_all_patients(tmp_path: Path) -> None:
    """Noised figures are of everybody who is tested, so their rate is 1, whatever that of the training is."""
    here = budget(tmp_path, small_private.federation({"metrics": "noised", "metrics_noise": 20.0}))
    assert here.figures(42, ["without:north"], 1).reserved == Steps(20.0, 1.0, 1)
    assert here.figures(42, ["without:north", "all"], 2).reserved == Steps(20.0, 1.0, 2)


def test_figures_too_stay_within_the_hospitals_limit_with_all_before_them(tmp_path: Path) -> None:
    noised, earlier = Steps(20.0, 1.0, 1), Steps(2.5, 0.25, 72)
    alone, both = epsilon([earlier], 1e-3), epsilon([earlier, noised], 1e-3)
    study = small_private.federation({"metrics": "noised", "metrics_noise": 20.0})
    here = budget(tmp_path, study, epsilon=(alone + both) / 2)
    with here.ledger.writing(NORTH) as writer:
        writer.reserve("b" * 64, 42, "round 1", ["all"], earlier, 1e-3)
    with pytest.raises(RefusedError, match="this hospital's limit is"):
        here.figures(42, ["without:north"], 1)
    replace(here, limits=Limits(epsilon=1.001 * both)).figures(42, ["without:north"], 1)


def test_a_round_beyond_the_plan_is_more_than_the_study_has_promised(tmp_path: Path) -> None:
    here = budget(tmp_path)
    folds = ["all", "without:east", "without:south"]
    for number in (1, 2, 3):
        here.training(42, number, folds)
    with pytest.raises(RefusedError, match=r"round 3 would bring this study to epsilon 3\.\d+; it has promised") as no:
        here.training(42, 3, ["all"])
    assert no.value.code is Code.BUDGET


@pytest.mark.slow
def test_noise_of_ones_own_leaves_room_for_the_figures(tmp_path: Path) -> None:
    study = small_private.federation({"own_noise": True, "metrics": "noised", "metrics_noise": 6.0})
    found = budget(tmp_path, study, epsilon=1.0).terms()
    assert 0.95 < found.total <= 1.0
    assert found.total == pytest.approx(epsilon([Steps(found.sigma, 0.25, 72), Steps(6.0, 1.0, 1)], 1e-3))


@pytest.mark.slow
def test_figures_are_part_of_what_was_promised_of_each_model(tmp_path: Path) -> None:
    """They come after the last round: a round too many would otherwise have spent what they cost."""
    here = budget(tmp_path, small_private.federation({"per": "model", "metrics": "noised", "metrics_noise": 1.8}))
    assert epsilon([Steps(here.programme.sigma, 0.25, 32)], 1e-3) < here.programme.model
    for number in (1, 2, 3):
        here.training(42, number, ["all"])
    with pytest.raises(RefusedError, match="has promised 3 of each"):
        here.training(42, 3, ["all"])


@pytest.mark.slow
def test_all_that_was_planned_of_each_model_fits_for_every_seed(tmp_path: Path) -> None:
    settings = {"per": "model", "metrics": "noised"}
    here = budget(tmp_path, small_private.federation(settings, training={"seeds": [42, 43]}))
    for seed in (42, 43):
        for number in (1, 2, 3):
            here.training(seed, number, ["all", "without:east", "without:south"])
        here.figures(seed, ["without:north"], 1)
    with pytest.raises(RefusedError, match="has promised"):
        here.figures(43, ["without:north"], 1)
