"""The networks, and nothing of training: encoder, inverse dynamics, bottlenecks, world model, decoder, controller."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
