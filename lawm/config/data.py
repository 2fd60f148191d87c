"""Videos, clips, and where they come from."""

from typing import Literal

from pydantic import Field

from lawm.config.base import Frozen


class ClipSpec(Frozen):
    """A clip: `frames` frames at `fps` of physical time, `size` x `size` pixels (paper: 16, 4, 256)."""

    frames: int = Field(16, ge=2, le=512)
    fps: float = Field(4.0, gt=0, le=240)
    size: int = Field(256, ge=16, le=2048)
    crop: Literal["center", "random_resized"] = "center"
    """`center`: short side to `short_side`, centre crop. `random_resized`: one random crop a clip."""
    start: Literal["exact", "keyframe"] = "exact"
    """`exact`: the clip starts when the plan says. `keyframe`: the start moves to the nearest key frame (the
    clip says where it really starts), which saves decoding up to there. Labelled and cached data need `exact`."""
    loop_filter: Literal["exact", "skip"] = "exact"
    """`skip`: H.264 and HEVC are decoded without their in-loop filters: faster, and the pictures differ from the true
    ones by about what a lossy copy does (`benchmarks.decode` says how much of both). For clips that are decoded while
    training; caches and prepared shards are made from exact pictures."""
    placement: Literal["jittered", "aligned"] = "jittered"
    """Where clips start in a video: anywhere on the 1/fps grid, or at multiples of the clip's length, so that each
    epoch has the same clips. A state cache of an encoder that looks back in time needs `aligned`."""
    duplicate: int = Field(1, ge=1, le=2)
    """Each frame repeated this often before encoding, so that one state is one frame even behind
    a tubelet of two (paper, appendix A, controller training)."""

    @property
    def seconds(self) -> float:
        """Seconds from the first to the last frame of a clip."""
        return (self.frames - 1) / self.fps

    @property
    def short_side(self) -> int:
        """The shorter side of the resized picture that a centre crop is cut from, pixels (V-JEPA 2: 292 for 256)."""
        return round(self.size * 292 / 256)


class VideoLimits(Frozen):
    """What a single video may cost; beyond it the video is refused with a reason."""

    max_pixels: int = Field(8192 * 4320, ge=1)
    """Width times height, in pixels."""
    max_seconds: float = Field(6 * 3600.0, gt=0)
    max_bytes: int = Field(16 * 2**30, ge=1)
    timeout_s: float = Field(60.0, gt=0)
    """Wall-clock seconds that probing or decoding one clip may take."""


class Source(Frozen):
    """One part of a mixture: an index or a cache, and what goes with it (see DataConfig)."""

    index: str | None = None
    cache: str | None = None
    labels: str | None = None
    keys: str | None = None
    weight: float = Field(1.0, ge=0)
    """Its share of the clips, relative to the other sources'."""


class DataConfig(Frozen):
    """Where clips come from: an `index`, a `cache` of states, or a `mixture` (`lawm train --videos` indexes first)."""

    index: str | None = None
    """URI of an index (Parquet) as written by `lawm index`."""
    cache: str | None = None
    """URI of a state cache as written by `lawm encode`; frames are then neither decoded nor encoded."""
    mixture: tuple[Source, ...] = ()
    """Several sources in fixed shares, instead of `index` and `cache` (training and validation)."""
    cache_dtype: Literal["float16", "bfloat16"] = "float16"
    """What `lawm encode` writes; bfloat16 for states beyond float16's range."""
    labels: str | None = None
    """URI of a Parquet table of actions (see lawm/data/labels.py)."""
    keys: str | None = None
    """Only videos whose key matches this pattern (as in `pusht-*`); None: all."""
    clip: ClipSpec = ClipSpec()
    clips_per_video: int | Literal["duration"] = "duration"
    """Clips drawn from each video per epoch; `duration`: as many as fit end to end."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the videos held out; by a hash of the video's key, so that it never depends on order."""
    train_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the videos trained on that are used (figure 12's data quantity); by hash, smaller shares lie within
    larger ones, and the held-out videos stay the same."""
    seed: int = 0
    limits: VideoLimits = VideoLimits()
    max_bad_fraction: float = Field(0.5, ge=0, lt=1)
    """Quarantined clips are replaced by later ones of the plan; beyond this share the run stops."""

    @property
    def cached(self) -> bool:
        """Whether states come from caches, and not from videos."""
        sources = [source for source in self.mixture if source.weight > 0]
        return all(source.cache is not None for source in sources) if sources else self.cache is not None

    @property
    def given(self) -> bool:
        """Whether it says where clips come from."""
        return bool(self.index or self.cache or self.mixture)
