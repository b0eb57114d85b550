"""Planted identifiers are found in report text, with their place; ordinary findings are not taken for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_client.identifiers import Kind, Place, find


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Seen on 2024-03-09.", Kind.DATE),
        ("Seen on 9.3.2024.", Kind.DATE),
        ("Seen on 31/12/24.", Kind.DATE),
        ("Seen on 12/31/2024.", Kind.DATE),
        ("Seen on 9 March 2024", Kind.DATE),
        ("gesehen am 9. März 2024", Kind.DATE),
        ("on March 9th, 2024", Kind.DATE),
        ("le 9 février 2024", Kind.DATE),
        ("12-Dec-2023", Kind.DATE),
        ("Mr Mustermann was seen", Kind.NAME),
        ("Referred by Dr. O'Neill", Kind.NAME),
        ("Herrn Müller", Kind.NAME),
        ("Patient name: Erika", Kind.NAME),
        ("PATIENT: Erika Mustermann", Kind.NAME),
        ("DOE^JOHN", Kind.NAME),
        ("compare 1234567", Kind.NUMBER),
        ("MRN 4711", Kind.NUMBER),
        ("Accession number: CT-20391", Kind.NUMBER),
        ("Fall-Nr. 0815", Kind.NUMBER),
        ("mail erika@example.org", Kind.ADDRESS),
        ("call +49 89 1234 5678", Kind.ADDRESS),
        ("Tel: 089/123456", Kind.ADDRESS),
    ],
)
def test_planted_identifiers_are_found(text: str, kind: Kind) -> None:
    assert kind in {found.kind for found in find(text)}


@pytest.mark.parametrize(
    "text",
    [
        "Left basal ganglia haemorrhage of 31.5 mL, midline shift 6 mm, 3.2 x 4.1 x 5.0 cm.",
        "ASPECTS 7. The patient is 71 years old, GCS 9, blood pressure 180/95 mmHg, glucose 126 mg/dL.",
        "No change. Findings: normal. Impression: no acute infarct. May be artefact; M1 and M2 patent.",
        "b-value 1000 s/mm2, ADC 620 x 10-6 mm2/s, platelets 250000/uL, 1,250,000 units",
        "Slices 1-28, window 40/80, 5.0 mm.",
        "",
    ],
)
def test_findings_are_not_identifiers(text: str) -> None:
    assert {found.kind for found in find(text)} <= ({Kind.NUMBER} if "250000" in text else set())


def test_places_are_lines_and_characters() -> None:
    assert find("CT head.\nOn 2024-03-09, Mr Mustermann") == [Place(Kind.DATE, 2, 4), Place(Kind.NAME, 2, 16)]


def test_the_patients_own_identifier() -> None:
    assert find("case a-17b seen", own="A-17B") == [Place(Kind.OWN, 1, 6)]
    assert find("xa-17bx", own="A-17B") == []
    assert find("12 mm", own="12") == [], "it would be found in every report"
    assert find("12 mm", own="") == []


@given(st.text(max_size=80), st.text(max_size=8))
def test_any_text_can_be_searched(text: str, own: str) -> None:
    lines = text.split("\n")
    for found in find(text, own):
        assert 1 <= found.line <= len(lines)
        assert 1 <= found.character <= len(lines[found.line - 1]) + 1
