"""The hospital's folder: the kit, the key that never leaves, hospital.yaml, and where the client keeps its records."""

import hashlib
import json
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ich_client.hospital import HospitalConfig
from ich_client.ledger import Ledger
from ich_models import kit
from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.files import read_json, write_atomic, write_json, write_secret
from ich_models.kit import Facts
from ich_models.one_at_a_time import alone
from ich_models.strict import Strict
from ich_models.yaml_config import Document, load

HOSPITAL: Final = "hospital.yaml"
CLOCK: Final = "clock.json"
PRIVACY: Final = "privacy"
"""The folder of the ledger, unless hospital.yaml names another."""

TEMPLATE: Final = """\
# What the study's variables are called in your table. It never leaves this machine.
# ich-client check says what is missing; docs/configuration.md has every key.
hospital: {name}
table:
  file: registry.csv          # CSV, XLSX or Parquet; relative to this folder, or to --data
  patient: ID                 # the column that identifies a patient; stays here
  columns:
{columns}
# images: {{folder: images, link: patient}}   # DICOM; for a study that looks at images
limits:
  small_cells: 10             # counts below this do not leave the hospital
# privacy: {{ledger: /srv/ich/privacy}}      # of another folder like this one, whose private studies asked the same patients
"""


@dataclass(frozen=True)
class Home:
    """The folder, opened."""

    folder: Path
    facts: Facts
    federation: Document[Federation]

    @property
    def name(self) -> str:
        """The hospital."""
        return self.facts.hospital

    @property
    def authority(self) -> str:
        """The CA's certificate, PEM."""
        return (self.folder / "kit" / kit.CA).read_text()

    @property
    def key(self) -> Path:
        """The private key, which never leaves."""
        return self.folder / f"{self.name}.key"

    @property
    def hospital(self) -> Path:
        """The mapping."""
        return self.folder / HOSPITAL

    @property
    def state(self) -> Path:
        """State between rounds."""
        return self.folder / "state"

    @property
    def models(self) -> Path:
        """Models that were handed over."""
        return self.folder / "model"

    @property
    def cache(self) -> Path:
        """What is made of images, and can be made again."""
        return self.folder / "cache"

    @property
    def audit(self) -> Path:
        """The log of everything that left, and of what was approved."""
        return self.folder / "audit"

    @property
    def ledger(self) -> Ledger:
        """What the patients have been asked to bear by private studies, anchored in the log of what left.

        This folder's own, or the one that hospital.yaml names, which other folders share. Raises ConfigurationError if that
        one is not there, or would make the folder's own forgotten: either way patients would have a fresh budget.
        """
        own, named = self.folder / PRIVACY, load_mapping(self).value.privacy.ledger
        folder = own if named is None else self.folder / named
        if folder.resolve() != own.resolve():
            where = f"{self.hospital}: privacy.ledger"
            if not folder.is_dir():
                hint = (
                    f"name the folder {PRIVACY}/ of the other hospital folder; make it (mkdir) if nothing is in it yet"
                )
                raise ConfigurationError(f"there is no ledger folder {folder}", where=where, hint=hint)
            if Ledger(own, self.audit).path.exists():
                message = f"this folder has a ledger of its own, {own}, which would not be counted any more"
                hint = f"leave privacy.ledger out here, and name {own} in the other hospital folder"
                raise ConfigurationError(message, where=where, hint=hint)
        return Ledger(folder, self.audit / "log.jsonl", self.identity)

    @property
    def identity(self) -> str:
        """Of this folder among those that write to one ledger: it stays if the folder is moved, or made anew by its kit."""
        return hashlib.sha256(f"{self.name}\n{self.authority}".encode()).hexdigest()[:16]

    def keep_clock(self, ahead: float) -> None:
        """Write down by how many seconds this clock is ahead of the server's, for `ich-client check`, which asks nobody."""
        here = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(self.folder / CLOCK, {"ahead": round(ahead, 1), "measured": here})

    @property
    def clock(self) -> tuple[float, str] | None:
        """What `keep_clock` wrote down last."""
        try:
            found = read_json(self.folder / CLOCK)
            return float(found["ahead"]), str(found["measured"])
        except (OSError, ValueError, LookupError, TypeError):
            return None


class _Facts(Strict):
    """`kit/kit.json` as it was unpacked."""

    facts: Facts


