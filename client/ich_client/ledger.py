"""What a hospital's patients have been asked to bear: every private step is written down before it is made, and kept for ever.

A line is a reservation, made and on disk before the first gradient; a second line, after the work, may say that it was
less. Without the second the whole reservation counts: a crash never under-counts. Patients are known here by a digest
under a salt that stays in this folder. Groups of patients that share anybody are charged together.

The lines are chained (`hash_chain`); the hash of each reservation and settlement is also written into another log, the anchor, so that a
ledger that is deleted, cut, rolled back or edited by itself is found out, and an anchor that is: before each reservation
and by `verify`. Several hospital folders may share a ledger, each with an anchor of its own.
"""

import fcntl
import hashlib
import hmac
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ich_models import hash_chain
from ich_models.accounting import Steps, merged
from ich_models.errors import DataError
from ich_models.files import write_secret
from ich_models.hash_chain import Entry

FILE: Final = "ledger.jsonl"
SALT: Final = "salt"

DIGEST: Final = 16
"""Hexadecimal digits by which a patient is known in the ledger. Two with the same would be charged together."""

ANCHOR: Final = "ledger"
"""The event of an anchor's line."""


@dataclass(frozen=True)
class Charge:
    """What was reserved, and how much of it was used so far as is known: all, until somebody settles it."""

    number: int
    """Of the line that reserves it."""
    time: str
    cohort: str
    study: str
    """Hash of the federation."""
    seed: int
    what: str
    """'round 3', 'evaluation'."""
    folds: tuple[str, ...]
    delta: float
    reserved: Steps
    settled: int | None
    """Steps that were made; None: nobody has said."""

    @property
    def spent(self) -> Steps:
        """What counts."""
        steps = self.reserved.steps if self.settled is None else self.settled
        return Steps(self.reserved.sigma, self.reserved.rate, steps)

    @property
    def of_each_model(self) -> Steps:
        """What each of its models had, of a round: those that began alike were trained once, and each had all of that."""
        steps = 0 if self.settled == 0 else self.reserved.steps // len(self.folds)
        return Steps(self.reserved.sigma, self.reserved.rate, steps)


@dataclass(frozen=True)
class Book:
    """A ledger as it was read: the groups of patients, by digest, and all charges."""

    cohorts: dict[str, frozenset[str]]
    charges: tuple[Charge, ...]
    head: str
    lines: int
    homes: frozenset[str]
    """The hospital folders that have reserved, as `Ledger.home`."""

    def of(self, cohort: str) -> tuple[Charge, ...]:
        """What this group's patients may have borne."""
        return self.sharing(self.cohorts[cohort])

    def sharing(self, patients: frozenset[str]) -> tuple[Charge, ...]:
        """Charges of every group that shares a patient, by digest, with these."""
        related = {name for name, others in self.cohorts.items() if patients & others}
        return tuple(charge for charge in self.charges if charge.cohort in related)


def spent(charges: Sequence[Charge]) -> tuple[Steps, ...]:
    """The steps of all these charges."""
    return merged(charge.spent for charge in charges)


