"""Mixtures: fixed shares, each source's clips once an epoch of its own, resumable, the same on Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SmallSet, losses, tiny_with, write_small_set

from jobs import train
from lawm.cluster.encode import encode_index
from lawm.cluster.fit import fit
from lawm.cluster.session import Session
from lawm.config import ClipSpec, Config, LawmError, override
from lawm.data import Cursor, Index, open_reader, rows_to_table
from lawm.data.clips import MixedReader
from lawm.data.sampling import MixturePlan, SamplingPlan
from lawm.training import fit_local, load_checkpoint, local_batches
from lawm.video import VideoRef, empty_row

CLIP = ClipSpec(frames=4, fps=4.0)


def plan_of(videos: int, seed: int = 0) -> SamplingPlan:
    rows = [empty_row(VideoRef("/v", 0, 1, f"v{n}")) | {"duration_s": 9.0, "rate": 10.0} for n in range(videos)]
    return SamplingPlan(Index(rows_to_table(rows)), CLIP, seed=seed)


def test_shares_hold_in_every_block_and_each_clip_comes_once() -> None:
    plans = [plan_of(40), plan_of(300), plan_of(7)]
    mixture = MixturePlan(plans, [1, 2.5, 0.5], seed=3)
    assert mixture.shares.tolist() == [250, 625, 125]
    n = len(mixture)
    assert n % 1000 == 0 and n // 1000 * 625 >= len(plans[1]) > (n // 1000 - 1) * 625
    source, local = mixture.locate(np.arange(2 * n))
    for block in range(2 * n // 1000):
        part = source[block * 1000 : (block + 1) * 1000]
        assert np.bincount(part).tolist() == [250, 625, 125]
        assert len(set(part[:40].tolist())) == 3  # mixed, not one source after the other
    for s in range(3):
        assert sorted(local[source == s]) == list(range(int((source == s).sum())))
    assert not np.array_equal(source[:1000], source[1000:2000])
    some = np.array([5, 999, 1000, 12_345 % n])
    np.testing.assert_array_equal(mixture.locate(some)[1], local[some])
    assert mixture.fingerprint() != MixturePlan(plans, [1, 2.4, 0.6], seed=3).fingerprint()


def test_shares_that_make_no_sense_are_refused() -> None:
    with pytest.raises(LawmError, match="source 1 of the mixture has less than 1 in 1000"):
        MixturePlan([plan_of(3), plan_of(3)], [1.0, 1e-5])
    with pytest.raises(LawmError, match="positive weight"):
        MixturePlan([plan_of(3)], [0.0])


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory, make_video: Any) -> tuple[SmallSet, SmallSet]:
    root = tmp_path_factory.mktemp("mixture")
    return write_small_set(root / "a", make_video, 6), write_small_set(root / "b", make_video, 9)


def mixed_config(one: SmallSet, other: SmallSet, **fields: Any) -> Config:
    sources = [{"index": one.index, "weight": 0.25}, {"index": other.index, "labels": other.labels, "weight": 0.75}]
    steps = {"train__steps": 6, "train__checkpoint_every": 3, "train__log_every": 1, "cluster__max_failures": 0}
    return tiny_with(**{"data__mixture": sources, **steps, **fields})


def test_batches_hold_the_shares(two_sets: tuple[SmallSet, SmallSet]) -> None:
    config = mixed_config(*two_sets, data__val_fraction=0)
    reader = open_reader(config, "latent_action")
    assert isinstance(reader, MixedReader) and reader.caches == []
    found = [reader.sample(p) for p in range(200)]
    first = [i for i, s in enumerate(found) if reader.plan.locate([i])[0][0] == 0]
    assert 30 < len(first) < 70 and [s.position for s in found] == list(range(200))
    batch = next(local_batches(reader, 8, Cursor(3)))
    assert batch.positions_B.tolist() == list(range(3, 11)) and batch.actions_BTA is None  # one source has none
    only = open_reader(config, "controller")
    assert isinstance(only, MixedReader) and only.numbers == (1,)
    none = override(config, "data.mixture", [{"index": two_sets[0].index, "weight": 0}])
    with pytest.raises(LawmError, match="no source with a weight above 0"):
        open_reader(none, "latent_action")


@pytest.mark.slow  # batches and a killed plain run of a mixture are quick
def test_a_mixture_trains_and_resumes_the_same_on_ray_and_without(
    ray_cluster: Session, two_sets: tuple[SmallSet, SmallSet], tmp_path: Path
) -> None:
    config = mixed_config(*two_sets)
    plain = fit_local(config, "latent_action", str(tmp_path / "plain"))
    assert load_checkpoint(plain).metrics["val_prediction"] > 0
    assert load_checkpoint(plain).cursor == Cursor(24)
    on_ray = fit(config, "latent_action", str(tmp_path / "ray"))
    assert losses(str(tmp_path / "ray")) == pytest.approx(losses(str(tmp_path / "plain")), rel=1e-5)
    assert load_checkpoint(on_ray).cursor == Cursor(24)

    class Cut(Exception):
        pass

    def cut(step: int, metrics: dict[str, float]) -> None:
        if step == 4:
            raise Cut

    with pytest.raises(Cut):
        fit_local(config, "latent_action", str(tmp_path / "cut"), progress=cut)
    fit_local(config, "latent_action", str(tmp_path / "cut"))
    assert losses(str(tmp_path / "cut")) == pytest.approx(losses(str(tmp_path / "plain")), rel=1e-6)
    other = mixed_config(*reversed(two_sets))
    with pytest.raises(LawmError, match=r"data\.mixture"):
        fit_local(other, "latent_action", str(tmp_path / "plain"))


def test_a_mixture_of_caches(ray_cluster: Session, two_sets: tuple[SmallSet, SmallSet], tmp_path: Path) -> None:
    uris = []
    for i, small in enumerate(two_sets):
        uris.append(str(tmp_path / f"cache{i}"))
        encode_index(tiny_with(data__index=small.index), uris[-1])
    sources = [{"cache": uri, "weight": w} for uri, w in zip(uris, (0.25, 0.75), strict=True)]
    config = override(mixed_config(*two_sets), "data.mixture", sources)
    assert config.data.cached
    fit_local(config, "latent_action", str(tmp_path / "cached"))
    fit_local(mixed_config(*two_sets), "latent_action", str(tmp_path / "videos"))
    assert losses(str(tmp_path / "cached")) == pytest.approx(losses(str(tmp_path / "videos")), rel=2e-3)
    both = [{"index": two_sets[0].index}, {"cache": uris[1]}]
    with pytest.raises(LawmError, match="of indexes or of caches, not of both"):
        open_reader(override(config, "data.mixture", both), "latent_action")


def test_the_command_line(two_sets: tuple[SmallSet, SmallSet], tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "run")
    base = ["--recipe", "tiny", "--set", "train.steps=2", "--plain", "--out"]
    fast = [*base, out]
    mix = ["--mix", f"{two_sets[0].index}=1", "--mix", f"{two_sets[1].index}=3"]
    assert train.main([*fast, *mix]) == 0
    said = json.loads((tmp_path / "run/config.json").read_text())["data"]["mixture"]
    assert [source["weight"] for source in said] == [1.0, 3.0]
    capsys.readouterr()
    for wrong, message in (
        (["--mix", two_sets[0].index], "expected INDEX=WEIGHT"),
        ([*mix, "--index", two_sets[0].index], "not both"),
        (["--mix", "none.parquet=1"], "no such file"),
        (["--mix", f"{two_sets[0].index}=-1"], "greater than or equal to 0"),
    ):
        assert train.main([*base, f"{out}-wrong", *wrong, "--dry-run"]) == 2
        assert message in capsys.readouterr().err
