"""What a private study promises, does and costs, in words: the same for hospitals, coordinator and report."""

from collections.abc import Iterator

from ich_models.accounting import Programme, expected, programme
from ich_models.errors import Problem
from ich_models.federation import Federation
from ich_models.privacy import Privacy, Rounded

FIGURES = {
    "noised": "counts with noise of {noise:g} patients, which epsilon pays for; no intervals, calibration or decision curves",
    "exact": "exact, and outside the promise: epsilon says nothing of what the figures tell about the patients they are of",
    "not_sent": "none leave the hospital",
}
"""By `privacy.metrics`."""


def promise(privacy: Privacy) -> str:
    """Epsilon, delta, and of what."""
    what = "the whole study" if privacy.per == "study" else "each model of each seed"
    return f"epsilon {privacy.epsilon:g} with delta {privacy.delta:g} for {what}: one patient with all scans, at each hospital"


def told(federation: Federation, weights: int) -> Iterator[tuple[str, str]]:
    """Lines of (word, text) about a study with privacy; `weights`: how many numbers it trains."""
    privacy, plan = _privacy(federation), programme(federation)
    yield "privacy", promise(privacy)
    yield "noise", work(privacy, plan)
    yield "cost", f"epsilon {plan.study:.2f} for the study, {plan.model:.2f} for one model of one seed"
    patients = privacy.typical()
    if patients is not None:
        found = expected(plan, patients, weights)
        text = f"with {patients:,} patients the noise of a step is {found.share:.2g} times as long as the longest step"
        yield "utility", f"{text}, on {weights:,} weights: {found.verdict}"
    yield "figures", FIGURES[privacy.metrics].format(noise=privacy.metrics_noise)
    yield "known", known(privacy)


def work(privacy: Privacy, plan: Programme) -> str:
    """What will be done to the gradients, and how often."""
    per_round = sorted(set(plan.rounds))
    steps = f"{per_round[0]}" if len(per_round) == 1 else f"{per_round[0]} to {per_round[-1]}"
    times = (
        f"{len(plan.rounds)} rounds of {steps} steps, {plan.models} models, {plan.seeds} seed{'s' * (plan.seeds > 1)}"
    )
    return f"{plan.sigma:g} times the clip of {privacy.clip:g} in each step, a patient in a step with chance {privacy.rate:g}; {times}"


def known(privacy: Privacy) -> str:
    """What is taken to be known to everybody."""
    if isinstance(privacy.patients, Rounded):
        counts = f"each hospital's number of patients, rounded to {privacy.patients.rounded_to}"
    elif isinstance(privacy.patients, dict):
        counts = "each hospital's number of patients, as the federation file has it"
    else:
        counts = f"{privacy.patients:,} patients at each hospital, whatever is true"
    return f"{counts}; that the hospital takes part; the ranges of the variables"


def assumptions(privacy: Privacy) -> Iterator[str]:
    """What the promise rests on, a sentence each."""
    yield "A patient is one identifier, with all scans; two identifiers of one person are two patients."
    yield "Compared are patients with one more or one fewer; one record in another's place counts twice."
    yield "Weights that training starts from, frozen encoders too, were not made of these patients: what they tell is not counted."
    yield "Not counted either: studies without privacy on the same patients, and private ones that another ledger holds."
    yield f"Known to everybody: {known(privacy)}."
    yield f"Figures of the evaluation: {FIGURES[privacy.metrics].format(noise=privacy.metrics_noise)}."
    yield "Noise and batches are secret, drawn at the hospital; whoever reads its memory or measures its time may know more."
    yield "Held against whoever sees everything that leaves the hospital, the coordinator included."


SIMULATED = (
    "This is a simulation: figures of all test patients together, and of comparisons with other training, are exact and outside the"
    " promise. In a deployment nobody has them."
)
"""What a simulation shows beside the figures that hospitals would send."""


def warnings(federation: Federation, weights: int) -> Iterator[Problem]:
    """What makes the promise or the model worth little."""
    privacy, plan = _privacy(federation), programme(federation)
    patients = privacy.typical()
    if privacy.metrics == "exact":
        hint = "write privacy.metrics: noised or not_sent, unless each hospital agrees to that"
        yield Problem(f"figures of the evaluation are {FIGURES['exact']}", "privacy.metrics", hint)
    if plan.study > 10:
        message = f"the whole study tells up to epsilon {plan.study:.3g} of a patient, which protects little"
        yield Problem(message, "privacy", "write per: study, or a smaller epsilon")
    if patients is None:
        return
    if privacy.delta > 1 / patients:
        message = (
            f"delta {privacy.delta:g} is more than one patient in {patients:,}: it would allow to publish one in full"
        )
        yield Problem(message, "privacy.delta", f"write {patients**-1.1:.1g} or less")
    found = expected(plan, patients, weights)
    if not found.verdict.startswith("fair"):
        yield Problem(f"{patients:,} patients, {weights:,} weights: {found.verdict}", "privacy", "see docs/privacy.md")


def _privacy(federation: Federation) -> Privacy:
    assert federation.privacy is not None, "words on the privacy of a study that has none"
    return federation.privacy
