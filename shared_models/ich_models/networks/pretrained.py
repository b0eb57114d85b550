"""Published weights into encoders: from a local file whose SHA-256 the federation names, never from a network address."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ich_models.errors import ConfigurationError, Problem
from ich_models.networks.staged import Encoder, StagedNetwork

_WRAPPERS: Final = ("module.", "backbone.", "bert.", "convnextv2.")
"""What training scripts put before every name."""
_HEADS: Final = ("fc.", "last_linear.", "classifier.", "conv_seg.", "cls.")
"""What the published networks had in place of ours."""
_RENAMED: Final = {
    "layer0.": "",  # SE-ResNet's stem
    ".se_module.": ".se.",
    "LayerNorm.gamma": "LayerNorm.weight",  # BERT as it was published
    "LayerNorm.beta": "LayerNorm.bias",
}
SHOWN: Final = 5
"""Keys that an error names of each kind."""


def load_pinned(network: nn.Module, files: Mapping[str, Path], *, frozen: bool) -> None:
    """Fill the encoders that have pinned weights. `files`: name of the weights -> the copy that lies here.

    `frozen`: those that stay as they are, which every hospital needs; or those that learn, which the server begins with
    and sends. Raises ConfigurationError for a copy that is not named, cannot be read, has another hash or another layout.
    """
    for name, encoder in network.encoders() if isinstance(network, StagedNetwork) else ():
        pinned = encoder.pinned
        if pinned is None or encoder.frozen is not frozen:
            continue
        if pinned.name not in files:
            raise ConfigurationError(
                f"the encoder '{name}' starts from the weights '{pinned.name}', and no file is given for them",
                hint=f"weights: {{{pinned.name}: FILE}} in hospital.yaml, or in server.yaml at the server; its SHA-256 begins"
                f" {pinned.sha256[:12]}",
            )
        path = files[pinned.name]
        _check(path, pinned.sha256)
        load_weights(encoder, _read(path), where=str(path))


def _check(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise ConfigurationError(
            f"cannot be read: {problem.strerror}", where=str(path), hint="check the path and the permissions"
        ) from problem
    if found != sha256:
        raise ConfigurationError(
            f"SHA-256 is {found}, and the federation asks for {sha256}",
            where=str(path),
            hint="fetch the file again, or ask the coordinator which version is meant",
        )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as problem:
        raise ConfigurationError(
            "is neither a safetensors file nor a torch file with tensors only",
            where=str(path),
            hint="convert it to safetensors on a machine where it loads",
        ) from problem
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConfigurationError(
            "holds no table of tensors by name", where=str(path), hint="give the file of the weights alone"
        )
    return dict(content)


def load_weights(encoder: Encoder, published: Mapping[str, torch.Tensor], *, where: str = "") -> None:
    """Fill an encoder from tensors under published names, strictly; a stem of three channels is summed for one.

    Heads of the published network are left out. Raises ConfigurationError with the first keys that do not match.
    """
    inner: nn.Module = getattr(encoder, "net", None) or encoder.bert  # type: ignore[assignment]
    mine = inner.state_dict()
    found: dict[str, torch.Tensor] = {}
    for key, tensor in published.items():
        name = _ours(key)
        if name.startswith(_HEADS) or name.endswith("position_ids"):
            continue
        if name.startswith("pooler.") and not any(key.startswith("pooler.") for key in mine):
            continue
        found[name] = _stem(tensor, mine.get(name))
    for name, tensor in mine.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)  # files older than this counter
    problems = [
        *(Problem(f"no tensor '{name}'", where) for name in mine.keys() - found.keys()),
        *(Problem(f"'{name}' is not in the encoder", where) for name in found.keys() - mine.keys()),
        *(
            Problem(f"'{name}' is {tuple(found[name].shape)}, and the encoder's {tuple(mine[name].shape)}", where)
            for name in mine.keys() & found.keys()
            if found[name].shape != mine[name].shape
        ),
    ]
    if problems:
        problems.sort(key=lambda problem: problem.message)
        first = "; ".join(problem.message for problem in problems[:SHOWN])
        raise ConfigurationError(
            f"{len(problems)} of the weights do not fit the encoder: {first}",
            where=where,
            hint="configure the encoder as the weights were published (block, layers, widths, channels)",
        )
    inner.load_state_dict(found)


def _ours(key: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for wrapper in _WRAPPERS:
            if key.startswith(wrapper):
                key, stripped = key.removeprefix(wrapper), True
    for old, new in _RENAMED.items():
        key = key.replace(old, new)
    return key


def _stem(tensor: torch.Tensor, mine: torch.Tensor | None) -> torch.Tensor:
    """(out, 3, ...) -> (out, 1, ...) where the encoder sees one channel: grey repeated three times gives the same."""
    if mine is not None and tensor.ndim == mine.ndim > 3 and mine.shape[1] == 1 and tensor.shape[1] == 3:
        return tensor.sum(1, keepdim=True)
    return tensor
