"""The federation folder and its certificates: made once and kept, keys and names one to one."""

import os
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from processes import write_study

from ich_client import home as hospital
from ich_models import kit
from ich_models.errors import ConfigurationError, RunError
from ich_models.federation import load_federation
from ich_server import home, pki


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture
def made(study: Path, tmp_path: Path) -> home.Home:
    return home.create(study, "train.example.org:8443", tmp_path / "home")


def public(curve: ec.EllipticCurve | None = None) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


# --- certificates -----------------------------------------------------------------------------------------------------


def test_ca_and_keys_are_made_once_and_kept(made: home.Home, study: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.pki.iterdir()}
    assert {path.name: path.stat().st_mode & 0o777 for path in made.pki.glob("*.key")} == {
        "ca.key": 0o600,
        "server.key": 0o600,
    }
    home.create(study, "train.example.org:8443", made.folder)
    assert {path.name: path.read_bytes() for path in made.pki.iterdir()} == before
    home.create(study, "other.example.org:8443", made.folder)
    after = {path.name: path.read_bytes() for path in made.pki.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"server.pem"}, "another address, the same keys"


def test_a_certificate_that_ends_soon_is_renewed_with_its_key(made: home.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    before = x509.load_pem_x509_certificate((made.pki / "server.pem").read_bytes())
    key = (made.pki / "server.key").read_bytes()
    monkeypatch.setattr(pki, "RENEW_DAYS", pki.SERVER_DAYS + 1)
    certificate, _ = pki.server_certificate(made.pki, "train.example.org", "study")
    after = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    assert (made.pki / "server.key").read_bytes() == key
    after.verify_directly_issued_by(x509.load_pem_x509_certificate((made.pki / "ca.pem").read_bytes()))


def test_a_lost_half_of_the_ca_is_not_replaced(made: home.Home) -> None:
    (made.pki / "ca.key").unlink()
    with pytest.raises(ConfigurationError, match=r"ca.pem is there and ca.key is not"):
        pki.authority(made.pki, "study")


@pytest.mark.parametrize(("host", "asked"), [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")])
def test_tls_works_with_the_certificates_and_only_for_their_host(tmp_path: Path, host: str, asked: str) -> None:
    certificate, key = pki.server_certificate(tmp_path / "pki", host, "study")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)

    def handshake(name: str) -> None:
        theirs = ssl.create_default_context(cafile=str(tmp_path / "pki" / "ca.pem"))
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = theirs.wrap_bio(to_client, to_server, server_hostname=name)
        server = ours.wrap_bio(to_server, to_client, server_side=True)
        done: set[ssl.SSLObject] = set()
        for _ in range(10):
            for side in (client, server):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
        assert len(done) == 2

    handshake(asked)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake("elsewhere.example.org")


def test_the_ca_lives_long_and_can_only_sign_servers(made: home.Home) -> None:
    authority = x509.load_pem_x509_certificate((made.pki / "ca.pem").read_bytes())
    assert authority.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365 * 15)
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert not _server(made).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _server(made: home.Home) -> x509.Certificate:
    return x509.load_pem_x509_certificate((made.pki / "server.pem").read_bytes())


# --- the study and its kits -------------------------------------------------------------------------------------------


def test_a_dictionary_is_taken_into_the_one_file(study: Path, tmp_path: Path) -> None:
    whole = yaml.safe_load(study.read_text())
    variables = whole["modalities"]["table"].pop("variables")
    whole["modalities"]["table"]["dictionary"] = "words.yaml"
    (study.parent / "words.yaml").write_text(yaml.safe_dump({"variables": variables}))
    study.write_text(yaml.safe_dump(whole, sort_keys=False))
    made = home.create(study, "localhost:8443", tmp_path / "home")
    assert made.federation.value.hash == load_federation(study).value.hash
    path = home.make_kit(made, "north", "b" * 64)
    assert kit.read(path).facts.federation == made.federation.value.hash


@pytest.mark.parametrize("address", ["", "example.org", "example.org:", "https://example.org:1", "a b:1", "x:y"])
def test_an_address_is_host_and_port(study: Path, tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigurationError, match="is not host:port"):
        home.create(study, address, tmp_path / "home")


def test_a_private_key_is_not_admitted_by_mistake(made: home.Home, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    with pytest.raises(ConfigurationError, match=r"not a public key.*\n.*NAME\.key never leaves"):
        home.admit(made.folder, "north", private)


def test_one_server_at_a_time_runs_on_a_folder(made: home.Home) -> None:
    with (
        home.locked(made),
        pytest.raises(RunError, match=f"process {os.getpid()}.* runs on this folder already"),
        home.locked(made),
    ):
        pass
    with home.locked(made):
        pass


def test_broken_settings_are_put_into_words(made: home.Home, study: Path) -> None:
    (made.folder / home.SETTINGS).write_text("address: [\n")
    with pytest.raises(ConfigurationError, match=r"server\.yaml"):
        home.create(study, "localhost:8443", made.folder)


def test_settings_that_were_added_stay(made: home.Home, study: Path) -> None:
    path = made.folder / home.SETTINGS
    path.write_text(path.read_text() + "listen: 127.0.0.1:9000\nhealth: 9001\n")
    again = home.create(study, "new.example.org:1", made.folder)
    assert again.settings.listens == ("127.0.0.1", 9000)
    assert (again.settings.health, again.settings.host) == (9001, "new.example.org")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_has_one_name_and_a_name_one_key(made: home.Home) -> None:
    north, south = public(), public()
    home.admit(made.folder, "north", north)
    assert home.admit(made.folder, "north", north).startswith("SHA256:"), "again: nothing happens"
    with pytest.raises(ConfigurationError, match="this key is hospital 'north' already"):
        home.admit(made.folder, "east", north)
    with pytest.raises(ConfigurationError, match="hospital 'north' is admitted with another key"):
        home.admit(made.folder, "north", south)
    home.admit(made.folder, "south", south)
    assert list(home.admitted(made.folder)) == ["north", "south"]


def test_a_revoked_key_is_never_let_in_again(made: home.Home) -> None:
    key = public()
    home.admit(made.folder, "north", key)
    home.revoke(made.folder, "north")
    assert home.admitted(made.folder) == {}
    for name in ("north", "west"):
        with pytest.raises(ConfigurationError, match="this key was revoked"):
            home.admit(made.folder, name, key)
    home.admit(made.folder, "north", public())
    with pytest.raises(ConfigurationError, match="no admitted hospital 'south'"):
        home.revoke(made.folder, "south")


@pytest.mark.parametrize(
    ("name", "key"),
    [("North", None), ("a/b", None), ("..", None), ("north", b"ssh-rsa AAAA"), ("north", b"x"), ("north", b"")],
)
def test_what_is_no_key_or_name_is_refused(made: home.Home, name: str, key: bytes | None) -> None:
    with pytest.raises(ConfigurationError):
        home.admit(made.folder, name, public() if key is None else key)
    with pytest.raises(ConfigurationError, match="not an ECDSA key on P-384"):
        home.admit(made.folder, "north", public(ec.SECP256R1()))


def test_the_fingerprint_is_ssh_keygens(made: home.Home, tmp_path: Path) -> None:
    import shutil
    import subprocess

    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this machine")
    key = public()
    (tmp_path / "k.pub").write_bytes(key + b"\n")
    shown = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "k.pub"], capture_output=True, text=True, check=True)
    assert home.admit(made.folder, "north", key) in shown.stdout


