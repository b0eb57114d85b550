"""The model card: what the model is for, what it learnt from, how good it was and where; JSON and Markdown, from results.json alone."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from ich_models.metrics import METRICS, TYPE_METRICS
from ich_server.report import facts
from ich_server.results import Arm, Figure, Results, macro
from ich_server.summary import (
    FEW,
    LABELS,
    SHOWN_BY_TYPE,
    arm_label,
    by_type,
    count,
    estimate,
    hospitals_of,
    main_arm,
    metric,
    natural,
    number,
    pooled,
    total,
    with_few,
)
from ich_strategies.models import Model

USE: Final = "Research use only. Not a medical device; not for decisions about patients."

SHOWN: Final = ("auroc", "observed_expected", "calibration_slope", "calibration_intercept", "brier")
"""Of the metrics, in the card's table; model_card.json has all."""


def as_json(model: Model, results: Results) -> dict[str, Any]:
    """Everything the card says, its figures as they stand in results.json."""
    main, study = main_arm(results), results.study
    arm = results.arms[main] if main else None
    return {
        "use": USE,
        "study": study.name,
        "description": study.description,
        "federation": study.federation,
        "seed": model.plan.seed,
        "sha256": model.card["sha256"],
        "predicts": study.outcome,
        "predicts_at": model.plan.federation.task.predict_at,
        "network": model.plan.federation.network.model_dump(mode="json"),
        "modalities": list(model.plan.federation.network.uses),
        "columns": list(model.plan.columns),
        "thresholds": dict(model.card.get("thresholds") or {"": model.card["threshold"]}),
        "training": {
            "strategy": study.strategy,
            "rounds": study.rounds,
            "hospitals": {
                name: found.model_dump(include={"n", "events", "training"}) for name, found in _data(results)
            },
        },
        "evaluation": None if arm is None else {"arm": main, **arm.model_dump()},
        "limits": limits(model, results),
        "software": results.software,
    }


def _data(results: Results) -> list[tuple[str, Any]]:
    return [(name, results.hospitals[name]) for name in sorted(results.hospitals, key=natural)]


def limits(model: Model, results: Results) -> list[str]:
    """What nobody should overlook, as far as the run knows it."""
    said = facts.limits(results)
    if len(results.seeds) > 1:
        said.append(f"The figures are of {many_seeds(results.seeds)}; the weights are those of seed {model.plan.seed}.")
    main = main_arm(results)
    few = with_few(results.arms[main]) if main and not by_type(results.arms[main]) else []
    if few:
        said.append(f"Under {FEW} events or non-events: {', '.join(few)}.")
    if main and not by_type(results.arms[main]):
        said += facts.miscalibration(results.arms[main])
    return said


def many_seeds(seeds: Sequence[int]) -> str:
    """`seed 42`, or `5 seeds (42, 43, 44, 45, 46)`."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"


# --- as text ----------------------------------------------------------------------------------------------------------


def as_markdown(model: Model, results: Results) -> str:
    """The card for people."""
    return "\n".join([*_head(model, results), *_trained(results), *_evaluated(results), *_foot(model, results)]) + "\n"


def _head(model: Model, results: Results) -> Iterator[str]:
    study, task = results.study, model.plan.federation.task
    yield f"# {study.name}"
    yield ""
    yield f"**{USE}**"
    yield ""
    if study.description:
        yield study.description
        yield ""
    yield "## Intended use"
    yield ""
    yield (
        f"Research on the prediction of {study.outcome}, at the moment '{task.predict_at}', in patients like those of the"
        " hospitals below. It is not for use in the care of anybody. Whoever uses it tests it first on patients of their own."
    )
    yield ""
    yield "## Model"
    yield ""
    uses = ", ".join(model.plan.federation.network.uses)
    yield f"- network `{study.network}`, reads {uses}; {model.plan.weights.size:,} numbers travelled"
    if "table" in model.plan.federation.network.uses:
        yield f"- predictors: {', '.join(model.plan.federation.predictors)}"
    by_kind = model.card.get("thresholds") or {}
    said = ", ".join(f"{kind} {value:.3f}" for kind, value in by_kind.items()) or f"{model.card['threshold']:.3f}"
    how = "chosen on the training hospitals" if isinstance(study.threshold, str) else "fixed in the federation file"
    yield f"- threshold, {how}: {said}"
    yield f"- SHA-256 of the weights: `{model.card['sha256']}`"
    yield f"- federation file: `{study.federation}`, seed {model.plan.seed}"
    yield ""


def _trained(results: Results) -> Iterator[str]:
    study = results.study
    yield "## Training data"
    yield ""
    yield f"Federated ({study.strategy}, {study.rounds} rounds): the patients stayed at their hospitals."
    yield ""
    yield from _table(
        ("hospital", "patients", "with the event", "learnt from"),
        [
            *(
                (name, f"{found.n:,}", count(found.events), "" if found.training is None else f"{found.training:,}")
                for name, found in _data(results)
            ),
            (
                "all",
                f"{sum(found.n for found in results.hospitals.values()):,}",
                total(found.events for found in results.hospitals.values()),
                f"{sum(learnt):,}"
                if (learnt := [f.training for f in results.hospitals.values() if f.training])
                else "",
            ),
        ],
    )


def _evaluated(results: Results) -> Iterator[str]:
    main = main_arm(results)
    yield "## Evaluation"
    yield ""
    if main is None:
        yield "No hospital was evaluated."
        yield ""
        return
    arm = results.arms[main]
    yield arm.description
    yield ""
    yield from _types(arm) if by_type(arm) else _figures(arm)
    yield f"In brackets: 95 % intervals. {arm_label(main)}; model_card.json has every metric."
    yield ""


def _figures(arm: Arm) -> Iterator[str]:
    rows = [
        (name, f"{found.n:,}", count(found.events), *(_text(each, metric(found, each)) for each in SHOWN))
        for name, found in hospitals_of(arm).items()
    ]
    summary = ["random-effects mean", "", ""]
    for each in SHOWN:
        found = pooled(arm, each).summary if each != "brier" else None
        summary.append("" if found is None else estimate(each, found.estimate, found.low, found.high))
    yield from _table(("hospital", "patients", "events", *(LABELS[each] for each in SHOWN)), [*rows, tuple(summary)])
    assert set(SHOWN) <= set(METRICS), "metrics of results.json"


def _types(arm: Arm) -> Iterator[str]:
    heads = [f"{LABELS[name]} of {level}" for level, name in SHOWN_BY_TYPE]
    rows = []
    for hospital, found in hospitals_of(arm).items():
        for kind, one in found.types.items():
            cells = [_text(name, getattr(getattr(one, level), name)) for level, name in SHOWN_BY_TYPE]
            rows.append((hospital, kind, *cells))
        means = [number(name, macro(found, level, name)[0]) for level, name in SHOWN_BY_TYPE]
        rows.append((hospital, "mean", *means))
    yield from _table(("hospital", "type", *heads), rows)
    assert {name for _, name in SHOWN_BY_TYPE} <= set(TYPE_METRICS), "metrics of results.json"


def _text(name: str, found: Figure) -> str:
    return estimate(name, found.value, found.low, found.high)


def _foot(model: Model, results: Results) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield from (f"- {each}" for each in limits(model, results))
    yield ""
    yield "## Software"
    yield ""
    yield ", ".join(f"{name} {said}" for name, said in results.software.items()) or "not recorded"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    yield line(head)
    yield "|" + "---|" * len(head)
    yield from map(line, rows)
    yield ""
