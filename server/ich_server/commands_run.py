"""The coordinator's commands for a federation between machines: init, kit, admit, revoke, run, status, pause, stop."""

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ich_models import kit as kits
from ich_models import privacy_words
from ich_models.console import OneLine, warn
from ich_models.errors import ConfigurationError
from ich_server import checkpoint, deployment, flower, home, memory, pki, status
from ich_server.deployment import Reporter
from ich_server.flower import Link, open_link
from ich_server.live import server as live
from ich_server.status import Status
from ich_server.study import RoundReport
from ich_server.summary import number
from ich_server.terminal import summary_table
from ich_strategies.plan import Plan

HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="the federation folder")]
HERE = Path()


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    for command, example in (
        (init, "ich-server init federation.yaml --address train.example.org:8443"),
        (kit, "ich-server kit north"),
        (admit, "ich-server admit north.pub"),
        (revoke, "ich-server revoke north"),
        (run, "ich-server run --dashboard"),
        (show_status, "ich-server status --watch"),
        (pause, "ich-server pause --home /srv/study"),
        (stop, "ich-server stop --home /srv/study"),
    ):
        app.command("status" if command is show_status else None, epilog=f"Example: {example}")(command)


def _say(word: str, text: object) -> None:
    Console(emoji=False, highlight=False).print(f"{word:<10} {text}", markup=False, soft_wrap=True)


# --- setting up -------------------------------------------------------------------------------------------------------


def init(
    federation: Annotated[Path, typer.Argument(metavar="FEDERATION.yaml", help="the study")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="under which hospitals reach the server")],
    folder: HomeOption = HERE,
) -> None:
    """Make the federation folder: a copy of FEDERATION.yaml, a CA of its own, the server's certificate.

    Again in the same folder, it renews the copy and the address. CA and keys are made once and kept.
    """
    made = home.create(federation, address, folder)
    _plan(made)
    _say("study", f"{made.federation.value.name}, hash {made.federation.value.hash}")
    _say("CA", f"{kits.fingerprint((made.pki / 'ca.pem').read_bytes())}")
    _say("", "hospitals compare this fingerprint when they unpack their kit: read it to them by telephone")
    _say("keep", f"{made.pki}: whoever has ca.key can pose as this server; without it no kit can be made")
    _say("next", "ich-server kit HOSPITAL, for each hospital")


def _plan(opened: home.Home) -> None:
    """Show what a private study will cost. Raises ConfigurationError for one that no noise makes as private as it says."""
    study = opened.federation.value
    if study.privacy is not None:
        weights = Plan(study, study.training.seeds[0]).weights.size
        for word, text in privacy_words.told(study, weights):
            _say(word, text)
        warn(privacy_words.warnings(study, weights))


def kit(
    hospital: Annotated[str, typer.Argument(metavar="HOSPITAL", help="its name in the study")],
    folder: HomeOption = HERE,
) -> None:
    """Write HOSPITAL's kit: address, CA certificate and study, signed. It holds no secret and may go by mail."""
    path = home.make_kit(home.open_home(folder), hospital, flower.bundle()[1])
    _say("written", path)
    _say("next", f"send it; the hospital runs ich-client init {path.name} and sends {hospital}.pub back")


def admit(
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="that ich-client init made")],
    name: Annotated[str | None, typer.Option(metavar="HOSPITAL", help="by default the file's name")] = None,
    folder: HomeOption = HERE,
) -> None:
    """Let a hospital's key in; at once, also while a server runs. Compare the fingerprint with the hospital's first."""
    home.open_home(folder)
    found = home.admit(folder, name or key.stem, key.read_bytes())
    _say("admitted", f"{name or key.stem}  {found}")


def revoke(
    hospital: Annotated[str, typer.Argument(metavar="HOSPITAL", help="its name")], folder: HomeOption = HERE
) -> None:
    """Take a hospital's key off the list for ever; at once, also while a server runs."""
    found = home.revoke(folder, hospital)
    _say("revoked", f"{hospital}  {found}")


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    folder: HomeOption = HERE,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the study where it stopped")] = False,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="serve a live page, on this machine alone")] = False,
    dashboard_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help=f"of the live page; {live.PORT} or a free one if left out"),
    ] = None,
) -> None:
    """Open the server for the admitted hospitals, run the study, write results and report into the folder.

    A study begins when its hospitals are connected (quorum in the federation file). Ctrl-C and ich-server stop keep
    every finished round; --resume goes on.
    """
    opened = home.open_home(folder)
    if not home.admitted(folder):
        raise ConfigurationError("no hospital is admitted", where=str(folder), hint="ich-server admit KEY.pub")
    if not resume and (folder / "seeds").exists():
        hint = "go on with --resume, or move seeds/ and results.json aside to begin anew"
        raise ConfigurationError("a study was begun here", where=str(folder / "seeds"), hint=hint)
    _plan(opened)
    with home.locked(opened):
        _log_to(opened.state / "server.log")
        memory.give_back()
        for request in (status.PAUSE, status.STOP):
            status.withdraw(opened.state, request)
        with ExitStack() as beside:
            if dashboard or dashboard_port is not None:
                _say("dashboard", beside.enter_context(live.serve(opened.state, dashboard_port)))
            _run(opened, resume=resume)


