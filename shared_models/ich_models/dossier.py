"""The run dossier: a study's findings in one signed file that a hospital or a reviewer verifies with one command.

A zip of stored files, written here byte by byte (APPNOTE.TXT 6.3.10, 4.3.7, 4.3.12 and 4.3.16), so that the same files give
the same bytes with any Python, and a file with a single other byte is another file.
"""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from ich_models.errors import ConfigurationError, DataError
from ich_models.kit import fingerprint
from ich_models.strict import Strict

FORMAT: Final = 1
LARGEST: Final = 256 * 2**20
"""Bytes of a dossier."""

MANIFEST, SIGNATURE, AUTHORITY = "manifest.json", "manifest.sig", "ca.pem"
FEDERATION: Final = "federation.json"
RESULTS: Final = "results.json"
REPORT: Final = "report.html"

Signer = Literal["federation", "simulation"]


class AuditHead(Strict):
    """Where a hospital's record of what left it ended, as the hospital itself exported it."""

    replies: str
    approvals: str
    lines: int


class Manifest(Strict):
    """`manifest.json`: what the signature covers, and through the hashes every other file."""

    format: Literal[1] = FORMAT
    made: str
    """UTC, ISO 8601."""
    package: str
    signer: Signer
    """Whose CA signs: the federation's own, or one that was made for a simulation."""
    study: str
    federation: str
    """Hash of the federation file."""
    models: dict[str, str]
    """Per seed the SHA-256 of the model of all hospitals."""
    audits: dict[str, AuditHead]
    """By hospital, of those that gave an export of their audit log."""
    ledgers: dict[str, dict[str, Any]]
    """By hospital, what it says of the privacy that it has spent; of those that said anything."""
    files: dict[str, str]
    """Name and SHA-256 of every other file but the signature."""


@dataclass(frozen=True)
class Verified:
    """A dossier that was found sound. `authority`: the fingerprint of the CA that signed it."""

    manifest: Manifest
    files: Mapping[str, bytes]
    authority: str


