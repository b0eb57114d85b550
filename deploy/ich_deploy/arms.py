"""The arms of a study in simulation: what federated, local and pooled models say of the same test patients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ich_client.site import Site
from ich_client.train import fit
from ich_client.work import load_stack, personal, predict
from ich_models.batch import Patients
from ich_models.folds import FEDERATED, LOHO, Fold, parse, questions
from ich_models.metrics import Evaluation, evaluate, youden_threshold
from ich_models.protocol import CONSTANTS, LOCAL, WEIGHTS, Rows
from ich_models.recipes import Recipe
from ich_models.statistics import merge
from ich_server.results import ArmFound
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

    def measure(self, seed: int) -> Evaluation:
        """Every metric."""
        return evaluate(self.labels, self.probabilities, self.thresholds, seed=seed)


def compare(plan: Plan, sites: Sites, result: StudyResult) -> Iterator[tuple[str, ArmFound]]:
    """Every arm that the federation file asks for, one after another: (name, what was found).

    Of the hospitals that took part; an arm of which no answer came in is left out.
    """
    sites = {name: site for name, site in sites.items() if name in result.hospitals}
    evaluation = plan.federation.evaluation
    by_slice = plan.federation.task.kind == "slices"
    models = {} if by_slice else {fold: Model(result.of([fold]), limit) for fold, limit in result.thresholds.items()}
    for arm in (LOHO, FEDERATED):
        asked = {name: folds[arm] for name in sites if arm in (folds := questions(evaluation, name))}
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
            yield arm, ArmFound(hospitals, _all_patients(plan, sites, own, asked).measure(plan.seed))
    within = {name: folds[FEDERATED] for name in sites if FEDERATED in (folds := questions(evaluation, name))}
    if evaluation.comparisons.local:
        yield "local", _local(plan, sites, within, evaluation.comparisons.local)
    if evaluation.comparisons.pooled:
        if evaluation.leave_one_hospital_out:
            loho = {name: questions(evaluation, name)[LOHO] for name in sites}
            yield "pooled", _pooled(plan, sites, loho, evaluation.comparisons.pooled)
        if within:
            name = "pooled_within" if evaluation.leave_one_hospital_out else "pooled"
            yield name, _pooled(plan, sites, within, evaluation.comparisons.pooled)


# --- arms -------------------------------------------------------------------------------------------------------------


def _local(plan: Plan, sites: Sites, asked: Mapping[str, Sequence[str]], recipe: Recipe) -> ArmFound:
    """Each hospital alone: its own scaling, its own start, its own threshold."""
    scored = {}
    for name, site in sites.items():
        models = {}
        for fold in map(parse, asked[name]):
            part = fold.part or 0
            models[fold.name] = train_alone(plan, [site], part, recipe, (plan.seed, 1, *name.encode()))
        scored[name] = _join([_score(plan, site, models[fold], parse(fold)) for fold in asked[name]])
    return _found(scored, _join(list(scored.values())), plan.seed)


def _pooled(plan: Plan, sites: Sites, asked: Mapping[str, Sequence[str]], recipe: Recipe) -> ArmFound:
    """All training hospitals of each fold in one place."""
    models = {}
    for fold in map(parse, dict.fromkeys(fold for folds in asked.values() for fold in folds)):
        learning = [site for name, site in sites.items() if fold.trains_at(name)]
        models[fold.name] = train_alone(plan, learning, fold.part or 0, recipe, (plan.seed, 0))
    scored = {}
    for name, site in sites.items():
        parts = [(_own_scaling(plan, site, models[fold], parse(fold)), parse(fold)) for fold in asked[name]]
        scored[name] = _join([_score(plan, site, model, fold) for model, fold in parts])
    return _found(scored, _all_patients(plan, sites, lambda _, fold: models[fold], asked), plan.seed)


def _found(scored: Mapping[str, Scored], pooled: Scored, seed: int) -> ArmFound:
    return ArmFound({name: part.measure(seed) for name, part in scored.items()}, pooled.measure(seed))


def _all_patients(
    plan: Plan, sites: Sites, model_at: Callable[[Site, str], Model], asked: Mapping[str, Sequence[str]]
) -> Scored:
    """All test patients together, each under the model that its hospital uses. Under `scaling: hospital` the pooled table is scaled as one data set.

    (Ogier du Terrail et al., FLamby, NeurIPS 2022: the pooled test set, for every method, by the pooled training mean
    and standard deviation.)
    """
    parts = []
    for name, site in sites.items():
        for fold in map(parse, asked[name]):
            model = model_at(site, fold.name)
            if plan.federation.modalities.table.scaling == "hospital":
                moments = merge(s.moments(fold.part or 0) for n, s in sites.items() if fold.trains_at(n))
                model = Model({**model.rows, CONSTANTS: plan.constants_row(moments)}, model.threshold)
            parts.append(_score(plan, site, model, fold))
    return _join(parts)


# --- one model --------------------------------------------------------------------------------------------------------


def train_alone(plan: Plan, sites: Sequence[Site], part: int, recipe: Recipe, seed: tuple[int, ...]) -> Model:
    """Train the plan's network in one place on the training patients of `sites`, scaled by their own statistics."""
    moments = merge(site.moments(part) for site in sites)
    rows = {WEIGHTS: plan.start_rows([moments.log_odds]), CONSTANTS: plan.constants_row(moments)}
    if plan.local.size:
        rows[LOCAL] = plan.start_local.numpy()
    stack = load_stack(plan, rows)
    train = _patients(sites, part, "train")
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
    if fixed != "youden":
        return fixed
    chosen = validation if len(validation) else train
    found = youden_threshold(chosen.labels, predict(plan, rows, chosen)[0])
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
