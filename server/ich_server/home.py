"""The federation folder: the study, the CA, the admitted and the revoked keys, and where runs leave their traces."""

import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from ich_models import kit
from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.files import write_atomic
from ich_models.one_at_a_time import alone
from ich_models.strict import NAME, Strict
from ich_models.yaml_config import Document, load
from ich_server import pki

SETTINGS: Final = "server.yaml"


class Settings(Strict):
    """`server.yaml`."""

    address: str = Field(pattern=r"^[A-Za-z0-9.\-]+:[0-9]{1,5}$")
    """host:port under which hospitals reach the server."""
    listen: str = Field("", pattern=r"^([0-9A-Za-z.\-:\[\]]*:[0-9]{1,5})?$")
    """host:port that the server listens on; every interface and the address's port if it is left out."""
    health: int | None = Field(None, ge=1, le=65535)
    """Port on loopback for Flower's gRPC health service, for probes."""
    weights: dict[str, Path] = {}
    """Published weights that the study's encoders learn on from: name -> file, relative to this folder."""

    @property
    def host(self) -> str:
        """The address without its port."""
        return self.address.rpartition(":")[0]

    @property
    def listens(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = (self.listen or f"0.0.0.0:{self.address.rpartition(':')[2]}").rpartition(":")
        return host or "0.0.0.0", int(port)


@dataclass(frozen=True)
class Home:
    """The folder, opened: its settings and its study."""

    folder: Path
    settings: Settings
    federation: Document[Federation]

    @property
    def weights(self) -> dict[str, Path]:
        """The settings' weights, where they lie."""
        return {name: self.folder / path for name, path in self.settings.weights.items()}

    @property
    def pki(self) -> Path:
        """CA and server certificate."""
        return self.folder / "pki"

    @property
    def state(self) -> Path:
        """The SuperLink's database, status and requests."""
        return self.folder / "state"


def create(source: Path, address: str, folder: Path) -> Home:
    """Make the folder, or bring its copy of the study and its address up to date. CA and keys are made once and kept.

    Raises ConfigurationError for a federation file that cannot be used, and for an address that is none.
    """
    document = load_federation(source)
    settings = folder / SETTINGS
    known = load(settings, Settings).value.model_dump(mode="json", exclude_unset=True) if settings.exists() else {}
    port = address.rpartition(":")[2]
    if not re.fullmatch(r"[A-Za-z0-9.\-]+:[0-9]{1,5}", address) or not 0 < int(port) < 65536:
        raise ConfigurationError(f"'{address}' is not host:port", hint="write it like train.example.org:8443")
    text = yaml.safe_dump({**known, "address": address}, sort_keys=False)
    copy = folder / kit.FEDERATION
    if copy.resolve() != source.resolve():
        write_atomic(copy, _in_one_file(source, document.value))
    write_atomic(settings, text.encode())
    pki.authority(folder / "pki", document.value.name)
    home = open_home(folder)
    pki.server_certificate(home.pki, home.settings.host, document.value.name)
    return home


def _in_one_file(source: Path, federation: Federation) -> bytes:
    """The study as one file: as it was written, or with the dictionary that it names taken in."""
    text = source.read_bytes()
    if "dictionary:" not in text.decode():
        return text
    whole = yaml.safe_dump(federation.model_dump(mode="json", by_alias=True, exclude_defaults=True), sort_keys=False)
    return f"# {source.name} and the dictionary that it names, in one file\n{whole}".encode()


def open_home(folder: Path) -> Home:
    """The folder as `create` made it. Raises ConfigurationError if it is none."""
    if not (folder / SETTINGS).exists():
        hint = "make it with ich-server init FEDERATION.yaml --address HOST:PORT, or name it with --home"
        raise ConfigurationError("no federation folder", where=str(folder), hint=hint)
    settings = load(folder / SETTINGS, Settings).value
    return Home(folder, settings, load_federation(folder / kit.FEDERATION))


def make_kit(home: Home, hospital: str, bundle: str) -> Path:
    """Write the kit of one hospital; its path. Raises ConfigurationError for a name that cannot be."""
    _check_name(hospital)
    federation = home.federation.value
    certificate, key = pki.authority(home.pki, federation.name)
    files = {kit.CA: certificate, kit.FEDERATION: (home.folder / kit.FEDERATION).read_bytes()}
    facts = kit.Facts(
        hospital=hospital,
        address=home.settings.address,
        study=federation.name,
        federation=federation.hash,
        bundle=bundle,
        files={},
    )
    path = home.folder / "kits" / f"{hospital}-kit.zip"
    write_atomic(path, kit.pack(facts, files, key))
    return path


def locked(home: Home) -> AbstractContextManager[None]:
    """Nobody else runs a server on this folder meanwhile. Raises RunError if somebody does."""
    hint = "ich-server status tells of it; ich-server stop ends it"
    return alone(home.folder, home.state / "lock", "a server", hint)


# --- keys -------------------------------------------------------------------------------------------------------------


def admitted(folder: Path) -> dict[str, bytes]:
    """Name -> public key (OpenSSH) of every admitted hospital, sorted by name."""
    return {path.stem: path.read_bytes() for path in sorted((folder / "hospitals").glob("*.pub"))}


def admit(folder: Path, name: str, text: bytes) -> str:
    """Let a hospital's key in; its fingerprint.

    Raises ConfigurationError for a key that is none of ours, that was revoked, or that belongs to another hospital, and
    for a hospital that has another key already.
    """
    _check_name(name)
    key = _parse(text)
    for other, known in admitted(folder).items():
        if _same(_parse(known), key) and other != name:
            raise ConfigurationError(f"this key is hospital '{other}' already", hint="every hospital makes its own key")
        if other == name and not _same(_parse(known), key):
            hint = f"compare the fingerprints; if '{name}' has made a new key: ich-server revoke {name}, then admit"
            raise ConfigurationError(f"hospital '{name}' is admitted with another key", hint=hint)
    for path in sorted((folder / "revoked").glob("*.pub")):
        if _same(_parse(path.read_bytes()), key):
            raise ConfigurationError("this key was revoked", where=str(path), hint="the hospital makes a new one")
    write_atomic(folder / "hospitals" / f"{name}.pub", _openssh(key) + b"\n")
    return kit.key_fingerprint(key)


def revoke(folder: Path, name: str) -> str:
    """Take a hospital's key off the list for ever; its fingerprint. Raises ConfigurationError if there is none."""
    path = folder / "hospitals" / f"{name}.pub"
    if not path.exists():
        known = ", ".join(admitted(folder)) or "none"
        raise ConfigurationError(f"no admitted hospital '{name}'", hint=f"admitted: {known}")
    key = _parse(path.read_bytes())
    short = kit.key_fingerprint(key).removeprefix("SHA256:")[:16].replace("/", "_").replace("+", "-")
    (folder / "revoked").mkdir(exist_ok=True)
    shutil.move(path, folder / "revoked" / f"{name}-{short}.pub")
    return kit.key_fingerprint(key)


def fingerprints(folder: Path) -> Mapping[str, str]:
    """Name -> fingerprint of every admitted key."""
    return {name: kit.key_fingerprint(_parse(text)) for name, text in admitted(folder).items()}


def _parse(text: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "the file that ich-client init wrote: NAME.pub (NAME.key never leaves the hospital)"
        raise ConfigurationError("not a public key in OpenSSH form", hint=hint) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigurationError("not an ECDSA key on P-384", hint="the file that ich-client init wrote: NAME.pub")
    return key


def _openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _same(one: ec.EllipticCurvePublicKey, other: ec.EllipticCurvePublicKey) -> bool:
    return _openssh(one) == _openssh(other)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        hint = "lower-case letters, digits, '.', '_' and '-', 64 at most"
        raise ConfigurationError(f"'{name}' cannot name a hospital", hint=hint)
