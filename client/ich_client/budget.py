"""What a study may take from this hospital's patients: the study's plan, the hospital's limits, and the ledger of both.

Two limits hold at every reservation. A study never spends more than it has promised, here or anywhere: rounds that are
lost to a crash are lost. And with `limits.epsilon` all studies together, on patients that they share, stay within it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ich_client.hospital import Limits
from ich_client.ledger import Charge, Ledger, Writer, spent
from ich_client.tasks import RefusedError
from ich_models import accounting
from ich_models.accounting import Programme, Steps, affordable, epsilon, expected, noise_for
from ich_models.errors import Code, Problem
from ich_models.federation import Federation
from ich_models.privacy import Privacy, learning

SLACK: Final = 1e-9
"""By which a sum may miss its limit."""


def too_open(limits: Limits, privacy: Privacy | None) -> str | None:
    """Why a study tells more than `limits.privacy: required` lets it; None: it does not, or the hospital does not ask.

    Exact figures are of weights that the server chooses, and tell of the patients what no epsilon bounds.
    """
    if limits.privacy != "required":
        return None
    if privacy is None:
        return "this study has none"
    return (
        "this study asks for exact figures (privacy.metrics)"
        if privacy.metrics == "exact" and limits.send_metrics
        else None
    )


EVALUATION: Final = "evaluation"
"""What a charge for noised figures is for; all others are for rounds."""

RECOGNISED: Final = 0.5
"""Share of the patients that could be known to the ledger, under which their identifiers may have changed."""


@dataclass(frozen=True)
class Terms:
    """What a study costs this hospital: noise `sigma`, epsilon `planned` of this study, and `total` with all before it."""

    sigma: float
    planned: float
    before: float
    total: float
    delta: float


@dataclass(frozen=True)
class Budget:
    """One hospital's patients in one private study."""

    federation: Federation
    hospital: str
    limits: Limits
    patients: Sequence[str]
    """Identifiers of all who take part."""
    ledger: Ledger

    @property
    def privacy(self) -> Privacy:
        """The study's terms."""
        assert self.federation.privacy is not None, "a budget for a study without privacy"
        return self.federation.privacy

    @property
    def programme(self) -> Programme:
        """The study's plan."""
        return accounting.programme(self.federation)

    @property
    def stated(self) -> int:
        """How many patients this hospital says that it has. Raises RefusedError(POLICY) if the study does not name it."""
        found = self.privacy.stated(self.hospital, len(self.patients))
        if found is None:
            raise RefusedError(Code.POLICY, f"privacy.patients does not name '{self.hospital}'")
        return found

    def learning(self, part: int) -> int:
        """How many of these train when `part` is held out."""
        return learning(self.federation.evaluation, self.stated, part)

    # what it will cost

    def charges(self) -> tuple[Charge, ...]:
        """What these patients, or some of them, have borne so far. Writes nothing."""
        book = self.ledger.read()
        if not book.lines:
            return ()
        return book.sharing(self.ledger.cohort(self.patients)[1])

    def terms(self) -> Terms:
        """Noise and cost, as the ledger stands. Raises RefusedError(BUDGET) if the hospital cannot take part."""
        return self._terms(self.charges())

    def _terms(self, charges: Sequence[Charge]) -> Terms:
        """The same, of patients with these charges. What this study itself has spent is part of its plan."""
        plan, study = self.programme, self.federation.hash
        others = [charge for charge in charges if charge.study != study]
        delta = min([plan.delta, *(charge.delta for charge in others)])
        sigma = self._sigma(spent(others), delta)
        whole = plan.with_noise(sigma)
        before = epsilon(spent(others), delta)
        return Terms(sigma, epsilon(whole, plan.delta), before, epsilon((*spent(others), *whole), delta), delta)

    def _sigma(self, others: Sequence[Steps], delta: float) -> float:
        """The study's noise, or this hospital's own, larger one."""
        plan, limit = self.programme, self.limits.epsilon
        if limit is None or affordable((*others, *plan.whole), delta, limit + SLACK):
            return plan.sigma
        told = f"this study would bring epsilon to {epsilon((*others, *plan.whole), delta):.3g}; limits.epsilon is {limit:g}"
        if not self.privacy.own_noise:
            raise RefusedError(
                Code.BUDGET, f"{told}, and the study does not allow a noise of one's own (privacy.own_noise)"
            )
        found = noise_for(limit, delta, plan.rate, plan.steps, (*others, *plan.figures))
        if found is None:
            raise RefusedError(Code.BUDGET, f"{told}, and no noise is enough for what is left")
        return max(found, plan.sigma)

    def told(self, weights: int) -> Iterator[tuple[str, str]]:
        """Lines of (word, text) on what the study costs these patients, as the ledger stands; `weights`: numbers trained.

        Raises RefusedError(BUDGET or POLICY) if the hospital cannot take part.
        """
        found, limit = self.terms(), self.limits.epsilon
        whose = "" if found.sigma == self.programme.sigma else f", with this hospital's own noise of {found.sigma:g}"
        yield "this study", f"epsilon {found.planned:.2f}{whose}"
        if found.before:
            yield (
                "before",
                f"epsilon {found.before:.2f} on these patients or some of them; {found.total:.2f} with this study",
            )
        allowed = (
            "none; each study that is approved may spend what it promises" if limit is None else f"epsilon {limit:g}"
        )
        yield "limit", f"limits.epsilon: {allowed}"
        effect = expected(self.programme, self.stated, weights, found.sigma)
        text = f"{self.stated:,} patients are stated, {len(self.patients):,} take part; the noise of a step is"
        yield "utility", f"{text} {effect.share:.2g} times as long as the longest step: {effect.verdict}"

    def refusal(self) -> Problem | None:
        """Why the hospital cannot take part, for people here."""
        try:
            list(self.told(1))
        except RefusedError as error:
            hint = (
                "the hospital may raise its limit; the coordinator may plan less, allow own_noise, or name the hospital"
            )
            return Problem(f"hospital '{self.hospital}' will not take part (code {error.code}): {error}", hint=hint)
        return None

    def warnings(self) -> Iterator[Problem]:
        """What people here should know before they agree."""
        known = frozenset().union(*self.ledger.read().cohorts.values())
        if known:
            here = self.ledger.cohort(self.patients)[1]
            share = len(known & here) / min(len(known), len(here))
            if share < RECOGNISED:
                message = f"{len(known & here):,} of these {len(here):,} patients stand in the ledger, which knows {len(known):,}"
                hint = "if identifiers were changed since, what the others bore before is not counted: keep identifiers as they are"
                yield Problem(message, str(self.ledger.path), hint)
        if not 0.5 <= self.stated / len(self.patients) <= 2:
            message = f"{self.stated:,} patients are stated for hospital '{self.hospital}', and {len(self.patients):,} take part"
            yield Problem(message, "privacy.patients", "the steps are too short or too long by as much")

    # spending

    def training(self, seed: int, round_number: int, folds: Sequence[str]) -> tuple[float, Charge]:
        """Reserve one round of these folds: the noise to train with, and the charge. Raises RefusedError(BUDGET).

        If the work then fails, all of it stays spent: whether noise was drawn, nobody can say.
        """
        stage, _ = self.federation.training.stage_at(round_number)
        steps = self.privacy.steps(stage) * len(folds)
        with self.ledger.writing(self.patients) as writer:
            sigma = self._terms(writer.charges).sigma
            row, what = Steps(sigma, self.privacy.rate, steps), f"round {round_number}"
            if self.privacy.per == "model":
                self._check_models(writer, seed, what, folds, row)
            return sigma, self._reserve(writer, seed, what, folds, row)

    def figures(self, seed: int, folds: Sequence[str], questions: int) -> Charge:
        """Reserve the noised counts of so many evaluations. Raises RefusedError(BUDGET)."""
        with self.ledger.writing(self.patients) as writer:
            return self._reserve(writer, seed, EVALUATION, folds, Steps(self.privacy.metrics_noise, 1.0, questions))

    def _check_models(self, writer: Writer, seed: int, what: str, folds: Sequence[str], row: Steps) -> None:
        """Raise RefusedError(BUDGET) if one of these models of this seed would cost more than each was promised to.

        The seed's figures count as if they were all of that model.
        """
        plan, study = self.programme, self.federation.hash
        figures = [replace(one, steps=one.steps // plan.seeds) for one in plan.figures]
        mine = [one for one in writer.charges if (one.study, one.seed) == (study, seed) and one.what != EVALUATION]
        for fold in folds:
            before = [one.of_each_model for one in mine if fold in one.folds]
            rows = (*before, replace(row, steps=row.steps // len(folds)), *figures)
            if not affordable(rows, plan.delta, plan.model + SLACK):
                reached = epsilon(rows, plan.delta)
                message = f"{what} would bring model {fold} to epsilon {reached:.3g}; it has promised {plan.model:.3g} of each"
                raise RefusedError(Code.BUDGET, message)

    def _reserve(self, writer: Writer, seed: int, what: str, folds: Sequence[str], row: Steps) -> Charge:
        plan, study = self.programme, self.federation.hash
        mine = [charge for charge in writer.charges if charge.study == study]
        if not affordable((*spent(mine), row), plan.delta, plan.study + SLACK):
            reached = epsilon((*spent(mine), row), plan.delta)
            message = f"{what} would bring this study to epsilon {reached:.3g}; it has promised {plan.study:.3g}"
            raise RefusedError(Code.BUDGET, message)
        if self.limits.epsilon is not None:
            delta = min([plan.delta, *(charge.delta for charge in writer.charges)])
            if not affordable((*spent(writer.charges), row), delta, self.limits.epsilon + SLACK):
                reached = epsilon((*spent(writer.charges), row), delta)
                message = (
                    f"{what} would bring epsilon to {reached:.3g}; this hospital's limit is {self.limits.epsilon:g}"
                )
                raise RefusedError(Code.BUDGET, message)
        return writer.reserve(study, seed, what, folds, row, plan.delta)
