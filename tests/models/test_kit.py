"""A kit is taken whole and signed, or not at all."""

import io
import warnings
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ich_models import kit
from ich_models.errors import ConfigurationError
from ich_models.kit import Facts
from ich_server import pki


@pytest.fixture
def authority(tmp_path: Path) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    return pki.authority(tmp_path / "pki", "study")


def facts() -> Facts:
    return Facts(
        hospital="north", address="127.0.0.1:8443", study="study", federation="f" * 64, bundle="b" * 64, files={}
    )


def packed(authority: tuple[bytes, ec.EllipticCurvePrivateKey], **more: bytes) -> bytes:
    files = {"ca.pem": authority[0], "federation.yaml": b"name: study\n", **more}
    return kit.pack(facts(), files, authority[1])


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        kit.read(path)
    return str(caught.value)


def test_what_was_packed_is_read(authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path) -> None:
    (tmp_path / "kit.zip").write_bytes(packed(authority))
    found = kit.read(tmp_path / "kit.zip")
    assert (found.facts.hospital, found.facts.address) == ("north", "127.0.0.1:8443")
    assert found.files == {"ca.pem": authority[0], "federation.yaml": b"name: study\n"}
    assert found.authority == authority[0].decode()


def test_the_signature_is_by_the_ca_over_kit_json(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey],
) -> None:
    """So that anybody can verify it with openssl."""
    with zipfile.ZipFile(io.BytesIO(packed(authority))) as archive:
        text, signature = archive.read("kit.json"), archive.read("kit.sig")
    authority[1].public_key().verify(signature, text, ec.ECDSA(hashes.SHA384()))


def test_no_secret_is_in_it(authority: tuple[bytes, ec.EllipticCurvePrivateKey]) -> None:
    private = authority[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with zipfile.ZipFile(io.BytesIO(packed(authority))) as archive:
        whole = b"".join(archive.read(name) for name in archive.namelist())
    assert b"PRIVATE" not in whole
    assert private.splitlines()[1] not in whole


def changed(content: bytes, name: str, new: bytes | None) -> bytes:
    """The archive with one member replaced, or left out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as archive:
        for each in old.namelist():
            if each != name:
                archive.writestr(each, old.read(each))
            elif new is not None:
                archive.writestr(each, new)
        if name not in old.namelist() and new is not None:
            archive.writestr(name, new)
    return result.getvalue()


def member(content: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(name)


def test_another_address_breaks_the_signature(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    whole = packed(authority)
    forged = member(whole, "kit.json").replace(b"127.0.0.1", b"127.0.0.2")
    assert "its signature is not by its CA" in refused(tmp_path / "k.zip", changed(whole, "kit.json", forged))


def test_another_study_is_not_the_one_that_was_signed(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    whole = packed(authority)
    assert "not the one that was signed" in refused(
        tmp_path / "k.zip", changed(whole, "federation.yaml", b"name: other\n")
    )
    assert "not the one that was signed" in refused(tmp_path / "k.zip", changed(whole, "more.txt", b"x"))


def test_another_ca_did_not_sign_it(authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path) -> None:
    other, _ = pki.authority(tmp_path / "other", "other")
    assert "signature is not by its CA" in refused(tmp_path / "k.zip", changed(packed(authority), "ca.pem", other))


@pytest.mark.parametrize("name", ["kit.json", "kit.sig", "ca.pem", "federation.yaml"])
def test_every_part_is_needed(authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path, name: str) -> None:
    assert "this kit cannot be used" in refused(tmp_path / "k.zip", changed(packed(authority), name, None))


def test_a_kit_without_a_study_is_refused_though_it_is_signed(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    whole = kit.pack(facts(), {"ca.pem": authority[0]}, authority[1])
    assert "federation.yaml is missing in it" in refused(tmp_path / "k.zip", whole)


def test_two_files_of_one_name_are_refused(authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path) -> None:
    """The signed one is last, which is what Python reads; another program would show the first."""
    whole = packed(authority)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(result, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of the second name
        archive.writestr("federation.yaml", b"name: other\n")
        for each in old.namelist():
            archive.writestr(each, old.read(each))
    assert "other files than a kit does" in refused(tmp_path / "k.zip", result.getvalue())


def test_a_ca_of_another_kind_is_refused_in_words(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name, now = x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    other = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    assert "not a kit of this version" in refused(tmp_path / "k.zip", changed(packed(authority), "ca.pem", other))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", "kit/../../x"])
def test_nothing_is_written_outside(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path, name: str
) -> None:
    assert "other files than a kit does" in refused(tmp_path / "k.zip", changed(packed(authority), name, b"x"))


def test_a_bomb_is_not_unpacked(authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path) -> None:
    result = io.BytesIO(packed(authority))
    with zipfile.ZipFile(result, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * (kit.LARGEST + 1))
    assert len(result.getvalue()) < 100_000
    assert "too large for a kit" in refused(tmp_path / "k.zip", result.getvalue())


@pytest.mark.parametrize("place", range(40))
def test_a_changed_byte_anywhere_is_words_or_no_change(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path, place: int
) -> None:
    """Never a traceback, and never other content."""
    whole = bytearray(packed(authority))
    whole[len(whole) * place // 40] ^= 0xFF
    (tmp_path / "k.zip").write_bytes(whole)
    try:
        found = kit.read(tmp_path / "k.zip")
    except ConfigurationError:
        return  # in words
    assert found.files["federation.yaml"] == b"name: study\n"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip at all" * 100])
def test_what_is_no_zip_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    assert "not a whole zip file" in refused(tmp_path / "k.zip", content)


def test_many_small_bombs_are_one_bomb(authority: tuple[bytes, ec.EllipticCurvePrivateKey], tmp_path: Path) -> None:
    """Each below the limit, all together above it."""
    result = io.BytesIO(packed(authority))
    with zipfile.ZipFile(result, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"zeros{number}", b"\0" * (kit.LARGEST // 2))
    assert "too large for a kit" in refused(tmp_path / "k.zip", result.getvalue())
