"""What `ich-client check` says of the machine: device, cores, memory, disk, decoders, versions, clock, pinned files."""

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from packaging.requirements import Requirement

from ich_models.errors import ConfigurationError, Problem

State = Literal["well", "warning", "not ready"]

PROGRAM: Final = 0.8e9
"""Bytes that the client takes before it has read anything."""
READING: Final = 0.7e9
"""Bytes of each process that reads a study: its slices, and the search for the brain on a coarser grid."""
COPIES: Final = 6
"""Copies of all weights at once: received, trained, gradient, the optimiser's two, sent."""

SHOWN: Final = ("torch", "flwr", "numpy", "pydicom", "nibabel", "monai", "transformers", "tokenizers")
"""Packages whose version is told even where it is right."""

NO_LIMIT: Final = 1 << 60
"""A control group without a limit names one beyond any memory."""


@dataclass(frozen=True)
class Line:
    """One thing about the machine. `values`: the same for programs."""

    name: str
    told: str
    state: State = "well"
    hint: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """As a problem."""
        return Problem(f"{self.name}: {self.told}", hint=self.hint)


@dataclass(frozen=True)
class Weights:
    """A file that the study pins. `path`: the hospital's copy, None if hospital.yaml names none; `where`: its place there."""

    name: str
    sha256: str
    path: Path | None
    where: str


@dataclass(frozen=True)
class Room:
    """A folder that the client writes to, the key or option that names it, and the bytes that will still come to it."""

    name: str
    key: str
    folder: Path
    bytes: float


@dataclass(frozen=True)
class Needs:
    """What a study needs of this machine. `model`: bytes of all weights of the models that are trained at once;
    `images`: whether it reads images, `dicom`: whether these may be compressed DICOM; `networks`, `private`: whether the packages
    of these extras are needed; `devices`: each `limits.device`; `clock`: seconds ahead of the server, and when that was measured, if it ever was.
    """

    threads: int
    model: float
    images: bool
    dicom: bool
    networks: bool
    private: bool = False
    devices: tuple[str, ...] = ("auto",)
    rooms: tuple[Room, ...] = ()
    weights: tuple[Weights, ...] = ()
    clock: tuple[float, str] | None = None


def examine(needs: Needs) -> tuple[Line, ...]:
    """Every line, in the order in which they are shown. Contacts nobody and leaves nothing behind."""
    return (
        *map(_device, needs.devices),
        _cores(needs.threads),
        _memory(needs),
        *map(_room, needs.rooms),
        *([_decoders()] if needs.dicom else []),
        *_versions(needs.networks, needs.private),
        *map(_pinned, needs.weights),
        _clock(needs.clock),
    )


def gigabytes(size: float) -> str:
    """For people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


# --- device, cores, memory --------------------------------------------------------------------------------------------


def device(wanted: str) -> torch.device:
    """Where networks compute, by `limits.device`. Raises ConfigurationError for a device that is not here."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(wanted)
    there = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= there:
        hint = "write device: cpu, or mend the driver (nvidia-smi) or torch's build for CUDA"
        raise ConfigurationError(f"limits.device is {wanted}, and torch finds {there} CUDA devices", hint=hint)
    return found


def _device(wanted: str) -> Line:
    """The GPU, if there is one, and whether networks are trained on it."""
    try:
        found = device(wanted)
    except ConfigurationError as error:
        (problem,) = error.problems
        return Line("GPU", problem.message, "not ready", problem.hint, {"name": None})
    if not torch.cuda.is_available():
        return Line("GPU", "none that PyTorch can use; training runs on the processor", values={"name": None})
    gpu = torch.cuda.get_device_properties(found if found.type == "cuda" else 0)
    use = "training runs on it" if found.type == "cuda" else "limits.device is cpu: training runs on the processor"
    told = f"{gpu.name}, {gigabytes(gpu.total_memory)}; {use}"
    return Line("GPU", told, values={"name": gpu.name, "bytes": gpu.total_memory})


def _cores(threads: int) -> Line:
    there = cores()
    values = {"cores": there, "threads": threads}
    told = f"{there:g} for this program, limits.threads is {threads}"
    if threads > there:
        hint = f"write limits.threads: {max(1, int(there))}: more threads than cores wait for each other"
        return Line("processor cores", told, "warning", hint, values)
    return Line("processor cores", told, values=values)


def cores() -> float:
    """Processor cores that this program may use: of the machine, of its affinity, of its control group."""
    own = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _control("cpu.max").partition(" ")
    return min(own, int(quota) / int(period)) if quota.isdecimal() and period.isdecimal() else own


def _memory(needs: Needs) -> Line:
    total, free = memory()
    need = PROGRAM + COPIES * needs.model + (READING * needs.threads if needs.images else 0)
    values = {"bytes": total, "free": free, "needed": need}
    told = f"{gigabytes(free)} free of {gigabytes(total)}; the study needs at least {gigabytes(need)}"
    if need > total:
        hint = "use a machine with more memory" + ("; fewer limits.threads need less" if needs.threads > 1 else "")
        return Line("memory", told, "not ready", hint, values)
    if need > free:
        return Line("memory", told, "warning", "end other programs before the study begins", values)
    return Line("memory", told, values=values)


