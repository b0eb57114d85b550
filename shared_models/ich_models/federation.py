"""The study that every hospital and the coordinator agree on: `federation.yaml`, its checks, and its canonical hash."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from ich_models import privacy as privacy_terms
from ich_models import private_rules, subgroups, tokens
from ich_models.errors import ConfigurationError, Problem
from ich_models.image_spec import HAEMORRHAGES, CtSlices, CtVolume, ImageSpec, MrVolume
from ich_models.networks.options import Dlmi, Hohoho, IchPro, IchScore, MedNvc, NetworkOptions, WithText
from ich_models.privacy import Privacy
from ich_models.recipes import Recipe, Stage
from ich_models.strategy_options import FedAvg, StrategyOptions
from ich_models.strict import Name, Strict
from ich_models.subgroups import Groupings
from ich_models.text_spec import TextSpec
from ich_models.variables import Complaint, Dictionary, Outcome, Table, Variable
from ich_models.yaml_config import Document, load, suggest

SCHEMA: Final = 1
"""Version of the federation file's own format; part of the hash."""


# --- the task ---------------------------------------------------------------------------------------------------------


class Task(Strict):
    """What is predicted, when the prediction is made, and the order of the moments that variables are known at."""

    kind: Literal["binary", "slices"] = "binary"
    """`binary`: the outcome of each patient. `slices`: five types of haemorrhage on each slice, from the hospitals' labels;
    the outcome is then nothing to learn: patients are split by it, and counted."""
    timeline: Annotated[list[str], Field(min_length=1)]
    """Moments in their order, the earliest first; every `known_at` and `at` is one of them."""
    predict_at: str
    """The moment of the prediction: no predictor may be known later."""
    outcome: Outcome
    one_class_hospitals: Literal["refuse", "keep"] = "refuse"
    """A hospital whose patients all have the same outcome: usually a wrong mapping, sometimes a rare outcome."""


class Modalities(Strict):
    """What a patient is described by."""

    table: Table
    image: ImageSpec | None = None
    text: TextSpec | None = None


# --- training, evaluation, quorum -------------------------------------------------------------------------------------

_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZES: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def _quantity(units: dict[str, int], example: str) -> BeforeValidator:
    """Accept a bare number, or a number with one of `units`, as in `example`."""

    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if not match or match[2] not in units:
            raise ValueError(f"'{value}' has no unit that is known here | write it like {example} ({', '.join(units)})")
        return float(match[1]) * units[match[2]]

    return BeforeValidator(parse)


Seconds = Annotated[PositiveFloat, _quantity(_UNITS, "90s, 10min or 2h")]
Bytes = Annotated[PositiveFloat, _quantity(_SIZES, "500kB or 64MB")]


class Training(Strict):
    """How the shared model is trained."""

    strategy: StrategyOptions = FedAvg()
    stages: Annotated[list[Stage], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [42]
    """One whole study per seed."""
    message_limit: Bytes = 256e6
    """Folds share a message up to this size of exchanged weights; beyond it they travel in several."""

    @property
    def rounds(self) -> int:
        """Rounds of all stages together."""
        return sum(stage.rounds for stage in self.stages)

    def stage_at(self, round_number: int) -> tuple[Stage, int]:
        """The stage that round `round_number` (from 1) belongs to, and the rounds of that stage done before it."""
        before = round_number - 1
        for stage in self.stages:
            if 0 <= before < stage.rounds:
                return stage, before
            before -= stage.rounds
        raise ValueError(f"round {round_number} of {self.rounds}")

    def epochs_before(self, stage: Stage) -> int:
        """Local epochs of the stages before this one; with `updates` a round counts as an epoch."""
        before = self.stages[: self.stages.index(stage)]
        return sum(one.rounds * (one.epochs or 1) for one in before)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, names in (("seeds", self.seeds), ("stage names", [stage.name for stage in self.stages])):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} must differ: {names}")
        return self


