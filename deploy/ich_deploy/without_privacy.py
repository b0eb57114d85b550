"""The twin of a private study: the same federation on the same patients without clipping and noise, in simulation only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flwr.app import Context

from ich_client.app import build_app
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_deploy.arms import compare
from ich_deploy.grid import InProcessGrid
from ich_models.federation import Comparisons, Federation
from ich_server.results import ArmFound
from ich_server.study import run_study
from ich_strategies.plan import Plan

WITHOUT_PRIVACY: Final = "without_privacy"
"""The arm, and its folder."""


def unprotected(federation: Federation) -> Federation:
    """The study as it would be without privacy, and without arms of its own."""
    evaluation = federation.evaluation.model_copy(update={"comparisons": Comparisons()})
    return federation.model_copy(update={"privacy": None, "evaluation": evaluation})


def without_privacy(plan: Plan, hospitals: Sequence[Hospital], folder: Path) -> ArmFound:
    """What the twin's model says of the patients that the study's own headline arm is tested on."""
    twin = Plan(unprotected(plan.federation), plan.seed, plan.files)
    sites = [Site(twin, hospital, folder, roles=plan.federation) for hospital in hospitals]

    def site_of(context: Context, _seed: int) -> Site:
        return sites[int(context.node_config["number"])]

    grid = InProcessGrid(build_app(site_of), {number + 1: {"number": number} for number in range(len(sites))})
    names = {number + 1: site.hospital.name for number, site in enumerate(sites)}
    study = run_study(
        grid, twin, folder, hospitals=len(sites), resume=False, watch=lambda report: None, names=lambda: names
    )
    return next(found for _, found in compare(twin, {site.hospital.name: site for site in sites}, study))
