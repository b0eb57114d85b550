"""The coordinator's program: rounds over the hospitals, checkpoints, evaluation and reports."""
