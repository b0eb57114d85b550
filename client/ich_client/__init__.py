"""The hospital's program: files to tensors, training, privacy, and the record of all that leaves."""
