"""The arms of a study in simulation: what federated, local and pooled models say of the same test patients."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ich_client.egress import few_of_a_class
from ich_client.site import Site
from ich_client.train import fit
from ich_client.work import load_stack, personal, predict
from ich_models import curves
from ich_models.batch import Patients
from ich_models.folds import FEDERATED, LOHO, Fold, parse, questions
from ich_models.metrics import (
    METRICS,
    MIN_PER_CLASS,
    Estimate,
    Evaluation,
    chosen_threshold,
    delong_paired,
    evaluate,
)
from ich_models.networks.options import IchScore, Logistic, NetworkOptions
from ich_models.protocol import CONSTANTS, LOCAL, WEIGHTS, Rows
from ich_models.recipes import Recipe
from ich_models.statistics import merge
from ich_server.results import ArmFound, Matrix, Z
from ich_server.study import FIXED_THRESHOLD, StudyResult
from ich_strategies.plan import Plan

Sites = Mapping[str, Site]


@dataclass(frozen=True)
class Model:
    """One trained model: its rows, and the threshold chosen where it was trained."""

    rows: Rows
    threshold: float


@dataclass(frozen=True)
class Scored:
    """Some test patients: outcome, probability and the threshold that applies, each (N,)."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.floating]
    thresholds: NDArray[np.float64]

    def measure(self, plan: Plan, k: int) -> Evaluation:
        """Every metric, calibration bins and decision curve, as a hospital with these patients tells them under its small-cell rule."""
        if _few(self.labels, k):
            return Evaluation(len(self.labels), None, dict.fromkeys(METRICS, Estimate(None, None, None)))
        found = evaluate(self.labels, self.probabilities, self.thresholds, seed=plan.seed)
        grid = plan.federation.evaluation.decision_thresholds
        bins, decisions = curves.groups(self.labels, self.probabilities, self.thresholds, grid, k)
        return replace(found, bins=bins, decisions=decisions)


def compare(plan: Plan, sites: Sites, result: StudyResult) -> Iterator[tuple[str, ArmFound]]:
    """Every arm that the federation file asks for, one after another: (name, what was found).

    Of the hospitals that took part; an arm of which no answer came in is left out. An arm that is tested on the same patients as one
    of the federated model's is compared with it, patient by patient.
    """
    sites = {name: site for name, site in sites.items() if name in result.hospitals}
    by_slice = plan.federation.task.kind == "slices"
    models = {} if by_slice else {fold: Model(result.of([fold]), limit) for fold, limit in result.thresholds.items()}
    references: dict[str, EachScored] = {}
    for arm in (LOHO, FEDERATED):
        asked = _asked(plan, sites, arm)
        if asked:
            given = [(name, answer) for name, answers in result.answers.items() for answer in answers]
            hospitals = {name: answer.evaluation() for name, answer in given if answer.arm == arm}
            if not hospitals:
                continue

            def own(site: Site, fold: str) -> Model:
                return Model(next(personal(site, [fold], models[fold].rows)), models[fold].threshold)

            if by_slice:  # figures by type are the hospitals' own
                yield arm, ArmFound(hospitals, None)
                continue
            references[arm] = _each(plan, sites, own, asked)
            alike = _scaled_alike(plan, sites, own, asked)
            yield arm, ArmFound(hospitals, _together(plan, sites, hospitals, alike))
    for name, reference, scored, alike in _trained(plan, sites):
        hospitals = {hospital: part.measure(plan, sites[hospital].small_cells) for hospital, part in scored.items()}
        found = ArmFound(hospitals, _together(plan, sites, hospitals, alike))
        if reference in references:
            told = {hospital: scored[hospital] for hospital in _telling(hospitals)}
            differences = _differences(told, references[reference])
            found = replace(found, reference=reference, differences=differences)
        yield name, found


