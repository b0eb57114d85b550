"""Reading images: slices per CPU-second from a folder to a kept volume in HU, beside bare readers; and a kept array's loading."""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1")

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import clock
import numpy as np
import pydicom
import typer
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000Lossless
from rich.console import Console
from rich.table import Table

from ich_client.cache import Cache
from ich_client.dicom.choose import choose
from ich_client.dicom.scan import scan
from ich_client.dicom.series import group
from ich_models import console
from ich_models.files import write_arrays, write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import phantom

SLICES: Final = {"uncompressed": 48, "JPEG 2000": 16}
"""Per folder; decoding JPEG 2000 is slow for everybody."""

ROUNDS: Final = 5

app = console.application("")


@app.command(epilog="Example: python benchmarks/images.py --out runs/benchmarks")
def main(
    out: Annotated[Path, typer.Option(help="folder for images.json; made if needed")] = Path("runs/benchmarks"),
) -> None:
    """Measure reading and loading of images, rivals in turn, and print ratios."""
    found: dict[str, Any] = {"machine": clock.machine(), "absent": [name for name in RIVALS if not _there(name)]}
    with tempfile.TemporaryDirectory() as room:
        for kind, slices in SLICES.items():
            folder = _series(Path(room) / kind.replace(" ", "-"), slices, compressed=kind != "uncompressed")
            found[kind] = _beside_each_other(folder, slices, Path(room))
        found["cached"] = _cached(Path(room))
    write_json(out / "images.json", json.loads(json.dumps(found)))
    _show(found)


# --- readers: a folder to an array in HU --------------------------------------------------------------------------------


def ours(folder: Path, room: Path) -> None:
    """All that a client does but finding the brain: search, group, choose, check, un-shear, keep."""
    series, _ = group(scan(folder))
    volume = choose(series).stack.volume()
    target = room / "cache"
    with Cache(target, 1e12) as cache:
        cache.put("0" * 64, lambda entry: write_arrays(entry / "a.safetensors", {"values": volume.values}, {}))
    shutil.rmtree(target)


def bare_pydicom(folder: Path, room: Path) -> None:
    """The least that gives values: every file read, decoded and rescaled, in the order of positions; nothing is checked."""
    read = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    read.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    values = np.stack([pixel_array(one).astype(np.float32) * one.RescaleSlope + one.RescaleIntercept for one in read])
    np.save(room / "bare.npy", values.astype(np.int16))


def simpleitk(folder: Path, room: Path) -> None:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    np.save(room / "sitk.npy", sitk.GetArrayFromImage(reader.Execute()))


def monai(folder: Path, room: Path) -> None:
    from monai.data import PydicomReader

    reader = PydicomReader()
    np.save(room / "monai.npy", reader.get_data(reader.read(str(folder)))[0])


def dcm2niix(folder: Path, room: Path) -> None:
    program = Path(sys.executable).with_name("dcm2niix")
    subprocess.run([program, "-b", "n", "-f", "x", "-w", "1", "-o", room, folder], check=True, capture_output=True)


def dicom2nifti(folder: Path, room: Path) -> None:
    from dicom2nifti import dicom_series_to_nifti

    dicom_series_to_nifti(str(folder), str(room / "x.nii"), reorient_nifti=True)


RIVALS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "pydicom": bare_pydicom,
    "SimpleITK": simpleitk,
    "monai": monai,
    "dcm2niix": dcm2niix,
    "dicom2nifti": dicom2nifti,
}


def _there(name: str) -> bool:
    return Path(sys.executable).with_name(name).is_file() if name == "dcm2niix" else find_spec(name) is not None


def _series(folder: Path, slices: int, *, compressed: bool) -> Path:
    """A head of 512 x 512 with noise, as a scanner's has."""
    noise = np.random.default_rng(0)
    made = phantom.ct([index * 3.0 for index in range(slices)], rows=512, columns=512, spacing=(0.45, 0.45))
    for one in made:
        grainy = phantom.stored(one) + noise.integers(0, 24, (512, 512), np.uint16)
        phantom.set_pixels(one, grainy.clip(0, 4095).astype(np.uint16))
        if compressed:
            one.compress(JPEG2000Lossless, generate_instance_uid=False)
    return phantom.write(folder, made)


def _cpu() -> float:
    """Seconds of this process and of those that it has waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _beside_each_other(folder: Path, slices: int, room: Path) -> dict[str, Any]:
    """Slices per CPU-second of each, in turn so that other work on the machine meets all alike; medians."""
    readers = {"ours": ours} | {name: read for name, read in RIVALS.items() if _there(name)}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for index in range(ROUNDS + 1):
        for name, read in readers.items():
            began = _cpu()
            try:
                read(folder, room)
            except Exception as error:
                seconds[name] = [float("nan")]
                console_line = f"{name} cannot read it: {type(error).__name__}"
                Console(stderr=True).print(console_line, markup=False)
                continue
            if index:  # the first warms up
                seconds[name].append(_cpu() - began)
    return {
        name: {
            "slices per CPU-second": slices / statistics.median(each),
            "ours over this": statistics.median(each) / statistics.median(seconds["ours"]),
        }
        for name, each in seconds.items()
        if len(each) > 1
    }


def _cached(room: Path) -> dict[str, Any]:
    """A hospital's array of 100 patients (32 x 224 x 224): verified and mapped, beside np.load alone; then one pass over it."""
    values = np.random.default_rng(0).random((100, 1, 32, 224, 224), np.float32).astype(np.float16)
    with Cache(room / "c", 1e12) as cache:
        cache.put("0" * 64, lambda entry: np.save(entry / "image.npy", values))
        np.save(room / "plain.npy", values)

        def verified() -> None:
            entry = cache.get("0" * 64)
            assert entry is not None
            np.load(entry / "image.npy", mmap_mode="c").view(np.uint16).max()

        def plain() -> None:
            np.load(room / "plain.npy", mmap_mode="c").view(np.uint16).max()

        pairs = [(clock.timed(verified), clock.timed(plain)) for _ in range(ROUNDS + 1)][1:]
    return {
        "over np.memmap, with one pass over the values": {n: asdict(s) for n, s in clock.ratios(pairs).items()},
        "GB per second": values.nbytes / 1e9 / statistics.median(own.wall for own, _ in pairs),
    }


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("what", "slices per CPU-second", "ours is so many times as fast"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for kind in SLICES:
        for name, figures in found[kind].items():
            table.add_row(
                f"{kind}, {name}", f"{figures['slices per CPU-second']:.0f}", f"{figures['ours over this']:.2f}"
            )
    screen = Console(highlight=False)
    screen.print(table)
    wall = found["cached"]["over np.memmap, with one pass over the values"]["wall"]["median"]
    screen.print(f"kept array, verified and read, over np.memmap: {wall:.2f}", markup=False)
    screen.print(f"not installed: {', '.join(found['absent']) or 'none'}", markup=False)


if __name__ == "__main__":
    console.run(app)
