"""The run-time type checker behind `pytest --jaxtyping-packages`: beartype, which takes an int for a float as mypy does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
