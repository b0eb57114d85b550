"""The report in a real browser: nothing is cut off on a desk, a telephone or paper, and nothing is asked for but the page."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import dom, needed, printed

from ich_server.report.page import render
from ich_server.results import Results
from ich_server.summary import interval

pytestmark = [pytest.mark.slow, needed]

PROBE = """<!DOCTYPE html>
<iframe src="report.html" width="WIDTH" height="2000" style="border:0"></iframe><pre id="found"></pre>
<script>
document.querySelector("iframe").addEventListener("load", (event) => {
  const page = event.target.contentDocument;
  const cut = [...page.querySelectorAll("svg")].flatMap((svg) => {
    const outer = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((text) => {
      const inner = text.getBoundingClientRect();
      return inner.left < outer.left - 2 || inner.right > outer.right + 2
        || inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2;
    }).map((text) => `${svg.getAttribute("aria-label").slice(0, 40)}: ${text.textContent}`);
  });
  const empty = [...page.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().height < 50).length;
  document.getElementById("found").textContent = JSON.stringify(
    { wide: page.documentElement.scrollWidth, figures: page.querySelectorAll("svg").length, cut, empty });
});
</script>
"""
"""What stands in the page when it is as wide as this: its own width, and texts that lie outside their figures."""


class Served:
    """A folder on loopback, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *arguments: Any) -> None:
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def served(many_hospitals: Results, tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "report.html").write_text(render(many_hospitals))
    for width in (1400, 400):
        (tmp_path / f"{width}.html").write_text(PROBE.replace("WIDTH", str(width)))
    found = Served(tmp_path)
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()


def test_nothing_is_cut_off_at_any_width_and_nothing_else_is_asked_for(served: Served, tmp_path: Path) -> None:
    for width in (1400, 400):
        page = dom(f"{served.address}/{width}.html", tmp_path / "profile")
        said = re.search(r'<pre id="found">(.*?)</pre>', page, re.DOTALL)
        assert said is not None
        found = json.loads(unescape(said[1]))
        assert found["wide"] <= width, "tables and figures scroll in their own frames, the page does not"
        assert found["figures"] >= 4
        assert found["cut"] == []
        assert found["empty"] == 0
    assert set(served.asked) - {"/favicon.ico"} == {"/1400.html", "/400.html", "/report.html"}


def test_the_printed_page_has_every_hospital_and_its_figures(
    served: Served, many_hospitals: Results, tmp_path: Path
) -> None:
    paper = printed(f"{served.address}/report.html", tmp_path / "profile", tmp_path / "report.pdf")
    text = _text(paper)
    for hospital, figures in many_hospitals.arms["loho"].hospitals.items():
        assert hospital[:20] in text
        if figures.auroc.value is not None:
            assert f"{figures.auroc.value:.3f}" in text
    for figures in many_hospitals.arms["local"].hospitals.values():  # folded on the screen
        assert interval("recall", figures.recall.low, figures.recall.high) in text


def _text(paper: Path) -> str:
    try:
        return subprocess.run(["pdftotext", "-layout", paper, "-"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no pdftotext on this machine")
