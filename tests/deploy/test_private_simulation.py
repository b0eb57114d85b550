"""`ich-simulate` with privacy: what its results and report say, its ledgers, and the twin without privacy."""

import json
from pathlib import Path
from typing import Any

import pytest
from processes import STUDY, write_study
from typer.testing import CliRunner

from ich_client.ledger import spent
from ich_client.site import ledger_in
from ich_deploy import source
from ich_deploy.simulate import Options, Watch, simulate
from ich_models import privacy_words
from ich_models.accounting import epsilon, programme
from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_server.cli import app as server
from ich_server.results import Results, promised, read

HOSPITALS = ("east", "north", "south")

PRIVATE: dict[str, Any] = {
    **STUDY,
    "network": {"name": "logistic", "bias": "zero"},
    "training": {
        "stages": [{"rounds": 3, "epochs": 1, "batch": "all", "optimizer": {"name": "sgd", "lr": 1.0}}],
        "seeds": [7],
    },
    "evaluation": {"threshold": 0.5, "small_cells": 5, "comparisons": {"without_privacy": True}},
    "privacy": {"epsilon": 8, "delta": 1e-3, "patients": 100, "hospitals": 3, "rate": 0.5, "metrics": "exact"},
}


def run(path: Path, out: Path, seeds: tuple[int, ...] = (7,), *, resume: bool = False) -> Results:
    origin = source.locate(path, path.parent / "data", None)
    return simulate(origin, out, seeds, Options(resume=resume), Watch())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private study of three hospitals, simulated once; its federation file."""
    path = write_study(tmp_path_factory.mktemp("private") / "study", PRIVATE, HOSPITALS)
    run(path, path.parent / "out")
    return path


def federation(path: Path) -> Federation:
    return load_federation(path).value


def test_results_say_what_was_promised_and_planned(study: Path) -> None:
    plan, found = programme(federation(study)), read(study.parent / "out/results.json").privacy
    assert found is not None
    assert (found.epsilon, found.delta, found.per, found.metrics) == (8.0, 1e-3, "study", "exact")
    assert found.hospitals == dict.fromkeys(HOSPITALS, plan.study)
    assert (found.noise, found.steps, found.models) == (plan.sigma, 3 * 2 * 3, 3)
    assert any("outside the promise" in sentence for sentence in found.assumptions)
    for name in HOSPITALS:  # and it was not more: in round 1 the three models are one
        charges = spent(ledger_in(study.parent / "out/hospitals", name).read().charges)
        assert [row.steps for row in charges] == [2 + 2 * 2 * 3]
        assert epsilon(charges, 1e-3) < plan.study <= 8


def test_results_hold_no_count_of_patients_but_the_public_one(study: Path) -> None:
    found = read(study.parent / "out/results.json")
    assert {name: (one.n, one.events, set(one.excluded.values())) for name, one in found.hospitals.items()} == {
        name: (100, None, set()) for name in HOSPITALS
    }
    assert {loss for training in found.training.values() for losses in training.losses.values() for loss in losses} == {
        None
    }


def test_report_has_a_section_on_privacy(study: Path) -> None:
    page = " ".join((study.parent / "out/report.html").read_text().split())
    assert "Promised of each patient: epsilon 8 with delta 0.001 for the whole study." in page
    assert "AUROC of all test patients together:" in page
    assert "without." in page
    assert "Known to everybody: 100 patients at each hospital, whatever is true" in page


def test_twin_without_privacy_is_the_study_without_privacy(study: Path, tmp_path: Path) -> None:
    open_study = {**PRIVATE, "evaluation": {"threshold": 0.5, "small_cells": 5}}
    del open_study["privacy"]
    plain = run(write_study(tmp_path / "open", open_study, HOSPITALS), tmp_path / "out")
    twin = read(study.parent / "out/results.json").arms["without_privacy"]
    assert twin.hospitals == plain.arms["loho"].hospitals
    assert twin.pooled == plain.arms["loho"].pooled
    assert "privacy" not in json.loads((tmp_path / "out/results.json").read_text())  # not spoken of where none is


def test_begun_anew_it_is_charged_anew_and_resumed_it_is_not(study: Path) -> None:
    out = study.parent / "out"
    before = (out / "hospitals/privacy/north/ledger.jsonl").read_bytes()
    again = run(study, out, resume=True)
    assert again == read(out / "results.json")
    assert (out / "hospitals/privacy/north/ledger.jsonl").read_bytes() == before
    run(study, out)
    after = ledger_in(out / "hospitals", "north").read()
    assert (out / "hospitals/privacy/north/ledger.jsonl").read_bytes() != before
    assert len(after.charges) == 3


@pytest.mark.slow
def test_a_short_study_begun_anew_does_not_take_the_replies_of_the_last(tmp_path: Path) -> None:
    """Its replies of one round are still there, and its question is the same as then."""
    stage = {**PRIVATE["training"]["stages"][0], "rounds": 1}
    settings = {
        **PRIVATE,
        "training": {"stages": [stage], "seeds": [7]},
        "evaluation": {"threshold": 0.5, "small_cells": 5},
    }
    path = write_study(tmp_path / "study", settings, HOSPITALS)
    found = []
    for _ in range(2):
        told = run(path, tmp_path / "out").privacy
        assert told is not None
        assert privacy_words.SIMULATED in told.assumptions, "of all patients together, though nothing was compared"
        weights = (tmp_path / "out/model/seed-7/model.safetensors").read_bytes()
        found.append(
            (
                weights,
                [(one.what, one.spent.steps) for one in ledger_in(tmp_path / "out/hospitals", "north").read().charges],
            )
        )
    once, anew = found
    assert anew[0] != once[0]
    assert anew[1] == once[1] == [("round 1", 2)]


def test_audit_is_put_into_results_and_report(study: Path, tmp_path: Path) -> None:
    out = study.parent / "out"
    found = {"epsilon": 0.7, "promised": 7.9, "canaries": 1000, "right": 150, "guesses": 200}
    (tmp_path / "audit.json").write_text(json.dumps(found))
    done = CliRunner().invoke(server, ["report", str(out), "--audit", str(tmp_path / "audit.json")])
    assert done.exit_code == 0, done.output
    privacy = read(out / "results.json").privacy
    assert privacy is not None
    assert privacy.audit is not None
    assert privacy.audit.model_dump() == found
    assert "150 of 200 guesses about 1000 planted patients were right" in (out / "report.html").read_text()
    (tmp_path / "audit.json").write_text("{}")
    done = CliRunner().invoke(server, ["report", str(out), "--audit", str(tmp_path / "audit.json")])
    assert isinstance(done.exception, ConfigurationError)


def test_more_seeds_than_planned_are_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="2 seeds, and the noise is planned for 1"):
        run(study, tmp_path / "out", (7, 8))


def test_what_cannot_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    settings = {**PRIVATE, "privacy": {**PRIVATE["privacy"], "metrics": "noised", "metrics_noise": 0.2, "epsilon": 1}}
    path = write_study(tmp_path / "study", settings, HOSPITALS)
    with pytest.raises(ConfigurationError, match="no noise makes this study private with epsilon 1"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigurationError, match="no noise makes"):
        CliRunner().invoke(
            server,
            ["init", str(path), "--address", "localhost:8443", "--home", str(tmp_path / "server")],
            catch_exceptions=False,
        )


def test_figures_that_only_a_simulation_has_are_said_to_be_exact(study: Path) -> None:
    """Whatever `metrics` says, which is of what hospitals send: of all patients together nobody but a simulation has any."""
    found = read(study.parent / "out/results.json")
    assert found.privacy is not None
    assert found.arms["loho"].pooled is not None
    assert privacy_words.SIMULATED in found.privacy.assumptions
    assert "are exact and outside the promise" in " ".join((study.parent / "out/report.html").read_text().split())
    deployed = promised(federation(study), HOSPITALS).assumptions  # in which there are no such figures
    assert privacy_words.SIMULATED not in deployed
    for unseen in ("one more or one fewer", "Weights that training starts from", "studies without privacy"):
        assert any(unseen in one for one in deployed), unseen


def test_figures_that_are_not_sent_are_nowhere(tmp_path: Path) -> None:
    settings = {
        **PRIVATE,
        "privacy": {**PRIVATE["privacy"], "metrics": "not_sent"},
        "evaluation": {"threshold": 0.5, "small_cells": 5},
    }
    path = write_study(tmp_path / "study", settings, HOSPITALS)
    found = run(path, tmp_path / "out")
    assert found.arms == {}
    assert "No hospital was evaluated." in (tmp_path / "out/report.html").read_text()
