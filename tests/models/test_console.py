"""Log lines: what comes from outside cannot look like a line of ours, nor steer the terminal."""

import logging

from ich_models.console import OneLine


def shown(message: str, *arguments: object) -> str:
    record = logging.LogRecord("ich", logging.INFO, "x", 1, message, arguments, None)
    return OneLine("%(levelname).1s %(message)s").format(record)


def test_a_line_cannot_be_forged() -> None:
    forged = "round 1\n2026-11-21 09:00:00,000 I nothing was sent today"
    assert shown("%s: 3 bytes", forged).splitlines() == [
        "I round 1",
        "    2026-11-21 09:00:00,000 I nothing was sent today: 3 bytes",
    ]


def test_the_cursor_cannot_be_moved() -> None:
    assert shown("a\x1b[31mb\rc\x00d\x9be\u202ef") == r"I a\x1b[31mb\rc\x00d\x9be\u202ef"


def test_letters_of_any_language_stay() -> None:
    assert shown("Köln — 東京") == "I Köln — 東京"
