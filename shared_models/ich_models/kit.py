"""What a hospital gets from the coordinator: one signed file with the address, the CA's certificate and the study, no secret."""

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from ich_models.errors import ConfigurationError
from ich_models.protocol import PACKAGE, PROTOCOL
from ich_models.strict import Name, Strict

FORMAT: Final = 1
LARGEST: Final = 16 * 2**20
"""Bytes of a kit, packed and unpacked."""

CA: Final = "ca.pem"
FEDERATION: Final = "federation.yaml"
_FACTS, _SIGNATURE = "kit.json", "kit.sig"


class Facts(Strict):
    """`kit.json`: what the signature covers, and through the hashes every other file."""

    format: Literal[1] = FORMAT
    hospital: Name
    address: str = Field(pattern=r"^[A-Za-z0-9.\-:\[\]]+:[0-9]{1,5}$")
    """host:port of the server."""
    study: Name
    federation: str
    """Hash of the federation."""
    package: str = PACKAGE
    protocol: int = PROTOCOL
    bundle: str
    """SHA-256 of the bundle without code that every run of the server has."""
    files: dict[str, str]
    """Name and SHA-256 of every other file."""


class Kit(Strict):
    """A kit that was read and found sound."""

    facts: Facts
    files: dict[str, bytes]

    @property
    def authority(self) -> str:
        """The CA's certificate, PEM."""
        return self.files[CA].decode()


def pack(facts: Facts, files: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    """The file, signed with the CA's key (ECDSA over SHA-384); `files` by name, `ca.pem` and `federation.yaml` among them."""
    whole = facts.model_copy(update={"files": {name: _digest(content) for name, content in sorted(files.items())}})
    text = (json.dumps(whole.model_dump(), indent=2, sort_keys=True) + "\n").encode()
    signature = key.sign(text, ec.ECDSA(hashes.SHA384()))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {_FACTS: text, _SIGNATURE: signature, **files}.items():
            entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))  # the same bytes for the same kit
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()


def read(path: Path) -> Kit:
    """A kit, its signature and every hash checked against the CA certificate that it holds.

    Whose CA that is a signature cannot say: people compare `fingerprint`. Raises ConfigurationError if anything is wrong.
    """
    members = _members(path)
    try:
        text, signature = members.pop(_FACTS), members.pop(_SIGNATURE)
        facts = Facts.model_validate_json(text)
        authority = x509.load_pem_x509_certificate(members[CA])
        key = authority.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("no elliptic-curve key")
        key.verify(signature, text, ec.ECDSA(hashes.SHA384()))
    except KeyError as error:
        raise _wrong(path, f"{error} is missing in it") from error
    except InvalidSignature as error:
        raise _wrong(path, "its signature is not by its CA") from error
    except (ValidationError, ValueError) as error:
        raise _wrong(path, "it is not a kit of this version") from error
    if facts.files != {name: _digest(content) for name, content in members.items()}:
        raise _wrong(path, "a file in it is not the one that was signed")
    if FEDERATION not in members:
        raise _wrong(path, f"{FEDERATION} is missing in it")
    return Kit(facts=facts, files=members)


def _members(path: Path) -> dict[str, bytes]:
    """The files of the archive: flat, few, and no larger than a kit can be."""
    try:
        if path.stat().st_size > LARGEST:
            raise _wrong(path, "it is too large for a kit")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if (
                len(set(names)) != len(names)
                or len(names) > 8
                or not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) for name in names)
            ):
                raise _wrong(path, "it holds other files than a kit does")
            if sum(entry.file_size for entry in entries) > LARGEST:
                raise _wrong(path, "it is too large for a kit")
            return {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zipfile.LargeZipFile) as error:
        raise _wrong(path, "it is not a whole zip file") from error
    except ConfigurationError:
        raise
    except Exception as error:  # zlib.error, struct.error: what else a stranger's archive provokes
        if isinstance(error, OSError):
            raise
        raise _wrong(path, "it is not a whole zip file") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _wrong(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"this kit cannot be used: {what}", where=str(path), hint="ask the coordinator for it again (ich-server kit)"
    )


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate, in pairs as people compare it by telephone."""
    digest = x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())
    return digest.hex(":").upper()


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """A public key's fingerprint as `ssh-keygen -l` shows it."""
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(text.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
