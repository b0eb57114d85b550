"""The examples on real hospitals against figures that others have published or computed."""

import statistics
from pathlib import Path

import pytest

from ich_deploy import source
from ich_deploy.simulate import Options, Watch, simulate
from ich_server.results import Results

pytestmark = pytest.mark.slow


def run(repository: Path, data: Path, example: str, out: Path) -> Results:
    """An example's federation on the real data."""
    path = repository / "examples" / f"{example}.yaml"
    origin = source.locate(path, data, None)
    seeds = source.load(origin)[0].value.training.seeds
    return simulate(origin, out, seeds, Options(), Watch())


def accuracies(results: Results, arm: str) -> tuple[list[float], float]:
    """Per hospital, and of the pooled test set."""
    found = results.arms[arm]
    assert found.pooled is not None
    per_hospital = [figures.accuracy.value for figures in found.hospitals.values()]
    assert all(value is not None for value in per_hospital)
    return [value for value in per_hospital if value is not None], found.pooled.accuracy.value or 0.0


@pytest.mark.parametrize(
    ("strategy", "mean", "pooled"),
    [
        ("fedavg", 0.685, 0.748),
        ("fedprox", 0.685, 0.748),
        ("scaffold", 0.684, 0.748),
        ("fedadam", 0.726, 0.779),
        ("fedyogi", 0.731, 0.779),
        ("fedadagrad", 0.731, 0.779),
    ],
)
def test_heart_disease_reproduces_flamby(
    strategy: str, mean: float, pooled: float, repository: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Ogier du Terrail et al., FLamby, NeurIPS 2022: accuracy, mean over seeds 42 to 46."""
    results = run(repository, shared_data, f"heart_disease/{strategy}", tmp_path)
    assert results.seeds == [42, 43, 44, 45, 46]
    hospitals, together = accuracies(results, "federated")
    assert statistics.mean(hospitals) == pytest.approx(mean, abs=0.01)
    assert together == pytest.approx(pooled, abs=0.01)
    if strategy == "fedavg":  # the other arms do not depend on the strategy
        hospitals, together = accuracies(results, "pooled")
        assert statistics.mean(hospitals) == pytest.approx(0.735, abs=0.01)
        assert together == pytest.approx(0.795, abs=0.01)
        hospitals, _ = accuracies(results, "local")
        assert statistics.mean(hospitals) == pytest.approx(0.730, abs=0.01)
        # Switzerland has 16 test patients: one of them in one of five seeds is 0.0125
        assert hospitals == pytest.approx([0.746, 0.746, 0.725, 0.702], abs=0.0126)


def aurocs(results: Results, arm: str) -> dict[str, float]:
    """Per hospital with both classes."""
    values = {name: figures.auroc.value for name, figures in results.arms[arm].hospitals.items()}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("outcome", "median", "together"),
    [("death_or_dependency", 0.765, 0.790), ("death_14_days", 0.816, 0.797), ("haemorrhagic", None, 0.836)],
)
def test_ist_agrees_with_central_logistic_regression(
    outcome: str, median: float | None, together: float, repository: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Leave-one-hospital-out over the 49 hospitals with 100 patients or more, against an independent central analysis."""
    results = run(repository, shared_data, f"ist/{outcome}", tmp_path)
    federated, pooled = aurocs(results, "loho"), aurocs(results, "pooled")
    assert len(results.arms["loho"].hospitals) == 49
    loho = results.arms["loho"].pooled
    assert loho is not None
    assert loho.auroc.value == pytest.approx(together, abs=0.01)
    if median is not None:
        assert statistics.median(federated.values()) == pytest.approx(median, abs=0.01)
        assert statistics.median(federated.values()) == pytest.approx(statistics.median(pooled.values()), abs=0.01)
        assert abs(statistics.mean(federated[name] - pooled[name] for name in federated)) <= 0.005
