"""Bytes -> frames at their true times, and what a video file holds. Knows no index and no model.

A `VideoRef` says where the bytes lie; `probe` looks, `decode_clip` decodes. A video that cannot be used is refused by a
`VideoError` with its reason."""

from lawm._lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
