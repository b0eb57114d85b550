"""What a study promises of each patient: `privacy:` in federation.yaml, and the numbers that everybody may know."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from ich_models import clinical
from ich_models.recipes import Stage
from ich_models.strict import Name, Strict
from ich_models.variables import Complaint
from ich_models.yaml_config import suggest

if TYPE_CHECKING:
    from ich_models.federation import Evaluation, Federation

PatientCount = Annotated[int, Field(ge=1, le=10_000_000)]


class Rounded(Strict):
    """Each hospital says how many patients it has, rounded; the rounded number then counts as known to everybody."""

    rounded_to: Annotated[int, Field(ge=2, le=100_000)]


class Published(Strict):
    """What is known of a column from elsewhere: from the literature, not from these patients."""

    mean: float
    sd: PositiveFloat


class Privacy(Strict):
    """(epsilon, delta)-differential privacy of each patient of a hospital, with all scans: one more or one fewer."""

    epsilon: Annotated[float, Field(gt=0, le=100)]
    """What the study may tell of a patient, at the most, at each hospital."""
    delta: Annotated[float, Field(gt=0, lt=0.1)]
    """Smaller than one over the patients of a hospital."""
    per: Literal["study", "model"] = "study"
    """What `epsilon` is of: all models and seeds of the study together, or each model of one seed by itself."""
    clip: PositiveFloat = 1.0
    """Largest L2 norm of one patient's gradient."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Chance of each patient to be in a step; an epoch is 1 / rate steps. A stage's `batch` has no say then."""
    patients: Annotated[Rounded | PatientCount | dict[Name, PatientCount], Field(union_mode="left_to_right")]
    """How many patients a hospital has, as everybody may know: one number for all (who then count alike), one for each
    hospital by name, or what each says, rounded."""
    hospitals: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many hospitals the noise is planned for; by default as many as `patients` names."""
    own_noise: bool = False
    """Whether a hospital whose own limit is lower may take part with more noise."""
    metrics: Literal["noised", "exact", "not_sent"] = "noised"
    """Figures of the evaluation: noised and paid for out of epsilon; exact, which no epsilon holds for; or none."""
    metrics_noise: PositiveFloat = 10.0
    """`noised`: standard deviation of the noise on each count of patients that the figures are made of."""
    public: dict[str, Published] = {}
    """By column of the table: published mean and standard deviation, to scale by; by default from the variable's range."""

    @model_validator(mode="after")
    def _planned(self) -> Self:
        if self.hospitals is None and not isinstance(self.patients, dict):
            raise ValueError("for how many hospitals the noise is planned is not said | add hospitals: 8")
        if isinstance(self.patients, dict) and not self.patients:
            raise ValueError("patients names no hospital | write patients: 300, or {north: 300, east: 200}")
        if isinstance(self.patients, dict) and self.hospitals not in (None, len(self.patients)):
            message = f"hospitals: {self.hospitals}, and patients names {len(self.patients)}"
            raise ValueError(f"{message} | leave hospitals out")
        return self

    @property
    def planned_hospitals(self) -> int:
        """How many hospitals the noise is planned for."""
        return self.hospitals or (len(self.patients) if isinstance(self.patients, dict) else 1)

    def stated(self, hospital: str, counted: int) -> int | None:
        """How many patients the hospital says that it has, who in truth are `counted`. None: the study does not name it."""
        if isinstance(self.patients, Rounded):
            step = self.patients.rounded_to
            return max(step, (2 * counted + step) // (2 * step) * step)
        return self.patients.get(hospital) if isinstance(self.patients, dict) else self.patients

    def typical(self) -> int | None:
        """The smallest number of patients that is planned with; None where hospitals will say it."""
        if isinstance(self.patients, Rounded):
            return None
        return min(self.patients.values()) if isinstance(self.patients, dict) else self.patients

    def steps(self, stage: Stage) -> int:
        """Steps of one round of a stage, whatever the patients are."""
        return stage.updates or (stage.epochs or 1) * max(1, round(1 / self.rate))


def learning(evaluation: "Evaluation", stated: int, part: int) -> int:
    """How many of the `stated` patients train when `part` is held out (0: none but the test share)."""
    share = 1.0
    if part:
        share = 1 - 1 / (evaluation.folds or 1)
    elif evaluation.test is not None:
        share = 1 - evaluation.test
    return max(1, round(stated * share))


# --- what it does not go with -----------------------------------------------------------------------------------------


def contradictions(federation: "Federation") -> Iterator[Complaint]:
    """What the rest of the file asks hospitals to tell that a private study cannot pay for, and what to write instead."""
    privacy, evaluation, table = federation.privacy, federation.evaluation, federation.modalities.table
    if privacy is None:
        if evaluation.comparisons.without_privacy:
            place = ("evaluation", "comparisons", "without_privacy")
            yield place, "the study has no privacy to be compared with", "leave it out"
        return
    if isinstance(evaluation.threshold, str):
        message = "a threshold that is chosen on patients tells of them"
        yield ("evaluation", "threshold"), message, "write a number, such as threshold: 0.5"
    if evaluation.validation is not None:
        message = "no loss of validation patients leaves a private study: they would be set apart for nothing"
        yield ("evaluation", "validation"), message, "leave it out"
    if table.scaling == "hospital":
        message = "a hospital's own mean and standard deviation let each patient change what all others teach"
        hint = "write scaling: federated: a private study scales by public numbers"
        yield ("modalities", "table", "scaling"), message, hint
    if privacy.metrics == "noised" and federation.task.kind == "slices":
        message = "figures of slices cannot be noised: one patient has many"
        yield (
            ("privacy", "metrics"),
            message,
            "write metrics: not_sent, or exact (no epsilon holds for the figures then)",
        )
    if privacy.metrics == "noised" and evaluation.subgroups:
        message = "figures of subgroups are not noised, and would be left out"
        yield (
            ("evaluation", "subgroups"),
            message,
            "leave it out, or write privacy.metrics: exact (no epsilon holds then)",
        )
    columns = clinical.columns(table) if set(table.predictors) <= set(table.variables) else ()
    for name in privacy.public:
        if columns and name not in columns:
            yield ("privacy", "public", name), f"no column '{name}'", suggest(name, columns, "columns")
    for index, name in enumerate(table.predictors):
        variable = table.variables.get(name)
        if variable is None or variable.codes or variable.range or name in privacy.public or table.scaling == "none":
            continue
        message = f"'{name}' cannot be scaled: its mean and standard deviation are not told in a private study"
        hint = "give the variable a range, or its published mean and sd in privacy.public"
        yield ("modalities", "table", "predictors", index), message, hint