def memory() -> tuple[int, int]:
    """Bytes of memory, all and free, that this program may use: of the machine, or of its control group if that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    limit, used = _control("memory.max"), _control("memory.current")
    if limit.isdecimal() and int(limit) < min(total, NO_LIMIT):
        total = int(limit)
        free = min(free, total - int(used)) if used.isdecimal() else min(free, total)
    return total, max(0, free)


def _control(name: str) -> str:
    """A file of this program's control group (version 2); empty where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


# --- disk -------------------------------------------------------------------------------------------------------------


def _room(room: Room) -> Line:
    """Whether a folder can be written to, and takes what will come."""
    there = existing(room.folder)
    values: dict[str, Any] = {"folder": str(room.folder), "needed": room.bytes}
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".ich-check-") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        told = f"{room.folder} cannot be written to: {error.strerror or error}"
        return Line(room.name, told, "not ready", unwritable(room.folder, room.key), values)
    free = shutil.disk_usage(there).free
    values["free"] = free
    told = f"{gigabytes(free)} free at {room.folder}"
    if room.bytes:
        told += f"; about {gigabytes(room.bytes)} will come"
    if room.bytes > free:
        hint = f"make room, or name a folder on a larger disk ({room.key})"
        return Line(room.name, told, "not ready", hint, values)
    if 2 * room.bytes > free:
        return Line(room.name, told, "warning", "it will be more than half full: keep an eye on it", values)
    return Line(room.name, told, values=values)


def unwritable(folder: Path, key: str) -> str:
    """What to do about a folder that cannot be written to. `key`: what names it."""
    return f"let the user who runs this (number {os.getuid()}) write to {existing(folder)}, or name another ({key})"


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.exists())


# --- decoders, packages, files ----------------------------------------------------------------------------------------


def _decoders() -> Line:
    """Which encodings of DICOM pixels can be read."""
    from ich_client.dicom.pixels import readable

    found = readable()
    missing = [name for name, there in found.items() if not there]
    told = ", ".join(name for name, there in found.items() if there)
    if missing:
        told += f"; not {', '.join(missing)}"
        hint = "pip install 'ich-federation[client]' anew: a decoder is not installed"
        return Line("DICOM decoders", told, "warning", hint, {"readable": found})
    return Line("DICOM decoders", told, values={"readable": found})


def _versions(networks: bool, private: bool = False) -> Iterator[Line]:
    """What is installed, and a line for each package that is missing or of another version than was declared."""
    found = {"ich-federation": _installed("ich-federation"), "Python": platform.python_version()}
    found |= {name: _installed(name) for name in SHOWN}
    wrong = []
    extras = {"client"} | ({"networks"} if networks else set()) | ({"privacy"} if private else set())
    for one in _declared(extras):
        have = _installed(one.name)
        if have is None or not one.specifier.contains(have, prereleases=True):
            wrong.append((one, have))
    told = ", ".join(f"{name} {have}" for name, have in found.items() if have)
    yield Line("versions", told, values=dict(found))
    for one, have in wrong:
        what = "is missing" if have is None else f"{have} is installed"
        hint = f"pip install '{one.name}{one.specifier}'"
        # What both sides compute with must be the same; of the others a newer one may do.
        state: State = "not ready" if have is None or one.marker is None else "warning"
        values = {"package": one.name, "installed": have, "needed": str(one.specifier)}
        yield Line("package", f"{one.name} {what}, and {one.specifier or 'any version'} is needed", state, hint, values)


def _declared(extras: Iterable[str]) -> list[Requirement]:
    """What the installed package says that it needs, without its developers' extras."""
    try:
        given = [Requirement(line) for line in requires("ich-federation") or ()]
    except PackageNotFoundError:  # run from its source
        return []
    return [one for one in given if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _pinned(one: Weights) -> Line:
    """A file that every hospital must have the same copy of."""
    values: dict[str, Any] = {"name": one.name, "sha256": one.sha256, "file": str(one.path or "")}
    if one.path is None:
        hint = f"add weights: {{{one.name}: PATH}} to hospital.yaml; its SHA-256 begins {one.sha256[:12]}"
        return Line("weights", f"the study needs '{one.name}', and no file is given for it", "not ready", hint, values)
    try:
        with one.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        told = f"'{one.name}' cannot be read: {error.strerror or error} ({one.path})"
        return Line("weights", told, "not ready", f"correct {one.where}", values)
    if found != one.sha256:
        told = f"'{one.name}' has another SHA-256 ({found[:12]}...) than the study asks for ({one.sha256[:12]}...)"
        hint = f"fetch {one.path} again, or ask the coordinator which version is meant"
        return Line("weights", told, "not ready", hint, values)
    return Line("weights", f"'{one.name}' is the study's ({one.path})", values=values)


# --- clock ------------------------------------------------------------------------------------------------------------


def _clock(measured: tuple[float, str] | None) -> Line:
    """The local time; how far it was from the server's when the hospital last joined."""
    here = datetime.now().astimezone()
    told = f"{here:%Y-%m-%d %H:%M:%S} {time.strftime('%Z')} (UTC{here:%z})"
    values: dict[str, Any] = {"time": here.isoformat(timespec="seconds")}
    if measured is None:
        return Line("clock", f"{told}; ich-client join compares it with the server's", values=values)
    ahead, when = measured
    values |= {"ahead": ahead, "measured": when}
    where = "ahead of" if ahead > 0 else "behind"
    return Line("clock", f"{told}; {abs(ahead):.1f} s {where} the server's on {when}", values=values)
