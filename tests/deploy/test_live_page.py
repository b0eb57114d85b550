"""The live page in a real browser during a real run: rounds advance, a killed hospital shows, its return shows, the end shows."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import dom, needed
from processes import STUDY, Federation, federation, free_port, write_study

pytestmark = [pytest.mark.slow, needed]

HOSPITALS = ("east", "north", "south")
ROUNDS = 12
TRAINING = {
    **STUDY["training"],
    "stages": [{"rounds": ROUNDS, "epochs": 40, "batch": 8, "optimizer": {"name": "sgd", "lr": 0.02}}],
}


class Page:
    """What stands on the page, looked at anew each time."""

    def __init__(self, port: int, profile: Path) -> None:
        self.address, self.profile = f"http://127.0.0.1:{port}/", profile

    def until(self, wanted: Callable[[str], object], what: str, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while not wanted(page := dom(self.address, self.profile)):
            assert time.monotonic() < end, f"{what}: {page[-3000:]}"
        return page


def said(page: str, name: str) -> str:
    found = re.search(rf'id="{name}"[^>]*>([^<]*)<', page)
    return found[1] if found else ""


def at_round(page: str) -> int:
    found = re.match(r"(\d+) of", said(page, "round"))
    return int(found[1]) if found else 0


def state(page: str, hospital: str) -> str:
    found = re.search(rf'<th scope="row">{hospital}</th><td[^>]*>([^<]*)</td>', page)
    return found[1] if found else ""


def test_the_page_tells_of_a_run(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", {**STUDY, "training": TRAINING, "quorum": {"deadline": "240s"}}, HOSPITALS)
    with federation(tmp_path, study) as made:
        port = free_port()
        server = made.serve("--dashboard-port", str(port))
        page = Page(port, tmp_path / "profile")
        _wait_for(made, f"dashboard  http://127.0.0.1:{port}/")
        waiting = page.until(lambda seen: said(seen, "phase") not in ("", "–"), "the page is there before anybody")
        assert said(waiting, "phase") == "waiting"
        assert said(waiting, "study") == "four-hospitals"
        assert {state(waiting, name) for name in HOSPITALS} <= {"away", ""}
        for name in HOSPITALS:
            made.join(name)
        first = page.until(lambda seen: at_round(seen) >= 1, "a round")
        later = page.until(lambda seen: at_round(seen) > at_round(first), "the next round")
        assert {state(later, name) for name in HOSPITALS} == {"connected"}
        assert said(later, "connected") == "3 of 3"
        assert re.search(r'<polyline class="all" points="\d', later)
        assert re.search(r'<th scope="row">without:north</th><td>0\.\d{4}</td>', later)
        assert said(later, "left") != "–"

        killed = made.processes[2]
        killed.kill()
        killed.wait()
        gone = page.until(lambda seen: state(seen, "north") == "away", "a killed hospital shows")
        assert state(gone, "south") == "connected"
        assert said(gone, "connected") == "2 of 3"
        made.join("north")
        back = page.until(lambda seen: state(seen, "north") == "connected", "it is back")
        page.until(lambda seen: at_round(seen) > at_round(back) or not seen, "rounds go on", 240)
        assert server.wait(240) == 0, made.log("server")
        assert (made.home / "report.html").exists()


def _wait_for(made: Federation, line: str) -> None:
    end = time.monotonic() + 60
    while line not in made.log("server"):
        assert time.monotonic() < end, made.log("server")
        time.sleep(0.1)
