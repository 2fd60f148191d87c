"""The numbers that the paper and the report print, as printed: what reproductions are set beside.

Garrido et al. 2026 (arXiv 2601.05230) trained V-JEPA 2-L and a ViT-L on 64 GPUs for 30,000 steps of 1,024 clips; their
errors are LPIPS of decoded pictures. Yang 2026 trained V-JEPA 2-B and a ViT-B on one GPU for 10,000 steps of 256 clips;
errors are L1 of states. Keys of rows are (latents, capacity), or what the rows differ in.
"""

from collections.abc import Mapping

Row = Mapping[str, float | None]
Rows = Mapping[tuple[str, str], Row]


def _rows(columns: tuple[str, ...], *rows: tuple[str, str, tuple[float | None, ...]]) -> Rows:
    return {(latents, capacity): dict(zip(columns, values, strict=True)) for latents, capacity, values in rows}


TABLE1 = _rows(
    ("without_change", "with_change", "ratio"),
    ("sparse", "low", (0.28, 0.66, 2.3)),
    ("sparse", "high", (0.20, 0.50, 2.4)),
    ("noisy", "low", (0.33, 0.69, 2.1)),
    ("noisy", "high", (0.21, 0.54, 2.5)),
    ("discrete", "low", (0.34, 0.69, 2.0)),
    ("discrete", "high", (0.29, 0.68, 2.3)),
)
"""Scene cuts on Kinetics, LPIPS."""
TABLE2 = _rows(
    ("original", "transfer", "ratio"),
    ("sparse", "low", (0.26, 0.31, 1.20)),
    ("sparse", "high", (0.19, 0.24, 1.30)),
    ("noisy", "low", (0.30, 0.34, 1.13)),
    ("noisy", "high", (0.20, 0.26, 1.34)),
    ("discrete", "low", (0.32, 0.33, 1.03)),
    ("discrete", "high", (0.27, 0.29, 1.07)),
)
"""Cycles over 2 s on Kinetics, LPIPS; of RECON the ratios are 1.21, 1.14, 1.15, 1.22, 1.03, 1.05."""
TABLE_S1 = _rows(
    ("idm", "controller", "ratio", "delta_xyz"),
    ("sparse", "low", (0.12, 0.14, 1.17, 0.33)),
    ("sparse", "mid", (0.10, 0.12, 1.20, 0.18)),
    ("sparse", "high", (0.09, 0.14, 1.46, 0.13)),
    ("noisy", "low", (0.13, 0.13, 1.00, 0.49)),
    ("noisy", "mid", (0.10, 0.11, 1.10, 0.11)),
    ("noisy", "high", (0.09, 0.12, 1.27, 0.10)),
    ("discrete", "low", (0.13, 0.13, 1.00, 0.18)),
    ("discrete", "high", (0.11, 0.12, 1.02, 0.14)),
)
"""DROID: LPIPS of rollouts, delta_xyz in metres. Beside them V-JEPA 2-AC 0.15, V-JEPA 2 + WM 0.05."""
TABLE_S2 = _rows(
    ("idm", "controller", "ratio", "ate", "rpe"),
    ("sparse", "low", (0.23, 0.25, 1.11, 1.68, 0.48)),
    ("sparse", "mid", (0.19, 0.23, 1.16, 1.45, 0.41)),
    ("sparse", "high", (0.17, 0.26, 1.51, 1.43, 0.42)),
    ("noisy", "low", (0.24, 0.24, 0.99, 2.06, 0.55)),
    ("noisy", "mid", (0.17, 0.21, 1.23, 1.49, 0.41)),
    ("noisy", "high", (0.17, 0.22, 1.29, 1.40, 0.40)),
    ("discrete", "low", (0.24, 0.24, 1.00, 1.81, 0.51)),
    ("discrete", "high", (0.20, 0.21, 1.06, 1.48, 0.42)),
)
"""RECON: LPIPS of rollouts, ATE and RPE in units of the 0.25 m waypoint spacing. Beside them NoMaD 1.93 and 0.52, NWM
1.13 and 0.35."""
TABLE_S3 = _rows(
    ("controller", "delta_xyz"),
    ("sparse", "0 %", (0.14, 0.14)),
    ("sparse", "10 %", (0.14, 0.13)),
    ("sparse", "25 %", (0.12, 0.14)),
    ("sparse", "50 %", (0.11, 0.09)),
    ("sparse", "75 %", (0.10, 0.09)),
    ("sparse", "90 %", (0.10, 0.08)),
    ("sparse", "100 %", (0.10, 0.08)),
    ("noisy", "0 %", (0.11, 0.14)),
    ("noisy", "10 %", (0.10, 0.09)),
    ("noisy", "25 %", (0.10, 0.09)),
    ("noisy", "50 %", (0.10, 0.09)),
    ("noisy", "75 %", (0.10, 0.06)),
    ("noisy", "90 %", (0.10, 0.06)),
    ("noisy", "100 %", (None, 0.07)),
)
"""Share of DROID among the training clips. The last LPIPS of noisy latents is printed as 0.9, evidently a slip."""
REPORT1 = _rows(
    ("without_change", "with_change", "ratio"),
    ("sparse", "high", (0.266, 0.469, 1.76)),
    ("sparse", "low", (0.268, 0.467, 1.74)),
    ("noisy", "high", (0.271, 0.457, 1.69)),
    ("noisy", "low", (0.272, 0.459, 1.69)),
    ("discrete", "high", (0.270, 0.461, 1.71)),
    ("discrete", "low", (0.277, 0.469, 1.69)),
)
"""Scene cuts on Something-Something-v2, L1 of states."""
REPORT2 = _rows(
    ("original", "transfer", "ratio"),
    ("sparse", "high", (0.275, 0.275, 1.00)),
    ("sparse", "low", (0.269, 0.269, 1.00)),
    ("noisy", "high", (0.271, 0.271, 1.00)),
    ("noisy", "low", (0.272, 0.272, 1.00)),
    ("discrete", "high", (0.270, 0.277, 1.03)),
    ("discrete", "low", (0.272, 0.275, 1.01)),
)
"""Cycles on Something-Something-v2, L1. The report says that 1.00 of its continuous rows comes from a known bug."""
REPORT3 = _rows(
    ("cosine", "plan_confidence", "plan_error", "inverse_mse"),
    ("sparse", "high", (0.95, 0.183, 0.077, 3.8)),
    ("sparse", "low", (0.95, 0.462, 0.086, 4.1)),
    ("noisy", "high", (0.42, 0.994, 0.094, 3.9)),
    ("noisy", "low", (0.42, 0.989, 0.098, 3.7)),
)
"""Planning on DROID by the nearest of 512 latent sequences."""
