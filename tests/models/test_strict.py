"""Texts that could deceive whoever reads them in a terminal, a log or a page are refused wherever they come from."""

from typing import Any

import pytest
import small
from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from ich_client.hospital import HospitalConfig
from ich_models.federation import Federation
from ich_models.protocol import MalformedError, Refusal, StatisticsTask, from_record, to_record

DECEIVING = {
    "escape": "red \x1b[31m",
    "bell": "a\x07",
    "carriage return": "round 1\rround 9",
    "backspace": "evil\x08\x08\x08\x08good",
    "C1 control": "\x9b31m",
    "writing direction": "a\u202egnp.exe",
    "isolate": "\u2066x",
    "line separator": "a\u2028b",
    "NUL": "a\x00b",
    "half a character": "\ud800",
}


@pytest.mark.parametrize("text", DECEIVING.values(), ids=list(DECEIVING))
def test_a_federation_cannot_hold_it(text: str) -> None:
    with pytest.raises(ValidationError, match="cannot be printed: U\\+"):
        small.federation(description=text)
    settings = small.federation().model_dump(by_alias=True)
    settings["modalities"]["table"]["variables"]["a"]["description"] = text
    with pytest.raises(ValidationError, match="cannot be printed"):
        Federation.model_validate(settings)


@pytest.mark.parametrize("text", ["deux\nlignes\tet tab", "Größe µmol/L", "東京", "a\u00a0b", "🏥"])
def test_what_people_write_is_welcome(text: str) -> None:
    assert small.federation(description=text).description == text


def test_keys_are_texts_too() -> None:
    table: dict[str, Any] = {"file": "x.csv", "columns": {"age": {"codes": {"a\x1b": "yes"}}}}
    with pytest.raises(ValidationError, match=r"cannot be printed: U\+001B"):
        HospitalConfig.model_validate({"hospital": "north", "table": table})


def test_a_message_cannot_hold_it() -> None:
    record = to_record(StatisticsTask(federation="a" * 64, seed=1, parts=[0]))
    text = str(record["message"]["json"]).replace('"package":"', '"package":"\\u001b[2J')
    forged = RecordDict({"message": ConfigRecord({"json": text})})
    with pytest.raises(MalformedError, match="cannot be printed"):
        from_record(forged, StatisticsTask)


def test_a_message_holds_nothing_beside_what_it_says() -> None:
    record = to_record(Refusal(code="DATA"))
    record["more"] = ConfigRecord({"patient": "Mustermann"})
    with pytest.raises(MalformedError, match="more in it"):
        from_record(record, Refusal)
    record = to_record(Refusal(code="DATA"))
    record["message"] = ConfigRecord({**dict(record["message"]), "patient": "Mustermann"})
    with pytest.raises(MalformedError, match="more in it"):
        from_record(record, Refusal)
