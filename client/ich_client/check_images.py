"""What `ich-client check` says of a hospital's images on the terminal. For local eyes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.table import Table

from ich_client.images import Chosen, Summary
from ich_client.terminal import add, pairs, table_of

MOST_IN_FULL: Final = 3
"""Patients up to which every series and everything set aside is shown by itself."""


def images_tables(found: Summary) -> list[Table]:
    """Counts, the series that were chosen and why, and what was set aside with what to do about it."""
    tables = [_facts(found)]
    if found.chosen:
        tables.append(_each(found) if found.asked <= MOST_IN_FULL else _reasons(found))
    if found.aside:
        tables.append(_aside(found))
    return tables


def facts(found: Summary) -> dict[str, str]:
    """Counts and times, by name."""
    only = f" (of {found.patients:,}; the others were not looked at)" if found.asked < found.patients else ""
    told = {
        "patients with an image": f"{len(found.chosen):,} of {found.asked:,}{only}",
        "from the cache": f"{found.kept:,}",
        "studies of nobody in the table": f"{found.unmatched:,}",
        "studies of another modality": f"{found.other_modality:,}",
    }
    if found.labelled or found.unlabelled:
        told["slices"] = f"{found.labelled:,} labelled, {found.unlabelled:,} not"
    for what, count in sorted(Counter(one.region for one in found.chosen if one.region).items()):
        told[f"seen: {what}"] = f"{count:,}"
    told["seconds"] = ", ".join(f"{phase} {value:.1f}" for phase, value in found.seconds.items())
    told["folder"], told["cache"] = found.folder or "none", found.cache
    return told


def _facts(found: Summary) -> Table:
    return pairs("Images", **facts(found))


def _reasons(found: Summary) -> Table:
    table = table_of("Series that are used (--patient ID, or --json, says which)", "because", "patients", numbers=1)
    for reason, count in reasons(found).most_common():
        add(table, reason, f"{count:,}")
    return table


def reasons(found: Summary) -> Counter[str]:
    """Why series were chosen, what was done to them, what they lack: patients for each."""
    return Counter(line for one in found.chosen for line in dict.fromkeys(_lines(one)))


def _lines(one: Chosen) -> Iterator[str]:
    for series in one.series:
        yield str(series["reason"]) if len(one.series) == 1 else f"{series['description']}: {series['reason']}"
    yield from one.notes
    yield from (f"lacks: {name}" for name in (*one.unmet, *one.absent))
    if one.studies > 1:
        yield "the earliest usable of several studies"
    if one.problem:
        yield f"whole head: {one.problem}" if one.region == "head" else one.problem


def _each(found: Summary) -> Table:
    table = table_of("Series that are used", "patient", "series", "because")
    for one in found.chosen:
        for series in one.series:
            add(table, one.patient, named(series), series["reason"])
        rest = [line for line in _lines(one) if line not in {str(series["reason"]) for series in one.series}]
        if rest:
            add(table, one.patient, f"study {one.study}" + (f" of {one.when}" if one.when else ""), "; ".join(rest))
    return table


def named(series: Mapping[str, Any]) -> str:
    """A series as people know it."""
    number = f"{series['number']} " if "number" in series else ""
    return f"{number}({series['description'] or 'no description'})"


def _aside(found: Summary) -> Table:
    table = table_of("Set aside", "reason", "count", "what, where, and what to do")
    shown = len(found.aside) if found.asked <= MOST_IN_FULL else 1
    for reason, count in found.counts.items():
        cases = [one for one in found.aside if one.reason is reason]
        lines = [f"{one.detail}" + (f"\n{one.where}" if one.where else "") for one in cases[:shown]]
        if count > shown:
            lines[-1] += f" (and {count - shown:,} more)"
        add(table, reason, f"{count:,}", "\n".join([*lines, cases[0].hint]))
    return table
