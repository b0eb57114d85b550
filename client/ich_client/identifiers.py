"""What in a text may point at a person: names, dates, long numbers, addresses, and the patient's own identifier.

A net with wide meshes: it shows a hospital that its reports were not de-identified, and never proves that they were.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SHORTEST_OWN: Final = 4
"""Characters of a patient's identifier that is looked for; a shorter one is found in every other sentence."""


class Kind(StrEnum):
    """What was found, in the words of a message."""

    OWN = "the patient's own identifier"
    NAME = "a name"
    DATE = "a date"
    NUMBER = "a number that may identify"
    ADDRESS = "an address or telephone number"


@dataclass(frozen=True)
class Place:
    """Where something begins, line and character counted from 1. What it is stays unsaid: messages are read by others."""

    kind: Kind
    line: int
    character: int


_MONTH: Final = (
    r"(?:jan(?:uar[yi]?|ner|vier)?|feb(?:ruar[yi]?)?|f[eé]vrier|m(?:ar(?:ch|s)?|är(?:z)?|rz)|a[pv]r(?:il)?|ma[yi]"
    r"|ju[nl](?:[eiy]|i)?|juin|juillet|aug(?:ust)?|ao[uû]t|sep(?:t(?:embre|ember)?)?|o[ck]t(?:ob(?:re|er))?|nov(?:emb(?:re|er))?"
    r"|d(?:e[cz]|éc)(?:emb(?:re|er))?)"
)
_DAY: Final = r"(?:0?[1-9]|[12][0-9]|3[01])"
_YEAR: Final = r"(?:19|20)[0-9]{2}"
_CAPITAL: Final = r"[A-ZÄÖÜÉÈÁÅØ][\w'’-]+"

_PATTERNS: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(pattern, flags))
    for kind, pattern, flags in (
        (Kind.DATE, rf"\b{_YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}\b", 0),
        (Kind.DATE, rf"\b{_DAY}([-/.])(?:0?[1-9]|1[0-2])\1(?:{_YEAR}|[0-9]{{2}})\b", 0),
        (Kind.DATE, rf"\b(?:0?[1-9]|1[0-2])/{_DAY}/(?:{_YEAR}|[0-9]{{2}})\b", 0),
        (Kind.DATE, rf"\b{_DAY}(?:st|nd|rd|th|\.)?[ -]{_MONTH}\.?[ -](?:{_YEAR}|[0-9]{{2}})\b", re.I),
        (Kind.DATE, rf"\b{_MONTH}\.? {_DAY}(?:st|nd|rd|th)?,? {_YEAR}\b", re.I),
        (Kind.NAME, rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Herrn?|Frau|Mme|M\.|Sra?|Sig\.?(?:ra)?)\.? +{_CAPITAL}", 0),
        (
            Kind.NAME,
            rf"\b(?i:(?:patient|sur|first|last|full)?\W?name|patient(?:in)?|signed(?: by)?)\s*:\s*{_CAPITAL}",
            0,
        ),
        (Kind.NAME, r"\b[A-Z][A-Za-z'-]+\^[A-Z][A-Za-z'-]*", 0),
        (Kind.NUMBER, r"(?<![\w.,])[0-9]{6,}(?![\w.,]?[0-9])", 0),
        (
            Kind.NUMBER,
            r"\b(?:mrn|pid|patienten?[- ]?(?:id|no|nr|number)|accession(?: no| number)?|case (?:no|number)|fall-?(?:nr|nummer)"
            r"|nhs(?: no| number)?)\b[\s:#.]*[a-z]{0,4}[-/ ]?[0-9]{3,}",
            re.I,
        ),
        (Kind.ADDRESS, r"[\w.+-]+@[\w-]+\.[a-z]{2,}", re.I),
        (Kind.ADDRESS, r"(?<![\w.])(?:\+|00)[0-9]{1,3}[ ()/-]*[0-9](?:[ ()/-]?[0-9]){6,}", 0),
        (Kind.ADDRESS, r"\b(?:tel|phone|fax)\b[\s:.]*[0-9(+](?:[ ()/-]?[0-9]){4,}", re.I),
    )
)


def find(text: str, own: str = "") -> list[Place]:
    """What may identify somebody, in the order of the text. `own`: the patient's identifier, if there is one."""
    found = {(match.start(), kind) for kind, pattern in _PATTERNS for match in pattern.finditer(text)}
    found |= {(start, Kind.OWN) for start in _occurrences(text, own.strip())}
    return [Place(kind, *_position(text, start)) for start, kind in sorted(found)]


def _occurrences(text: str, own: str) -> Iterator[int]:
    if len(own) >= SHORTEST_OWN:
        for match in re.finditer(rf"(?<!\w){re.escape(own)}(?!\w)", text, re.I):
            yield match.start()


def _position(text: str, start: int) -> tuple[int, int]:
    before = text[:start]
    return before.count("\n") + 1, start - (before.rfind("\n") + 1) + 1