# --- the hospital's side ----------------------------------------------------------------------------------------------


def test_a_hospital_makes_its_key_once_and_keeps_its_mapping(made: home.Home, tmp_path: Path) -> None:
    path = home.make_kit(made, "north", "b" * 64)
    here = hospital.create(path, tmp_path / "north")
    key = here.key.read_bytes()
    assert here.key.stat().st_mode & 0o777 == 0o600
    here.hospital.write_text("hospital: north\n# mine\n")
    hospital.create(path, tmp_path / "north")
    assert here.key.read_bytes() == key
    assert "# mine" in here.hospital.read_text()
    assert home.admit(made.folder, "north", here.key.with_suffix(".pub").read_bytes()) == kit.key_fingerprint(
        hospital.load_key(here).public_key()
    )


def test_the_first_hospital_yaml_names_what_the_study_needs(made: home.Home, tmp_path: Path) -> None:
    here = hospital.create(home.make_kit(made, "north", "b" * 64), tmp_path / "north")
    mapping = yaml.safe_load(here.hospital.read_text())
    assert mapping["hospital"] == "north"
    assert list(mapping["table"]["columns"]) == ["age", "gcs", "mrs"]


def test_a_kit_of_another_federation_or_hospital_is_not_taken(made: home.Home, study: Path, tmp_path: Path) -> None:
    """Whoever could slip a hospital a kit of their own CA would be its server."""
    hospital.create(home.make_kit(made, "north", "b" * 64), tmp_path / "north")
    other = home.create(study, "evil.example.org:8443", tmp_path / "evil")
    with pytest.raises(ConfigurationError, match="another federation"):
        hospital.create(home.make_kit(other, "north", "b" * 64), tmp_path / "north")
    with pytest.raises(ConfigurationError, match="another hospital"):
        hospital.create(home.make_kit(made, "south", "b" * 64), tmp_path / "north")


def test_a_study_that_was_changed_by_hand_is_not_the_signed_one(made: home.Home, tmp_path: Path) -> None:
    here = hospital.create(home.make_kit(made, "north", "b" * 64), tmp_path / "north")
    path = here.folder / "kit" / "federation.yaml"
    path.write_text(path.read_text().replace("rounds: 4", "rounds: 5"))
    with pytest.raises(ConfigurationError, match="the study is not the one that was signed"):
        hospital.open_home(here.folder)


def test_a_key_that_others_can_read_is_not_used(made: home.Home, tmp_path: Path) -> None:
    here = hospital.create(home.make_kit(made, "north", "b" * 64), tmp_path / "north")
    for mode in (0o640, 0o604, 0o620):
        here.key.chmod(mode)
        with pytest.raises(ConfigurationError, match="others can read the private key"):
            hospital.load_key(here)
    here.key.unlink()
    with pytest.raises(ConfigurationError, match="the private key is gone"):
        hospital.load_key(here)


def test_two_clients_may_begin_at_once(made: home.Home, tmp_path: Path) -> None:
    """A second `init` at the same moment does not replace the first one's key."""
    path = home.make_kit(made, "north", "b" * 64)
    failures: list[Exception] = []

    def begin() -> None:
        try:
            hospital.create(path, tmp_path / "north")
        except (FileExistsError, ConfigurationError) as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    key = hospital.load_key(hospital.open_home(tmp_path / "north"))
    assert kit.key_fingerprint(key.public_key())
