"""Text to token ids: WordPiece from a pinned vocabulary, or from a small one that follows from the data dictionary.

The built-in vocabulary begins like BERT's cased one, [PAD] 0 to [MASK] 103 and the first word at 106, so that the networks'
defaults hold for both. Every hospital derives it from the study by itself; nothing is exchanged.
"""

import hashlib
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ich_models.batch import PADDING
from ich_models.errors import ConfigurationError
from ich_models.networks.options import IchPro, NetworkOptions, Pinned, WithText
from ich_models.report_text import BANDS
from ich_models.text_spec import TextSpec
from ich_models.variables import Complaint, Table

PAD: Final = "[PAD]"
UNKNOWN: Final = "[UNK]"
FIRST: Final = "[CLS]"
LAST: Final = "[SEP]"
MASK: Final = "[MASK]"

LONGEST_WORD: Final = 100
"""Characters; a longer one is unknown, as in BERT."""

_NO_WORD: Final = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|unused[0-9]+)\]")

_BEGINNING: Final = (
    PAD,
    *(f"[unused{number}]" for number in range(1, 100)),
    UNKNOWN,
    FIRST,
    LAST,
    MASK,
    "[unused100]",
    "[unused101]",
)
_CHARACTERS: Final = (*string.punctuation, *string.digits, *string.ascii_lowercase)
_PIECES: Final = (
    *_CHARACTERS,
    *(f"##{one}" for one in string.digits + string.ascii_lowercase),
    *map(str, range(10, 100)),
)
"""Any number and any word of ASCII letters can be put together of these."""

_REPORT_WORDS: Final = """
    a abnormal absent acute adc after and any are area areas artery aspects at atrophy axial basal bilateral bleed
    bleeding blood brain brainstem by calcification cerebellar cerebellum cerebral changes chronic cistern cisterns
    cm compression contrast core cortex cortical ct day deep density diffuse diffusion dilated early edema effect
    effusion enlarged epidural evidence extension findings first flair focal fourth fracture frontal ganglia
    haematoma haemorrhage haemorrhagic head hematoma hemisphere hemorrhage hemorrhagic herniation hydrocephalus
    hyperdense hypodense hypodensity impression in infarct infarction infratentorial insula internal intracerebral
    intraparenchymal intraventricular is ischaemia ischaemic ischemia ischemic large late later lateral left lesion
    lesions lobar lobe loss marked mass matter mca medial middle midline mild minimal ml mm moderate mr multiple no
    none normal not occipital occlusion oedema of old on parietal perihaematomal pons posterior present putamen
    quantity recent region restricted restriction right same scan seen severe shift side sign signal since size skull slice
    slight small spread subacute subarachnoid subdural sulci supratentorial surrounding swelling symptoms temporal
    territory thalamic thalamus the there third to ventricle ventricles ventricular volume white with within without
"""
"""Of reports on head images; a study's own words come from its dictionary."""


@dataclass(frozen=True)
class Vocabulary:
    """Words and pieces (`##...`), each at its token id."""

    words: tuple[str, ...]
    lower_case: bool

    @cached_property
    def ids(self) -> dict[str, int]:
        """The token id of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @property
    def mask_token(self) -> int:
        """The id of [MASK]."""
        return self.ids[MASK]

    @property
    def first_token(self) -> int:
        """The first id that is a word, and after which all are."""
        return 1 + max(number for number, word in enumerate(self.words) if _NO_WORD.fullmatch(word))

    @cached_property
    def tokeniser(self) -> Any:
        """BERT's splitting into words and pieces. Nothing in a text can stand for [MASK] or another mark."""
        library = _library()
        made = library.Tokenizer(
            library.models.WordPiece(self.ids, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD)
        )
        made.normalizer = library.normalizers.BertNormalizer(lowercase=self.lower_case)
        made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        return made

    def split(self, text: str) -> list[str]:
        """A text's words as they are looked up."""
        tokeniser = self.tokeniser
        return [word for word, _ in tokeniser.pre_tokenizer.pre_tokenize_str(tokeniser.normalizer.normalize_str(text))]


def _library() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as problem:
        raise ConfigurationError(
            f"text needs the package '{problem.name}', which is not installed",
            hint="pip install 'ich-federation[networks]'",
        ) from problem
    return tokenizers


# --- vocabularies -----------------------------------------------------------------------------------------------------


