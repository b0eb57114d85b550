"""The live page of a running study, for the coordinator's own browser."""