def _run(opened: home.Home, *, resume: bool) -> None:
    federation, folder = opened.federation.value, opened.folder
    certificate, key = pki.server_certificate(opened.pki, opened.settings.host, federation.name)
    screen = Console(emoji=False, highlight=False)
    with open_link(
        opened.state,
        opened.settings.listens,
        certificate,
        key,
        lambda: home.admitted(folder),
        health_port=opened.settings.health,
    ) as link:
        reporter = Reporter(opened.state, federation, opened.settings.address, link, resume=resume)
        names = ", ".join(sorted(link.names.values()))
        screen.print(f"listening  {opened.settings.address}, for {names}", markup=False)
        seeds, rounds = federation.training.seeds, federation.training.rounds
        done = sum(checkpoint.newest(folder / "seeds" / f"seed-{seed}") for seed in seeds) if resume else 0
        bar, watch = _progress(len(seeds) * rounds, done, link)
        with bar, reporter.at_work():
            found = deployment.run(
                federation, link, folder, reporter, resume=resume, watch=watch, weights=opened.weights
            )
    for each in reporter.set_aside:
        if not each.when.startswith("round "):  # those were told as they came
            screen.print(f"set aside  seed {each.seed}, {each.when}: {each.hospital}: {each.reason}", markup=False)
    screen.print(summary_table(found))
    screen.print(f"report     {folder / 'report.html'}", markup=False, soft_wrap=True)


def _progress(rounds: int, done: int, link: Link) -> tuple[Progress, Callable[[RoundReport], None]]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(emoji=False, stderr=True, highlight=False),
    )
    task = bar.add_task(
        "rounds", total=rounds, completed=done, note=f"waiting for {', '.join(sorted(link.names.values()))}"
    )

    def watch(report: RoundReport) -> None:
        for reply in report.quarantined:
            bar.console.print(f"{reply.when}: {reply.hospital} set aside: {reply.reason}", markup=False)
        loss = "" if report.loss is None else f"loss {report.loss:.4f}"
        bar.update(task, advance=1, note=f"seed {report.seed}  {report.replied}/{report.hospitals} hospitals  {loss}")

    return bar, watch


def _log_to(path: Path) -> None:
    """Our own log and Flower's warnings, beside the state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name, level in (("ich_server", logging.INFO), ("flwr", logging.WARNING), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False


# --- watching and asking ----------------------------------------------------------------------------------------------


def show_status(
    folder: HomeOption = HERE,
    watch: Annotated[bool, typer.Option("--watch", help="renew every two seconds until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the status file")] = False,
) -> None:
    """Show the server: hospitals, round, what was set aside and why. Works also when the server is dead, and says so."""
    state = home.open_home(folder).state
    if as_json:
        found = status.read(state)
        sys.stdout.write(json.dumps(status.as_json(found), indent=2) + "\n")
        return
    screen = Console(emoji=False, highlight=False)
    if not watch:
        screen.print(_status_table(status.read(state)))
        return
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            live.update(_status_table(status.read(state)), refresh=True)
            time.sleep(2)


def _status_table(found: Status) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")

    def add(name: str, text: object) -> None:
        table.add_row(Text(name), Text(str(text)))

    dead = "" if found.alive or found.phase in ("finished", "stopped", "failed") else "  (the server is not running)"
    add("study", f"{found.study}, hash {found.federation[:16]}, version {found.package}, at {found.address}")
    add("phase", f"{found.phase}{dead}")
    if found.message:
        add("", found.message)
    where = f"seed {found.seed}, round {found.round} of {found.rounds}" if found.seed is not None else "not begun"
    add("round", where + ("" if found.loss is None else f", loss {found.loss:.4f}"))
    if found.round_seconds is not None:
        left = "" if found.seconds_left is None or not found.alive else f", about {duration(found.seconds_left)} left"
        add("pace", f"{found.round_seconds:.1f} s for the last round{left}")
    for each in found.hospitals:
        connected = "connected" if each.connected and found.alive else "away"
        version = f", version {each.version}" if each.version else ""
        other = " (not this server's)" if each.version not in ("", found.package) else ""
        late = f", {each.late} of its replies too late (quorum.deadline)" if each.late else ""
        add("hospital", f"{each.name}: {connected}, last seen {each.last_seen or 'never'}{version}{other}{late}")
    for one in found.found[-20:]:
        aurocs = ", ".join(f"{kind} {number('auroc', value)}".strip() for kind, value in one.auroc.items())
        add("figures", f"seed {one.seed}, {one.hospital}, {one.arm}: {one.patients:,} patients, AUROC {aurocs}")
    for reply in found.set_aside[-10:]:
        add("set aside", f"seed {reply.seed}, {reply.when}: {reply.hospital}: {reply.reason}")
    add("updated", found.updated)
    return table


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"


def pause(
    folder: HomeOption = HERE,
    off: Annotated[bool, typer.Option("--off", help="go on")] = False,
) -> None:
    """Let the server finish its round and wait; hospitals stay connected. --off goes on."""
    state = home.open_home(folder).state
    if off:
        status.withdraw(state, status.PAUSE)
    else:
        status.ask(state, status.PAUSE)
    _say("asked", "to go on" if off else "to pause after this round")
    _say_if_nobody_hears(state)


def stop(folder: HomeOption = HERE) -> None:
    """Let the server finish its round, keep it, and end. ich-server run --resume goes on."""
    state = home.open_home(folder).state
    status.ask(state, status.STOP)
    _say("asked", "to stop after this round")
    _say_if_nobody_hears(state)


def _say_if_nobody_hears(state: Path) -> None:
    found = status.last(state)
    if found is None or not found.alive:
        _say("but", "no server runs on this folder, and the next one begins without what was asked before")
