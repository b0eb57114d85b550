"""Client and server put together on one machine: the simulation and its demo hospitals."""

import ich_models as _ich_models  # noqa: F401 - it silences flwr, so it comes before anything that imports flwr
