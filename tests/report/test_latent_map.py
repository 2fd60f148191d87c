"""The picture of drawn latents keeps apart what is apart, by UMAP and without it."""

import sys

import numpy as np
import pytest

from lawm.report import latent_map


def places(points, name: str) -> np.ndarray:
    group = next(one for one in points.groups if one.name == name)
    return np.array([[a.value, b.value] for a, b in zip(group.x, group.y, strict=True)])


@pytest.mark.parametrize("umap", [True, False])
def test_sets_that_lie_apart_are_drawn_apart(umap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if umap:
        pytest.importorskip("umap")
    else:
        monkeypatch.setitem(sys.modules, "umap", None)
    rng = np.random.default_rng(0)
    inferred = rng.normal(size=(500, 8))
    apart = latent_map("t", inferred, rng.normal(size=(500, 8)) + 6)
    alike = latent_map("t", inferred, rng.normal(size=(500, 8)))

    def gap(points) -> float:
        a, b = places(points, "inferred"), places(points, "drawn")
        return float(np.linalg.norm(a.mean(0) - b.mean(0)) / (a.std() + b.std()))

    assert gap(apart) > 1.5 and gap(alike) < 0.5
    assert len(places(apart, "drawn")) == 300 and ("by UMAP" in apart.caption) == umap


def test_latents_of_one_number_are_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    found = latent_map("t", np.arange(5.0)[:, None], np.ones((3, 1)))
    assert places(found, "inferred").shape == (5, 2) and "of the variance" in found.x_label
