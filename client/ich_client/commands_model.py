"""The hospital's commands with a finished model: predict and explain. What they write stays at the hospital."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ich_client import explanation, newcomers, overlay, prediction, spread
from ich_client import home as homes
from ich_client.check_page import png
from ich_client.explanation import Method
from ich_client.hospital import HospitalConfig
from ich_client.images import Ask, user_cache
from ich_client.newcomers import Newcomers
from ich_client.progress import watched
from ich_models import console
from ich_models.errors import ConfigurationError
from ich_models.files import write_atomic, write_json
from ich_models.image_spec import CtVolume, MrVolume
from ich_models.yaml_config import Document, load
from ich_strategies import models
from ich_strategies.models import Model

MappingArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[HOSPITAL.yaml]", help="where the new patients are; by default the hospital's folder's own"
    ),
]
HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="the hospital's folder")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="FOLDER", help="a study's model folder; by default the one that was kept here"),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="folder that relative paths start from; by default --home")
]
HERE = Path()


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    app.command(epilog="Example: ich-client predict new.yaml --home /srv/ich --out predictions.csv")(predict)
    app.command(epilog="Example: ich-client explain --patient 4711 --out explained --home /srv/ich")(explain)


@dataclass(frozen=True)
class _Asked:
    """What both commands begin with."""

    model: Model
    mapping: Document[HospitalConfig]
    data: Path
    cache: Path
    apart: bool
    """Whether the data have a folder of their own (--data), in which nothing else belongs."""

    def load(self, ask: Ask) -> Newcomers:
        """The patients, and warnings on the error stream."""
        found = newcomers.load(self.mapping, self.data, self.model.federation, self.cache, ask)
        console.warn(found.warnings)
        return found

    def refuse_in_data(self, out: Path) -> None:
        """Raise ConfigurationError for a place among the hospital's data: these commands only read there."""
        config = self.mapping.value
        places = [self.data / config.table.file, *([self.data] if self.apart else [])]
        places += [self.data / one.folder for one in (config.images, config.text) if one and one.folder]
        if any(out.resolve().is_relative_to(place.resolve()) for place in places):
            hint = "name a place outside of the data with --out"
            raise ConfigurationError("this would write into the hospital's data", where=str(out), hint=hint)


def predict(
    mapping: MappingArgument = None,
    folder: HomeOption = HERE,
    model: ModelOption = None,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="write to FILE (.csv or .json) in place of the screen")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of CSV on the standard output")] = False,
) -> None:
    """Predict new patients with the model of a finished study. Research only: not for decisions about patients.

    The table, reports and images are mapped as for the study; the outcome's column may be absent or empty. Each patient
    gets a probability, the class at the study's threshold and which modalities were there, or the reason why not.
    """
    asked = _asked(mapping, folder, model, data)
    if out is not None:
        asked.refuse_in_data(out)
        if out.suffix not in (".csv", ".json"):
            raise ConfigurationError(f"'{out.name}' is of no kind that is written", hint="name it .csv or .json")
    with watched() as watch:
        given = asked.load(Ask(watch=watch))
    found = prediction.predict_all(asked.model, given)
    written = prediction.as_json if as_json or (out and out.suffix == ".json") else prediction.as_csv
    text = written(asked.model, found)
    if out is None:
        sys.stdout.write(text)
        return
    write_atomic(out, text.encode())
    refused = sum(bool(one.reason) for one in found)
    _say("predicted", f"{len(found) - refused:,} patients, {refused:,} could not be   {out}")