def pack(manifest: Manifest, files: Mapping[str, bytes], certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The file, signed with the CA's key (ECDSA over SHA-384). `files` by name, the federation and the results among them."""
    whole = {AUTHORITY: certificate, **files}
    digests = {name: digest(content) for name, content in sorted(whole.items())}
    text = canonical(manifest.model_copy(update={"files": digests}))
    signature = key.sign(text, ec.ECDSA(hashes.SHA384()))
    return stored({MANIFEST: text, SIGNATURE: signature, **dict(sorted(whole.items()))})


def verify(path: Path, authority: bytes | None = None) -> Verified:
    """The dossier in a file: its container, its signature, every hash, and that its parts tell of one study.

    `authority`: the certificate (PEM) of the CA that must have signed it. Without one the signature says that nothing was
    changed since, and people compare `Verified.authority` to know by whom. Raises DataError if anything is wrong.
    """
    if path.stat().st_size > LARGEST:
        raise _wrong(path, "it is too large for a dossier")
    content = path.read_bytes()
    files = _unpacked(path, content)
    try:
        text, signature = files.pop(MANIFEST), files.pop(SIGNATURE)
        signer = x509.load_pem_x509_certificate(files[AUTHORITY])
        key = signer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("no elliptic-curve key")
        key.verify(signature, text, ec.ECDSA(hashes.SHA384()))
        manifest = Manifest.model_validate_json(text)
    except KeyError as error:
        raise _wrong(path, f"{error} is missing in it") from error
    except InvalidSignature as error:
        raise _wrong(path, "its signature is not of these files") from error
    except (ValidationError, ValueError) as error:
        raise _wrong(path, "it is not a dossier of this version") from error
    changed = [name for name in manifest.files if digest(files.get(name, b"")) != manifest.files[name]]
    if changed or manifest.files.keys() != files.keys() or canonical(manifest) != text:
        raise _wrong(
            path, f"files are not those that were signed: {', '.join(changed) or 'others than the manifest names'}"
        )
    if authority is not None and fingerprint(authority) != fingerprint(files[AUTHORITY]):
        raise _wrong(path, f"it is signed by another CA ({fingerprint(files[AUTHORITY])}) than the federation's")
    _check_study(path, manifest, files)
    return Verified(manifest, files, fingerprint(files[AUTHORITY]))


def _check_study(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """The federation file has the hash that is named, the results tell of that study and of those models, the page of the results."""
    try:
        settings, results = json.loads(files[FEDERATION]), json.loads(files[RESULTS])
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if hashlib.sha256(text.encode()).hexdigest() != manifest.federation:
            raise _wrong(path, f"{FEDERATION} has another hash than the study")
        if results["study"]["federation"] != manifest.federation or results["models"] != manifest.models:
            raise _wrong(path, f"{RESULTS} tells of another study or of other models")
        if REPORT in files and mark(digest(files[RESULTS])).encode() not in files[REPORT]:
            raise _wrong(path, f"{REPORT} was not made of this {RESULTS}")
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, f"{FEDERATION} and {RESULTS} cannot be read") from error


def canonical(manifest: Manifest) -> bytes:
    """The text that is signed: JSON with sorted keys, indented for people, and a line's end."""
    return (json.dumps(manifest.model_dump(), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def mark(results: str) -> str:
    """The line of HTML by which a page says of which results it was made, by their SHA-256."""
    return f'<meta name="made-of" content="sha256:{results}">'


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


def said(found: Verified, known: bool) -> str:
    """One line: who signed what, and whether the signer is the one that is known here.

    Whose CA it is, an unknown signer only says of itself.
    """
    manifest = found.manifest
    whose = {"federation": "the federation's CA", "simulation": "a CA made for a simulation"}[manifest.signer]
    signer = (
        f"{whose}, which is this folder's own, fingerprint {found.authority}"
        if known
        else f"an unknown CA (it says: {whose}); nobody has compared its fingerprint {found.authority} with the coordinator's"
    )
    return f"{manifest.study} ({manifest.federation[:16]}): {len(manifest.files)} files, signed {manifest.made} by {signer}"


def now() -> str:
    """The time as it stands in a manifest."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def head(path: Path) -> tuple[str, AuditHead]:
    """Of an export that `ich-client audit --export` wrote: the hospital and where its log ended.

    Nothing else of it is taken over: an export tells every reply in full. Raises ConfigurationError for another file.
    """
    try:
        whole = json.loads(path.read_bytes())
        heads = whole["heads"]
        found = AuditHead(replies=heads["replies"], approvals=heads["approvals"], lines=len(whole["replies"]))
        return str(whole["hospital"]), found
    except (ValueError, KeyError, TypeError) as error:
        hint = "the file that ich-client audit --export FILE wrote at the hospital"
        raise ConfigurationError("not an export of an audit log", where=str(path), hint=hint) from error


def _wrong(path: Path, what: str) -> DataError:
    hint = "ask for the file again, from whoever made it (ich-server dossier)"
    return DataError(f"this dossier is not sound: {what}", where=str(path), hint=hint)


# --- the container ----------------------------------------------------------------------------------------------------

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_DAY: Final = (40 << 9) | (1 << 5) | 1
"""1 January 2020 as MS-DOS writes it: the same for every file, since a dossier's own time stands in the manifest."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,5}")


def stored(files: Mapping[str, bytes]) -> bytes:
    """A zip of these files in this order, none compressed."""
    body, directory = bytearray(), bytearray()
    for name, content in files.items():
        label = name.encode()
        common = (20, 0, 0, 0, _DAY, zlib.crc32(content), len(content), len(content), len(label), 0)
        directory += _CENTRAL.pack(b"PK\x01\x02", 20, *common, 0, 0, 0, 0, len(body)) + label
        body += _LOCAL.pack(b"PK\x03\x04", *common) + label + content
    end = _END.pack(b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + end)


def _unpacked(path: Path, content: bytes) -> dict[str, bytes]:
    """The files of a container that `stored` wrote; any other container is refused, down to its last byte."""
    files: dict[str, bytes] = {}
    place = 0
    try:
        while content[place : place + 4] == b"PK\x03\x04":
            fields = _LOCAL.unpack_from(content, place)
            size, length = fields[7], fields[9]
            begin = place + _LOCAL.size + length
            name = content[place + _LOCAL.size : begin].decode("ascii")
            if not _NAME.fullmatch(name) or name in files or begin + size > len(content):
                raise _wrong(path, "it holds other files than a dossier does")
            files[name] = content[begin : begin + size]
            place = begin + size
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise _wrong(path, "it is not a whole dossier") from error
    if stored(files) != content:
        raise _wrong(path, "it is not a whole dossier, or bytes of it were changed")
    return files
