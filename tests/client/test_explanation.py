"""Maps of one patient under each kind of network, texts turned to either outcome, and the command's files."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from finished_model import call, finished, of_slices
from image_hospital import SLICES, VOLUME, files, make, mr, views_of
from phantom import write

from ich_client import explanation, newcomers
from ich_client.cache import Cache
from ich_client.hospital import HospitalConfig
from ich_client.images import Ask
from ich_client.newcomers import Newcomers
from ich_client.work import load_stack
from ich_models.errors import ConfigurationError, DataError
from ich_models.explain import grad_cam, of_type, score_cam
from ich_models.networks.slices import TYPES
from ich_models.tokens import encode
from ich_models.yaml_config import load
from ich_strategies.models import Model

WINDOWS = SLICES.replace("}", ", windows: [[40, 80], [80, 200], [40, 380]]}")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with head CTs, a third without; a fourth cannot be read."""
    folder = make(tmp_path_factory.mktemp("scanned"), 2)
    (folder / "table.csv").write_text((folder / "table.csv").read_text() + "P7,71,3\nP8,old,3\n")
    return folder


def given_of(folder: Path, model: Model, patient: str) -> Newcomers:
    document = load(folder / "hospital.yaml", HospitalConfig)
    return newcomers.load(document, folder, model.federation, folder / "cache", Ask(patient=patient))


def explained(folder: Path, model: Model, patient: str) -> list[explanation.Look]:
    return explanation.explain(model, given_of(folder, model, patient), patient)


def test_a_volume_has_a_grad_cam_of_the_positive_outcome(scanned: Path) -> None:
    files(scanned, image=VOLUME, network="{name: image_only, size: tiny}")
    model = finished(scanned)
    given = given_of(scanned, model, "P1")
    (look,) = explanation.explain(model, given, "P1")
    network = load_stack(model.plan, model.rows).network
    batch = given.patients.batch(torch.float32).to(torch.float32, torch.device("cpu"))
    np.testing.assert_allclose(look.values, grad_cam(network, batch, "image.net.layer4")[0].numpy(), atol=1e-6)
    assert (look.name, look.method, look.values.shape) == ("poor", "Grad-CAM", (12, 32, 32))


@pytest.mark.parametrize("name", ["dlmi", "hohoho"])
def test_each_type_is_explained_where_it_is_likeliest(name: str, scanned: Path) -> None:
    files(scanned, image=WINDOWS, network=f"{{name: {name}, size: tiny}}")
    of_slices(scanned, "sequence" if name == "hohoho" else "train")
    model = finished(scanned)
    given = given_of(scanned, model, "P0")
    looks = explanation.explain(model, given, "P0")
    assert [look.name for look in looks] == list(TYPES)
    alone = given.patients.batch(torch.float32).to(torch.float32, torch.device("cpu"))
    network = load_stack(model.plan, model.rows).network
    chances = torch.sigmoid(network.eval()(alone).logits[0]).detach().numpy()
    for index, look in enumerate(looks):
        assert list(look.shown) == sorted(np.argsort(-chances[:, index])[:3])
        assert look.values.shape == (3, 32, 32)
        assert look.probability == pytest.approx(float(chances[:, index].max()), abs=1e-6)
    if name == "dlmi":  # slices do not feel each other: three of them have the maps that they have among all
        layers = [f"members.{member}.net.layer4" for member in ("resnext", "se_resnet")]
        whole = torch.stack([grad_cam(network, alone, layer, of_type(3)) for layer in layers]).mean(0)[0]
        np.testing.assert_allclose(looks[3].values, whole[list(looks[3].shown)].numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["image_only", "dlmi"])
def test_saliency_is_the_size_of_the_gradient(name: str, scanned: Path) -> None:
    """Against the gradient taken here by hand, of the volume's logit and of one type on the slices shown."""
    volume = name == "image_only"
    files(scanned, image=VOLUME if volume else WINDOWS, network=f"{{name: {name}, size: tiny}}")
    if not volume:
        of_slices(scanned, "train")
    model = finished(scanned)
    given = given_of(scanned, model, "P1")
    look = explanation.explain(model, given, "P1", explanation.Method.SALIENCY)[-1]
    network = load_stack(model.plan, model.rows).network.eval()
    batch = given.patients.batch(torch.float32).to(torch.float32, torch.device("cpu"))
    assert batch.image is not None
    image = batch.image.clone().requires_grad_()
    logits = network(replace(batch, image=image)).logits
    (logits[0] if volume else logits[0, list(look.shown), -1].sum()).backward()
    assert image.grad is not None
    size = image.grad[0].abs().amax(0 if volume else 1)
    size = size if volume else size[list(look.shown)]
    np.testing.assert_allclose(look.values, (size / size.max()).numpy(), atol=1e-4)
    assert look.method == "saliency"