def explain(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for pictures and maps; made if needed")],
    mapping: MappingArgument = None,
    patient: Annotated[
        str | None, typer.Option("--patient", metavar="ID", help="the patient, as the table names them; not for t-SNE")
    ] = None,
    folder: HomeOption = HERE,
    model: ModelOption = None,
    data: DataOption = None,
    method: Annotated[
        Method | None,
        typer.Option(help="how maps are made; by default as suits the network", case_sensitive=False),
    ] = None,
) -> None:
    """Show what the model looked at in one patient's image: pictures of slices, and NIfTI maps of volumes.

    A map says where the image speaks for the positive outcome, or for a type of bleeding; it is no outline of a lesion.
    Pictures of a patient are written to DIR. They stay here: nothing of them is ever sent.

    With --method t-SNE: all patients as points, near each other where the network finds them alike, coloured by outcome.
    """
    if (patient is None) is not (method == Method.T_SNE):
        if patient is None:
            raise ConfigurationError("no patient is named", hint="name one with --patient, or take --method t-SNE")
        raise ConfigurationError("t-SNE is of all patients together, and one is named", hint="leave --patient out")
    asked = _asked(mapping, folder, model, data)
    asked.refuse_in_data(out)
    if patient is None:
        _spread(asked, out)
        return
    with watched() as watch:
        ask = Ask(patient=patient, watch=watch)
        given = asked.load(ask)
        if given.images is not None and overlay.forget_half(given.images):
            given = asked.load(ask)
    looks = explanation.explain(asked.model, given, patient, method)
    spec = asked.model.plan.federation.modalities.image
    assert spec is not None, "a study with images"
    assert given.images is not None, "a study with images"
    assert given.patients.image is not None, "a study with images"
    where = None
    if isinstance(spec, CtVolume | MrVolume):
        where = overlay.space(given.images, given.images.chosen[0], spec)
        overlay.write_nifti(out / "image.nii", where.volume)
        for look in looks:
            overlay.write_nifti(out / f"{look.name}.nii", where.back(look.values))
    image = given.patients.image[given.patients.ids.index(patient)]
    overlay.write(out, [overlay.frames(look, image, spec, where) for look in looks])
    (said,) = (one for one in prediction.predict_all(asked.model, given) if one.patient == patient)
    write_json(out / "explanation.json", _account(asked.model, said, looks))
    for look in looks:
        nothing = "; the map is empty: nothing in the image speaks for it" if look.empty else ""
        _say(look.name, f"{look.method}, probability {look.probability:.3f}{nothing}")
    _say("written", out)


def _spread(asked: _Asked, out: Path) -> None:
    """Everybody's place, as a picture and a table."""
    with watched() as watch:
        given = asked.load(Ask(watch=watch))
    recorded = newcomers.outcomes(asked.mapping, asked.data, asked.model.plan.federation, given.patients.ids)
    points = spread.spread(asked.model, given, recorded)
    write_atomic(out / "t-sne.png", png(spread.picture(points)))
    write_atomic(out / "t-sne.csv", spread.as_csv(asked.model, points).encode())
    sides = prediction.title(asked.model), prediction.other(asked.model)
    counts = [sum(one is side for one in points.outcomes) for side in (True, False, None)]
    _say("t-SNE", f"{counts[0]:,} {sides[0]} (orange), {counts[1]:,} {sides[1]} (blue), {counts[2]:,} not known (grey)")
    _say("written", out)


def _asked(mapping: Path | None, folder: Path, model: Path | None, data: Path | None) -> _Asked:
    """Model, mapping and places. Without --model everything comes from the hospital's folder."""
    root, apart = data or folder, data is not None
    home = None if model is not None and mapping is not None else homes.open_home(folder)
    if mapping is not None:
        document = load(mapping, HospitalConfig)
    else:
        assert home is not None, "opened, for want of a mapping"
        document = homes.load_mapping(home)
    files = {name: root / path for name, path in document.value.weights.items()}
    if model is not None:
        chosen = models.read(models.find(model), files=files)
    else:
        assert home is not None, "opened, for want of a model"
        seeds = tuple(home.federation.value.training.seeds)
        chosen = models.read(models.find(home.models, home.facts.federation, seeds), home.federation, files)
    return _Asked(chosen, document, root, user_cache() if home is None else home.cache, apart)


def _account(model: Model, said: prediction.Prediction, looks: list[explanation.Look]) -> dict[str, Any]:
    return {
        **json.loads(prediction.as_json(model, [said])),
        "maps": [
            {
                "name": look.name,
                "method": look.method,
                "probability": look.probability,
                "empty": look.empty,
                **({"text": look.text} if look.text else {}),
                **({"shown": list(look.shown)} if look.shown else {}),
            }
            for look in looks
        ],
    }


def _say(word: str, text: object) -> None:
    Console(emoji=False, highlight=False).print(f"{word:<18} {text}", markup=False, soft_wrap=True)