class IchScoreItems(Strict):
    """The predictors that hold the five items of the ICH score (Hemphill et al. 2001), by name."""

    gcs: str = "gcs"
    age: str = "age"
    volume: str = "volume"
    """Millilitres."""
    ivh: str = "ivh"
    infratentorial: str = "infratentorial"


class Comparisons(Strict):
    """Arms that are trained beside the federation, in simulation only."""

    local: Recipe | None = None
    """Each hospital alone, tested on its own patients."""
    pooled: Recipe | None = None
    """All training hospitals' patients in one place."""
    tabular: Recipe | None = None
    """A logistic regression on the table alone, its patients in one place: what images and text are to add to."""
    ich_score: IchScoreItems | None = None
    """The ICH score of the table; nothing is trained."""
    without_privacy: bool = False
    """The same federation without clipping and noise: what privacy costs."""


DECISION_THRESHOLDS: Final = (0.45, 0.25, 0.65, 0.15, 0.55, 0.35, 0.75, 0.05, 0.85, 0.95)
"""A coarse grid, from the middle outwards."""


class Evaluation(Strict):
    """What is held out, and how the result is measured."""

    leave_one_hospital_out: bool = True
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each hospital's patients that nothing trains on; tests the all-hospital model."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Cross-validation by patient inside the federation; tests the all-hospital recipe, one model per fold."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    validation: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each hospital's training patients set apart for the threshold and the choice of the round."""
    choose_round: Literal["last", "best"] = "last"
    """`best`: the round with the lowest validation loss over the training hospitals."""
    threshold: Literal["youden", "f2"] | Annotated[float, Field(gt=0, lt=1)] = "youden"
    """`youden`, `f2`: each training hospital's threshold of the largest Youden index or F2, averaged with its patients as weights."""
    small_cells: Annotated[int, Field(ge=0, le=1000)] = 10
    """Counts below this do not leave a hospital, nor figures that tell them; a hospital may ask for more. 0: all do."""
    decision_thresholds: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=19)] = list(
        DECISION_THRESHOLDS
    )
    """Where the decision curve is computed, the most important first: where few patients allow few, these are told (docs/egress.md)."""
    subgroups: Groupings = []
    """Variables of the table by which patients are also looked at apart."""
    recalibrate: Literal["none", "intercept", "slope"] = "none"
    """After training, on the training hospitals: shift the model's log-odds, or shift and stretch them."""
    cross_site: bool = False
    """Every hospital's local model tested at every other hospital; in simulation only."""
    comparisons: Comparisons = Comparisons()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.test is not None and self.folds is not None:
            raise ValueError("test and folds exclude each other | keep one: a test share, or k-fold by patient")
        if len(set(self.decision_thresholds)) < len(self.decision_thresholds):
            raise ValueError("decision_thresholds names one twice | write each once")
        if len({each.variable for each in self.subgroups}) < len(self.subgroups):
            raise ValueError("subgroups names a variable twice: the two would tell single patients apart | keep one")
        if self.cross_site and self.comparisons.local is None:
            raise ValueError("cross_site tests the local models, and there are none | add comparisons: {local: {...}}")
        if self.choose_round == "best" and self.validation is None:
            raise ValueError("choose_round: best needs validation patients | add validation: 0.2")
        if self.comparisons.local and self.test is None and self.folds is None:
            raise ValueError("the local arm has no patients to be tested on | add test: 0.2 or folds: 5")
        if not self.leave_one_hospital_out and self.test is None and self.folds is None:
            raise ValueError(
                "nothing would be evaluated | turn leave_one_hospital_out on, or add test: 0.2 or folds: 5"
            )
        return self


class Quorum(Strict):
    """How many hospitals a round needs, and how long it waits for them."""

    hospitals: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """A study begins, and a round goes on, with this many hospitals; by default it begins with all of them and goes on
    with more than half. A leave-one-hospital-out fold needs one fewer."""
    deadline: Annotated[Seconds, Field(le=30 * 86400)] = 3600.0


