"""Tables, plots and pictures of results, on the terminal and in one HTML file."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
