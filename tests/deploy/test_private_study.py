"""A study with privacy, whole: what leaves, what is charged, and what becomes of a hospital whose budget is spent."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import small_private
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ich_client import egress, splits, work
from ich_client.budget import Budget
from ich_client.hospital import Limits
from ich_client.ledger import Ledger, spent
from ich_client.policy import guard
from ich_client.site import Site, ledger_in
from ich_client.tables import Hospital
from ich_client.tasks import RefusedError
from ich_client.tasks import check as check_task
from ich_models.accounting import Steps, epsilon, programme
from ich_models.errors import Code, Exclusion, RunError
from ich_models.federation import Federation
from ich_models.protocol import (
    CONSTANTS,
    WEIGHTS,
    EvaluateTask,
    Question,
    Refusal,
    Rows,
    StatisticsReply,
    StatisticsTask,
    TrainReply,
    TrainTask,
    from_record,
    is_refusal,
    to_record,
)
from ich_models.statistics import Moments
from ich_server import checkpoint
from ich_strategies.plan import Plan


def limited(member: Hospital, **limits: Any) -> Hospital:
    return replace(member, limits=Limits(small_cells=0, **limits))


def total(folder: Path, name: str) -> tuple[Steps, ...]:
    """What a hospital's ledger holds."""
    return spent(ledger_in(folder / "hospitals", name).read().charges)


def listening(kept: list[RecordDict]) -> Callable[[ClientApp], ClientApp]:
    """Keep every reply."""

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            kept.append(reply.content)
            return reply

        return call  # type: ignore[return-value]

    return around


def text(record: RecordDict) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(str(record["message"]["json"]))  # type: ignore[index,call-overload]
    return said


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_nothing_but_public_numbers_and_noised_weights_leaves(tmp_path: Path) -> None:
    study = small_private.federation({"patients": {"rounded_to": 25}, "metrics": "not_sent"}, evaluation={"test": 0.2})
    replies: list[RecordDict] = []
    first, *others = small.hospitals()
    lacking = replace(first, excluded={Exclusion.OUTCOME: 1})
    result = small.study(study, [lacking, *others], tmp_path, around=listening(replies))
    assert result.answers == {}
    said = [text(record) for record in replies]
    # east has 50 patients, north 80, south 65; a fifth of what is stated is for the test
    stated = {"east": (50, 40), "north": (75, 60), "south": (75, 60)}
    for each in said:
        whole, training = stated[each["hospital"]]
        if "parts" in each:
            nothing = {"patients": training, "events": None, "count": [None] * 3, "mean": [0.0] * 3, "m2": [0.0] * 3}
            assert each["patients"] == whole
            assert each["parts"] == {"0": nothing}
            assert each["events"] is None
            assert each["excluded"] == {}
        else:
            folds = len(each["patients"])
            assert each == {
                "hospital": each["hospital"],
                "patients": [training] * folds,
                "losses": [None] * folds,
                "validation_losses": [None] * folds,
                "seen": {},
            }
    assert len(said) == 3 + 3 * 3


def test_one_patient_more_changes_no_other_number(tmp_path: Path) -> None:
    study = small_private.federation({"patients": {"rounded_to": 50}})
    plan = Plan(study, 42)
    task = StatisticsTask(federation=plan.hash, seed=42, parts=[0])
    found = []
    for number in (80, 81):
        site = Site(plan, small.hospital("north", number), tmp_path / str(number))
        found.append(egress.release(site, task, work.statistics(site, task), {})[0])
    assert found[0] == found[1]


def test_whoever_knows_the_seed_does_not_know_the_noise(tmp_path: Path) -> None:
    study = small_private.federation({"epsilon": 50})  # little noise: what is learnt is sure to be seen
    one, other = (small.study(study, small.hospitals(), tmp_path / name).rows[WEIGHTS] for name in ("a", "b"))
    assert np.abs(one - other).min() > 0
    private, open_study = one[0, :2], small.federation(table=small_private.TABLE, evaluation={"threshold": 0.5})
    exact = small.study(open_study, small.hospitals(), tmp_path / "c").rows[WEIGHTS][0, :2]
    assert np.sign(private).tolist() == np.sign(exact).tolist()  # it learns the same


