"""Real datasets -> records, one file per format.

Read `rows` (how a malformed row is named), `documents` (strict files), then one reader, for example `vqa_rad`.
`catalog.read` finds a reader by name; `images` and `dicom` decode pixels; `splits` divides by patient or image,
`leakage` counts what splits share; `validate` checks a whole dataset; `dataset_cards` says where each comes from.
`convert` takes in foreign weights safely.
"""
