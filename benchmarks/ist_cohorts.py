"""How much the choice of patients and of the test moves a figure: IST, one central logistic regression, several cohorts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ich_client.hospital import HospitalConfig
from ich_client.tables import Hospital, load_hospitals
from ich_deploy import source
from ich_models import console
from ich_models.yaml_config import load

EXAMPLE = "Example: python benchmarks/ist_cohorts.py --data DATA"
STUDY: Final = Path(__file__).resolve().parent.parent / "examples/ist/death_or_dependency.yaml"
MANY: Final = 16

app = console.application("")


def model() -> Pipeline:
    """Mean for what is missing, standard scores, a logistic regression with scikit-learn's own penalty."""
    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=500))


def scores(members: Sequence[Hospital], split: GroupKFold | LeaveOneGroupOut | StratifiedKFold) -> NDArray[np.float64]:
    """Log-odds of every patient under a model that has not seen the patient, or in groups the hospital."""
    table, labels = together(members)
    groups = (
        None
        if isinstance(split, StratifiedKFold)
        else np.repeat(np.arange(len(members)), [len(one.patients) for one in members])
    )
    found: NDArray[np.float64] = cross_val_predict(
        model(), table, labels, groups=groups, cv=split, method="decision_function"
    )
    return found


def together(members: Sequence[Hospital]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Tables (N, D) and outcomes (N,) of all of them."""
    return np.concatenate([one.patients.table for one in members]), np.concatenate(
        [one.patients.labels for one in members]
    )


def area(members: Sequence[Hospital], found: NDArray[np.float64]) -> float:
    """AUROC of all patients together."""
    return float(roc_auc_score(together(members)[1], found))


def middle(members: Sequence[Hospital], found: NDArray[np.float64]) -> float:
    """Median of the hospitals' own AUROC."""
    ends = np.cumsum([len(one.patients) for one in members])[:-1]
    pairs = zip(members, np.split(found, ends), strict=True)
    return float(np.median([roc_auc_score(one.patients.labels, own) for one, own in pairs]))


def fifths(members: Sequence[Hospital], draws: int, generator: np.random.Generator) -> list[float]:
    """AUROC of a random fifth of each hospital, the rest taught."""
    areas = []
    for _ in range(draws):
        orders = [generator.permutation(len(one.patients)) for one in members]
        tested, taught = (
            together(
                [replace(one, patients=one.patients.take(rows)) for one, rows in zip(members, chosen, strict=True)]
            )
            for chosen in ([rows[: len(rows) // 5] for rows in orders], [rows[len(rows) // 5 :] for rows in orders])
        )
        areas.append(float(roc_auc_score(tested[1], model().fit(*taught).decision_function(tested[0]))))
    return areas


def spread(areas: Sequence[float]) -> str:
    """Mean, and lowest to highest."""
    return f"{np.mean(areas):.3f} ({min(areas):.3f}-{max(areas):.3f})"


@app.command(epilog=EXAMPLE)
def main(data: Annotated[Path, typer.Option(help="folder that holds ist/IST.csv")]) -> None:
    """Say what docs/results.md says of sixteen hospitals of the International Stroke Trial. A minute."""
    origin = source.locate(STUDY, data, None)
    study, hospitals = source.load(origin)
    mapping = load(origin.mappings / "ist.yaml", HospitalConfig)
    by_country = mapping.value.model_copy(
        update={"table": mapping.value.table.model_copy(update={"split_by": "COUNTRY"})}
    )
    countries = load_hospitals([replace(mapping, value=by_country)], origin.data, study)
    ranked, lands = (sorted(some, key=lambda one: -len(one.patients)) for some in (hospitals, countries))
    largest, generator = ranked[:MANY], np.random.default_rng(0)
    table = Table("patients", "tested on", "AUROC, all together", "median", box=None)
    for what, members in (
        ("largest hospitals", largest),
        ("next hospitals", ranked[MANY : 2 * MANY]),
        ("largest countries", lands[:MANY]),
    ):
        found = scores(members, LeaveOneGroupOut())
        size = sum(len(one.patients) for one in members)
        table.add_row(
            f"{what}, {size:,}", "the one left out", f"{area(members, found):.3f}", f"{middle(members, found):.3f}"
        )
    parts = scores(largest, StratifiedKFold(5, shuffle=True, random_state=0))
    table.add_row("largest hospitals", "five random parts", f"{area(largest, parts):.3f}")
    table.add_row("", "a random fifth of each, 15 draws", spread(fifths(largest, 15, generator)))
    drawn = [[hospitals[number] for number in generator.choice(len(hospitals), MANY, replace=False)] for _ in range(30)]
    areas = [area(members, scores(members, GroupKFold(8))) for members in drawn]
    table.add_row("any 16 of the 49, 30 draws", "those left out, two at a time", spread(areas))
    Console(highlight=False, soft_wrap=True).print(table)


if __name__ == "__main__":
    console.run(app)
