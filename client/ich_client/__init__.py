"""The hospital's program: files to tensors, training, privacy, and the record of all that leaves."""

import ich_models as _ich_models  # noqa: F401 - it silences flwr, so it comes before anything that imports flwr
