"""The Flower ServerApp: a study on whatever grid Flower gives, settings from the run's configuration.

federation = "federation.yaml"   path at the server
out = "runs/study"               folder for checkpoints and final weights, one below it per seed
hospitals = 4                    how many must have connected before the study begins
resume = false
"""

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ich_models.errors import ConfigurationError
from ich_models.federation import load_federation
from ich_server.study import RoundReport, run_study
from ich_strategies.plan import Plan

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of every seed. Raises ConfigurationError or RunError."""
    settings = context.run_config
    missing = [name for name in ("federation", "out", "hospitals") if name not in settings]
    if missing:
        raise ConfigurationError(f"the run configuration lacks {', '.join(missing)}", hint=str(__doc__))
    federation = load_federation(Path(str(settings["federation"]))).value
    for seed in federation.training.seeds:
        run_study(
            grid,
            Plan(federation, seed),
            Path(str(settings["out"])) / f"seed-{seed}",
            hospitals=int(settings["hospitals"]),
            resume=bool(settings.get("resume", False)),
            watch=_log,
        )


def _log(report: RoundReport) -> None:
    log.info(
        "seed %s round %s/%s: %s of %s hospitals, loss %s",
        *(report.seed, report.round, report.rounds, report.replied, report.hospitals, report.loss),
    )
    for reply in report.quarantined:
        log.warning("%s: %s set aside: %s", reply.when, reply.hospital, reply.reason)
