"""From a start and a goal to actions: costs, search, and the protocols of others."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
