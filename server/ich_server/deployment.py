"""A federation between machines: every seed's study over the open link, its status told, its results written."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType

from ich_models.errors import IchError, RunError
from ich_models.federation import Federation
from ich_models.metrics import Evaluation
from ich_models.protocol import PACKAGE, Answer
from ich_server import checkpoint, results, status
from ich_server.flower import Link
from ich_server.handover import hand_over, keep
from ich_server.report.page import write_report
from ich_server.results import ArmFound, Results
from ich_server.rounds import Quarantine
from ich_server.status import Found, HospitalStatus, Phase, RoundStatus, SetAside, Status
from ich_server.study import RoundReport, StudyResult, run_study
from ich_strategies.plan import Plan

log = logging.getLogger(__name__)

TELL = 2.0
"""Seconds between two writings of the status."""


class StoppedError(RunError):
    """The coordinator asked the server to stop; the study can go on with --resume."""


class Reporter:
    """Keeps the status file true while a study runs, from a thread of its own, and obeys the coordinator's requests."""

    def __init__(self, folder: Path, federation: Federation, address: str, link: Link, *, resume: bool = False) -> None:
        self._folder, self._link = folder, link
        link.before_look = self.obey_stop
        before = status.last(folder) if resume else None
        self._lock = threading.Lock()
        self._round_began = time.monotonic()
        self._status = Status(
            study=federation.name,
            federation=federation.hash,
            package=PACKAGE,
            address=address,
            process=os.getpid(),
            phase="waiting",
            updated=status.now(),
            seeds=federation.training.seeds,
            rounds=federation.training.rounds,
            set_aside=before.set_aside if before else [],
        )

    @property
    def set_aside(self) -> list[SetAside]:
        """Replies that were set aside so far."""
        return self._status.set_aside

    def tell(self, **changes: object) -> None:
        """Write the status anew, with these changes."""
        with self._lock:
            hospitals = [
                HospitalStatus(
                    name=name,
                    connected=seen.online,
                    last_seen=_utc(seen.last),
                    version=seen.version,
                    late=seen.late,
                )
                for name, seen in self._link.seen().items()
            ]
            whole = {**self._status.model_dump(), **changes, "updated": status.now(), "hospitals": hospitals}
            self._status = Status.model_validate(whole)
            status.write(self._folder, self._status)

    def add(self, seed: int, replies: list[Quarantine]) -> None:
        """Remember replies that were set aside, each once."""
        new = [reply for reply in replies if SetAside(seed=seed, **asdict(reply)) not in self._status.set_aside]
        for reply in new:
            log.warning("seed %s, %s: %s set aside: %s", seed, reply.when, reply.hospital, reply.reason)
        if not new:
            return
        known = [*self._status.set_aside, *(SetAside(seed=seed, **asdict(reply)) for reply in new)]
        self.tell(set_aside=known[-200:])

    def round_done(self, report: RoundReport) -> None:
        """Tell of a round; then wait while a pause is asked for. Raises StoppedError if a stop is."""
        seconds, self._round_began = time.monotonic() - self._round_began, time.monotonic()
        self.add(report.seed, list(report.quarantined))
        done = RoundStatus(
            round=report.round,
            seconds=round(seconds, 2),
            hospitals=report.hospitals,
            replied=report.replied,
            losses=dict(report.losses),
        )
        history = [*self._status.history, done] if self._status.seed == report.seed else [done]
        self.tell(
            phase="training",
            seed=report.seed,
            round=report.round,
            loss=report.loss,
            round_seconds=done.seconds,
            history=history,
            seconds_left=self._left(report, history),
        )
        status.wait_while_paused(self._folder, lambda paused: self.tell(phase="paused" if paused else "training"))
        self.obey_stop()

    def _left(self, report: RoundReport, history: list[RoundStatus]) -> float:
        """Seconds that the rounds to come will take, each as long as the middle one of the last nine."""
        seeds = self._status.seeds
        rounds = report.rounds - report.round + report.rounds * (len(seeds) - 1 - seeds.index(report.seed))
        pace = history[1:] or history  # before the first round hospitals were waited for
        return round(rounds * median(each.seconds for each in pace[-9:]), 1)

    def heard(self, seed: int, hospital: str, answers: Sequence[Answer]) -> None:
        """Remember a hospital's figures as they come."""
        new = [
            Found(
                seed=seed,
                hospital=hospital,
                arm=answer.arm,
                patients=answer.patients,
                events=answer.events,
                auroc=_aurocs(answer.evaluation()),
            )
            for answer in answers
        ]
        self.tell(found=[*self._status.found, *new])

    def obey_stop(self) -> None:
        """Raise StoppedError if a stop is asked for: between rounds, and while hospitals are waited for."""
        if status.asked(self._folder, status.STOP):
            status.withdraw(self._folder, status.STOP)
            raise StoppedError("stopped as asked; every finished round is kept", hint="go on with --resume")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Renew the status and the list of admitted keys until the end, and say how it ended."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(TELL):
                try:
                    self._link.refresh()
                    self.tell()
                except OSError as error:  # a full disk ends the study by its own words, not by this thread's
                    log.warning("the status cannot be written: %s", error)
                except Exception:  # who is revoked must be put out whatever became of the rest
                    log.exception("the status or the keys could not be renewed; trying again")

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        phase: Phase = "failed"
        message = ""
        try:
            yield
            phase = "finished"
        except StoppedError as error:
            phase, message = "stopped", str(error)
            raise
        except IchError as error:
            message = str(error)
            raise
        except KeyboardInterrupt:
            phase, message = "stopped", "interrupted"
            raise
        except Exception as error:
            message = f"a defect ({type(error).__name__}): server.log has what a report of it needs"
            log.exception("the study ended by a defect")
            raise
        finally:
            ended.set()
            thread.join()
            self.tell(phase=phase, message=message)


