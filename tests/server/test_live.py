"""The live page's server: what it serves, to whom, and what it refuses."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path

import html5lib
import pytest
from browser import dom, needed

from ich_models.errors import RunError
from ich_server import status
from ich_server.live.server import POLICY, serve
from ich_server.status import HospitalStatus, Status


def a_status() -> Status:
    return Status(
        study="small",
        federation="ab" * 32,
        package="0.1.0",
        address="127.0.0.1:9",
        process=1,
        phase="training",
        updated=status.now(),
        seeds=[7],
        rounds=4,
        hospitals=[HospitalStatus(name="<b>north</b>", connected=True, last_seen=status.now())],
    )


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serve(tmp_path, 0) as url:
        yield url.removeprefix("http://").rstrip("/")


def ask(
    address: str, path: str, method: str = "GET", hosts: tuple[str, ...] | None = None
) -> tuple[int, dict[str, str], bytes]:
    link = http.client.HTTPConnection(address, timeout=10)
    link.putrequest(method, path, skip_host=True)
    for host in (address,) if hosts is None else hosts:
        link.putheader("Host", host)
    link.endheaders()
    answer = link.getresponse()
    content = answer.read()
    link.close()
    return answer.status, dict(answer.getheaders()), content


def test_the_page_and_what_it_needs(address: str) -> None:
    kinds = {"/": "text/html", "/live.css": "text/css", "/live.js": "text/javascript"}
    for path, kind in kinds.items():
        code, headers, content = ask(address, path)
        assert (code, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert headers["Content-Security-Policy"] == POLICY
        assert b"http:" not in content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https:" not in content
        assert b"innerHTML" not in content
    tree = html5lib.HTMLParser(strict=True).parse(ask(address, "/")[2])
    assert {each.get("src") for each in tree.iter("{http://www.w3.org/1999/xhtml}script")} == {"/live.js"}


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    assert set(rules.values()) == {"'self'", "'none'"}
    assert rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == "'none'"


def test_the_status_is_that_of_the_terminal(address: str, tmp_path: Path) -> None:
    assert ask(address, "/status.json")[0] == 503, "nothing was written yet"
    written = a_status()
    status.write(tmp_path, written)
    code, headers, content = ask(address, "/status.json")
    assert (code, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(content) == {**written.model_dump(), "alive": True}


@pytest.mark.parametrize(
    "hosts",
    [("evil.example",), ("evil.example:{port}",), ("127.0.0.1",), (), ("127.0.0.1:{port}", "evil.example")],
)
def test_another_name_is_refused(address: str, tmp_path: Path, hosts: tuple[str, ...]) -> None:
    """A page on the web whose name is made to point at this machine must not read the study."""
    status.write(tmp_path, a_status())
    port = address.rpartition(":")[2]
    for path in ("/", "/status.json"):
        code, _, content = ask(address, path, hosts=tuple(host.format(port=port) for host in hosts))
        assert code == 421
        assert b"north" not in content
    assert ask(address, "/", hosts=(f"localhost:{port}",))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_can_only_be_read(address: str, method: str) -> None:
    assert ask(address, "/status.json", method)[0] == 501


@pytest.mark.parametrize("path", ["/../status.json", "/server.log", "/live.js?x", "/%2e%2e/", "/state/status.json"])
def test_there_is_nothing_else(address: str, tmp_path: Path, path: str) -> None:
    (tmp_path / "server.log").write_text("secret")
    code, _, content = ask(address, path)
    assert code == 404
    assert b"secret" not in content


def test_head_has_no_body(address: str) -> None:
    code, headers, content = ask(address, "/", "HEAD")
    assert (code, content) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_it_listens_on_loopback_and_says_where_a_port_is_taken(tmp_path: Path, address: str) -> None:
    assert address.startswith("127.0.0.1:")
    with pytest.raises(RunError, match="cannot be opened"), serve(tmp_path, int(address.rpartition(":")[2])):
        pass


@needed
@pytest.mark.slow
def test_a_browser_shows_who_is_too_slow_and_takes_no_name_for_html(address: str, tmp_path: Path) -> None:
    slow = HospitalStatus(name="south", connected=True, last_seen=status.now(), version="0.1.0", late=3)
    written = a_status()
    status.write(tmp_path, written.model_copy(update={"hospitals": [*written.hospitals, slow]}))
    page = dom(f"http://{address}/", tmp_path / "profile")
    assert re.findall(r'<th scope="row">(.*?)</th><td[^>]*>connected</td><td>[^<]*</td><td[^>]*>(\d)</td>', page) == [
        ("&lt;b&gt;north&lt;/b&gt;", "0"),
        ("south", "3"),
    ]