def test_columns_are_scaled_by_public_numbers(tmp_path: Path) -> None:
    study = small_private.federation({"public": {"b": {"mean": 4.0, "sd": 2.0}}, "metrics": "not_sent"})
    constants = small.study(study, small.hospitals(), tmp_path).rows[CONSTANTS][0]
    # fill, centre, scale of a, b, c: a and c lie anywhere within -10 to 10
    uniform = 12**0.5 / 20
    assert constants == pytest.approx([0, 4, 0, 0, 4, 0, uniform, 0.5, uniform], rel=1e-6)


def test_yes_and_no_stay_as_they_are_and_numbers_from_0_do_not() -> None:
    """a: 0 or 1; b: 0 to 12, so 6 and 12 / sqrt(12) about it; c: published. Nobody's own numbers have a say."""
    number = {"type": "number", "known_at": "admission", "range": [0, 12]}
    variables = {
        "a": {"type": "yes_no", "known_at": "admission"},
        "b": number,
        "c": number,
        "mrs": small_private.TABLE["variables"]["mrs"],
    }
    settings = small.federation(
        table={"variables": variables},
        privacy={**small_private.PRIVACY, "public": {"c": {"mean": 5.0, "sd": 2.0}}},
        evaluation={"threshold": 0.5},
    )
    nothing = Moments(60, 0, 0, np.zeros(3), np.zeros(3), np.zeros(3), np.ones(3, np.bool_))
    constants = Plan(settings, 42).constants_row(nothing)[0]
    assert constants == pytest.approx([0.5, 6, 5, 0, 6, 5, 1, 12**0.5 / 12, 0.5], rel=1e-6)


def test_a_weight_without_noise_does_not_pass_as_statistics(tmp_path: Path) -> None:
    study = small_private.federation({"metrics": "not_sent"})
    plan = Plan(study, 42)
    site = Site(plan, small.hospital("north"), tmp_path)
    question = Question(arm="loho", folds=["without:north"], thresholds=[0.5])
    task = EvaluateTask(federation=plan.hash, seed=42, folds=["without:north"], questions=[question])
    rows = {WEIGHTS: plan.start_rows([0.0]), CONSTANTS: plan.constants_row(site.moments(0))}
    with pytest.raises(RefusedError) as refused:
        check_task(plan, "north", task, rows)
    assert refused.value.code == Code.POLICY
    with pytest.raises(RefusedError) as refused:  # and if it were asked, it would not leave
        egress.release(site, task, *work.evaluate(site, task, rows))
    assert refused.value.code == Code.EGRESS


# --- what is charged --------------------------------------------------------------------------------------------------


def test_study_spends_what_it_planned_and_not_more(tmp_path: Path) -> None:
    study = small_private.federation({"metrics": "noised", "metrics_noise": 5.0})
    plan = programme(study)
    small.study(study, small.hospitals(), tmp_path)
    # round 1: all models begin alike and are trained once; rounds 2 and 3: three models of eight steps
    wanted = (Steps(plan.sigma, 0.25, 8 + 2 * 24), Steps(5.0, 1.0, 1))
    for name in ("east", "north", "south"):
        assert total(tmp_path, name) == wanted
    assert epsilon(wanted, 1e-3) < plan.study <= 3.0


def test_same_question_gets_the_same_bytes_and_another_one_is_charged(tmp_path: Path) -> None:
    plan = Plan(small_private.federation(), 42)
    site = Site(plan, small.hospital("north"), tmp_path)
    task = TrainTask(federation=plan.hash, seed=42, round=2, folds=["all"], final=False)
    rows: Rows = {WEIGHTS: plan.start_rows([0.0]), CONSTANTS: plan.constants_row(site.moments(0))}
    reply, sent = work.train(site, task, rows)
    again = work.train(Site(plan, small.hospital("north"), tmp_path), task, rows)  # after a restart
    assert again[0] == reply
    assert again[1][WEIGHTS].tobytes() == sent[WEIGHTS].tobytes()
    assert total(tmp_path.parent, tmp_path.name) == ()
    assert spent(ledger_in(tmp_path, "north").read().charges)[0].steps == 8
    other = {**rows, WEIGHTS: rows[WEIGHTS] + np.float32(1e-6)}
    assert work.train(site, task, other)[1][WEIGHTS].tobytes() != sent[WEIGHTS].tobytes()
    assert spent(ledger_in(tmp_path, "north").read().charges)[0].steps == 16