def _aurocs(found: Evaluation) -> dict[str, float | None]:
    if found.types:
        return {kind: one.slices.metrics["auroc"].value for kind, one in found.types.items()}
    return {"": found.metrics["auroc"].value}


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def run(
    federation: Federation,
    link: Link,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool,
    watch: Callable[[RoundReport], None],
    weights: Mapping[str, Path] = MappingProxyType({}),
) -> Results:
    """Run the study of every seed with the admitted hospitals, hand the model over, and write the results to `out`.

    Raises RunError as `run_study` does, and StoppedError.
    """
    studies: list[StudyResult] = []
    arms: list[dict[str, ArmFound]] = []

    def round_done(report: RoundReport) -> None:
        watch(report)
        reporter.round_done(report)

    for seed in federation.training.seeds:
        plan = Plan(federation, seed, weights)
        link.refresh()
        saved = checkpoint.newest(out / "seeds" / f"seed-{seed}") if resume else 0
        reporter.tell(seed=seed, round=saved, history=[])
        study = run_study(
            link.grid,
            plan,
            out / "seeds" / f"seed-{seed}",
            hospitals=max(1, len(link.names)),
            resume=resume,
            watch=round_done,
            names=lambda: link.names,
            heard=partial(reporter.heard, seed),
        )
        reporter.add(seed, [each for each in study.quarantined if not each.when.startswith("round ")])
        kept, failed = hand_over(link.grid, plan, study, {name: node for node, name in link.names.items()})
        log.info("seed %s: the model is at %s", seed, ", ".join(kept) or "no hospital")
        reporter.add(seed, failed)
        keep(plan, study, out / "model" / f"seed-{seed}")
        studies.append(study)
        arms.append(results.answered(study))
    whole = results.assemble(federation, federation.training.seeds, studies, arms)
    results.write(whole, out)
    write_report(whole, out)
    return whole
