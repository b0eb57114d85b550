"""DICOM files to volumes: found by content, grouped, chosen, placed by their positions; or refused by name."""
