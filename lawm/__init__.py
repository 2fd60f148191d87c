"""lawm: latent action world models, from unlabelled video to planning."""

__version__ = "0.1.0"
