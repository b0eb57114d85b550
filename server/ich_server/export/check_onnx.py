"""Compare model.onnx with the answers in sample.npz. Needs numpy and onnxruntime, and nothing of ICH Federation."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

TOLERANCE = 1e-4


def main() -> int:
    """0 where every probability agrees to `TOLERANCE`, of all patients together and of each one alone; else 1."""
    folder = Path(__file__).resolve().parent
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(folder / "sample.npz") as file:
        arrays = {name: file[name] for name in file.files}
    expected = arrays.pop("probability")
    together = session.run(None, arrays)[0]
    alone = [
        session.run(None, {name: array[row : row + 1] for name, array in arrays.items()})[0]
        for row in range(len(expected))
    ]
    apart = max(float(np.abs(said - expected).max()) for said in (together, np.concatenate(alone)))
    sys.stdout.write(f"largest difference {apart:.2e}, allowed {TOLERANCE:.0e}\n")
    return 0 if apart <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