def built_in(spec: TextSpec, table: Table) -> Vocabulary:
    """The vocabulary that follows from a study: what its template can say; for reports, every word of its dictionary;
    for these and what a language model may write, the usual words of reports on head images.

    The order of the dictionary does not matter, as it does not for the study's hash.
    """
    base = Vocabulary((*_BEGINNING, *_PIECES), lower_case=True)
    variables = spec.spoken(table) or table.variables
    texts = [*BANDS, _REPORT_WORDS if spec.source == "report" or spec.writer == "allowed" else ""]
    for name, variable in variables.items():
        texts += [name, variable.unit or "", *variable.codes]
    words = {word for text in texts for word in base.split(text.replace("_", " ")) if len(word) <= LONGEST_WORD}
    return Vocabulary((*base.words, *sorted(words - base.ids.keys())), lower_case=True)


def read(path: Path, pinned: Pinned, lower_case: bool) -> Vocabulary:
    """A hospital's copy of a pinned vocabulary: one word per line, as BERT's vocab.txt.

    Raises ConfigurationError for a file that cannot be read, has another hash or is no such vocabulary.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise ConfigurationError(
            f"cannot be read: {problem.strerror}", where=str(path), hint="check the path and the permissions"
        ) from problem
    found = hashlib.sha256(content).hexdigest()
    if found != pinned.sha256:
        raise ConfigurationError(
            f"SHA-256 is {found}, and the federation asks for {pinned.sha256}",
            where=str(path),
            hint="fetch the file again, or ask the coordinator which version is meant",
        )
    try:
        words = tuple(content.decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError:
        words = ()
    vocabulary = Vocabulary(tuple(word.rstrip("\r") for word in words), lower_case)
    missing = [word for word in (PAD, UNKNOWN, FIRST, LAST, MASK) if word not in vocabulary.ids]
    if missing or vocabulary.ids[PAD] != PADDING or len(vocabulary.ids) != len(words):
        fault = (
            f"it lacks {', '.join(missing)}" if missing else f"{PAD} is not its first line, or a word is there twice"
        )
        hint = "give the vocab.txt of a BERT model, one word per line"
        raise ConfigurationError(f"no vocabulary: {fault}", where=str(path), hint=hint)
    return vocabulary


def contradictions(vocabulary: Vocabulary, network: NetworkOptions) -> Iterator[Complaint]:
    """What a vocabulary and the network's options for text say against each other."""
    if not isinstance(network, WithText) or "text" not in network.uses:
        return
    size = len(vocabulary.words)
    here: tuple[str, ...] = ("network", "text", "vocabulary")
    if network.text.vocabulary < size:
        message = f"the vocabulary has {size} words, and the network places for {network.text.vocabulary}"
        yield here, message, f"write network.text.vocabulary: {size}, or more"
    if isinstance(network, IchPro) and network.losses.mlm:
        for name in ("mask_token", "first_token"):
            written, right = getattr(network.losses, name), getattr(vocabulary, name)
            if written != right:
                meaning = f"id of {MASK}" if name == "mask_token" else "first id that is a word"
                message = f"{written} is not the vocabulary's {meaning}, which is {right}"
                yield ("network", "losses", name), message, f"write {name}: {right}"


# --- texts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """N texts. `ids`: (N, L) int64, 0 = padding, all 0 where there is no text. `pieces`: (N,) int64, words and pieces
    before anything was cut off; `unknown`: (N,) int64, how many of these are [UNK].
    """

    ids: NDArray[np.int64]
    pieces: NDArray[np.int64]
    unknown: NDArray[np.int64]

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N,): who has a text."""
        return self.pieces > 0

    @property
    def cut(self) -> NDArray[np.bool_]:
        """(N,): whose text did not fit."""
        cut: NDArray[np.bool_] = self.pieces + 2 > self.ids.shape[1]
        return cut


def encode(texts: Iterable[str | None], vocabulary: Vocabulary, length: int) -> Tokens:
    """Texts as [CLS], words and pieces, [SEP], of `length` ids. None, or a text without a word, is no text."""
    first, last, unknown = (vocabulary.ids[word] for word in (FIRST, LAST, UNKNOWN))
    whole = [np.array(vocabulary.tokeniser.encode(text or "").ids, dtype=np.int64) for text in texts]
    ids = np.full((len(whole), length), PADDING, dtype=np.int64)
    for row, pieces in zip(ids, whole, strict=True):
        if len(pieces):
            kept = np.array([first, *pieces[: length - 2], last])
            row[: len(kept)] = kept
    return Tokens(
        ids,
        np.array([len(pieces) for pieces in whole], dtype=np.int64),
        np.array([(pieces == unknown).sum() for pieces in whole], dtype=np.int64),
    )
