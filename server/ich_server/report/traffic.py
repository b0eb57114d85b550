"""What went over the line: bytes to and from every hospital, per round and in all, as the server counted them."""

from collections.abc import Sequence

from ich_server.report.parts import Cell, Row, Table
from ich_server.results import Results, Traffic
from ich_server.summary import NOTHING, natural


def table(results: Results) -> Table | None:
    """One line per hospital, over all seeds; None where an older version ran the study and did not count."""
    if not results.traffic:
        return None
    names = sorted({name for found in results.traffic.values() for name in found}, key=natural)
    of = {name: [found[name] for found in results.traffic.values() if name in found] for name in names}
    rows = [Row(name, _cells(found)) for name, found in of.items()]
    everybody = _cells([each for found in of.values() for each in found])
    columns = (
        "Hospital",
        "Rounds answered",
        "To it, per round",
        "From it, per round",
        "To it, in all",
        "From it, in all",
    )
    note = (
        "Texts and numbers of the training rounds, without what TLS and HTTP add; statistics, thresholds and evaluation are"
        " small beside them. Per round: the middle one. results.json has every round."
    )
    return Table("Communications of each hospital", columns, (*rows, Row("All hospitals", everybody, total=True)), note)


def _cells(found: Sequence[Traffic]) -> tuple[Cell, ...]:
    sent, received = ([number for each in found for number in which(each)] for which in (_sent, _received))
    rounds = f"{sum(number > 0 for number in received):,} of {len(received):,}"
    return tuple(map(Cell, (rounds, _middle(sent), _middle(received), size(sum(sent)), size(sum(received)))))


def _sent(found: Traffic) -> list[int]:
    return found.sent


def _received(found: Traffic) -> list[int]:
    return found.received


def _middle(numbers: Sequence[int]) -> str:
    there = sorted(number for number in numbers if number)
    return size(there[len(there) // 2]) if there else NOTHING


def size(number: int) -> str:
    """`812 B`, `1.4 kB`, `23 MB`: powers of ten, three figures at most."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