def cross_site(plan: Plan, sites: Sites, recipe: Recipe, local: ArmFound) -> Matrix:
    """AUROC of every hospital's own model at every other hospital, on all its patients; at its own the local arm's.

    A hospital where 1 to k - 1 patients have the event, or have it not, has no figure.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for name in local.hospitals:
        model = train_alone(plan, [sites[name]], 0, recipe, (plan.seed, 1, *name.encode()))
        found[name] = {}
        for other in local.hospitals:
            site, labels = sites[other], sites[other].hospital.patients.labels
            if _few(labels, site.small_cells):
                found[name][other] = Estimate(None, None, None)
            elif other == name:
                found[name][other] = local.hospitals[name].metrics["auroc"]
            else:
                scored = _score(plan, site, _own_scaling(plan, site, model, EVERYBODY), EVERYBODY)
                found[name][other] = evaluate(labels, scored.probabilities, 0.5, resamples=0).metrics["auroc"]
    return found


# --- arms -------------------------------------------------------------------------------------------------------------

EachScored = Mapping[str, Scored]
"""The test patients of each hospital."""

EVERYBODY: Final = Fold("everybody", hospital="")
"""No fold of a study: as if the hospital had been held out, all its patients are tested."""

Asked = Mapping[str, Sequence[str]]
"""Hospital -> folds of which the models are tested there."""


def _asked(plan: Plan, sites: Sites, arm: str) -> Asked:
    return {name: folds[arm] for name in sites if arm in (folds := questions(plan.federation.evaluation, name))}


def _trained(plan: Plan, sites: Sites) -> Iterator[tuple[str, str, EachScored, EachScored]]:
    """The arms that are trained here: (name, the federated model's arm with the same patients, by hospital, `_scaled_alike`)."""
    wanted = plan.federation.evaluation.comparisons
    loho, within = _asked(plan, sites, LOHO), _asked(plan, sites, FEDERATED)
    asked, reference = (loho, LOHO) if loho else (within, FEDERATED)
    if wanted.local:
        scored = _local(plan, sites, within, wanted.local)
        yield "local", FEDERATED, scored, scored
    if wanted.pooled:
        yield "pooled", reference, *_pooled(plan, sites, asked, wanted.pooled)
        if loho and within:
            yield "pooled_within", FEDERATED, *_pooled(plan, sites, within, wanted.pooled)
    if wanted.tabular:
        other, others = _on_tables(plan, sites, Logistic(name="logistic"))
        yield "tabular", reference, *_pooled(other, others, asked, wanted.tabular)
    if wanted.ich_score:
        other, others = _on_tables(plan, sites, IchScore(name="ich_score", **wanted.ich_score.model_dump()))
        yield "ich_score", reference, *_pooled(other, others, asked, None)


def _on_tables(plan: Plan, sites: Sites, network: NetworkOptions) -> tuple[Plan, Sites]:
    """The same study and patients with another network, which sees the table alone."""
    other = Plan(plan.federation.model_copy(update={"network": network}), plan.seed)
    bare = {
        name: replace(site.hospital, patients=Patients(one.ids, one.table, one.labels, groups=one.groups))
        for name, site in sites.items()
        for one in [site.hospital.patients]
    }
    nowhere = Path("nowhere")  # nothing is kept of a network that is trained in one place
    return other, {name: Site(other, hospital, nowhere) for name, hospital in bare.items()}


def _local(plan: Plan, sites: Sites, asked: Asked, recipe: Recipe) -> EachScored:
    """Each hospital alone: its own scaling, its own start, its own threshold."""
    scored = {}
    for name, site in sites.items():
        models = {}
        for fold in map(parse, asked[name]):
            part = fold.part or 0
            models[fold.name] = train_alone(plan, [site], part, recipe, (plan.seed, 1, *name.encode()))
        scored[name] = _join([_score(plan, site, models[fold], parse(fold)) for fold in asked[name]])
    return scored


def _pooled(plan: Plan, sites: Sites, asked: Asked, recipe: Recipe | None) -> tuple[EachScored, EachScored]:
    """All training hospitals of each fold in one place. Without a recipe nothing is trained."""
    models = {}
    for fold in map(parse, dict.fromkeys(fold for folds in asked.values() for fold in folds)):
        learning = [site for name, site in sites.items() if fold.trains_at(name)]
        models[fold.name] = train_alone(plan, learning, fold.part or 0, recipe, (plan.seed, 0))
    scored = _each(plan, sites, lambda site, fold: _own_scaling(plan, site, models[fold], parse(fold)), asked)
    return scored, _scaled_alike(plan, sites, lambda _, fold: models[fold], asked)


def _each(plan: Plan, sites: Sites, model_at: Callable[[Site, str], Model], asked: Asked) -> EachScored:
    return {
        name: _join([_score(plan, site, model_at(site, fold), parse(fold)) for fold in asked[name]])
        for name, site in sites.items()
    }


def _scaled_alike(plan: Plan, sites: Sites, model_at: Callable[[Site, str], Model], asked: Asked) -> EachScored:
    """`_each` for figures of all test patients together: under `scaling: hospital` the pooled table is scaled as one data set.

    (Ogier du Terrail et al., FLamby, NeurIPS 2022: the pooled test set, for every method, by the pooled training mean
    and standard deviation.)
    """

    def scaled(site: Site, name: str) -> Model:
        model, fold = model_at(site, name), parse(name)
        if plan.federation.modalities.table.scaling != "hospital":
            return model
        moments = merge(s.moments(fold.part or 0) for n, s in sites.items() if fold.trains_at(n))
        return Model({**model.rows, CONSTANTS: plan.constants_row(moments)}, model.threshold)

    return _each(plan, sites, scaled, asked)


def _differences(scored: EachScored, reference: EachScored) -> dict[str, Estimate]:
    """AUROC minus the reference's, on the same patients, at every hospital with both classes; DeLong's paired interval.

    No interval under `MIN_PER_CLASS` of a class, or where the difference does not vary.
    """
    found = {}
    for name, ours in scored.items():
        theirs = reference[name]
        if not np.array_equal(ours.labels, theirs.labels):
            raise ValueError(f"the arms were tested on other patients of {name}")
        fewer = min(int(ours.labels.sum()), int((1 - ours.labels).sum()))
        if not fewer:
            continue
        difference, variance, _ = delong_paired(ours.labels, ours.probabilities, theirs.probabilities)
        half = Z * math.sqrt(variance) if fewer >= MIN_PER_CLASS and variance > 0 else None
        low, high = (None, None) if half is None else (max(-1.0, difference - half), min(1.0, difference + half))
        found[name] = Estimate(difference, low, high)
    return found


# --- small cells ------------------------------------------------------------------------------------------------------


def _few(labels: NDArray[np.int64], k: int) -> bool:
    """Whether a hospital with these test patients withholds every figure, as its gate does (`ich_client/egress.py`)."""
    return len(labels) < k or few_of_a_class(labels, k)


def _telling(hospitals: Mapping[str, Evaluation]) -> list[str]:
    """The hospitals that tell their figures."""
    return [name for name, found in hospitals.items() if found.events is not None]


def _together(plan: Plan, sites: Sites, hospitals: Mapping[str, Evaluation], scored: EachScored) -> Evaluation | None:
    """Figures of all test patients of the hospitals that tell theirs; None where nobody does.

    What the others withhold would else be what is left of a sum. For the same reason there are neither bins nor a curve as
    soon as k counts anywhere: hospitals tell theirs at cuts of their own, and at most of them some withhold.
    """
    telling = _telling(hospitals)
    if not telling:
        return None
    found = _join([part for name, part in scored.items() if name in telling]).measure(plan, k=0)
    if any(sites[name].small_cells > 1 for name in telling):
        return replace(found, bins=(), decisions=())
    return found


# --- one model --------------------------------------------------------------------------------------------------------


def train_alone(plan: Plan, sites: Sequence[Site], part: int, recipe: Recipe | None, seed: tuple[int, ...]) -> Model:
    """Train the plan's network in one place on the training patients of `sites`, scaled by their own statistics.

    Without a recipe it stays as it starts (the ICH score), and gets its threshold.
    """
    moments = merge(site.moments(part) for site in sites)
    rows = {WEIGHTS: plan.start_rows([moments.log_odds]), CONSTANTS: plan.constants_row(moments)}
    if plan.local.size:
        rows[LOCAL] = plan.start_local.numpy()
    stack = load_stack(plan, rows)
    train = _patients(sites, part, "train")
    if recipe is not None:
        fit(stack, train.batch(plan.dtype), recipe, seed=seed)
    tensors, stack_of_one = stack.tensors(), torch.from_numpy(rows[WEIGHTS])
    rows[WEIGHTS] = plan.weights.pack(tensors, stack_of_one).numpy().copy()
    if plan.local.size:
        rows[LOCAL] = plan.local.pack(tensors, stack_of_one).numpy().copy()
    return Model(rows, _threshold(plan, rows, _patients(sites, part, "validation"), train))


def _patients(sites: Sequence[Site], part: int, role: str) -> Patients:
    return Patients.join([site.hospital.patients.take(getattr(site.split(part), role)) for site in sites])


def _threshold(plan: Plan, rows: Rows, validation: Patients, train: Patients) -> float:
    fixed = plan.federation.evaluation.threshold
    if not isinstance(fixed, str):
        return fixed
    chosen = validation if len(validation) else train
    found = chosen_threshold(fixed, chosen.labels, predict(plan, rows, chosen)[0])
    return FIXED_THRESHOLD if found is None else found


def _own_scaling(plan: Plan, site: Site, model: Model, fold: Fold) -> Model:
    """Under `scaling: hospital` a hospital scales its own patients, whoever trained the model."""
    if plan.federation.modalities.table.scaling != "hospital":
        return model
    return Model({**model.rows, CONSTANTS: site.constants(fold.part or 0).numpy()}, model.threshold)


def _score(plan: Plan, site: Site, model: Model, fold: Fold) -> Scored:
    """A hospital's held-out patients of a fold under a model."""
    patients = site.hospital.patients
    rows = site.held_out(fold)
    probabilities = predict(plan, model.rows, patients.take(rows))[0]
    return Scored(patients.labels[rows], probabilities, np.full(len(rows), model.threshold))


def _join(parts: Sequence[Scored]) -> Scored:
    return Scored(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.thresholds for part in parts]),
    )
