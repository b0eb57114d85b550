"""Federated algorithms, each with both halves: the client's update and the server's."""

import ich_models as _ich_models  # noqa: F401 - it silences flwr, so it comes before anything that imports flwr
