"""The network as a MONAI bundle: TorchScript, a configuration that runs it, and what its arrays mean; MONAI alone uses it."""

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from ich_models.files import write_atomic, write_json
from ich_models.protocol import PACKAGE
from ich_server.export.network import OUTPUT, Array, Probabilities, shapes
from ich_server.export.onnx import npz
from ich_server.results import Results
from ich_strategies.models import Model

SCHEMA: Final = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
"""Of `metadata.json`, as MONAI names it; nobody here reads from it."""


def write(
    model: Model, results: Results, function: Probabilities, arrays: dict[str, Array], answers: Array, folder: Path
) -> None:
    """The bundle: `models/model.ts`, `configs/`, and a sample with its answers in `docs/`."""
    tensors = tuple(torch.from_numpy(arrays[name]) for name in function.names)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # shapes that the tracer takes for constants are constants
        traced = torch.jit.trace(function, tensors, check_trace=False)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    traced.save(str(folder / "models" / "model.ts"))
    write_json(folder / "configs" / "metadata.json", _metadata(model, results))
    write_json(folder / "configs" / "inference.json", _inference(function))
    write_atomic(folder / "docs" / "sample.npz", npz({**arrays, OUTPUT: answers}))
    write_atomic(folder / "docs" / "README.md", _readme(model, results).encode())


def _inference(function: Probabilities) -> dict[str, Any]:
    """Reads an .npz with one array per input, writes the probabilities as .npy."""
    return {
        "imports": ["$import numpy", "$import torch"],
        "bundle_root": ".",
        "input": "$@bundle_root + '/docs/sample.npz'",
        "output": "$@bundle_root + '/predictions.npy'",
        "device": "$torch.device('cpu')",
        "names": list(function.names),
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "loaded": "$numpy.load(@input)",
        "arrays": "$[torch.as_tensor(@loaded[name], device=@device) for name in @names]",
        "inferer": {"_target_": "SimpleInferer"},
        "predictions": "$@inferer(@arrays[0], @network, *@arrays[1:]).detach().cpu().numpy()",
        "run": ["$numpy.save(@output, @predictions)"],
    }


def _metadata(model: Model, results: Results) -> dict[str, Any]:
    study = results.study
    return {
        "schema": SCHEMA,
        "version": PACKAGE,
        "changelog": {PACKAGE: f"exported from the federated study {study.name}, seed {model.plan.seed}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {},
        "name": study.name,
        "task": f"Prediction of {study.outcome}",
        "description": study.description or study.name,
        "authors": "the hospitals of the study",
        "copyright": "see the study's own terms",
        "intended_use": "Research use only. Not a medical device; not for decisions about patients.",
        "federation": model.plan.hash,
        "sha256": model.card["sha256"],
        "network_data_format": {
            "inputs": {name: _input(model, name, shape) for name, shape in shapes(model.plan).items()},
            "outputs": {
                "pred": {
                    "type": OUTPUT,
                    "format": "classes",
                    "num_channels": 1,
                    "spatial_shape": [],
                    "dtype": model.plan.federation.network.dtype,
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {"0": f"probability of {study.outcome}"},
                }
            },
        },
    }


def _input(model: Model, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    modalities = model.plan.federation.modalities
    about: dict[str, Any] = {"is_patch_data": False, "dtype": model.plan.federation.network.dtype}
    if name == "table":
        named = {str(place): column for place, column in enumerate(model.plan.columns)}
        return {**about, "type": "tabular", "format": "columns", "num_channels": shape[0], "spatial_shape": [],
                "value_range": [], "channel_def": named}  # fmt: skip
    if name == "text":
        return {**about, "type": "text", "format": "token ids", "num_channels": 1, "spatial_shape": list(shape),
                "dtype": "int64", "value_range": [], "channel_def": {"0": "token ids, 0 = padding"}}  # fmt: skip
    spec = modalities.image
    assert spec is not None, "the network sees images"
    kind = {"ct": "CT", "ct_slices": "CT", "mr": "MR", "radiograph": "CR"}[spec.kind]
    channel, space = len(shape) - 1 - len(spec.size), list(shape[-len(spec.size) :])
    return {
        **about,
        "type": "image",
        "format": "magnitude" if kind == "MR" else "hounsfield" if kind == "CT" else "raw",
        "modality": kind,
        "num_channels": shape[channel],
        "spatial_shape": space,
        "value_range": [] if kind == "MR" else [0, 1],
        "channel_def": {str(place): "prepared as ../preprocessing.json says" for place in range(shape[channel])},
    }


def _readme(model: Model, results: Results) -> str:
    shown = json.dumps({name: ["N", *shape] for name, shape in shapes(model.plan).items()})
    return f"""# {results.study.name}: MONAI bundle

**Research use only.** Not a medical device; not for decisions about patients.

Predicts {results.study.outcome}. `MODEL_CARD.md` beside the bundle says what it was trained on and how good it was.

Input: one `.npz` with an array for each of {", ".join(shapes(model.plan))}: {shown}, prepared as `preprocessing.json`
beside the bundle says. Everybody must have all of them. Output: probabilities, one per patient.

    from monai.bundle import ConfigParser
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser["bundle_root"], parser["input"] = "FOLDER OF THE BUNDLE", "patients.npz"
    parser.parse()
    probabilities = parser.get_parsed_content("predictions")

`docs/sample.npz` holds made-up patients and, as `{OUTPUT}`, what the model says of them.
"""
