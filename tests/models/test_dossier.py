"""The dossier: a plain zip for everybody, and for us a file of which no byte can be changed unseen."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ich_models import dossier
from ich_models.dossier import AuditHead, Manifest
from ich_models.errors import ConfigurationError, DataError
from ich_server import pki

SETTINGS = {"name": "small", "rounds": 3}
HASH = hashlib.sha256(b'{"name":"small","rounds":3}').hexdigest()
RESULTS = json.dumps({"study": {"federation": HASH}, "models": {"7": "ab" * 32}}).encode()
FILES = {
    dossier.FEDERATION: json.dumps(SETTINGS, indent=2).encode(),
    dossier.RESULTS: RESULTS,
    "report.html": f"{dossier.mark(hashlib.sha256(RESULTS).hexdigest())}<p>größer ✓</p>".encode(),
    "models/seed-7.json": b"{}",
}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    return pki.authority(tmp_path_factory.mktemp("pki"), "small")


def manifest(**changes: object) -> Manifest:
    facts = {
        "made": "2027-01-02T03:04:05+00:00",
        "package": "0.1.0",
        "signer": "simulation",
        "study": "small",
        "federation": HASH,
        "models": {"7": "ab" * 32},
        "audits": {"north": AuditHead(replies="cd" * 32, approvals="ef" * 32, lines=9)},
        "ledgers": {},
        "files": {},
    }
    return Manifest.model_validate({**facts, **changes})


@pytest.fixture(scope="module")
def packed(signer: tuple[bytes, ec.EllipticCurvePrivateKey]) -> bytes:
    return dossier.pack(manifest(), FILES, *signer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dossier") / "small.dossier.zip"


def verified(place: Path, content: bytes, authority: bytes | None = None) -> dossier.Verified:
    place.write_bytes(content)
    return dossier.verify(place, authority)


def test_every_zip_program_reads_it(packed: bytes) -> None:
    """Python's own zipfile, which checks every checksum, sees the same files; the manifest has their SHA-256."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in FILES} == FILES
        named = json.loads(archive.read("manifest.json"))["files"]
        assert set(archive.namelist()) == {"manifest.json", "manifest.sig", *named}
        for name, digest in named.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest


def test_the_signature_is_the_cas_over_the_manifest(packed: bytes) -> None:
    """By cryptography alone, from the bytes that zipfile reads."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        key = x509.load_pem_x509_certificate(archive.read("ca.pem")).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(archive.read("manifest.sig"), archive.read("manifest.json"), ec.ECDSA(hashes.SHA384()))


def test_it_says_who_signed_what(
    packed: bytes, place: Path, signer: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    found = verified(place, packed, signer[0])
    assert found.files["report.html"] == FILES["report.html"]
    line = dossier.said(found, known=True)
    assert line.startswith(
        f"small ({HASH[:16]}): 5 files, signed 2027-01-02T03:04:05+00:00 by a CA made for a simulation"
    )
    stranger, _ = pki.authority(tmp_path, "small")
    with pytest.raises(DataError, match="another CA"):
        verified(place, packed, stranger)
    assert "by an unknown CA (it says: a CA made for a simulation); nobody has compared" in dossier.said(
        verified(place, packed), known=False
    )


@given(data=st.data())
def test_any_changed_byte_is_found(packed: bytes, place: Path, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(packed) - 1))
    other = data.draw(st.integers(1, 255))
    with pytest.raises(DataError):
        verified(place, packed[:where] + bytes([packed[where] ^ other]) + packed[where + 1 :])


@given(cut=st.integers(1, 400), more=st.binary(min_size=1, max_size=20))
def test_what_is_cut_off_or_added_is_found(packed: bytes, place: Path, cut: int, more: bytes) -> None:
    for content in (packed[:-cut], packed + more, more + packed, b""):
        with pytest.raises(DataError):
            verified(place, content)


def test_a_file_exchanged_with_its_checksum_is_found(packed: bytes, place: Path) -> None:
    """Somebody who packs the zip anew, with every checksum right, but cannot sign."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with pytest.raises(DataError, match=r"not those that were signed: report\.html"):
        verified(place, dossier.stored({**files, "report.html": b"better numbers"}))
    with pytest.raises(DataError, match="others than the manifest names"):
        verified(place, dossier.stored({**files, "more.txt": b""}))
    with pytest.raises(DataError, match="its signature is not of these files"):
        verified(place, dossier.stored({**files, "manifest.json": files["manifest.json"].replace(b"small", b"large")}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (dossier.FEDERATION, b'{"name": "small", "rounds": 4}', "another hash"),
        (dossier.RESULTS, b'{"study": {"federation": "00"}, "models": {}}', "another study"),
        (dossier.RESULTS, RESULTS.replace(b"abab", b"acac"), "other models"),
        (dossier.RESULTS, b"{", "cannot be read"),
    ],
)
def test_signed_parts_that_do_not_belong_together_are_refused(
    signer: tuple[bytes, ec.EllipticCurvePrivateKey], place: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        verified(place, dossier.pack(manifest(), {**FILES, name: content}, *signer))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../b", ".", "a//b", "b\\c"])
def test_a_name_that_leads_elsewhere_is_refused(packed: bytes, place: Path, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with pytest.raises(DataError, match="other files than a dossier"):
        verified(place, dossier.stored({**files, name: b""}))


def test_a_manifest_is_signed_in_the_one_form_that_it_is_shown_in(
    packed: bytes, place: Path, signer: tuple[bytes, ec.EllipticCurvePrivateKey]
) -> None:
    """A field named twice is read as the second by Python, and as the first by others; a signature over it is no use."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    text = files["manifest.json"].replace(b"{", b'{\n  "study": "large",', 1)
    signature = signer[1].sign(text, ec.ECDSA(hashes.SHA384()))
    with pytest.raises(DataError, match="not those that were signed"):
        verified(place, dossier.stored({**files, "manifest.json": text, "manifest.sig": signature}))


def test_what_is_too_large_is_not_read(packed: bytes, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dossier, "LARGEST", len(packed) - 1)
    with pytest.raises(DataError, match="too large for a dossier"):
        verified(place, packed)


def test_of_an_audit_export_the_head_alone_is_taken(tmp_path: Path) -> None:
    whole = {
        "hospital": "north",
        "replies": [{"secret": 1}] * 3,
        "approvals": [],
        "heads": {"replies": "aa", "approvals": "bb"},
    }
    (tmp_path / "export.json").write_text(json.dumps(whole))
    assert dossier.head(tmp_path / "export.json") == ("north", AuditHead(replies="aa", approvals="bb", lines=3))
    (tmp_path / "export.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="not an export"):
        dossier.head(tmp_path / "export.json")
