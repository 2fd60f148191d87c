"""Every knob of lawm, as frozen, validated models; recipes are functions that derive from one another.

Unknown fields are refused with the list of the valid ones.
Sources: "the paper" is Garrido et al. 2026 (arXiv 2601.05230); "the report" is Yang 2026.
"""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
