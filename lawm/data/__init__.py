"""Which clip comes next, and what belongs to it: indexes of videos, sampling plans, labels, caches of states.

`datasets/` reads (and writes) the layouts in which data sets are given out."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
