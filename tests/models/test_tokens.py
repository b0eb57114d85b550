"""Tokens: the ids of BERT for BERT's vocabulary, the same ids at every hospital for the built-in one."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_models.errors import ConfigurationError
from ich_models.networks.options import Pinned
from ich_models.report_text import write
from ich_models.text_spec import TextSpec
from ich_models.tokens import Vocabulary, built_in, encode, read
from ich_models.variables import Table

VARIABLES: dict[str, Any] = {
    "age": {"type": "number", "unit": "years", "range": [18, 110], "known_at": "admission"},
    "glucose": {"type": "number", "unit": "mg/dL", "known_at": "admission"},
    "came_from": {"type": "category", "levels": ["home", "nursing_home", "Ärztehaus"], "known_at": "admission"},
    "ivh": {"type": "yes_no", "known_at": "admission"},
    "mrs": {"type": "integer", "known_at": "90 days"},
}
TABLE = Table.model_validate({"variables": VARIABLES, "predictors": ["age", "glucose", "came_from", "ivh"]})
SMALL = built_in(TextSpec(), TABLE)


def words(vocabulary: Vocabulary, text: str, length: int = 64) -> list[str]:
    return [vocabulary.words[number] for number in encode([text], vocabulary, length).ids[0] if number]


# --- the built-in vocabulary ------------------------------------------------------------------------------------------


def test_it_begins_like_berts_cased_vocabulary() -> None:
    at = {word: number for number, word in enumerate(SMALL.words)}
    assert {word: at[word] for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!")} == {
        "[PAD]": 0,
        "[UNK]": 100,
        "[CLS]": 101,
        "[SEP]": 102,
        "[MASK]": 103,
        "!": 106,
    }
    assert (SMALL.mask_token, SMALL.first_token) == (103, 106)
    # 106 marks, 32 signs, 36 letters and digits, 36 of them as endings, 90 numbers of two digits; then words by letters
    bands, levels = "lowest very low middle high highest", "came from home nursing arztehaus yes no"
    dictionary = f"age years glucose mg dl ivh {levels}"
    assert SMALL.words[300:] == tuple(sorted(f"{bands} {dictionary}".split()))


def test_the_order_of_the_dictionary_does_not_matter_and_the_outcome_has_no_word() -> None:
    shuffled = Table.model_validate({**TABLE.model_dump(), "variables": dict(reversed(VARIABLES.items()))})
    assert built_in(TextSpec(), shuffled).words == SMALL.words
    assert "mrs" not in SMALL.ids
    report = built_in(TextSpec(source="report", known_at="admission"), TABLE)
    assert {"mrs", "haematoma", "thalamus"} <= report.ids.keys()
    assert len(set(report.words)) == len(report.words) < 512, "the tiny networks' text has 512 places"


def test_a_text_becomes_ids_cut_off_or_filled_up() -> None:
    text = write({"age": 64.5, "came_from": "nursing_home"}, TextSpec(), TABLE)
    assert words(SMALL, text) == [
        *("[CLS]", "age", "64", ".", "5", "years", ".", "came", "from", "nursing", "home", ".", "[SEP]")
    ]
    made = encode([text, None, "", " \n\t"], SMALL, 8)
    assert [SMALL.words[number] for number in made.ids[0]] == ["[CLS]", "age", "64", ".", "5", "years", ".", "[SEP]"]
    assert made.ids.dtype == np.int64
    assert not made.ids[1:].any()
    assert made.pieces.tolist() == [11, 0, 0, 0]
    assert made.present.tolist() == [True, False, False, False]
    assert made.cut.tolist() == [True, False, False, False]
    assert not encode([text], SMALL, 13).cut.any()
    assert encode([text], SMALL, 12).cut.all()


def test_unknown_words_become_pieces_and_unknown_signs_are_counted() -> None:
    assert words(SMALL, "Homeless 135") == ["[CLS]", "home", "##l", "##e", "##s", "##s", "13", "##5", "[SEP]"]
    made = encode(["age Ωmega 71 " + "x" * 101], SMALL, 16)
    assert (made.pieces[0], made.unknown[0]) == (4, 2)


def test_a_text_cannot_say_a_mark() -> None:
    assert words(SMALL, "[MASK] [PAD]")[1:-1] == [
        *("[", "m", "##a", "##s", "##k", "]", "[", "p", "##a", "##d", "]"),
    ]


@given(st.text(max_size=40), st.integers(4, 24))
def test_any_text_has_ids_of_the_vocabulary_and_the_same_ones_again(text: str, length: int) -> None:
    made, again = encode([text], SMALL, length), encode([text], built_in(TextSpec(), TABLE), length)
    assert made.ids.tolist() == again.ids.tolist()
    assert made.ids.shape == (1, length)
    assert 0 <= made.ids.min() <= made.ids.max() < len(SMALL.words)
    row = made.ids[0]
    real = np.count_nonzero(row)
    assert real == (min(made.pieces[0] + 2, length) if made.present[0] else 0)
    assert not row[real:].any(), "padding is at the end alone"
    if real:
        assert (row[0], row[real - 1]) == (101, 102)


@given(st.text("abcdefghijklmnopqrstuvwxyzABCZ0123456789 .,-/%()", max_size=60))
def test_nothing_of_ascii_is_unknown(text: str) -> None:
    assert encode([text], SMALL, 8).unknown[0] == 0


# --- a pinned vocabulary ----------------------------------------------------------------------------------------------


def pinned(content: bytes) -> Pinned:
    return Pinned(name="bert-uncased", sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def bert(shared_data: Path) -> Vocabulary:
    path = shared_data / "bert_vocab" / "vocab.txt"
    return read(path, pinned(path.read_bytes()), lower_case=True)


def test_berts_ids_by_hand(bert: Vocabulary, shared_data: Path) -> None:
    lines = (shared_data / "bert_vocab" / "vocab.txt").read_text().splitlines()
    assert (len(bert.words), bert.mask_token, bert.first_token) == (30522, 103, 999)
    # 'gcs' and 'gc' are no words of BERT's, and 'intraventricular' is none: the longest piece each time
    expected = ["[CLS]", "the", "patient", ":", "g", "##cs", "9", ",", "intra", "##vent", "##ric", "##ular", "[SEP]"]
    assert {"gcs", "gc", "##ventr", "##ricu"}.isdisjoint(lines)
    made = encode(["The patient: GCS 9, intraventricular"], bert, 16)
    assert made.ids[0].tolist() == [*(lines.index(word) for word in expected), 0, 0, 0]
    assert encode(["the"], bert, 4).ids[0].tolist() == [101, 1996, 102, 0]


@settings(max_examples=60)
@given(st.text(max_size=60).filter(lambda text: "[" not in text))
def test_berts_ids_are_transformers(shared_data: Path, bert: Vocabulary, text: str) -> None:
    oracle = transformers_tokeniser(shared_data)
    made = encode([text], bert, 32)
    expected = oracle(text, truncation=True, max_length=32)["input_ids"]
    assert [number for number in made.ids[0].tolist() if number] == (expected if made.present[0] else [])
    assert len(expected) == min(made.pieces[0] + 2, 32)


_made: list[Any] = []


def transformers_tokeniser(shared_data: Path) -> Any:
    if not _made:
        from transformers import BertTokenizer

        _made.append(BertTokenizer(str(shared_data / "bert_vocab" / "vocab.txt"), do_lower_case=True))
    return _made[0]


SOUND = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nblood\nBlood\n##y\n"


def test_a_cased_vocabulary_keeps_capitals(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(SOUND)
    cased, lower = (read(path, pinned(SOUND.encode()), lower_case=lower) for lower in (False, True))
    assert encode(["Blood bloody"], cased, 6).ids[0].tolist() == [2, 6, 5, 7, 3, 0]
    assert encode(["Blood bloody"], lower, 6).ids[0].tolist() == [2, 5, 5, 7, 3, 0]
    assert (cased.mask_token, cased.first_token) == (4, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SOUND.replace("[MASK]\n", ""), r"no vocabulary: it lacks \[MASK\]"),
        ("a\n" + SOUND, r"\[PAD\] is not its first line"),
        (SOUND + "blood\n", "a word is there twice"),
        (b"\xff\xfe", "it lacks"),
    ],
)
def test_what_is_no_vocabulary_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "vocab.txt").write_bytes(raw)
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path / "vocab.txt", pinned(raw), lower_case=True)


def test_another_copy_and_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(path, pinned(b""), lower_case=True)
    path.write_text(SOUND + "more\n")
    with pytest.raises(ConfigurationError, match=f"the federation asks for {pinned(SOUND.encode()).sha256}"):
        read(path, pinned(SOUND.encode()), lower_case=True)