def test_score_cam_is_of_one_image(scanned: Path) -> None:
    files(scanned, image=WINDOWS, network="{name: dlmi, size: tiny}")
    of_slices(scanned, "train")
    model = finished(scanned)
    given = given_of(scanned, model, "P1")
    with pytest.raises(ConfigurationError, match="Score-CAM is of one image, and network 'dlmi' looks at several"):
        explanation.explain(model, given, "P1", explanation.Method.SCORE_CAM)


def test_who_has_nothing_to_show_is_told_so(scanned: Path) -> None:
    files(scanned, image=VOLUME, network="{name: image_only, size: tiny}")
    model = finished(scanned)
    with pytest.raises(DataError, match="'P7' cannot be predicted: no usable image"):
        explained(scanned, model, "P7")
    with pytest.raises(DataError, match=r"'P8' cannot be predicted: .*'old'"):
        explained(scanned, model, "P8")
    files(scanned, image=VOLUME, network="{name: concat, size: tiny, modalities: [image, table]}")
    with pytest.raises(DataError, match="'P7' has no usable image"):
        explained(scanned, finished(scanned), "P7")


# --- texts ------------------------------------------------------------------------------------------------------------

TEXT = "  text: {source: template, numbers: words, tokens: 16}\nnetwork:"
VARIABLES = """\
      age: {type: number, range: [20, 100], known_at: admission}
      site: {type: category, levels: [lobar, deep, brainstem], known_at: admission}
      ivh: {type: yes_no, known_at: admission}
      weight: {type: number, range: [30, 200], known_at: admission}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """Two patients with an image and a text of four variables; the weight of both is unknown."""
    folder = make(tmp_path_factory.mktemp("told"), 2, rows={-1: ",SITE,IVH,W", 0: ",deep,yes,", 1: ",lobar,no,"})
    files(folder, image=VOLUME, network="{name: ichpro, size: tiny}")
    study = (folder / "federation.yaml").read_text()
    study = study.replace("      age: {type: number, known_at: admission}\n", VARIABLES)
    study = study.replace("predictors: [age]", "predictors: [age, site, ivh, weight]").replace("network:", TEXT, 1)
    (folder / "federation.yaml").write_text(study)
    mapping = (folder / "hospital.yaml").read_text()
    (folder / "hospital.yaml").write_text(mapping.replace("age: AGE", "age: AGE, site: SITE, ivh: IVH, weight: W"))
    return folder, finished(folder, seed=1)


def test_texts_are_turned_to_either_outcome_by_the_model_itself(told: tuple[Path, Model]) -> None:
    """Each variable alone at each of its ends, by the network's own logits on sentences written here by hand."""
    folder, model = told
    given = given_of(folder, model, "P0")
    network = load_stack(model.plan, model.rows).network.eval()
    batch = given.patients.batch(torch.float32).to(torch.float32, torch.device("cpu"))
    assert given.source is not None

    def logit(age: str, site: str, ivh: str) -> float:
        text = f"age {age}. site {site}. ivh {ivh}."
        ids = torch.from_numpy(encode([text], given.source.vocabulary, 16).ids)  # type: ignore[union-attr]
        shown = type(batch)(None, batch.label, batch.present, image=batch.image, text=ids)
        return float(network(shown).logits.detach())

    own = {"age": "low", "site": "deep", "ivh": "yes"}  # 50 years of 20 to 100
    ends = {"age": ("lowest", "highest"), "site": ("lobar", "deep", "brainstem"), "ivh": ("no", "yes")}
    chance = {name: {end: logit(**{**own, name: end}) for end in ends[name]} for name in ends}
    good = {name: min(found, key=found.__getitem__) for name, found in chance.items()}
    poor = {name: max(found, key=found.__getitem__) for name, found in chance.items()}
    looks = explanation.explain(model, given, "P0")
    assert [look.name for look in looks] == ["text-good", "text-poor"]
    assert looks[0].text == "age {age}. site {site}. ivh {ivh}.".format(**good)
    assert looks[1].text == "age {age}. site {site}. ivh {ivh}.".format(**poor)
    for look, words in zip(looks, (good, poor), strict=True):
        assert look.probability == pytest.approx(1 / (1 + np.exp(-logit(**words))), abs=1e-6)
        assert look.method == "Score-CAM"
    assert set(product(*ends.values())) >= {tuple(good.values()), tuple(poor.values())}


