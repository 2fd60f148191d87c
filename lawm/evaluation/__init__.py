"""One file an evaluation: clips -> values per clip -> results with intervals and controls."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