def test_failed_training_stays_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(small_private.federation(), 42)
    site = Site(plan, small.hospital("north"), tmp_path)
    task = TrainTask(federation=plan.hash, seed=42, round=2, folds=["all"], final=False)
    rows: Rows = {WEIGHTS: plan.start_rows([0.0]), CONSTANTS: plan.constants_row(site.moments(0))}

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the power went")

    monkeypatch.setattr(work, "fit_private", broken)
    with pytest.raises(RuntimeError):
        work.train(site, task, rows)
    assert spent(ledger_in(tmp_path, "north").read().charges)[0].steps == 8


def test_resumed_study_is_charged_once(tmp_path: Path) -> None:
    study = small_private.federation()

    def crash(report: Any) -> None:
        if report.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.study(study, small.hospitals(), tmp_path, watch=crash)
    # the server lost its last checkpoint too: it asks for round 2 again, with the weights that it asked with before
    newest = checkpoint.newest(tmp_path / "server")
    next((tmp_path / "server").glob(f"*{newest:06d}*")).unlink()
    small.study(study, small.hospitals(), tmp_path, resume=True)
    assert total(tmp_path, "north") == (Steps(programme(study).sigma, 0.25, 56),)


# --- when it is spent -------------------------------------------------------------------------------------------------


def test_spent_budget_ends_a_hospital_s_part_and_not_the_study(tmp_path: Path) -> None:
    study = small_private.federation()
    plan, north = programme(study), small.hospitals()[1]
    with ledger_in(tmp_path / "hospitals", "north").writing(north.patients.ids) as writer:  # lost to a crash
        writer.reserve(study.hash, 42, "round 1", ["all"], Steps(plan.sigma, 0.25, 32), 1e-3)
    replies: list[RecordDict] = []
    result = small.study(study, small.hospitals(), tmp_path, around=listening(replies))
    assert [(each.when, each.hospital, each.reason) for each in result.quarantined] == [
        ("round 3", "north", "refused with code BUDGET")
    ]
    refusals = [record for record in replies if is_refusal(record)]
    assert [text(record) for record in refusals] == [{"code": "BUDGET"}]  # and not a word more
    assert {name: len(answers) for name, answers in result.answers.items()} == {"east": 1, "north": 1, "south": 1}
    assert [entry["round"] for entry in result.history] == [1, 2, 3]
    assert epsilon(total(tmp_path, "north"), 1e-3) <= plan.study


def test_lower_limit_without_own_noise_stays_out(tmp_path: Path) -> None:
    study = small_private.federation(quorum={"hospitals": 2})
    east, north, south = small.hospitals()
    result = small.study(study, [east, limited(north, epsilon=1.0), south], tmp_path)
    assert set(result.hospitals) == {"east", "south"}
    assert [(each.when, each.reason) for each in result.quarantined] == [("statistics", "refused with code BUDGET")]
    assert total(tmp_path, "north") == ()


def test_lower_limit_with_own_noise_trains_with_more_of_it(tmp_path: Path) -> None:
    study = small_private.federation({"own_noise": True})
    east, north, south = small.hospitals()
    result = small.study(study, [east, limited(north, epsilon=1.0), south], tmp_path)
    assert result.quarantined == []
    mine, theirs = total(tmp_path, "north")[0].sigma, total(tmp_path, "south")[0].sigma
    assert theirs == programme(study).sigma
    assert mine > 2 * theirs
    assert 0.98 < epsilon([Steps(mine, 0.25, 72)], 1e-3) <= 1.0  # all that was planned; round 1 cost less


def test_studies_on_the_same_patients_add_up(tmp_path: Path) -> None:
    first, second = small_private.federation(), small_private.federation(name="another")
    members = [limited(member, epsilon=4.0) for member in small.hospitals()]
    small.study(first, members, tmp_path / "one")
    hospitals = tmp_path / "one" / "hospitals"
    plan = Plan(second, 42)
    budget = Budget(second, "north", members[1].limits, members[1].patients.ids, ledger_in(hospitals, "north"))
    with pytest.raises(RefusedError, match=r"would bring epsilon to 4\.\d+; limits.epsilon is 4") as refused:
        work.statistics(Site(plan, members[1], hospitals), StatisticsTask(federation=plan.hash, seed=42, parts=[0]))
    assert refused.value.code == Code.BUDGET
    generous = replace(budget, limits=Limits(epsilon=5.0))
    rows = [*spent(budget.ledger.read().charges), *programme(second).whole]
    assert generous.terms().total == pytest.approx(epsilon(rows, 1e-3))
    strangers = replace(budget, patients=["somebody", "else"] * 30)
    assert strangers.terms().before == 0.0


