"""Worlds with true actions: simulated episodes as videos and labels."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