def create(path: Path, folder: Path) -> Home:
    """Unpack a kit; make the key and a first hospital.yaml if there are none.

    Raises ConfigurationError for a kit that is not sound, and for one of another federation or hospital than the
    folder's: whose CA it is was compared when the folder was made.
    """
    given = kit.read(path)
    authority, name = _whose(folder)
    if (authority or given.files[kit.CA], name or given.facts.hospital) != (given.files[kit.CA], given.facts.hospital):
        which = "federation (its CA is another)" if name in (None, given.facts.hospital) else "hospital"
        hint = (
            "use a folder of its own (--home) for another federation; if its patients are the same, write into its hospital.yaml"
            f" privacy: {{ledger: {(folder / PRIVACY).resolve()}}}, so that what private studies take from them adds up"
        )
        raise ConfigurationError(f"this folder belongs to another {which} than the kit", where=str(path), hint=hint)
    for name, content in given.files.items():
        write_atomic(folder / "kit" / name, content)
    write_json(folder / "kit" / "kit.json", {"facts": given.facts.model_dump()})
    home = open_home(folder)
    if not home.key.exists():
        _make_key(home)
    if not home.hospital.exists():
        write_atomic(home.hospital, _template(home).encode())
    return home


def _whose(folder: Path) -> tuple[bytes | None, str | None]:
    """CA and hospital of the kit that was unpacked here before, as far as they can be told; it may be broken."""
    ca, facts = folder / "kit" / kit.CA, folder / "kit" / "kit.json"
    name = None
    if facts.exists():
        with suppress(ValueError, AttributeError):
            said = json.loads(facts.read_bytes()).get("facts", {}).get("hospital")
            name = said if isinstance(said, str) else None
    return (ca.read_bytes() if ca.exists() else None), name


def _make_key(home: Home) -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    write_secret(
        home.key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomic(home.key.with_suffix(".pub"), public + f" {home.name}\n".encode())


def _template(home: Home) -> str:
    needed = home.federation.value.needed
    return TEMPLATE.format(name=home.name, columns="\n".join(f"    {name}: {{from: COLUMN}}" for name in needed))


def open_home(folder: Path) -> Home:
    """The folder as `create` made it. Raises ConfigurationError if it is none."""
    path = folder / "kit" / "kit.json"
    if not path.exists():
        hint = "make it with ich-client init KIT.zip, or name it with --home"
        raise ConfigurationError("no hospital folder", where=str(folder), hint=hint)
    try:
        facts = _Facts.model_validate_json(path.read_bytes()).facts
    except ValueError as error:
        raise ConfigurationError("not a kit of this version", where=str(path), hint="ich-client init anew") from error
    document = load_federation(folder / "kit" / kit.FEDERATION)
    if document.value.hash != facts.federation:
        hint = "unpack the kit again (ich-client init): the study that is agreed on is the kit's"
        raise ConfigurationError("the study is not the one that was signed", where=str(document.path), hint=hint)
    return Home(folder, facts, document)


def load_key(home: Home) -> ec.EllipticCurvePrivateKey:
    """The private key. Raises ConfigurationError if others can read it, or it is none."""
    try:
        if home.key.stat().st_mode & 0o077:
            hint = f"chmod 600 {home.key}; if others may have read it, make a new one"
            raise ConfigurationError("others can read the private key", where=str(home.key), hint=hint)
        return cast(ec.EllipticCurvePrivateKey, serialization.load_ssh_private_key(home.key.read_bytes(), None))
    except FileNotFoundError:
        hint = "take it from a backup, or make a new one with ich-client init and have it admitted"
        raise ConfigurationError("the private key is gone", where=str(home.key), hint=hint) from None
    except ValueError as error:
        raise ConfigurationError("not a private key", where=str(home.key), hint="take it from a backup") from error


def locked(home: Home) -> AbstractContextManager[None]:
    """No other ich-client takes part from this folder meanwhile: two would count the answers that they may give apart,
    and write over each other's state. Raises RunError if one does."""
    hint = "leave it running, or end that one first (Ctrl-C, or your service's stop)"
    return alone(home.folder, home.folder / "join.lock", "an ich-client join", hint)


def load_mapping(home: Home) -> Document[HospitalConfig]:
    """hospital.yaml. Raises ConfigurationError if it names another hospital than the kit does."""
    document = load(home.hospital, HospitalConfig)
    if document.value.hospital != home.name:
        hint = f"write hospital: {home.name}"
        message = f"hospital '{document.value.hospital}', and the kit is for '{home.name}'"
        raise ConfigurationError(message, where=document.where("hospital"), hint=hint)
    return document
