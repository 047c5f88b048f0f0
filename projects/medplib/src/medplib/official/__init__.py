"""MedPLIB's released weights -> folders of ours: `python -m medplib.official`. Training does not import this."""
