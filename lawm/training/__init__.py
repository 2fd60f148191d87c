"""Losses, the optimiser, the loop, populations of runs, fine-tuning, checkpoints and the folder of a run."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
