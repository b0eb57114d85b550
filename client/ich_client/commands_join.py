"""The hospital's commands for a federation between machines: init and join."""

import logging
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from flwr.app import Context
from rich.console import Console

from ich_client import home as homes
from ich_client import machine, policy
from ich_client.app import SiteOf, build_app, refusal
from ich_client.flower import Done, Server, stay_joined
from ich_client.home import Home
from ich_client.images import Ask
from ich_client.progress import watched
from ich_client.site import Site
from ich_client.tables import Hospital, load_hospitals
from ich_client.tasks import RefusedError
from ich_models import console, kit
from ich_models.errors import Code, ConfigurationError
from ich_models.protocol import MODEL
from ich_strategies.plan import Plan

HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="the hospital's folder")]
DataOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="folder that relative paths start from; by default the hospital's")
]
HERE = Path()


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    app.command(epilog="Example: ich-client init north-kit.zip --home /srv/ich")(init)
    app.command(epilog="Example: ich-client join --home /srv/ich --data /data/registry")(join)


def _say(word: str, text: object) -> None:
    Console(emoji=False, highlight=False).print(f"{word:<10} {text}", markup=False, soft_wrap=True)


def init(
    path: Annotated[Path, typer.Argument(metavar="KIT.zip", help="from the coordinator")], folder: HomeOption = HERE
) -> None:
    """Unpack a kit into the hospital's folder and make this hospital's key there. The private key never leaves.

    Again with a newer kit of the same federation, it renews the study; the key and hospital.yaml stay.
    """
    made = homes.create(path, folder)
    public = made.key.with_suffix(".pub")
    _say("study", f"{made.facts.study}, hash {made.facts.federation}, server {made.facts.address}")
    _say("CA", kit.fingerprint(made.authority.encode()))
    _say("", "compare this fingerprint with the coordinator's, by telephone: it says whose server this is")
    _say("key", f"{kit.key_fingerprint(homes.load_key(made).public_key())}  ({public})")
    _say(
        "next", f"send {public.name} to the coordinator; fill in {made.hospital}; ich-client check; ich-client approve"
    )


def join(
    folder: HomeOption = HERE,
    data: DataOption = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="also believe this CA: of a proxy that inspects TLS")
    ] = None,
) -> None:
    """Connect to the server and take part until Ctrl-C: one outbound HTTPS connection, by a proxy if HTTPS_PROXY says so.

    A server that goes away is waited for. What is sent is in the audit log (ich-client audit).
    """
    opened = homes.open_home(folder)
    homes.load_key(opened)
    limits = homes.load_mapping(opened).value.limits
    if limits.approval == "required" and not policy.approved(opened.audit / "approvals.jsonl", opened.facts.federation):
        hint = "read and approve it: ich-client approve"
        raise ConfigurationError(f"study '{opened.facts.study}' is not approved with this version", hint=hint)
    machine.device(limits.device)  # before the server counts on this hospital
    with homes.locked(opened):
        _log_to_terminal()
        _stay(opened, load_hospital(opened, data or folder), "" if ca is None else ca.read_text())


def _stay(opened: Home, hospital: Hospital, authorities: str) -> None:
    """Take part until a signal says to leave. `authorities`: PEM, beside the federation's own."""
    server = Server(opened.facts.address, opened.authority + authorities, opened.facts.bundle)
    torch.set_num_threads(hospital.limits.threads)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _say("hospital", f"{hospital.name}: {len(hospital.patients):,} patients")
    guard = policy.guard(opened.audit)
    told = stay_joined(
        server,
        homes.load_key(opened),
        build_app(site_of(opened, hospital), guard),
        {},
        partial(refusal, guard),
        stop,
        _task_done,
        opened.keep_clock,
    )
    _say("left", "the server was told" if told else "the server could not be told; it notices by itself")


def load_hospital(opened: Home, data: Path) -> Hospital:
    """This hospital's patients. Raises ConfigurationError or DataError."""
    with watched() as watch:
        found = load_hospitals([homes.load_mapping(opened)], data, opened.federation, opened.cache, Ask(watch=watch))
    if len(found) != 1:
        raise ConfigurationError(f"{len(found)} hospitals in one file", hint="leave out table.split_by")
    console.warn(found[0].warnings)
    return found[0]


def site_of(opened: Home, hospital: Hospital) -> SiteOf:
    """From Flower's context and a seed to this hospital at work, made once per seed."""
    sites: dict[int, Site] = {}

    def find(_context: Context, seed: int) -> Site:
        federation = opened.federation.value
        if seed not in federation.training.seeds:
            raise RefusedError(Code.FEDERATION, f"seed {seed}, and the study has {federation.training.seeds}")
        if seed not in sites:
            sites[seed] = Site(
                Plan(federation, seed, hospital.weights), hospital, opened.state, opened.models, opened.ledger
            )
        return sites[seed]

    return find


def _task_done(done: Done) -> None:
    log = logging.getLogger("ich_client")
    what = f"{done.group[:40] or done.kind}, {done.kind[:40]}"
    log.info("%s: %.1f s, %s bytes sent", what, done.seconds, f"{done.sent:,}")
    if done.kind == MODEL:
        log.info("the model of all hospitals is here, in model/; when the study has no further seed, Ctrl-C leaves")


def _log_to_terminal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(console.OneLine("%(asctime)s %(levelname).1s %(message)s"))
    for name, level in (("ich_client", logging.INFO), ("flwr", logging.ERROR), ("httpx", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(os.environ.get("ICH_LOG", "") or level)
        logger.handlers = [handler]
        logger.propagate = False