class Checks(Strict):
    """Limits on what an update may be; one that breaks them is quarantined."""

    patients: PositiveInt = 1_000_000
    """More training patients than this are not believed."""
    update_norm: PositiveFloat = 1e6
    """Largest L2 norm of an update (returned minus sent weights), per fold. The default stops only the absurd."""
    state_norm: PositiveFloat = 1e6
    """Largest L2 norm of whatever else an update carries (SCAFFOLD's variate, FedBN's layers), per fold."""


class Federation(Strict):
    """`federation.yaml`, validated."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    name: Name
    description: str = ""
    task: Task
    modalities: Modalities
    network: NetworkOptions
    training: Training
    evaluation: Evaluation = Evaluation()
    privacy: Privacy | None = None
    quorum: Quorum = Quorum()
    checks: Checks = Checks()

    @property
    def labels(self) -> tuple[str, ...]:
        """What one model says of a patient or a slice, by name: the types of haemorrhage, or the one outcome, ''."""
        return HAEMORRHAGES if self.task.kind == "slices" else ("",)

    @property
    def predictors(self) -> dict[str, Variable]:
        """The variables that the network sees, in their configured order."""
        return self.modalities.table.chosen

    @property
    def spoken(self) -> dict[str, Variable]:
        """The variables that the text's template speaks of, in its order; nothing without such a text."""
        text = self.modalities.text
        return text.spoken(self.modalities.table) if text else {}

    @property
    def grouped(self) -> dict[str, Variable]:
        """The variables that make subgroups, in their order."""
        variables = self.modalities.table.variables
        return {each.variable: variables[each.variable] for each in self.evaluation.subgroups}

    @property
    def subgroups(self) -> dict[str, tuple[str, ...]]:
        """The subgroups by variable."""
        return {
            each.variable: subgroups.levels(each, self.grouped[each.variable]) for each in self.evaluation.subgroups
        }

    @property
    def needed(self) -> dict[str, Variable]:
        """The variables that a hospital must map: predictors, what the template speaks of, what makes subgroups, and the outcome."""
        outcome = self.task.outcome.variable
        return {**self.predictors, **self.spoken, **self.grouped, outcome: self.modalities.table.variables[outcome]}

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON form: keys sorted, defaults written out, no spaces; layout does not matter."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """The JSON text that is hashed and agreed on."""
        return json.dumps(
            self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), allow_nan=False
        )


# --- loading ----------------------------------------------------------------------------------------------------------


def load_federation(path: Path) -> Document[Federation]:
    """Read and check a federation file, the data dictionary that it names included.

    Raises ConfigurationError with every problem of the file: its form first, then what its parts say of each other
    (an unknown moment, a predictor known too late or derived from the outcome, a network that the strategy cannot use).
    """
    document = load(path, Federation)
    federation = document.value
    table = federation.modalities.table
    if table.dictionary is not None:
        beside = path.parent / table.dictionary
        if not beside.resolve().is_relative_to(path.parent.resolve()):
            raise ConfigurationError(
                f"{table.dictionary} is a link that leaves the folder of the federation file",
                where=document.where("modalities", "table", "dictionary"),
                hint="keep the dictionary itself beside it",
            )
        dictionary = load(beside, Dictionary).value
        twice = sorted(set(dictionary.variables) & set(table.variables))
        if twice:
            raise ConfigurationError(
                Problem(
                    f"{', '.join(map(repr, twice))} stand both here and in {table.dictionary}",
                    document.where("modalities", "table", "variables"),
                    "keep each variable in one place",
                )
            )
        merged = table.model_copy(update={"dictionary": None, "variables": {**dictionary.variables, **table.variables}})
        federation = federation.model_copy(
            update={"modalities": federation.modalities.model_copy(update={"table": merged})}
        )
        document = document.replace(federation)
    problems = [Problem(message, document.where(*loc), hint) for loc, message, hint in _contradictions(federation)]
    if problems:
        raise ConfigurationError(problems)
    return document


def _contradictions(federation: Federation) -> list[Complaint]:
    """What the parts of a federation say against each other."""
    task, table = federation.task, federation.modalities.table
    return [
        *task.outcome.contradictions(table.variables, task.timeline, task.predict_at),
        *table.contradictions(task.outcome, task.timeline, task.predict_at),
        *federation.training.strategy.contradictions(federation),
        *_network_needs(federation),
        *_kind_needs(federation),
        *_image_needs(federation),
        *_text_needs(federation),
        *_unknown_stages(federation),
        *_evaluation_needs(federation),
        *privacy_terms.contradictions(federation),
        *(private_rules.refusals(federation) if federation.privacy is not None else ()),
    ]


def _evaluation_needs(federation: Federation) -> Iterator[Complaint]:
    """Subgroups that cannot be made, an ICH score without its items, recalibration of what is not trained."""
    table, evaluation, outcome = federation.modalities.table, federation.evaluation, federation.task.outcome.variable
    for index, grouping in enumerate(evaluation.subgroups):
        place = ("evaluation", "subgroups", index)
        variable = table.variables.get(grouping.variable)
        if variable is None:
            yield place, f"no variable '{grouping.variable}'", suggest(grouping.variable, table.variables, "variables")
        elif grouping.variable == outcome:
            yield place, f"'{outcome}' is the outcome: its subgroups have one class", "leave it out"
        elif variable.codes and grouping.cut:
            yield place, f"'{grouping.variable}' has levels, and cut is for numbers", "leave cut out"
        elif not variable.codes and not grouping.cut:
            example = f"{{variable: {grouping.variable}, cut: [...]}}"
            yield place, f"'{grouping.variable}' is a number, and no cut is given", f"write {example}"
    if (items := evaluation.comparisons.ich_score) is not None:
        for role, name in items.model_dump().items():
            if name not in table.predictors:
                message = f"the ICH score's {role} is to be predictor '{name}', and there is none"
                hint = f"name the predictor that it is: ich_score: {{{role}: NAME}}"
                yield ("evaluation", "comparisons", "ich_score"), message, hint
    by_slice = federation.task.kind == "slices"
    if by_slice and evaluation.subgroups:
        yield ("evaluation", "subgroups"), "a study of slices has figures by type, none by subgroup", "leave it out"
    if evaluation.recalibrate != "none" and (by_slice or isinstance(federation.network, IchScore)):
        message = f"network '{federation.network.name}' has no one output that can be recalibrated"
        yield ("evaluation", "recalibrate"), message, "write recalibrate: none"


def _text_needs(federation: Federation) -> Iterator[Complaint]:
    """What the text says against the table, the timeline and the network."""
    task, table, text, network = (
        federation.task,
        federation.modalities.table,
        federation.modalities.text,
        federation.network,
    )
    if text is None:
        return
    yield from text.contradictions(table, task.outcome, task.timeline, task.predict_at)
    if text.writer == "allowed" and not _shows_brains(federation.modalities.image):
        message = "a language model is shown brain-masked slices, and no image of this study has them"
        yield (
            ("modalities", "text", "writer"),
            message,
            "add image: {kind: ct, brain: mask} or {kind: mr}, or leave it out",
        )
    if not isinstance(network, WithText) or "text" not in network.uses:
        return
    places = {"text.positions": network.text.positions} | (
        {"tokens": network.tokens} if isinstance(network, IchPro) else {}
    )
    for key, most in places.items():
        if text.tokens > most:
            message = f"a text of {text.tokens} tokens, and the network takes {most} (network.{key})"
            yield ("modalities", "text", "tokens"), message, f"write tokens: {most}, or let the network take more"
    if text.vocabulary is None and all(name in table.variables for name in text.variables or table.predictors):
        yield from tokens.contradictions(tokens.built_in(text, table), network)


def _shows_brains(image: ImageSpec | None) -> bool:
    return isinstance(image, MrVolume) or (isinstance(image, CtVolume) and image.brain == "mask")


def _network_needs(federation: Federation) -> list[tuple[tuple[str | int, ...], str, str]]:
    """A network without its modality would learn from nothing: every patient lacks it."""
    offered = [name for name in Modalities.model_fields if getattr(federation.modalities, name) is not None]
    missing = [name for name in federation.network.uses if name not in offered]
    if missing:
        return [
            (
                ("network", "name"),
                f"network '{federation.network.name}' uses {' and '.join(missing)}, which modalities does not have",
                "add it under modalities, or leave it out of network.modalities where the network has such a list",
            )
        ]
    return []


def _kind_needs(federation: Federation) -> Iterator[Complaint]:
    """What the kind of task, the network, the images and the comparisons say against each other."""
    network, image, evaluation = federation.network, federation.modalities.image, federation.evaluation
    by_slice = isinstance(network, Hohoho | Dlmi)
    if by_slice and federation.task.kind != "slices":
        message = f"network '{network.name}' says five types of haemorrhage of each slice, and the task is one outcome"
        yield ("task", "kind"), message, "write kind: slices"
    if federation.task.kind == "slices":
        if not by_slice:
            message = f"network '{network.name}' says one thing of a patient, and the task is slices"
            yield ("network", "name"), message, "networks for slices: hohoho, dlmi"
        if image is not None and not isinstance(image, CtSlices):
            yield ("modalities", "image", "kind"), "the task is slices, and this is another image", "kind: ct_slices"
        for name in ("local", "pooled", "tabular", "ich_score"):
            if getattr(evaluation.comparisons, name) is not None:
                message = f"the {name} arm trains in one stage for one outcome, and the task is slices"
                yield ("evaluation", "comparisons", name), message, "leave it out"
    if federation.modalities.table.scaling == "hospital" and (
        isinstance(network, Dlmi)
        or (isinstance(network, IchPro | MedNvc) and network.standardise)
        or network.class_weights == "federation"
    ):
        message = f"network '{network.name}' needs sums of the whole federation, and every hospital scales by its own"
        yield ("modalities", "table", "scaling"), message, "write scaling: federated"


def _image_needs(federation: Federation) -> Iterator[Complaint]:
    """An image that does not go into the network: it would be told by the first convolution, at every hospital."""
    network, image = federation.network, federation.modalities.image
    if image is None or "image" not in network.uses:
        return
    here = ("network", "name")
    taken = network.image.channels if isinstance(network, MedNvc) else getattr(network, "channels", image.channels)
    if taken != image.channels:
        message = f"the image has {image.channels} channels, and network '{network.name}' takes {taken}"
        if isinstance(network, MedNvc):
            yield here, message, f"write network.image.channels: {image.channels}, or modalities.image.repeat: {taken}"
        else:
            yield here, message, f"write network.channels: {image.channels}, or let the image have {taken} channels"
    volumes = isinstance(image, CtVolume | MrVolume)
    flat = isinstance(network, MedNvc | Hohoho | Dlmi) or getattr(network, "dimensions", 3) == 2
    if flat and volumes:
        yield here, f"the image is a volume, and network '{network.name}' looks at slices or views", _OTHER_IMAGE
    elif not flat and not volumes:
        yield here, f"the image is slices or views, and network '{network.name}' looks at a volume", _OTHER_IMAGE


_OTHER_IMAGE: Final = (
    "choose another network or another modalities.image.kind (concat and image_only: dimensions: 2 or 3)"
)


def _unknown_stages(federation: Federation) -> list[Complaint]:
    """Stages that a network of several does not have, or that ICHPro would have with `supervise`."""
    network = federation.network
    known = network.stages
    if isinstance(network, IchPro) and not network.supervise:
        message = "without network.supervise the stage '{}' would train the whole network"
        return [
            (
                ("training", "stages", index, "name"),
                message.format(stage.name),
                "write network.supervise: true, or name it train",
            )
            for index, stage in enumerate(federation.training.stages)
            if stage.name in ("encoders", "fusion")
        ]
    return [
        (
            ("training", "stages", index, "name"),
            f"network '{federation.network.name}' has no stage '{stage.name}'",
            f"its stages: {', '.join(known)}",
        )
        for index, stage in enumerate(federation.training.stages)
        if len(known) > 1 and stage.name not in known
    ]


def json_schema() -> dict[str, Any]:
    """JSON Schema of `federation.yaml`, for editors."""
    return Federation.model_json_schema(by_alias=True)
