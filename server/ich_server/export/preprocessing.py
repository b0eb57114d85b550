"""What must be done to a patient before the exported network, as data: `preprocessing.json`."""

from typing import Any, Final

from ich_models import preprocess, text_spec
from ich_models.federation import Federation
from ich_models.tokens import built_in
from ich_models.variables import MISSING, Variable
from ich_server.export.network import inputs, shapes
from ich_strategies.models import Model

AXES: Final = {
    "ct": "(channel, neck to crown, back to front, left to right); one channel per window, 0 at its lower end, 1 at its upper",
    "mr": "(channel, neck to crown, back to front, left to right); one channel per sequence, mean 0 and deviation 1 in the mask",
    "ct_slices": "(slice, channel, row, column), 0 to 1 over the window",
    "radiograph": "(view, channel, row, column), 0 to 1; repeat a view where a patient has fewer",
}


def describe(model: Model) -> dict[str, Any]:
    """Arrays in the order in which the network takes them, and how each is made."""
    plan = model.plan
    modalities = plan.federation.modalities
    found: dict[str, Any] = {
        "use": "Research only. Not a medical device.",
        "federation": plan.hash,
        "inputs": {name: {"shape": ["N", *shape]} for name, shape in shapes(plan).items()},
        "everybody_has_all_inputs": True,
    }
    if "table" in inputs(plan):
        found["inputs"]["table"] |= {
            "dtype": plan.federation.network.dtype,
            "missing": "NaN where a value may be imputed; the network imputes and scales by its own constants",
            "columns": _columns(plan.federation, plan.columns),
        }
    if "image" in inputs(plan) and modalities.image is not None:
        spec = modalities.image
        found["inputs"]["image"] |= {
            "dtype": plan.federation.network.dtype,
            "version": preprocess.VERSION,
            "axes": AXES[spec.kind],
            "specification": spec.model_dump(mode="json"),
        }
    if "text" in inputs(plan) and modalities.text is not None:
        text = modalities.text
        words = text.vocabulary is None
        found["inputs"]["text"] |= {
            "dtype": "int64",
            "version": text_spec.VERSION,
            "specification": text.model_dump(mode="json"),
            **({"vocabulary": list(built_in(text, modalities.table).words)} if words else {}),
        }
    return found


def _columns(federation: Federation, names: tuple[str, ...]) -> list[dict[str, Any]]:
    chosen = federation.modalities.table.chosen
    return [{"column": name, **_column(name, chosen)} for name in names]


def _column(name: str, chosen: dict[str, Variable]) -> dict[str, Any]:
    if name in chosen:
        variable = chosen[name]
        return {
            "variable": name,
            "unit": variable.unit,
            "range": None if variable.range is None else list(variable.range),
            "known_at": variable.known_at,
            "missing": variable.missing,
        }
    stem, level, value = name.partition("=")
    if level:
        what = "is missing" if value == MISSING else f"is '{value}'"
        return {"variable": stem, "is": f"1 where it {what}, else 0", "known_at": chosen[stem].known_at}
    stem = name.removesuffix("?")
    return {"variable": stem, "is": "1 where it is missing, else 0", "known_at": chosen[stem].known_at}
