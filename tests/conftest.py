"""What every test may rely on: one thread, no calls home, repeatable examples, and the shared real data if present."""

import gc
import os

# Before anything imports flwr, ray or torch: they read these once. Subprocesses and pytest-xdist workers inherit them.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    RAY_USAGE_STATS_ENABLED="0",
    OMP_NUM_THREADS="1",  # torch takes its thread count from here; one per worker, and sums in a fixed order
    OPENBLAS_NUM_THREADS="1",  # numpy and scipy, likewise
)

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Examples time out with the test (pytest-timeout), not one by one: a busy machine is no defect.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)  # a red build must be red again on the same commit
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for shared_data is a realdata test, whether or not it says so."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("realdata")


def pytest_collection_finish() -> None:
    """What is imported by now is never garbage. flwr looks for some after each message, which takes long where much is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets."""
    folder = Path(os.environ.get("ICH_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set ICH_SHARED_DATA to their folder)")
    return folder
