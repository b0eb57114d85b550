"""Chromium without a window, for tests: a page as it stands after its scripts have run, and as a picture."""

import shutil
import subprocess
from pathlib import Path

import pytest

FOUND = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

needed = pytest.mark.skipif(FOUND is None, reason="no Chromium on this machine (CI installs no system packages)")


def _run(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert FOUND is not None
    command = [
        FOUND,
        "--headless=new",
        "--no-sandbox",  # tests may run as root, in a container of their own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={profile}",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def dom(url: str, profile: Path) -> str:
    """The page's HTML a moment after it was loaded."""
    return _run(profile, "--virtual-time-budget=4000", "--dump-dom", url).stdout


def picture(url: str, profile: Path, to: Path, width: int = 1400, height: int = 1000) -> Path:
    """The page as a PNG of that size."""
    _run(
        profile,
        "--hide-scrollbars",
        f"--window-size={width},{height}",
        "--virtual-time-budget=4000",
        f"--screenshot={to}",
        url,
    )
    return to


def printed(url: str, profile: Path, to: Path) -> Path:
    """The page as a PDF."""
    _run(profile, "--no-pdf-header-footer", f"--print-to-pdf={to}", url)
    return to
