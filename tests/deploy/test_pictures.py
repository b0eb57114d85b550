"""Pictures of the report: of generated patients alone, the truth where it was drawn; and maps that lie on the blood once trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from small_networks import options

from ich_client import overlay
from ich_client.tables import Hospital
from ich_client.train import fit
from ich_client.work import load_stack
from ich_deploy import source
from ich_deploy.demo import hospitals
from ich_deploy.demo.case import Case
from ich_deploy.pictures import pictures, truth_on
from ich_deploy.simulate import Options, Watch, simulate
from ich_deploy.source import Source
from ich_models.batch import Patients
from ich_models.explain import grad_cam
from ich_models.image_spec import CtVolume
from ich_models.metrics import delong
from ich_models.protocol import WEIGHTS
from ich_models.recipes import Recipe
from ich_models.volume import Volume
from ich_server import results_file
from ich_server.report.page import write_report
from ich_server.report.photos import Photo
from ich_strategies.plan import Plan

Cohorts = dict[str, list[Case]]


def origin_of(folder: Path, name: str) -> Source:
    return Source(folder / name, folder / "hospitals", folder / "data", folder.parent / "cache")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohorts]:
    """Six patients of each hospital, and a study of one short round."""
    folder = tmp_path_factory.mktemp("demo") / "ct"
    cohorts = hospitals.write(folder, "ct", 11, 6, processes=1)
    study = (folder / "image_only.yaml").read_text()
    study = study.replace("rounds: 8", "rounds: 1").replace("epochs: 3", "epochs: 1").replace("cells: 10", "cells: 0")
    (folder / "quick.yaml").write_text(study)
    for mapping in (folder / "hospitals").iterdir():
        mapping.write_text(mapping.read_text() + "\nlimits: {small_cells: 0}\n")
    return folder, cohorts


def test_the_truth_is_where_the_blood_is_seen(demo: tuple[Path, Cohorts]) -> None:
    """Voxels of the truth are as bright as blood, those around it are not; and it has the volume that was drawn."""
    folder, cohorts = demo
    federation, found = source.load(origin_of(folder, "quick.yaml"))
    spec = federation.value.modalities.image
    assert isinstance(spec, CtVolume)
    for hospital in found:
        assert hospital.images is not None
        cases = {case.patient: case for case in cohorts[hospital.name]}
        for chosen in hospital.images.chosen[:2]:
            where = overlay.space(hospital.images, chosen, spec)
            truth = truth_on(cases[chosen.patient], where.volume)
            lesion = next(one for one in cases[chosen.patient].lesions if one.kind == "intraparenchymal")
            assert truth.sum() * where.volume.millilitres == pytest.approx(lesion.millilitres, rel=0.02, abs=0.1)
            assert where.volume.values[truth].mean() > 52
            assert where.volume.values[~truth & (where.seen if where.seen is not None else truth)].mean() < 40


def test_a_report_on_generated_patients_has_two_pictures_per_fold(demo: tuple[Path, Cohorts], tmp_path: Path) -> None:
    folder, _ = demo
    simulate(origin_of(folder, "quick.yaml"), tmp_path, [42], Options(), Watch())
    page = (tmp_path / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 6
    assert all(f"{name} held out, patient" in page for name in ("north", "east", "south"))
    assert {path.name for path in (tmp_path / "model" / "seed-42").iterdir()} == {
        "model.safetensors",
        "card.json",
        "federation.json",
    }
    (tmp_path / "report.html").unlink()
    write_report(results_file.read(tmp_path / "results.json"), tmp_path)
    assert (tmp_path / "report.html").read_text() == page, "as ich-server report writes it again"


def test_without_the_generators_mark_there_is_no_picture(demo: tuple[Path, Cohorts], tmp_path: Path) -> None:
    """Real data have none: the decision is made before anything of a patient is looked at."""
    assert pictures([], None, tmp_path / "federation.yaml") == []  # type: ignore[arg-type]
    (tmp_path / hospitals.DONE).write_text('{"kind": "mr", "seed": 1, "patients": {}}')
    assert pictures([], None, tmp_path / "federation.yaml") == []  # type: ignore[arg-type]


def test_a_demos_study_on_other_data_has_no_picture(demo: tuple[Path, Cohorts], tmp_path: Path) -> None:
    """The mark lies beside the study, the images do not: they could be anybody's."""
    folder, _ = demo
    for name in ("quick.yaml", "dictionary.yaml", hospitals.DONE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    moved = Source(tmp_path / "quick.yaml", folder / "hospitals", folder / "data", folder.parent / "cache")
    simulate(moved, tmp_path / "out", [42], Options(), Watch())
    assert "data:image/png" not in (tmp_path / "out" / "report.html").read_text()


def test_a_picture_that_would_have_to_be_fetched_is_refused() -> None:
    with pytest.raises(ValueError, match="part of the page"):
        Photo("one", "https://example.org/one.png", "", "")


# --- do the maps mean anything? ---------------------------------------------------------------------------------------

RECIPE = Recipe.model_validate(
    {
        "epochs": 40,
        "batch": 8,
        "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 1e-3},
        "schedule": {"name": "cosine"},
        "clip": 5,
    }
)
"""As the demo's own study trains the image encoder, somewhat longer."""


def seen(
    found: Sequence[Hospital], cohorts: Cohorts, spec: CtVolume, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays that the network sees and the truth on the same voxels, of the patients with an image."""
    images, truths = [], []
    for hospital in found:
        if hospital.name not in names:
            continue
        assert hospital.images is not None
        assert hospital.patients.image is not None
        cases = {case.patient: case for case in cohorts[hospital.name]}
        for chosen in hospital.images.chosen:
            affine = overlay.space(hospital.images, chosen, spec).affine
            images.append(hospital.patients.image[hospital.patients.ids.index(chosen.patient)])
            truths.append(truth_on(cases[chosen.patient], Volume(images[-1][0], affine, "intensity")))
    return np.stack(images), np.stack(truths)


def on_blood(network: torch.nn.Module, images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Per patient: the map's share on the own haematoma over its share on the other patients' haematomas, chance being 1.

    Others' haematomas lie where haematomas lie, and are as large: a map that is the same for everybody has 1 on average.
    Patients whose map is empty are left out.
    """
    shares = []
    for image in images:
        batch = Patients(("",), np.zeros((1, 0)), np.zeros(1, np.int64), image=image[None]).batch(torch.float32)
        found = grad_cam(network, batch.to(torch.float32, torch.device("cpu")), "image.net.layer4")[0].numpy()
        found = found * (image[0] > 0)
        shares.append(found.ravel() / max(float(found.sum()), 1e-9))
    maps = np.stack(shares)
    each = maps @ truths.reshape(len(truths), -1).T.astype(float)  # (map of, haematoma of)
    own, others = np.diag(each), (each.sum(1) - np.diag(each)) / (len(each) - 1)
    size = truths.reshape(len(truths), -1).sum(1)
    expected = others * size / ((size.sum() - size) / (len(size) - 1))  # a large haematoma has more of any map
    there = (maps.sum(1) > 0) & (expected > 0)
    return np.asarray(own[there] / expected[there])


@pytest.mark.slow
def test_maps_lie_on_the_blood_of_a_trained_network_and_not_of_a_random_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The sanity check of Adebayo et al. (2018): with random weights a map that explains the model falls to chance.

    A tiny network learns on two demo hospitals to tell large haematomas from small ones, and is looked at on the third. The
    window is the brain's: in the demo's own only blood is bright, and any network's map, random or not, lies on what is bright.
    """
    folder = tmp_path_factory.mktemp("blood") / "ct"
    cohorts = hospitals.write(folder, "ct", 5, 60)
    study = folder / "image_only.yaml"
    demo, plain = "windows: [[55, 50]], brain: mask, rim: 4}", "windows: [[40, 80]], brain: mask}"
    assert demo in study.read_text()
    study.write_text(study.read_text().replace(demo, plain))
    federation, found = source.load(origin_of(folder, "image_only.yaml"))
    spec = federation.value.modalities.image
    assert isinstance(spec, CtVolume)
    learnt, tested = (seen(found, cohorts, spec, names) for names in (("east", "south"), ("north",)))
    cut = np.median(learnt[1].sum((1, 2, 3)))
    labels = [(truths.sum((1, 2, 3)) > cut).astype(np.int64) for _, truths in (learnt, tested)]
    # finer feature maps than the demo's, whose last ones have a handful of cells
    network = options("image_only", size="tiny", image={"name": "resnet", "stem_stride": 1})
    settings = federation.value.model_copy(update={"network": network})

    def untrained(seed: int) -> torch.nn.Module:
        plan = Plan(settings, seed)
        return load_stack(plan, {WEIGHTS: plan.start_rows([0.0])}).network

    plan = Plan(settings, 42)
    stack = load_stack(plan, {WEIGHTS: plan.start_rows([0.0])})
    names = tuple(map(str, range(len(labels[0]))))
    patients = Patients(names, np.zeros((len(names), 0)), labels[0], image=learnt[0])
    fit(stack, patients.batch(torch.float32), RECIPE, seed=(42,))
    test = Patients(tuple(map(str, range(len(labels[1])))), np.zeros((len(labels[1]), 0)), labels[1], image=tested[0])
    area, _ = delong(labels[1], stack.logits(test.batch(torch.float32))[0].double().numpy())
    large = labels[1] == 1  # whose maps say something: the logit speaks of a large haematoma
    trained = on_blood(stack.network, tested[0][large], tested[1][large])
    random = np.concatenate([on_blood(untrained(seed), tested[0][large], tested[1][large]) for seed in range(1, 7)])
    assert area > 0.8, "it has learnt"
    assert len(trained) > 20
    assert np.median(trained) > 1.1
    assert stats.wilcoxon(trained - 1, alternative="greater").pvalue < 0.01
    assert 0.85 < np.median(random) < 1.15
    assert stats.mannwhitneyu(trained, random, alternative="greater").pvalue < 0.01
