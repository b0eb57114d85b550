"""Print the accuracies of finished runs beside FLamby's published ones: python examples/heart_disease/table.py OUT ..."""

import json
import sys
from pathlib import Path

# Ogier du Terrail et al., FLamby, NeurIPS 2022, benchmark rows for Fed-Heart-Disease: mean over seeds 42 to 46.
# Mean over the four hospitals' test sets, and the pooled test set.
PUBLISHED = {
    "pooled": (0.735, 0.795),
    "local": (0.730, None),
    "fedavg": (0.685, 0.748),
    "fedprox": (0.685, 0.748),
    "scaffold": (0.684, 0.748),
    "fedadam": (0.726, 0.779),
    "fedyogi": (0.731, 0.779),
    "fedadagrad": (0.731, 0.779),
}


def rows(out: Path) -> dict[str, tuple[float, float | None]]:
    """Arm -> mean accuracy over the hospitals, accuracy on the pooled test set."""
    results = json.loads((out / "results.json").read_text())
    if "loho" in results["arms"]:  # loho.yaml has no published counterpart, and its strategy's name is another row's
        return {}
    found = {}
    for arm, what in results["arms"].items():
        name = results["study"]["strategy"] if arm == "federated" else arm
        accuracies = [hospital["accuracy"]["value"] for hospital in what["hospitals"].values()]
        together = what["pooled"]["accuracy"]["value"]
        found[name] = (sum(accuracies) / len(accuracies), None if name == "local" else together)
    return found


def main() -> None:
    """Print one line per arm."""
    folders = [Path(out) for out in sys.argv[1:]]
    for folder in folders:
        if not (folder / "results.json").exists():
            print(f"{folder}: no results.json; left out", file=sys.stderr)
    done = [folder for folder in folders if (folder / "results.json").exists()]
    found = {name: figures for folder in done for name, figures in rows(folder).items()}
    print(f"{'':12}{'mean over hospitals':>24}{'pooled test set':>24}")
    for name, published in PUBLISHED.items():
        if name in found:
            pairs = zip(found[name], published, strict=True)
            cells = [f"{ours:.3f} ({theirs:.3f})" if ours and theirs else "" for ours, theirs in pairs]
            print(f"{name:12}{cells[0]:>24}{cells[1]:>24}")
    print("in brackets: published")


if __name__ == "__main__":
    main()
