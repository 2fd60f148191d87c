"""What a plan is compared with: real actions of another clip, no action, and the mean action.

Legend: H horizon, A action width.
"""

import numpy as np

from lawm.data import Labels
from lawm.planning.problem import Shown


def no_action(labels: Labels, key: str, first: int, like_HA: np.ndarray) -> np.ndarray:
    """[H, A]: zero; of set points (`first`) the one that holds before the episode's first action, for all steps."""
    if labels.kind != "first":
        return np.zeros_like(like_HA)
    held = labels.of(key).actions[max(first - 1, 0)]
    return np.broadcast_to(held, like_HA.shape).astype(like_HA.dtype)


def mean_action(shown: Shown, like_HA: np.ndarray) -> np.ndarray:
    """[H, A]: the mean action of the training split, at every step."""
    return np.broadcast_to(shown.mean_A, like_HA.shape).astype(like_HA.dtype)
