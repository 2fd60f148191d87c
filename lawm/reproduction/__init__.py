"""The tables and figures of the paper and of the report, made again on one's own data."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
