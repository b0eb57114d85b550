"""The federation's own CA and the server's certificate: made once, kept for ever; an upgrade never issues them anew."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ich_models.errors import ConfigurationError
from ich_models.files import write_atomic, write_secret

CA_YEARS: Final = 20
SERVER_DAYS: Final = 825
"""What clients accept of a server's certificate."""
RENEW_DAYS: Final = 60
"""A certificate that ends sooner is made anew, by the same CA, when the server starts."""


def authority(folder: Path, study: str) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """The CA in `folder`: (certificate PEM, key); made if there is none. Raises ConfigurationError for half of one."""
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.exists() != key.exists():
        there, gone = (certificate, key) if certificate.exists() else (key, certificate)
        hint = "take it from a backup: a new CA would make every hospital's kit useless"
        raise ConfigurationError(f"{there.name} is there and {gone.name} is not", where=str(folder), hint=hint)
    if not certificate.exists():
        _make_authority(certificate, key, study)
    return certificate.read_bytes(), _load(key)


def _make_authority(certificate: Path, key: Path, study: str) -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ICH Federation {study}"[:64])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a clock that is a little behind
        .not_valid_after(now + timedelta(days=366 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(private, hashes.SHA384())
    )
    write_secret(key, _pem(private))
    write_atomic(certificate, made.public_bytes(serialization.Encoding.PEM))


def server_certificate(folder: Path, host: str, study: str) -> tuple[Path, Path]:
    """The server's (certificate, key) for `host`, by the CA in `folder`; made if there is none, if it ends soon, or if
    it is for another host. The key stays the same."""
    certificate, key = folder / "server.pem", folder / "server.key"
    if not key.exists():
        write_secret(key, _pem(ec.generate_private_key(ec.SECP384R1())))
    if not certificate.exists() or not _still_good(certificate.read_bytes(), host):
        pem, signer = authority(folder, study)
        _issue(certificate, _load(key), x509.load_pem_x509_certificate(pem), signer, host)
    return certificate, key


def _still_good(pem: bytes, host: str) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS) and _name(host) in names


def _issue(
    path: Path,
    private: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    host: str,
) -> None:
    now = datetime.now(UTC)
    names = list(dict.fromkeys([_name(host), _name("localhost"), _name("127.0.0.1")]))
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
        .issuer_name(authority.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(min(now + timedelta(days=SERVER_DAYS), authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    write_atomic(path, made.public_bytes(serialization.Encoding.PEM))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        return cast(ec.EllipticCurvePrivateKey, serialization.load_pem_private_key(path.read_bytes(), None))
    except (ValueError, TypeError) as error:
        raise ConfigurationError("not a private key", where=str(path), hint="take it from a backup") from error