class Ledger:
    """One hospital's ledger: a folder, and the log that anchors it. Processes may share it.

    `home`: which of the hospital folders that write to it this is; each has its own `anchor`.
    """

    def __init__(self, folder: Path, anchor: Path, home: str = "") -> None:
        self.path, self.anchor, self.home = folder / FILE, anchor, home
        self._salt = folder / SALT
        self._lock = folder / ".lock"

    @property
    def said(self) -> str:
        """Where it lies, and for whom."""
        others = self.read().homes - {self.home}
        whose = (
            "of this folder alone"
            if not others
            else f"{len(others)} other hospital folder{'s' * (len(others) > 1)} wrote to it"
        )
        return f"{self.path.parent}: {whose}"

    # reading

    def read(self) -> Book:
        """Everything, verified. Raises DataError if ledger, salt or anchor do not belong together any more."""
        with self._locked() if self.path.exists() else nullcontext():  # where there is none, none is made
            return self._book(self._verified())

    def _verified(self) -> list[Entry]:
        """Every line, and that the anchor knows it."""
        entries = list(hash_chain.read(self.path))
        known = dict(anchors(self.anchor))
        self._check_known(entries, known)
        self._check_knowing(entries, known)
        return entries

    def _check_known(self, entries: Sequence[Entry], known: Mapping[int, str]) -> None:
        """Every anchored line must stand in the ledger as it was; later lines may follow."""
        for number, digest in known.items():
            if number > len(entries):
                raise self._broken(f"it has {len(entries)} lines, and {self.anchor} knows of {number}")
            if entries[number - 1].hash != digest:
                raise self._broken(f"line {number} is not the one that {self.anchor} knows")

    def _check_knowing(self, entries: Sequence[Entry], known: Mapping[int, str]) -> None:
        """Every reservation of this folder must be anchored. Its last may not be yet: a crash came between the two logs."""
        own, last = self._own(entries)
        for entry in own:
            if entry.number not in known and entry != last:
                raise DataError(
                    f"the log that anchors the privacy ledger does not know its line {entry.number}: it has been removed or changed",
                    where=str(self.anchor),
                    hint="bring it back from a backup: without it nobody sees whether the ledger was changed."
                    " Until then no private step is made",
                )

    def _own(self, entries: Sequence[Entry]) -> tuple[list[Entry], Entry | None]:
        """This folder's reservations, and the last of them if nobody has settled it."""
        own = [entry for entry in entries if entry.content["event"] == "reserve" and entry.content["home"] == self.home]
        settled = {entry.content["reservation"] for entry in entries if entry.content["event"] == "settle"}
        return own, own[-1] if own and own[-1].number not in settled else None

    def _book(self, entries: Sequence[Entry]) -> Book:
        cohorts: dict[str, frozenset[str]] = {}
        charges: dict[int, Charge] = {}
        for entry in entries:
            said = entry.content
            match said["event"]:
                case "patients":
                    if said["salt"] != self._fingerprint():
                        raise self._broken("the salt beside it is not the one that its patients were written with")
                    cohorts[said["cohort"]] = frozenset(said["patients"])
                case "reserve":
                    charges[entry.number] = _charge(entry)
                case "settle":
                    before = charges[said["reservation"]]
                    charges[before.number] = replace(before, settled=said["steps"])
        head = entries[-1].hash if entries else hash_chain.START
        homes = frozenset(entry.content["home"] for entry in entries if entry.content["event"] == "reserve")
        return Book(cohorts, tuple(charges.values()), head, len(entries), homes)

    def _broken(self, what: str) -> DataError:
        hint = "bring it back from a backup; what it forgot was spent all the same. Until then no private step is made"
        return DataError(f"the privacy ledger has been changed: {what}", where=str(self.path), hint=hint)

    def history(self) -> tuple[Entry, ...]:
        """Every line, as it was written."""
        return tuple(hash_chain.read(self.path))

    # patients

    def cohort(self, patients: Sequence[str]) -> tuple[str, frozenset[str]]:
        """How this group of patients is known here, and its patients' digests. The order of identifiers is no matter."""
        salt = self._salted()
        digests = frozenset(hmac.digest(salt, one.encode(), "sha256").hex()[:DIGEST] for one in patients)
        return hmac.digest(salt, "\n".join(sorted(digests)).encode(), "sha256").hex()[:DIGEST], digests

    def _salted(self) -> bytes:
        """The salt; made with the first group of patients."""
        if not self._salt.exists():
            if self.path.exists():
                raise self._broken("the salt beside it is gone: its patients cannot be known again")
            with self._locked():
                if not self._salt.exists():
                    write_secret(self._salt, secrets.token_bytes(32))
        return self._salt.read_bytes()

    def _fingerprint(self) -> str:
        if not self._salt.exists():
            raise self._broken("the salt beside it is gone: its patients cannot be known again")
        return hashlib.sha256(self._salt.read_bytes()).hexdigest()

    # writing

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
            yield

    @contextmanager
    def writing(self, patients: Sequence[str]) -> Iterator["Writer"]:
        """The ledger of this group of patients, for oneself: what is read within stays true until the end of it."""
        name, digests = self.cohort(patients)
        with self._locked():
            book = self._book(self._mended())
            if name not in book.cohorts:
                content = {
                    "event": "patients",
                    "cohort": name,
                    "salt": self._fingerprint(),
                    "patients": sorted(digests),
                }
                hash_chain.append(self.path, content)
                book = self._book(self._verified())
            yield Writer(self, name, book)

    def _mended(self) -> list[Entry]:
        """Every line; the last reservation is anchored now if a crash came before that."""
        entries = self._verified()
        last = self._own(entries)[1]
        if last is not None and last.number not in dict(anchors(self.anchor)):
            self._anchor(last)
        return entries

    def _anchor(self, entry: Entry) -> None:
        hash_chain.append(self.anchor, {"event": ANCHOR, "number": entry.number, "hash": entry.hash})

    def settle(self, charge: Charge, steps: int) -> None:
        """Say how many of the reserved steps were made; once, and never more than were reserved."""
        if not 0 <= steps <= charge.reserved.steps:
            raise ValueError(f"{steps} steps of {charge.reserved.steps}")
        with self._locked():
            known = {one.number: one for one in self._book(self._mended()).charges}
            if charge.number not in known or known[charge.number].settled is not None:
                raise ValueError("settled before, or never reserved")
            said = {"event": "settle", "reservation": charge.number, "steps": steps}
            self._anchor(hash_chain.append(self.path, said))


@dataclass(frozen=True)
class Writer:
    """A ledger that is held by nobody else while it is looked at and added to."""

    ledger: Ledger
    cohort: str
    book: Book

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What these patients have borne so far."""
        return self.book.of(self.cohort)

    def reserve(self, study: str, seed: int, what: str, folds: Sequence[str], row: Steps, delta: float) -> Charge:
        """Write down what is about to be done; on disk, and anchored, before this returns."""
        content = {
            "event": "reserve",
            "cohort": self.cohort,
            "study": study,
            "seed": seed,
            "what": what,
            "folds": list(folds),
            "sigma": row.sigma,
            "rate": row.rate,
            "steps": row.steps,
            "delta": delta,
            "home": self.ledger.home,
        }
        entry = hash_chain.append(self.ledger.path, content)
        self.ledger._anchor(entry)
        return _charge(entry)


def anchors(path: Path) -> Iterator[tuple[int, str]]:
    """Number and hash of the ledger's lines that a log knows of, among whatever else stands there."""
    for entry in hash_chain.read(path):
        if entry.content.get("event") == ANCHOR:
            yield int(entry.content["number"]), str(entry.content["hash"])


def _charge(entry: Entry) -> Charge:
    said: dict[str, Any] = entry.content
    return Charge(
        number=entry.number,
        time=entry.time,
        cohort=said["cohort"],
        study=said["study"],
        seed=said["seed"],
        what=said["what"],
        folds=tuple(said["folds"]),
        delta=said["delta"],
        reserved=Steps(said["sigma"], said["rate"], said["steps"]),
        settled=None,
    )
