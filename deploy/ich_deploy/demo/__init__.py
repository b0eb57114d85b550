"""Three generated hospitals to try everything on: no patient in them is real, and the risk behind each outcome is known.

`python -m ich_deploy.demo FOLDER` copies the files of `study/` (a federation file and one mapping per hospital, written
to be read as examples) and writes the registry tables that the mappings describe. With `--kind ct`, `slices`, `mr` or
`xray` it copies those of `studies/` and writes hospitals with images: DICOM files, tables, reports and slice labels.
"""
