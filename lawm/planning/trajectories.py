"""Absolute and relative errors of a whole way (ATE, RPE), by the `evo` package: NWM's measures on RECON.

Legend: H horizon, F = H + 1 places.
Source: Sturm et al. 2012; Bar et al. 2025: translation, no alignment, one frame apart for RPE, in metres. NWM publishes
them in waypoints of 0.25 m.
"""

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from lawm.config import LawmError

WAYPOINT_M = 0.25
"""NWM's unit on RECON, metres."""


def places(steps_HA: np.ndarray) -> np.ndarray:
    """x, y, yaw [F, 3] that steps (forward, left, turn; as seen from where each begins) lead through, from the origin
    along x."""
    found = np.zeros((len(steps_HA) + 1, 3))
    for i, (forward, left, turn) in enumerate(np.asarray(steps_HA, np.float64)[:, :3]):
        x, y, yaw = found[i]
        found[i + 1] = (
            x + np.cos(yaw) * forward - np.sin(yaw) * left,
            y + np.sin(yaw) * forward + np.cos(yaw) * left,
            yaw + turn,
        )
    return found


def trajectory_errors(planned_HA: np.ndarray, true_HA: np.ndarray, metres: float = 1.0) -> dict[str, float]:
    """{ate, rpe} in metres: root mean squares of the translation's error over the places, and over the steps between
    them. `metres`: of one unit of the steps. Raises LawmError where the `evo` package is not installed."""
    try:
        from evo.core import metrics
        from evo.core.trajectory import PoseTrajectory3D
    except ModuleNotFoundError:
        raise LawmError("ATE and RPE are by the evo package: pip install 'lawm[navigation]'") from None

    def way(steps_HA: np.ndarray) -> Any:
        at = places(steps_HA)
        xyz = np.column_stack([at[:, :2] * metres, np.zeros(len(at))])
        wxyz = np.roll(Rotation.from_euler("z", at[:, 2:3]).as_quat(), 1, axis=1)
        return PoseTrajectory3D(xyz, wxyz, np.arange(len(at), dtype=np.float64))

    pair = way(true_HA), way(planned_HA)
    translation = metrics.PoseRelation.translation_part
    ate, rpe = metrics.APE(translation), metrics.RPE(translation, delta=1, delta_unit=metrics.Unit.frames)
    for one in (ate, rpe):
        one.process_data(pair)
    rms = metrics.StatisticsType.rmse
    return {"ate": float(ate.get_statistic(rms)), "rpe": float(rpe.get_statistic(rms))}
