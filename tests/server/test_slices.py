"""A study of slices from first contact to the report: what is learnt from whom, and what is told of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import small_slices
import torch
from flwr.app import RecordDict
from rich.console import Console

from ich_client.disagreements import write
from ich_client.tables import Hospital
from ich_models.image_spec import HAEMORRHAGES
from ich_models.protocol import EVALUATE, EvaluateReply, from_record, to_record
from ich_server import results
from ich_server.report.page import render
from ich_server.results import answered, assemble, macro
from ich_server.study import StudyResult
from ich_server.terminal import summary_table
from ich_strategies.plan import Plan

LABELS = [f"without:south/{kind}" for kind in HAEMORRHAGES]


def changed(member: Hospital, **arrays: Any) -> Hospital:
    return replace(member, patients=replace(member.patients, **arrays))


def kept(found: StudyResult, fold: str) -> tuple[Any, ...]:
    """All that a fold is: weights, constants, thresholds."""
    rows = {name: row.tobytes() for name, row in found.of([fold]).items()}
    return rows, [found.thresholds[f"{fold}/{kind}"] for kind in HAEMORRHAGES]


@pytest.fixture(scope="module")
def members() -> list[Hospital]:
    return small_slices.hospitals()


@pytest.fixture(scope="module")
def found(members: list[Hospital], tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    result: StudyResult = small_slices.study(small_slices.federation(), members, tmp_path_factory.mktemp("study"))
    return result


def test_class_weights_are_the_training_hospitals_slices_without_over_with_each_type(
    found: StudyResult, members: list[Hospital]
) -> None:
    for fold, learning in (("all", members), ("without:south", members[:2])):
        targets = np.concatenate([member.patients.targets.reshape(-1, 5) for member in learning])  # type: ignore[union-attr]
        want = (targets == 0).sum(0) / (targets == 1).sum(0)
        assert found.of([fold])["constants"][0] == pytest.approx(want, rel=1e-6)


def test_nothing_of_the_held_out_hospital_reaches_its_fold(
    found: StudyResult, members: list[Hospital], tmp_path: Path
) -> None:
    """Other labels, other images, other patients of south: weights, constants and thresholds keep their bytes."""
    other = small_slices.hospital("south", 23, seed=9)
    again = small_slices.study(small_slices.federation(), [*members[:2], other], tmp_path)
    assert kept(again, "without:south") == kept(found, "without:south")
    assert kept(again, "all") != kept(found, "all")


def test_confident_disagreements_stay_in_a_file_of_the_hospital(members: list[Hospital], tmp_path: Path) -> None:
    """East's labels of two slices that nobody could mistake, turned round after training: they come first in its list."""
    labelled = members[0].patients.targets
    assert labelled is not None
    probabilities = np.where(np.isnan(labelled), 0.5, np.where(labelled == 1, 0.8, 0.3))
    wrong = np.argwhere(labelled[..., 2] == 0)[3]
    missed = np.argwhere(labelled[..., 4] == 1)[5]
    probabilities[(*wrong, 2)], probabilities[(*missed, 4)] = 0.97, 0.04
    names = {f"east-{wrong[0]}": tuple((f"1.2.{n}",) for n in range(4))}
    assert missed[0] != wrong[0]
    path = tmp_path / "disagreements.csv"
    count = write(replace(members[0], instances=names), np.arange(20), probabilities, path)
    assert count == 2
    assert path.read_text().splitlines() == [
        "patient,instance,slice,type,label,probability",
        f"east-{wrong[0]},1.2.{wrong[1]},{wrong[1] + 1},subarachnoid,0,0.970",
        f"east-{missed[0]},,{missed[1] + 1},epidural,1,0.040",
    ]


@pytest.mark.parametrize("network", [small_slices.DLMI, small_slices.HOHOHO], ids=["dlmi", "hohoho"])
def test_an_unlabelled_slice_changes_nothing(network: Any, members: list[Hospital], tmp_path: Path) -> None:
    """Its pixels may be anything: one round gives the same weights, losses and thresholds."""
    settings = small_slices.federation(
        network,
        training={"stages": [{"name": "encoder", "rounds": 1, "epochs": 1, "batch": 4, "optimizer": small.SGD}]},
        evaluation={"validation": 0.2},
    )
    others = []
    for member in members:
        patients = member.patients
        assert patients.image is not None
        assert patients.targets is not None
        nameless = np.isnan(patients.targets).all(2)
        assert (nameless & patients.slices).sum() > 2
        image = np.where(nameless[..., None, None, None], np.float16(0.9), patients.image)
        others.append(changed(member, image=image))
    first = small_slices.study(settings, members, tmp_path / "first")
    second = small_slices.study(settings, others, tmp_path / "second")
    assert all(np.isfinite(first.rows["weights"]).all(1))
    for fold in first.folds:
        assert kept(first, fold) == kept(second, fold)
    assert first.history == second.history
    assert all(loss is not None for loss in first.history[0]["losses"].values())


def test_hohoho_goes_through_all_its_stages(members: list[Hospital], tmp_path: Path) -> None:
    """Pre-training predicts nothing: no validation loss, and no trouble."""
    stages = [{"name": name, "rounds": 1, "epochs": 1, "batch": 4, "optimizer": small.SGD} for name in
              ("pretrain", "encoder", "sequence")]  # fmt: skip
    settings = small_slices.federation(
        small_slices.HOHOHO,
        training={"stages": stages},
        evaluation={"validation": 0.2, "leave_one_hospital_out": False, "test": 0.3, "choose_round": "best"},
    )
    result = small_slices.study(settings, members, tmp_path)
    assert {answer.arm for answers in result.answers.values() for answer in answers} == {"federated"}
    assert all(tuple(answer.types) == HAEMORRHAGES for answers in result.answers.values() for answer in answers)


