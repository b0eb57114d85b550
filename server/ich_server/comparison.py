"""Two runs side by side: what was set otherwise, and each hospital's figures of the second minus those of the first."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scipy.special import stdtrit

from ich_models.files import write_atomic, write_json
from ich_models.metrics import METRICS
from ich_server.results import Arm, HospitalData, Results
from ich_server.summary import arm_label, by_type, hospitals_of, metric, some

SCHEMA: Final = 1

LEAST: Final = 3
"""Hospitals from which on a mean difference has an interval."""


@dataclass(frozen=True)
class Setting:
    """One thing that was set otherwise, by its path in the federation file; None: not there."""

    path: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Pair:
    """One figure of one hospital in both runs."""

    first: float
    second: float

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


@dataclass(frozen=True)
class Mean:
    """Over hospitals, each counting once, with the paired t interval (k - 1 degrees of freedom; None under `LEAST`)."""

    k: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """`pairs`: by arm, metric and hospital, of hospitals with the same patients in both; `others`: by arm, the rest."""

    first: Results
    second: Results
    settings: Sequence[Setting]
    pairs: Mapping[str, Mapping[str, Mapping[str, Pair]]]
    others: Mapping[str, Sequence[str]]

    def mean(self, arm: str, name: str) -> Mean | None:
        """Of one metric of one arm; None where no hospital has it in both."""
        return _mean([pair.difference for pair in self.pairs[arm].get(name, {}).values()])


def compare(first: Results, second: Results) -> Comparison:
    """The second run against the first, arm by arm, for the hospitals that brought the same patients to both."""
    pairs: dict[str, dict[str, dict[str, Pair]]] = {}
    others: dict[str, list[str]] = {}
    for name in (arm for arm in first.arms if arm in second.arms):
        ours, theirs = first.arms[name], second.arms[name]
        if by_type(ours) or by_type(theirs):
            continue
        same = [hospital for hospital in hospitals_of(ours) if _same(first, second, name, hospital)]
        pairs[name] = {each: _pairs(ours, theirs, same, each) for each in METRICS}
        others[name] = [
            hospital for hospital in hospitals_of(ours) if hospital in theirs.hospitals and hospital not in same
        ]
    return Comparison(first, second, _settings(first, second), pairs, others)


def _pairs(ours: Arm, theirs: Arm, hospitals: Sequence[str], name: str) -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for hospital in hospitals:
        values = [metric(arm.hospitals[hospital], name).value for arm in (ours, theirs)]
        if values[0] is not None and values[1] is not None:
            found[hospital] = Pair(values[0], values[1])
    return found


def _same(first: Results, second: Results, arm: str, hospital: str) -> bool:
    """Whether a hospital tested the same patients, as far as counts and what it told of its columns say."""
    if hospital not in second.arms[arm].hospitals:
        return False
    tested = [
        (run.arms[arm].hospitals[hospital].n, run.arms[arm].hospitals[hospital].events) for run in (first, second)
    ]
    brought = [run.hospitals.get(hospital) for run in (first, second)]
    return tested[0] == tested[1] and _alike(*brought)


def _alike(one: HospitalData | None, other: HospitalData | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.n, one.events) != (other.n, other.events):
        return False
    if one.training != other.training:
        return True  # of other training patients the columns say something else
    return all(one.columns[name] == other.columns[name] for name in one.columns.keys() & other.columns.keys())


def _settings(first: Results, second: Results) -> list[Setting]:
    """Nothing of runs of an older version, which kept none."""
    if not (first.study.settings and second.study.settings):
        return []
    flat = [dict(_leaves(run.study.settings)) for run in (first, second)]
    paths = [*flat[0], *(path for path in flat[1] if path not in flat[0])]
    found = [(path, flat[0].get(path), flat[1].get(path)) for path in paths]
    seeds = [Setting("seeds", first.seeds, second.seeds)] if first.seeds != second.seeds else []
    return [*seeds, *(Setting(*each) for each in found if each[1] != each[2])]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What stands at the ends of nested settings, by their dotted paths; of lists each place."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{place}")
    elif path:
        yield path, value


def _mean(numbers: Sequence[float]) -> Mean | None:
    count = len(numbers)
    if not count:
        return None
    mean = math.fsum(numbers) / count
    if count < LEAST:
        return Mean(count, mean, None, None)
    deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return Mean(count, mean, mean - half, mean + half)


def warnings(found: Comparison) -> list[str]:
    """What keeps the two from being compared, each cause once."""
    said = []
    if found.first.study.outcome != found.second.study.outcome:
        said.append("The two runs predict different outcomes: their differences mean nothing.")
    versions = [run.software for run in (found.first, found.second)]
    if all(versions) and versions[0] != versions[1]:
        said.append("The two runs were computed by different software.")
    others: dict[tuple[str, ...], list[str]] = {}
    for arm, hospitals in found.others.items():
        if hospitals:
            others.setdefault(tuple(hospitals), []).append(arm_label(arm))
    for hospitals, arms in others.items():
        said.append(f"{', '.join(arms)}: not the same patients, and so not compared, at {some(hospitals)}.")
    alone = sorted(found.first.arms.keys() ^ found.second.arms.keys())
    if alone:
        said.append(f"In one of the runs alone: {', '.join(map(arm_label, alone))}.")
    if not found.pairs:
        said.append("The runs have no arm of one outcome in common; figures of types of haemorrhage are not compared.")
    return said


# --- files ------------------------------------------------------------------------------------------------------------


def write(found: Comparison, folder: Path) -> None:
    """`compare.json` and, one line per arm, hospital and metric, `compare.csv`."""
    write_json(folder / "compare.json", as_json(found))
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("arm", "hospital", "metric", "first", "second", "difference"))
    for arm, metrics in found.pairs.items():
        for name, pairs in metrics.items():
            table.writerows((arm, hospital, name, p.first, p.second, p.difference) for hospital, p in pairs.items())
    write_atomic(folder / "compare.csv", lines.getvalue().encode())


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything, for programs."""
    runs = [
        {"study": run.study.name, "federation": run.study.federation, "seeds": run.seeds}
        for run in (found.first, found.second)
    ]
    arms = {
        arm: {
            "other_patients": list(found.others[arm]),
            "metrics": {
                name: {
                    "mean": _mean_json(found.mean(arm, name)),
                    "hospitals": {h: _pair_json(p) for h, p in pairs.items()},
                }
                for name, pairs in metrics.items()
            },
        }
        for arm, metrics in found.pairs.items()
    }
    settings = [{"path": each.path, "first": each.first, "second": each.second} for each in found.settings]
    whole = {"schema": SCHEMA, "runs": runs, "settings": settings, "arms": arms}
    return json.loads(json.dumps(whole, allow_nan=False))  # type: ignore[no-any-return]


def _mean_json(found: Mean | None) -> dict[str, Any] | None:
    return None if found is None else {"k": found.k, "mean": found.mean, "low": found.low, "high": found.high}


def _pair_json(pair: Pair) -> dict[str, float]:
    return {"first": pair.first, "second": pair.second, "difference": pair.difference}
