"""MLflow and TensorBoard: their own readers give back the run's numbers; in the middle of a run and again at its end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_models.errors import ConfigurationError
from ich_models.files import write_arrays
from ich_server import checkpoint, results, tracking
from ich_server.checkpoint import Progress
from ich_server.results import Results

HASH = "ab" * 32
LOSSES = [0.7, 0.6, 0.55, 0.54]


def history(rounds: int) -> list[dict[str, Any]]:
    return [
        {
            "round": number + 1,
            "losses": {"all": LOSSES[number], "without:north": LOSSES[number] + 0.1},
            "bytes": {"north": [1000, 10], "south": [1000, 20]},
        }
        for number in range(rounds)
    ]


@pytest.fixture
def under_way(tmp_path: Path) -> Path:
    """Two rounds are done."""
    rows = {"weights": np.zeros((2, 3), np.float32)}
    facts = {"history": history(2), "hospitals": {}}
    checkpoint.save(tmp_path / "run/seeds/seed-42", Progress(HASH, 42, 2, ["all", "without:north"], rows, facts))
    return tmp_path / "run"


def finish(run: Path, found: Results) -> Results:
    """The run goes on to its end."""
    facts = {"federation": HASH, "seed": 42, "history": history(4)}
    write_arrays(run / "seeds/seed-42/study.safetensors", {"weights": np.zeros((2, 3), np.float32)}, facts)
    study = found.study.model_copy(update={"federation": HASH})
    found = found.model_copy(update={"study": study})
    results.write(found, run)
    return found


def test_nothing_is_known_before_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no round is finished"):
        tracking.read(tmp_path)


@pytest.mark.slow
def test_mlflow_reads_what_was_logged(under_way: Path, three: Results, tmp_path: Path) -> None:
    store = tmp_path / "mlruns"
    tracking.to_mlflow(tracking.read(under_way), store, under_way)
    import mlflow  # after the words that it must hear first

    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == HASH[:16]]
    (run,) = client.search_runs([experiment.experiment_id])
    read = client.get_metric_history(run.info.run_id, "loss/all")
    assert [(each.step, each.value) for each in read] == [(1, 0.7), (2, 0.6)]

    found = finish(under_way, three)
    for _ in range(2):  # again, and nothing is there twice
        tracking.to_mlflow(tracking.read(under_way), store, under_way)
    (run,) = client.search_runs([experiment.experiment_id])
    read = client.get_metric_history(run.info.run_id, "loss/without-north")
    assert [(each.step, each.value) for each in read] == [(place + 1, loss + 0.1) for place, loss in enumerate(LOSSES)]
    for name, figures in found.arms["loho"].hospitals.items():
        (one,) = client.get_metric_history(run.info.run_id, f"loho/{name}/auroc")
        assert one.value == figures.auroc.per_seed[0]
    assert run.data.metrics["bytes/received"] == 30
    assert run.data.params["strategy"] == found.study.strategy
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_tensorboard_reads_what_was_logged(under_way: Path, three: Results, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking.to_tensorboard(tracking.read(under_way), tmp_path / "board")
    finish(under_way, three)
    for _ in range(2):
        tracking.to_tensorboard(tracking.read(under_way), tmp_path / "board")
    (folder,) = (tmp_path / "board").glob("demo-*")
    events = EventAccumulator(str(folder))
    events.Reload()
    read = [(each.step, each.value) for each in events.Scalars("loss/all")]
    assert read == [(place + 1, pytest.approx(loss)) for place, loss in enumerate(LOSSES)]
    (one,) = events.Scalars("loho/east/brier")
    assert one.value == pytest.approx(three.arms["loho"].hospitals["east"].brier.value)
    assert len(list(folder.glob("events*"))) == 1
