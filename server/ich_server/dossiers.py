"""The dossier of a finished run: its files gathered, hashed and signed with the federation's CA, or one made for a simulation."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ich_models import dossier
from ich_models.dossier import Manifest, Signer, Verified
from ich_models.errors import ConfigurationError
from ich_models.files import read_json, write_atomic
from ich_models.protocol import PACKAGE
from ich_server import home, pki, results_file
from ich_server.report.page import page_of
from ich_server.report.photos import PHOTOS
from ich_server.results import Results
from ich_server.results import as_csv as results_table
from ich_strategies import models

TABLE = "results.csv"
KEPT = (TABLE, dossier.REPORT, PHOTOS, "run.json")
"""Of a run's folder, beside the results, where they are."""


def write(run: Path, path: Path, exports: Sequence[Path] = ()) -> Manifest:
    """Write the dossier of a run to `path`; its manifest. `exports`: of hospitals' audit logs; their heads are taken over.

    Raises ConfigurationError for a run without results, of a version that did not keep the study in them, and for an
    export that is none, or of a hospital that was not there, and for a page or table that this version would write otherwise.
    """
    results = results_file.read(run / dossier.RESULTS)
    if not results.study.settings:
        hint = "run the study again with this version"
        raise ConfigurationError("an older version wrote these results, without the study", where=str(run), hint=hint)
    federation_folder = (run / home.SETTINGS).exists()
    signer: Signer = "federation" if federation_folder else "simulation"
    certificate, key = pki.authority(run / "pki", results.study.name)
    audits = dict(map(dossier.head, exports))
    if strangers := sorted(audits.keys() - results.hospitals.keys()):
        known = ", ".join(sorted(results.hospitals))
        raise ConfigurationError(f"{', '.join(strangers)} took no part", hint=f"hospitals of this run: {known}")
    manifest = Manifest(
        made=dossier.now(),
        package=PACKAGE,
        signer=signer,
        study=results.study.name,
        federation=results.study.federation,
        models=results.models,
        audits=audits,
        ledgers={},
        files={},
    )
    write_atomic(path, dossier.pack(manifest, _files(run, results), certificate, key))
    return manifest


def made_again(found: Verified) -> bool:
    """Whether this version makes the dossier's page of the dossier's results, to the byte; another one may write it otherwise.

    Raises ConfigurationError for results that this version does not read.
    """
    with TemporaryDirectory() as folder:
        for name in (dossier.RESULTS, PHOTOS):
            if name in found.files:
                (Path(folder) / name).write_bytes(found.files[name])
        return page_of(results_file.read(Path(folder) / dossier.RESULTS), Path(folder)) == found.files[dossier.REPORT]


def _files(run: Path, results: Results) -> dict[str, bytes]:
    """What the dossier holds: no weights, their hashes and cards alone."""
    settings = json.dumps(results.study.settings, indent=2, sort_keys=True, ensure_ascii=False)
    found = {dossier.RESULTS: (run / dossier.RESULTS).read_bytes(), dossier.FEDERATION: f"{settings}\n".encode()}
    found |= {name: (run / name).read_bytes() for name in KEPT if (run / name).is_file()}
    for name, made in ((TABLE, results_table(results)), (dossier.REPORT, page_of(results, run))):
        if found.get(name, made) != made:
            hint = f"ich-server report {run} writes it anew"
            raise ConfigurationError(f"{name} does not say what {dossier.RESULTS} says", where=str(run), hint=hint)
    for seed, sha256 in results.models.items():
        card = run / "model" / f"seed-{seed}" / models.CARD
        if card.is_file():
            if read_json(card)["sha256"] != sha256:
                message = f"the model of seed {seed} is not the one that results.json tells of"
                raise ConfigurationError(message, where=str(card), hint="take the run's folder as a study left it")
            found[f"models/seed-{seed}.json"] = card.read_bytes()
    return found
