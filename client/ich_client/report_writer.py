"""Who writes a report from images where a hospital has a language model of its own: asked, checked, kept, never sent.

Off unless a hospital asks for it. A model is a folder (`report_local.py`) or an endpoint inside the hospital
(`report_endpoint.py`); there is no way to one outside. It is shown brain-masked slices and a fixed prompt, and nothing of
the record. An answer that the lists do not let pass gives way to the template's text.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ich_client import identifiers
from ich_models.errors import ConfigurationError
from ich_models.files import read_json, write_json
from ich_models.strict import Strict
from ich_models.yaml_config import load

Slices = Sequence[NDArray[np.uint8]]
"""2D images (H, W), 0 outside the brain."""

TEMPERATURE: Final = 0.7
TOP_P: Final = 0.8
MOST_TOKENS: Final = 250
MOST_SLICES: Final = 32
"""Slices that a model is shown; of more, every n-th."""

PROMPTS: Final = Path(__file__).with_name("report_prompts.yaml")


class Model(Protocol):
    """A language model that sees images."""

    @property
    def identity(self) -> str:
        """What its answers are kept under: another model has another one."""

    def answer(self, prompt: str, slices: Slices, seed: int) -> str:
        """What it says, sampled with the settings of this module. Raises IchError if it cannot be asked."""


# --- prompts ----------------------------------------------------------------------------------------------------------


class Prompt(Strict):
    """One fixed prompt."""

    name: str
    text: str
    terms: Annotated[list[str], Field(min_length=1)]
    """An answer must hold one of these."""
    may_say: list[str] = []
    """What this prompt's answers may say although it is forbidden."""
    by_default: bool = True


class Prompts(Strict):
    """`report_prompts.yaml`."""

    version: Literal[1]
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    forbidden: list[str]

    def hash(self, prompt: Prompt) -> str:
        """SHA-256 of all that a prompt's answer depends on: its text, the lists and the sampling."""
        sampling = (TEMPERATURE, TOP_P, MOST_TOKENS, MOST_SLICES)
        return _hash([self.version, prompt.model_dump(mode="json"), self.forbidden, sampling])


def prompts() -> Prompts:
    """The five prompts and the lists."""
    return load(PROMPTS, Prompts).value


def choose(patient: str, names: Sequence[str], seed: int) -> str:
    """A patient's prompt: one of these, by a hash, so that it is the same whenever it is asked for."""
    return sorted(names)[int(_hash([seed, patient]), 16) % len(names)]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- answers ----------------------------------------------------------------------------------------------------------


def refusal(answer: str, prompt: Prompt, forbidden: Sequence[str], patient: str = "") -> str | None:
    """Why an answer is not taken; None if it is. `patient`: the identifier that it must not hold."""
    if not answer:
        return "empty"
    if len(answer.split()) > MOST_TOKENS:
        return f"more than {MOST_TOKENS} words"
    if said := next((term for term in forbidden if term not in prompt.may_say and _holds(answer, term)), None):
        return f"says '{said}'"
    if found := identifiers.find(answer, patient):
        return f"holds what looks like {found[0].kind}"
    if not any(_holds(answer, term) for term in prompt.terms):
        return f"says nothing of what was asked ({', '.join(prompt.terms[:3])}, ...)"
    return None


def _holds(text: str, term: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Written:
    """A patient's text. `by`: who wrote it. `refused`: why the model's answer was not taken, empty if it was."""

    text: str
    by: Literal["model", "template"]
    prompt: str
    refused: str = ""


class ReportWriter:
    """Asks a model once per patient, image and prompt, and keeps what it said."""

    def __init__(self, model: Model, folder: Path, seed: int, names: Sequence[str] | None = None) -> None:
        """`folder`: where answers are kept. `names`: prompts to choose from; those that are on by default if None.

        Raises ConfigurationError for a prompt that there is not.
        """
        self.model, self.folder, self.seed = model, folder, seed
        self.prompts = prompts()
        known = {prompt.name: prompt for prompt in self.prompts.prompts}
        self.names = [one.name for one in self.prompts.prompts if one.by_default] if names is None else list(names)
        if not self.names or set(self.names) - known.keys():
            raise ConfigurationError(f"no such prompts: {', '.join(self.names)}", hint=f"prompts: {', '.join(known)}")
        self._known = known

    @cached_property
    def _identity(self) -> str:
        return self.model.identity

    def write(self, patient: str, slices: Slices, template: str) -> Written:
        """The text of one patient. `template`: what stands in where the answer is not taken, or there are no slices.

        Raises IchError if the model cannot be asked; what was answered before is kept, and is not asked again.
        """
        prompt = self._known[choose(patient, self.names, self.seed)]
        if not slices:
            return Written(template, "template", prompt.name, "no slices")
        shown = list(slices)[:: -(-len(slices) // MOST_SLICES)]
        key = _hash([_of_image(shown), self._identity, self.prompts.hash(prompt), self.seed])
        kept = self.folder / key[:2] / f"{key}.json"
        answer = _kept(kept)
        if answer is None:
            answer = " ".join(self.model.answer(prompt.text, shown, int(key[:8], 16)).split())
            write_json(kept, {"answer": answer, "prompt": prompt.name})
        why = refusal(answer, prompt, self.prompts.forbidden, patient)
        return Written(template, "template", prompt.name, why) if why else Written(answer, "model", prompt.name)


def _kept(path: Path) -> str | None:
    """An answer that was kept; None if there is none, or it is damaged."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return None
    answer = found.get("answer") if isinstance(found, dict) else None
    return answer if isinstance(answer, str) else None


def _of_image(slices: Slices) -> str:
    """SHA-256 of the pixels and their forms."""
    whole = hashlib.sha256()
    for one in slices:
        if one.ndim != 2 or one.dtype != np.uint8:
            raise ValueError(f"a slice is {one.dtype} {one.shape}, not uint8 (H, W)")
        whole.update(f"{one.shape}".encode() + np.ascontiguousarray(one).tobytes())
    return whole.hexdigest()
