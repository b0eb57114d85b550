"""Reporting checklists: TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378), and CLAIM (Mongan et al. 2020, Radiol Artif
Intell 2:e200029) where images are read. Items that the run knows are answered; the others are for the authors.

The items are told in our words; the papers' own wording decides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ich_server.report.parts import Cell, Row, Table
from ich_server.results import Results
from ich_server.summary import in_order, main_arm, many

AUTHORS: Final = "For the authors."


@dataclass(frozen=True)
class Known:
    """What a run knows of itself, at hand for the items."""

    results: Results
    settings: Mapping[str, Any]

    def at(self, *path: str) -> Any:
        """A value of the federation file, or None."""
        found: Any = self.settings
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


Answer = Callable[[Known], str | None]


# --- answers ----------------------------------------------------------------------------------------------------------


def _says(text: str) -> Answer:
    return lambda known: text


def _outcome(known: Known) -> str:
    return f"{known.results.study.outcome}. How and by whom it was assessed: for the authors."


def _sources(known: Known) -> str:
    patients = sum(one.n for one in known.results.hospitals.values())
    where = many(len(known.results.hospitals), "hospital")
    return f"{where}, {many(patients, 'patient')} (Study flow, Table 1). Kind of data and why: for the authors."


def _preparation(known: Known) -> str | None:
    table, image, text = (known.at("modalities", name) for name in ("table", "image", "text"))
    if table is None:
        return None
    said = ["Every hospital checks types, units and ranges of its table by the same federation file"]
    if image:
        size = " x ".join(map(str, image["size"]))
        said.append(f"images ({image['kind']}) are brought to {size} by the same code everywhere")
    if text:
        said.append(f"texts ({text['source']}) become {text['tokens']} tokens")
    return f"{'; '.join(said)}."


def _predictors(known: Known) -> str | None:
    table = known.at("modalities", "table")
    if table is None:
        return None
    named = [
        f"{name} ({table['variables'][name].get('known_at') or 'no moment'})"
        for name in table["predictors"]
        if name in table["variables"]
    ]
    shown = ", ".join(named[:25]) + (f" and {len(named) - 25} more" if len(named) > 25 else "")
    return f"Known by {known.at('task', 'predict_at')}: {shown}. How they were measured: for the authors."


def _missing(known: Known) -> str | None:
    table = known.at("modalities", "table")
    if table is None:
        return None
    if table.get("complete_cases"):
        return "Patients who lack a predictor are left out (Study flow)."
    ways = {table["variables"][name].get("missing") for name in table["predictors"] if name in table["variables"]}
    means = {"impute": "the training hospitals' mean stands in", "level": "missing is a level of its own"}
    said = "; ".join(means.get(str(way), str(way)) for way in sorted(map(str, ways)))
    return f"{said[:1].upper()}{said[1:]}. Without an outcome: left out (Study flow)."


def _partition(known: Known) -> str | None:
    evaluation = known.at("evaluation")
    if evaluation is None:
        return None
    said = []
    if evaluation.get("leave_one_hospital_out"):
        said.append("leave-one-hospital-out: every hospital is tested by a model that learnt from the others alone")
    if evaluation.get("test"):
        said.append(f"{evaluation['test']:.0%} of each hospital's patients are held back for testing")
    if evaluation.get("folds"):
        said.append(f"{evaluation['folds']} parts of each hospital's patients, each tested by a model without it")
    if evaluation.get("validation"):
        said.append(f"{evaluation['validation']:.0%} of the training patients choose threshold and round")
    text = "; ".join(said) or "no test"
    return f"{text[:1].upper()}{text[1:]}. Patients are never split."


def _handled(known: Known) -> str | None:
    scaling = known.at("modalities", "table", "scaling")
    if scaling is None:
        return None
    how = {
        "federated": "by the training hospitals' federated mean and standard deviation",
        "hospital": "by each hospital's own mean and standard deviation",
        "none": "not at all",
    }.get(str(scaling), str(scaling))
    return f"Numbers are scaled {how}; categories become columns of 0 and 1, the first level being the reference."


def _model(known: Known) -> str | None:
    stages = known.at("training", "stages")
    study = known.results.study
    if stages is None:
        return None
    said = "; ".join(
        f"{stage['name']}: {stage['rounds']} rounds of {_length(stage)}, batch {stage['batch']},"
        f" {stage['optimizer']['name']}, learning rate {stage['optimizer'].get('lr')}"
        for stage in stages
    )
    return f"{study.network}, trained by {study.strategy}; {said}. Search for these settings, if any: for the authors."


def _length(stage: Mapping[str, Any]) -> str:
    return f"{stage['updates']} updates" if stage.get("updates") else f"{stage.get('epochs')} local epochs"


_HETEROGENEITY: Final = (
    "Every figure per hospital; random effects (REML, Hartung–Knapp), tau, I² and prediction intervals (first section)."
)


_MEASURES: Final = (
    "Discrimination (AUROC, AUPRC), overall (Brier), calibration (slope, intercept), and classification at one threshold;"
    " definitions and intervals: How the numbers are made."
)


def _output(known: Known) -> str:
    threshold = known.results.study.threshold
    named = {
        "youden": "chosen on the training hospitals by Youden's index",
        "f2": "chosen on the training hospitals by F2",
    }
    rule = named[threshold] if isinstance(threshold, str) else f"fixed at {threshold}"
    return f"A probability; the threshold is {rule} (How the numbers are made)."


_FLOW: Final = "Study flow; Hospitals and patients left out."


def _table_one(known: Known) -> str | None:
    if not any(one.columns for one in known.results.hospitals.values()):
        return None
    return "Table 1, of training patients, as the hospitals' statistics describe them. Dates and treatments: for the authors."


def _numbers(known: Known) -> str:
    main = main_arm(known.results)
    tested = sum(one.n for one in known.results.arms[main].hospitals.values()) if main else 0
    learnt = [one.training for one in known.results.hospitals.values()]
    said = "" if None in learnt or not learnt else f"{sum(each or 0 for each in learnt):,} patients learnt from, "
    return f"{said}{tested:,} tested in the first arm; per hospital in every table."


def _specification(known: Known) -> str:
    hashes = ", ".join(f"seed {seed}: {sha[:16]}" for seed, sha in known.results.models.items())
    return f"The model is a file, its SHA-256 {hashes or 'not recorded'}; ich-server export writes it with its card."


def _performance(known: Known) -> str:
    arms = ", Comparison of arms" if len(in_order(known.results)) > 1 else ""
    return f"First section{arms}, Every hospital's figures: with 95 % intervals."


def _software(known: Known) -> str:
    return ", ".join(f"{name} {said}" for name, said in known.results.software.items()) or AUTHORS


def _arms(known: Known) -> str | None:
    names = in_order(known.results)
    return f"Compared with: {', '.join(names[1:])}." if len(names) > 1 else None


# --- items ------------------------------------------------------------------------------------------------------------

_TRIPOD: Final[Sequence[tuple[str, str, Answer | None]]] = (
    ("1", "Title: development or evaluation, population, outcome", None),
    ("2", "Abstract (TRIPOD+AI for Abstracts)", None),
    ("3a", "Healthcare context and rationale, existing models", None),
    ("3b", "Target population, purpose in the care pathway, users", None),
    ("3c", "Known health inequalities", None),
    (
        "4",
        "Objectives: development, evaluation or both",
        _says(
            "Development, and evaluation at hospitals that the models did not learn from; the wider aim: for the authors."
        ),
    ),
    ("5a", "Sources of data, and how representative they are", _sources),
    ("5b", "Dates of recruitment and follow-up", None),
    (
        "6a",
        "Setting, number and place of centres",
        lambda known: f"{many(len(known.results.hospitals), 'hospital')}; setting and place: for the authors.",
    ),
    ("6b", "Eligibility", lambda known: "Left out by rule: see Study flow. Clinical criteria: for the authors."),
    ("6c", "Treatments", None),
    ("7", "Preparation and quality checks of data", _preparation),
    ("8a", "Outcome, horizon, how assessed", _outcome),
    ("8b", "Who assessed a subjective outcome", None),
    ("8c", "Blinding of the outcome's assessment", None),
    ("9a", "Choice of predictors", None),
    ("9b", "Predictors, and when they are known", _predictors),
    ("9c", "Who assessed subjective predictors", None),
    (
        "10",
        "Sample size",
        lambda known: (
            f"{many(sum(one.n for one in known.results.hospitals.values()), 'patient')}; how the number came about: for the authors."
        ),
    ),
    ("11", "Missing data", _missing),
    ("12a", "How data were used and split", _partition),
    ("12b", "How predictors were handled", _handled),
    ("12c", "Type of model, how it was built, internal validation", _model),
    ("12d", "Heterogeneity between hospitals", _says(_HETEROGENEITY)),
    ("12e", "Measures of performance", _says(_MEASURES)),
    ("12f", "Updating after evaluation", None),
    (
        "12g",
        "How predictions were calculated",
        _says("By the network itself, with the same code at every hospital; ich-client predict, or the export."),
    ),
    ("13", "Class imbalance", None),
    ("14", "Fairness", None),
    ("15", "Output, and how thresholds were found", _output),
    (
        "16",
        "Differences between training and evaluation data",
        _says(
            "Hospitals differ as Table 1 shows; each is evaluated by models that did not learn from the patients tested."
        ),
    ),
    ("17", "Ethical approval", None),
    ("18a", "Funding", None),
    ("18b", "Conflicts of interest", None),
    (
        "18c",
        "Protocol",
        lambda known: (
            f"The federation file, hash {known.results.study.federation[:16]}, was agreed on by all hospitals before"
            " training; a written protocol: for the authors."
        ),
    ),
    ("18d", "Registration", None),
    (
        "18e",
        "Data sharing",
        _says("Patients' data did not leave the hospitals; results.json and the dossier hold what did."),
    ),
    ("18f", "Code sharing", _software),
    ("19", "Patient and public involvement", None),
    ("20a", "Flow of participants, with and without the outcome", _says(_FLOW)),
    ("20b", "Characteristics per setting", _table_one),
    ("20c", "Evaluation against development data", _table_one),
    ("21", "Participants and events in each analysis", _numbers),
    ("22", "The full model", _specification),
    ("23a", "Performance with intervals", _performance),
    ("23b", "Heterogeneity of performance", _says(_HETEROGENEITY)),
    ("24", "Results of updating", None),
    ("25", "Interpretation", None),
    ("26", "Limitations", _says("What the run itself knows: section Limits. The others: for the authors.")),
    (
        "27a",
        "Poor or missing input when used",
        _says(
            "A patient whose values cannot be used is refused with the reason; what may be imputed is named (ich-client predict)."
        ),
    ),
    ("27b", "What users must do and know", None),
    ("27c", "Next steps", None),
)

_CLAIM: Final[Sequence[tuple[str, str, Answer | None]]] = (
    ("1", "Title or abstract: AI, and which kind", None),
    ("2", "Structured summary", None),
    ("3", "Background, intended use", None),
    ("4", "Objectives and hypotheses", None),
    ("5", "Prospective or retrospective", None),
    (
        "6",
        "Goal of the study",
        _says("Making a model across hospitals, and testing it at hospitals that it has not seen."),
    ),
    ("7", "Data sources", _sources),
    ("8", "Eligibility", None),
    ("9", "Preprocessing", _preparation),
    ("10", "Subsets of data", None),
    ("11", "Definitions of data elements", _predictors),
    ("12", "De-identification", _says("Images and tables stayed at the hospitals; no identifier is in any message.")),
    ("13", "Missing data", _missing),
    ("14", "Reference standard", _outcome),
    ("15", "Why this reference standard", None),
    ("16", "Who annotated", None),
    ("17", "Annotation tools", None),
    ("18", "Variability between raters", None),
    ("19", "Sample size", None),
    ("20", "Partitions", _partition),
    ("21", "Level at which partitions are apart", _says("Hospital (leave-one-hospital-out) and patient; never image.")),
    ("22", "Model", _model),
    ("23", "Software", _software),
    ("24", "Start values", _says("From the seed, or from published weights whose SHA-256 the federation file names.")),
    ("25", "Training", _model),
    (
        "26",
        "Choice of the final model",
        lambda known: {"best": "The round with the least validation loss.", "last": "The last round."}.get(
            str(known.at("evaluation", "choose_round"))
        ),
    ),
    ("27", "Ensembles", None),
    ("28", "Metrics", _says(_MEASURES)),
    ("29", "Uncertainty", _says("95 % intervals of every figure: How the numbers are made.")),
    ("30", "Robustness", _arms),
    (
        "31",
        "Explainability",
        _says("ich-client explain at each hospital; pictures of generated patients alone are in a report."),
    ),
    (
        "32",
        "External data",
        lambda known: (
            "Each hospital is external to the model that is tested there." if "loho" in known.results.arms else None
        ),
    ),
    ("33", "Flow of cases", _says(_FLOW)),
    ("34", "Characteristics per partition", _table_one),
    ("35", "Performance on all partitions", _performance),
    ("36", "Accuracy and its precision", _performance),
    ("37", "Failure analysis", None),
    ("38", "Limitations", _says("What the run itself knows: section Limits. The others: for the authors.")),
    ("39", "Implications for practice", None),
    ("40", "Registration", None),
    (
        "41",
        "Protocol",
        lambda known: (
            f"Federation file, hash {known.results.study.federation[:16]}; a written protocol: for the authors."
        ),
    ),
    ("42", "Funding", None),
)


def tables(results: Results) -> list[Table]:
    """TRIPOD+AI, and CLAIM where the network reads images."""
    known = Known(results, results.study.settings)
    found = [_table("TRIPOD+AI (2024)", _TRIPOD, known)]
    if known.at("modalities", "image"):
        found.append(_table("CLAIM (2020)", _CLAIM, known))
    return found


def _table(caption: str, items: Sequence[tuple[str, str, Answer | None]], known: Known) -> Table:
    rows = [
        Row(f"{number}", (Cell(what), Cell((answer(known) if answer else None) or AUTHORS)))
        for number, what, answer in items
    ]
    filled = sum(row.cells[1].value != AUTHORS for row in rows)
    note = (
        f"{filled} of {len(rows)} items have something that the run itself knows; every answer needs the authors' eyes."
    )
    return Table(caption, ("Item", "About", "What the run says"), tuple(rows), note)