def test_more_hospitals_than_planned_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="3 hospitals, and the noise is planned for 2"):
        small.study(small_private.federation({"hospitals": 2}), small.hospitals(), tmp_path)


# --- what was agreed --------------------------------------------------------------------------------------------------


def refusal(settings: Federation, asked: Federation, tmp_path: Path, **limits: Any) -> Code | None:
    """The code with which a hospital that holds `settings` answers a server that holds `asked`."""
    site = Site(
        Plan(settings, 42),
        limited(small.hospital("north"), **limits),
        tmp_path,
        ledger=Ledger(tmp_path, tmp_path / "log.jsonl"),
    )
    client = small.build_app(lambda context, seed: site, guard(tmp_path))
    task = to_record(StatisticsTask(federation=asked.hash, seed=42, parts=[0]))
    grid = small.grid(client, 1)
    return is_refusal(next(iter(grid.send_and_receive([Message(task, 1, "query")]))).content)


def test_looser_privacy_than_agreed_is_refused(tmp_path: Path) -> None:
    agreed = small_private.federation()
    for looser in ({"epsilon": 3.1}, {"delta": 2e-3}, {"clip": 2.0}, {"rate": 0.3}, {"metrics": "not_sent"}):
        asked = small_private.federation(looser)
        assert refusal(agreed, asked, tmp_path, approval="all") == Code.FEDERATION
    without = agreed.model_copy(update={"privacy": None})
    assert refusal(agreed, without, tmp_path, approval="all") == Code.FEDERATION
    assert refusal(agreed, agreed, tmp_path, approval="all") is None


def test_hospital_that_asks_for_privacy_refuses_a_study_without(tmp_path: Path) -> None:
    private, without = small_private.federation({"metrics": "noised"}), small.federation()
    assert refusal(without, without, tmp_path, approval="all", privacy="required") == Code.POLICY
    assert refusal(private, private, tmp_path, approval="all", privacy="required") is None


def test_hospital_that_asks_for_privacy_refuses_exact_figures(tmp_path: Path) -> None:
    """They are of weights that the server chooses, and no epsilon holds for them; unless this hospital sends none anyway."""
    exact, silent = small_private.federation(), small_private.federation({"metrics": "not_sent"})
    assert refusal(exact, exact, tmp_path, approval="all") is None
    assert refusal(exact, exact, tmp_path, approval="all", privacy="required") == Code.POLICY
    assert refusal(exact, exact, tmp_path, approval="all", privacy="required", send_metrics=False) is None
    assert refusal(silent, silent, tmp_path, approval="all", privacy="required") is None


def test_reply_kinds_are_still_what_they_were() -> None:
    """A reply of a private study has the form of any other: no field tells that something was left out."""
    assert set(TrainReply.model_fields) == {"hospital", "patients", "losses", "validation_losses", "seen"}
    assert from_record(to_record(Refusal(code=Code.BUDGET)), Refusal)[0].code == "BUDGET"
    assert "patients" in StatisticsReply.model_fields


# --- who trains -------------------------------------------------------------------------------------------------------


def test_roles_follow_from_each_patient_alone() -> None:
    study = small_private.federation(evaluation={"folds": 4})
    everybody = small.hospital("north", 400).patients
    fewer = everybody.take(np.flatnonzero(np.arange(400) % 7 != 3))
    for part in range(1, 5):
        all_tested = {everybody.ids[row] for row in splits.of(everybody, study, part).test}
        tested = {fewer.ids[row] for row in splits.of(fewer, study, part).test}
        assert tested == all_tested & set(fewer.ids)  # nobody changed sides
        assert len(all_tested) == pytest.approx(100, abs=35)  # four standard deviations
    parts = [set(splits.of(everybody, study, part).test.tolist()) for part in range(1, 5)]
    assert set.union(*parts) == set(range(400))
    assert sum(map(len, parts)) == 400
    share = small_private.federation(evaluation={"test": 0.3})
    assert len(splits.of(everybody, share, 0).test) == pytest.approx(120, abs=37)