def test_the_two_maps_are_score_cams_under_the_two_texts(told: tuple[Path, Model]) -> None:
    folder, model = told
    given = given_of(folder, model, "P0")
    network = load_stack(model.plan, model.rows).network
    batch = given.patients.batch(torch.float32).to(torch.float32, torch.device("cpu"))
    assert given.source is not None
    for look in explanation.explain(model, given, "P0"):
        ids = torch.from_numpy(encode([look.text], given.source.vocabulary, 16).ids)
        shown = type(batch)(None, batch.label, batch.present, image=batch.image, text=ids)
        np.testing.assert_allclose(look.values, score_cam(network, shown, "image.net.layer4")[0].numpy(), atol=1e-6)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_pictures_maps_and_an_account(
    told: tuple[Path, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = told
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}
    words = ("explain", folder / "hospital.yaml", "--model", folder / "model", "--data", folder, "--patient", "P0")
    said = call(*words, "--out", tmp_path / "out")
    assert "text-good" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"sheet.png", "image.nii", "text-good.nii", "text-poor.nii", "explanation.json"} <= names
    pictures = [name for name in names if name.startswith("text-good-slice-")]
    assert len(pictures) == len([name for name in names if name.startswith("text-poor-slice-")]) > 10
    image, good = (nibabel.load(tmp_path / "out" / name) for name in ("image.nii", "text-good.nii"))
    assert image.shape == good.shape == (64, 64, 26)
    np.testing.assert_allclose(image.affine, good.affine)
    account = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert [one["name"] for one in account["maps"]] == ["text-good", "text-poor"]
    assert account["patients"][0]["patient"] == "P0"
    assert account["model"]["federation"] == model.plan.hash
    assert "into the hospital's data" in call(*words, "--out", folder / "pacs" / "x", code=1)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert before == after, "the data are only read"


def test_an_image_that_was_pushed_out_of_the_cache_is_read_anew(told: tuple[Path, Model], tmp_path: Path) -> None:
    folder, model = told
    given = given_of(folder, model, "P0")
    assert given.images is not None
    with Cache(Path(given.images.cache), 1e12) as store:
        store.drop(given.images.chosen[0].key)
    words = ("explain", folder / "hospital.yaml", "--model", folder / "model", "--data", folder, "--patient", "P0")
    call(*words, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "image.nii").is_file()


def explain_of(folder: Path, out: Path) -> tuple[set[str], list[dict[str, object]]]:
    """The command on the folder's finished model and patient P0: files and maps that it wrote."""
    words = ("explain", folder / "hospital.yaml", "--model", folder / "model", "--data", folder, "--patient", "P0")
    call(*words, "--out", out)
    return {path.name for path in out.iterdir()}, json.loads((out / "explanation.json").read_text())["maps"]


def test_an_mr_study_is_explained_on_the_grid_of_its_sequences(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder, 0, order=(0, 1))
    write(folder / "pacs" / "a", [*mr(0, "FLAIR tra", 1, 300), *mr(0, "T2 tra", 2, 500)])
    spec = "{kind: mr, size: [14, 24, 24], spacing: [10, 8, 8], sequences: [FLAIR, T2]}"
    files(folder, image=spec, network="{name: image_only, size: tiny, channels: 2}")
    model = finished(folder)
    names, maps = explain_of(folder, tmp_path / "out")
    assert [one["name"] for one in maps] == ["poor"]
    assert {"image.nii", "poor.nii", "sheet.png"} <= names
    seen, shown = (nibabel.load(tmp_path / "out" / name) for name in ("image.nii", "poor.nii"))
    np.testing.assert_allclose(seen.affine, shown.affine)
    assert seen.shape == shown.shape
    given = given_of(folder, model, "P0")
    batch = given.patients.batch(torch.float32).to(torch.float32, torch.device("cpu"))
    network = load_stack(model.plan, model.rows).network
    by_hand = grad_cam(network, batch, "image.net.layer4")[0].numpy()
    (look,) = explanation.explain(model, given, "P0")
    np.testing.assert_allclose(look.values, by_hand, atol=1e-6)
    assert look.values.shape == (14, 24, 24)


def test_each_view_of_a_radiograph_has_its_map(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder, 0, order=(0, 1))
    write(folder / "pacs", views_of(0))
    spec = "{kind: radiograph, size: [32, 32], most: 4, repeat: 3}"
    files(folder, image=spec, network="{name: mednvc, size: tiny}")
    model = finished(folder, 5)  # with other random weights nothing may speak for the outcome: its map is 0 then
    names, maps = explain_of(folder, tmp_path / "out")
    assert [one["name"] for one in maps] == ["poor"]
    assert {name for name in names if "slice" in name} == {"poor-slice-000.png", "poor-slice-001.png"}
    (look,) = explained(folder, model, "P0")
    assert (look.shown, look.values.shape) == ((0, 1), (2, 32, 32))
    assert look.values.reshape(2, -1).max(1) == pytest.approx([1, 1]), "each view by itself"