def test_the_sequence_begins_with_the_encoder_that_was_trained_before_it(
    members: list[Hospital], tmp_path: Path
) -> None:
    """Against the same study without the second stage: its encoder, to the bit, rests under an LSTM that is learnt."""
    found = {}
    for names in (("encoder",), ("encoder", "sequence")):
        stages = [{"name": name, "rounds": 1, "epochs": 1, "batch": 4, "optimizer": small.SGD} for name in names]
        settings = small_slices.federation(small_slices.HOHOHO, training={"stages": stages})
        result = small_slices.study(settings, members, tmp_path / names[-1])
        plan = Plan(settings, 42)
        found[names[-1]] = plan.weights.unpack(torch.from_numpy(result.of(["without:south"])["weights"]))
    start = plan.weights.unpack(plan.start)
    for name, tensor in found["sequence"].items():
        first, learnt = found["encoder"][name], name.partition(".")[0]
        assert torch.equal(tensor, first) is not learnt.startswith("sequence"), name
        assert torch.equal(first, start[name]) is learnt.startswith(("sequence", "project")), name


def test_a_hospital_without_a_type_gives_no_auroc_of_it_and_the_others_do(
    members: list[Hospital], tmp_path: Path
) -> None:
    healthy = small_slices.hospital("south", 23, without=(4,))
    federation = small_slices.federation()
    found = small_slices.study(federation, [*members[:2], healthy], tmp_path)
    whole = assemble(federation, [42], [found], [answered(found)])
    south = whole.arms["loho"].hospitals["south"]
    assert south.types["epidural"].slices.events == 0
    assert south.types["epidural"].slices.auroc.value is None
    assert south.types["epidural"].slices.specificity.value is not None
    assert whole.arms["loho"].hospitals["east"].types["epidural"].slices.auroc.value is not None
    four = [one.slices.auroc.value for one in south.types.values() if one.slices.auroc.value is not None]
    assert macro(south, "slices", "auroc") == (pytest.approx(np.mean(four)), 4)


def test_answers_are_told_in_the_file_on_the_terminal_and_in_the_report(found: StudyResult, tmp_path: Path) -> None:
    federation = small_slices.federation()
    whole = assemble(federation, [42], [found], [answered(found)])
    results.write(whole, tmp_path)
    assert results.read(tmp_path / "results.json") == whole
    assert set(whole.training["42"].thresholds) >= set(LABELS)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "arm,hospital,type,level,n,events,metric,value,low,high"
    assert len(lines) == 1 + 3 * 2 * (5 + 1) * 8  # hospitals, levels, types and their mean, metrics
    console = Console(width=80, record=True)
    console.print(summary_table(whole))
    text = console.export_text()
    assert all(kind in text for kind in HAEMORRHAGES)
    assert max(map(len, text.splitlines())) <= 80
    page = render(whole)
    assert "Leave-one-hospital-out, by slice" in page
    assert "Leave-one-hospital-out, by patient" in page


def test_a_study_of_one_outcome_does_not_speak_of_types(tmp_path: Path) -> None:
    federation = small.federation()
    found = small.study(federation, small.hospitals(), tmp_path)
    results.write(assemble(federation, [42], [found], [answered(found)]), tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    figures = written["arms"]["loho"]["hospitals"]["north"]
    assert list(figures)[:2] == ["n", "events"]
    assert "types" not in figures


def test_an_answer_of_another_kind_is_set_aside(members: list[Hospital], tmp_path: Path) -> None:
    """East answers as if one outcome had been asked for."""

    def around(client: Any) -> Any:
        def wrapped(message: Any, context: Any) -> Any:
            reply = client(message, context)
            if message.metadata.message_type == EVALUATE:
                said, _ = from_record(reply.content, EvaluateReply)
                if said.hospital == "east":
                    without = [answer.model_copy(update={"types": {}}) for answer in said.answers]
                    content: RecordDict = to_record(said.model_copy(update={"answers": without}))
                    reply.content = content
            return reply

        return wrapped

    found = small_slices.study(small_slices.federation(), members, tmp_path, around=around)
    assert set(found.answers) == {"north", "south"}
    assert [(each.when, each.hospital) for each in found.quarantined] == [("evaluation", "east")]


def test_image_constants_are_the_training_hospitals(tmp_path: Path) -> None:
    """ICHPro's z-score: mean and deviation over all voxels of the training hospitals' patients, each counting once."""
    network = {"name": "ichpro", "size": "tiny", "modalities": ["image"], "standardise": True}
    settings = small.federation(network=network, stage={"name": "train", "rounds": 1})
    base = settings.model_dump(by_alias=True)
    base["modalities"]["image"] = {"kind": "ct", "size": [8, 16, 16]}
    federation = type(settings).model_validate(base)
    rng = np.random.default_rng(0)
    volumes = {name: rng.uniform(0, shift, (20, 1, 8, 16, 16)) for name, shift in (("a", 0.4), ("b", 0.7), ("c", 1.0))}
    members = [
        changed(small.hospital(name, 20), image=volume.astype(np.float16)) for name, volume in volumes.items()
    ]  # fmt: skip
    found = small.study(federation, members, tmp_path)
    for fold, names in (("all", "abc"), ("without:c", "ab")):
        seen = np.concatenate([volumes[name] for name in names])
        centre, scale = found.of([fold])["constants"][0]
        assert centre == pytest.approx(seen.mean(), rel=1e-3)
        assert 1 / scale == pytest.approx(seen.std(), rel=1e-3)
