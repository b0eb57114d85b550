"""Networks, losses, data types, configuration, protocol and metrics: what client and server share; imports nothing of ours."""

import os

# flwr reads these when it is imported: no usage statistics, no question to another host whether there is a newer one
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
