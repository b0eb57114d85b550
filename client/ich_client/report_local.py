"""A language model from a folder of this machine: safetensors alone, no code of its own, no network."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ich_client.report_writer import MOST_TOKENS, TEMPERATURE, TOP_P, Slices
from ich_models.errors import ConfigurationError

_READ: Final = (".json", ".safetensors", ".txt", ".jinja", ".model")
"""Kinds of files that such a model is made of."""


class LocalModel:
    """A vision-language model in the layout of transformers."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError for a folder that is no such model, or that would bring code of its own."""
        self.folder = folder
        _judge(folder)
        try:
            import transformers
        except ImportError as problem:
            hint = "pip install 'ich-federation[networks]'"
            raise ConfigurationError("a local language model needs transformers", hint=hint) from problem
        library: Any = transformers
        try:
            self._processor: Any = library.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._model: Any = library.AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as problem:
            first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            hint = "give a vision-language model in the layout of transformers, with its processor"
            raise ConfigurationError(f"cannot be loaded: {first[:200]}", where=str(folder), hint=hint) from problem
        if not getattr(self._processor, "chat_template", None):
            hint = "give a model that was tuned to follow instructions, with its chat_template.jinja"
            raise ConfigurationError("the model has no chat template", where=str(folder), hint=hint)
        self._model.eval()

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the files: the same model in another folder is the same."""
        whole = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in _READ:
                with path.open("rb") as file:
                    whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return f"local {whole.hexdigest()}"

    def answer(self, prompt: str, slices: Slices, seed: int) -> str:
        """One answer, the same for the same seed."""
        content = [*({"type": "image"} for _ in slices), {"type": "text", "text": prompt}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [np.repeat(one[..., None], 3, axis=-1) for one in slices]
        given = self._processor(images=images, text=text, return_tensors="pt")
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            ids = self._model.generate(
                **given, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=MOST_TOKENS
            )
        new = ids[:, given["input_ids"].shape[1] :]
        said: str = self._processor.batch_decode(new, skip_special_tokens=True)[0]
        return said


def _judge(folder: Path) -> None:
    """Refuse what is no folder of a model, or asks for code, before any of it is read by a library."""
    if not (folder / "config.json").is_file():
        raise ConfigurationError("no model in this folder", where=str(folder), hint="it must hold config.json")
    if not any(folder.glob("*.safetensors")):
        hint = "convert the weights to safetensors: other formats can run code when they are read"
        raise ConfigurationError("no *.safetensors in this folder", where=str(folder), hint=hint)
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except ValueError:
            raise ConfigurationError("not JSON", where=str(path), hint="fetch the model again") from None
        if isinstance(content, dict) and "auto_map" in content:
            hint = "use a model whose architecture is part of transformers"
            raise ConfigurationError("the model asks for code of its own (auto_map)", where=str(path), hint=hint)
    if code := sorted(path.name for path in folder.rglob("*.py")):
        hint = "remove it if the model does without; otherwise use another model"
        raise ConfigurationError(f"the folder holds code: {', '.join(code[:3])}", where=str(folder), hint=hint)
