"""From pairs of states to latent actions: inverse dynamics, one file a bottleneck, and the model of both.

A bottleneck costs its config class, its file here, its `case` in `build_bottleneck` (lawm/model/latent_action/model.py)
and its tune space.
"""
