"""The small study of `small.py` under differential privacy."""

from typing import Any

import small

from ich_models.federation import Federation

PRIVACY: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-3, "patients": 60, "hospitals": 3, "metrics": "exact"}

NUMBER = {"type": "number", "known_at": "admission", "range": [-10, 10]}

TABLE = {
    "variables": {
        **dict.fromkeys(("a", "b", "c"), NUMBER),
        "mrs": {"type": "integer", "known_at": "90 days", "range": [0, 6]},
    }
}


def federation(privacy: dict[str, Any] | None = None, **rest: Any) -> Federation:
    """Three rounds of logistic regression, leave-one-hospital-out; `privacy` replaces settings of its terms."""
    evaluation = {"threshold": 0.5, **rest.pop("evaluation", {})}
    return small.federation(table=TABLE, evaluation=evaluation, privacy={**PRIVACY, **(privacy or {})}, **rest)
