"""The study flow: who was there, who was left out and why, who was learnt from, who was tested; as a figure, in words and numbers."""

from collections.abc import Iterable, Sequence
from typing import Final

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ich_server.report import drawing
from ich_server.report.parts import Picture
from ich_server.results import Arm, Results
from ich_server.summary import WITHHELD, arm_label, in_order, many, total

_WIDTH: Final = 400
"""Of the figure, in SVG user units: a telephone's."""
_INDENT: Final = 60
"""Of the box that tells who leaves; the others take the whole width."""
_STEM: Final = 30
"""Where the arrow goes down, from the left."""
_LINE: Final = 17
_PAD: Final = 12
_GAP: Final = 26

MOST_REASONS: Final = 8


def flow(results: Results) -> Picture:
    """Patients of all hospitals on their way; what hospitals withhold makes a sum the least that it can be."""
    boxes = _boxes(results)
    height = sum(_height(box) + _GAP for box in boxes) - _GAP + 14
    title = "Study flow. " + " ".join(f"{box[0]}: {' '.join(box[1:])}." for box in boxes)
    with drawing.canvas(_WIDTH, height) as figure:
        top = height - 2.0
        for place, box in enumerate(boxes):
            bottom, leaves = top - _height(box), place == 1
            _draw(figure, _INDENT if leaves else 0, bottom, box, height)
            if leaves:
                _arrow(figure, (_STEM, (top + bottom) / 2), (_INDENT, (top + bottom) / 2))
            elif place:
                above = top + _GAP + (_height(boxes[1]) + _GAP if place == 2 else 0)
                _arrow(figure, (_STEM, above), (_STEM, top + 1))
            top = bottom - _GAP
        caption = (
            "All hospitals together; each one's own numbers are in the table below. A sum with ≥ has parts that a hospital"
            " withholds, since they are few."
        )
        return Picture(drawing.svg(figure, "flow", title), caption)


Box = list[str]
"""The title, then lines."""


def _boxes(results: Results) -> list[Box]:
    """From the first to the last; the second one tells who was left out."""
    found = results.hospitals.values()
    left_out = [number for one in found for number in one.excluded.values()]
    patients = sum(one.n for one in found)
    at = many(len(results.hospitals), "hospital")
    events = total(one.events for one in found) if results.hospitals else WITHHELD
    boxes = [
        ["In the hospitals’ tables", f"{total([patients, *left_out])} patients, {at}"],
        ["Left out", *(_reasons(results) or ["nobody"])],
        ["Took part", f"{patients:,} patients, {events} with the event"],
    ]
    learnt = [one.training for one in found]
    if results.hospitals and None not in learnt:
        number = sum(each or 0 for each in learnt)
        boxes.append(["The model of all hospitals learnt from", f"{number:,} patients"])
    boxes.append(["Tested by models that had not learnt from them", *map(_tested, *_arms(results))])
    return boxes


def _arms(results: Results) -> tuple[list[str], list[Arm]]:
    names = in_order(results) or list(results.arms)
    return [arm_label(name) for name in names], [results.arms[name] for name in names]


def _tested(label: str, arm: Arm) -> str:
    found = arm.hospitals.values()
    return f"{label}: {sum(one.n for one in found):,} patients, {many(len(arm.hospitals), 'hospital')}"


def _reasons(results: Results) -> list[str]:
    """The reasons with their patients, the most frequent first; beyond the first few together."""
    numbers: dict[str, list[int | None]] = {}
    for one in results.hospitals.values():
        for reason, number in one.excluded.items():
            numbers.setdefault(reason, []).append(number)
    there = {reason: each for reason, each in numbers.items() if any(number != 0 for number in each)}
    order = sorted(there, key=lambda reason: (-_known(there[reason]), reason))
    lines = [f"{_said(there[reason])} {reason}" for reason in order[:MOST_REASONS]]
    if rest := [number for reason in order[MOST_REASONS:] for number in there[reason]]:
        lines.append(f"{_said(rest)} for other reasons")
    return lines


def _known(numbers: Iterable[int | None]) -> int:
    return sum(number for number in numbers if number is not None)


def _said(numbers: Sequence[int | None]) -> str:
    return "few:" if _known(numbers) == 0 else total(numbers)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _height(box: Box) -> float:
    return 2 * _PAD + _LINE * len(box)


def _draw(figure: Figure, left: int, bottom: float, box: Box, height: float) -> None:
    """A box with rounded corners; its title bold."""
    width = _WIDTH - left
    figure.add_artist(
        FancyBboxPatch(
            (left + 2, bottom),
            width - 4,
            _height(box),
            boxstyle="round,pad=0,rounding_size=5",
            transform=None,
            facecolor="#f4f7f8",
            edgecolor=drawing.RULE,
            linewidth=1,
        )
    )
    y = bottom + _height(box) - _PAD - _LINE / 2
    for place, line in enumerate(box):
        weight = "bold" if place == 0 else "normal"
        shown = drawing.short(line, (width - 2 * _PAD) // 6)
        figure.text((left + _PAD + 2) / _WIDTH, y / height, shown, va="center", weight=weight)
        y -= _LINE


def _arrow(figure: Figure, begin: tuple[float, float], end: tuple[float, float]) -> None:
    figure.add_artist(
        FancyArrowPatch(
            begin,
            end,
            transform=None,
            arrowstyle="-|>",
            mutation_scale=10,
            color=drawing.MUTED,
            linewidth=1,
            shrinkA=0,
            shrinkB=0,
        )
    )
