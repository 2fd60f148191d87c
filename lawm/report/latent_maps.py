"""Inferred and drawn latents in a plane, as in figure S1 of Garrido et al. 2026.

By UMAP (McInnes et al. 2018) where the package `umap-learn` is installed, else by the two directions of most variance,
which is said. Both sets are laid out together, so that what lies apart is apart.
"""

import numpy as np

from lawm.report.sections import Estimate, PointGroup, Points

MOST = 300
"""Latents of each set that are drawn, evenly taken."""


def latent_map(title: str, inferred_NZ: np.ndarray, drawn_NZ: np.ndarray, seed: int = 0, said: str = "") -> Points:
    """The picture of inferred and drawn latents, [N, Z] each."""
    sets = [_some(np.asarray(one, np.float64)) for one in (inferred_NZ, drawn_NZ)]
    plane, how, axes = laid_out(np.concatenate(sets), seed)
    groups, start = [], 0
    for name, one in zip(("inferred", "drawn"), sets, strict=True):
        x, y = ([Estimate(float(v), None, None) for v in plane[start : start + len(one), i]] for i in (0, 1))
        groups.append(PointGroup(name, x, y, joined=False))
        start += len(one)
    caption = f"{len(sets[0])} inferred and {len(sets[1])} drawn latents, {how}. {said}".strip()
    return Points(title, groups, *axes, caption)


def laid_out(latents_NZ: np.ndarray, seed: int) -> tuple[np.ndarray, str, tuple[str, str]]:
    """(places [N, 2], how in words, names of the axes)."""
    try:
        import umap
    except ImportError:
        centred = latents_NZ - latents_NZ.mean(0)
        _, values, directions = np.linalg.svd(centred, full_matrices=False)
        share = values[:2] ** 2 / max(float((values**2).sum()), 1e-12)
        names = tuple(f"direction {i + 1}, {part:.0%} of the variance" for i, part in enumerate(share))
        names += ("direction 2",) * (2 - len(names))
        plane = centred @ directions[:2].T
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
        return plane, "in the two directions of most variance (umap-learn is not installed)", (names[0], names[1])
    neighbours = min(15, len(latents_NZ) - 1)
    return umap.UMAP(n_neighbors=neighbours, random_state=seed).fit_transform(latents_NZ), "by UMAP", ("", "")


def _some(latents_NZ: np.ndarray) -> np.ndarray:
    every = np.unique(np.linspace(0, len(latents_NZ) - 1, min(MOST, len(latents_NZ))).round().astype(int))
    return latents_NZ[every]
