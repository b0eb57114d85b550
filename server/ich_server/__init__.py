"""The coordinator's program: rounds over the hospitals, checkpoints, evaluation and reports."""

import ich_models as _ich_models  # noqa: F401 - it silences flwr, so it comes before anything that imports flwr
