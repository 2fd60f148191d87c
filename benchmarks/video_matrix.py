"""Videos of many codecs, containers, orders and rates, each against a full decode by ffmpeg: pictures and times.

Every file is made by the ffmpeg program that imageio-ffmpeg brings along (or is patched from one that was), indexed
with `probe`, and decoded clip by clip: at its own rate from end to end, and at 4 frames a second. The number of frames,
the time and the picture of each frame must be those of `ffmpeg -fps_mode passthrough`, which knows nothing of this
code; or the file is refused with a reason. The last line is one JSON object: files, differences, refused (by reason).
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from benchmarks import _common
from lawm.config import ClipSpec, VideoLimits
from lawm.video import VideoError, VideoRef, decode_clip, probe

FRAMES, WIDE, HIGH, SIZE = 60, 192, 128, 64
SHORT = round(SIZE * 292 / 256)
LIMITS = VideoLimits(timeout_s=30.0)
RATES = ("24000/1001", "25", "30000/1001", "30", "60")


@dataclass(frozen=True)
class Case:
    """One file: the options that ffmpeg makes it with, or a function that makes it of others."""

    name: str
    options: str = ""
    rate: str = "30"
    size: tuple[int, int] = (WIDE, HIGH)
    filters: str = "null"
    after: Callable[["Workshop", Path], None] | None = None
    may_refuse: bool = False
    """Whether a reason is a right answer too; where it is not, a refusal counts as a difference."""


@dataclass
class Finding:
    case: str
    reason: str | None = None
    peer: str | None = None
    """Where ffmpeg's own times are not those of the frames that it was given."""
    wrong: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- making
class Workshop:
    """A folder, the pictures of which every video is made, and ffmpeg."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program: str = imageio_ffmpeg.get_ffmpeg_exe()

    def source(self, size: tuple[int, int]) -> Path:
        """Raw RGB pictures: grey blocks of which a quarter changes each time, so that no two frames are alike."""
        path = self.folder / f"source_{size[0]}x{size[1]}.rgb"
        if not path.exists():
            rng = np.random.default_rng(0)
            blocks = rng.integers(30, 226, (12, 18))
            frames = []
            for _ in range(FRAMES):
                blocks = np.where(rng.random(blocks.shape) < 0.25, rng.integers(30, 226, blocks.shape), blocks)
                y, x = (np.arange(side) * n // side for side, n in ((size[1], 12), (size[0], 18)))
                frames.append(np.repeat(blocks[y[:, None], x][..., None], 3, axis=2).astype(np.uint8))
            path.write_bytes(np.stack(frames).tobytes())
        return path

    def ffmpeg(self, *arguments: object) -> bytes:
        asked = [self.program, "-nostdin", "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
        done = subprocess.run(asked, capture_output=True, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip()[-300:])
        return done.stdout

    def make(self, case: Case) -> Path:
        path = self.folder / case.name.replace(" ", "_")
        if case.options:
            made = path if case.after is None else path.with_name("before_" + path.name)
            raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*case.size), "-r", case.rate]
            self.ffmpeg(*raw, "-i", self.source(case.size), "-vf", case.filters, *case.options.split(), made)
        if case.after is not None:
            case.after(self, path)
        return path


# ---------------------------------------------------------------- comparing
def truth(shop: Workshop, path: Path, wide: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """(seconds [F] from the first frame, RGB [F, SIZE, SIZE, 3]) of all that ffmpeg shows of the file."""
    scale = SHORT / min(wide, high)
    wide, high = round(wide * scale), round(high * scale)
    x, y = round((wide - SIZE) / 2), round((high - SIZE) / 2)
    filters = f"scale={wide}:{high}:flags=bilinear,setsar=1,format=gbrp,crop={SIZE}:{SIZE}:{x}:{y}"
    told, raw = shop.folder / "told.md5", shop.folder / "shown.rgb"
    common = ["-map", "0:v:0", "-vf", filters, "-fps_mode", "passthrough"]
    precise = ["-enc_time_base", "1:1000000"]
    shop.ffmpeg(
        "-i", path, *common, *precise, "-f", "framemd5", told, *common, "-f", "rawvideo", "-pix_fmt", "rgb24", raw
    )
    lines = told.read_text().splitlines()
    tick = next(Fraction(line.split()[-1]) for line in lines if line.startswith("#tb"))
    stamps = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    times = np.array([float((stamp - stamps[0]) * tick) for stamp in stamps])
    return times, np.frombuffer(raw.read_bytes(), np.uint8).reshape(-1, SIZE, SIZE, 3)


def clips_of(rate: float, duration_s: float) -> Iterator[tuple[float, ClipSpec]]:
    """At the video's own rate from end to end, and at 4 frames a second from several starts."""
    every = min(rate, 240.0)
    count = max(2, min(16, int(duration_s * every + 1e-6) - 1))
    last = duration_s - count / every
    for start in np.arange(0.0, last + 1e-6, count / every):
        yield float(start), ClipSpec(frames=count, fps=every, size=SIZE)
    slow = ClipSpec(frames=4, fps=4.0, size=SIZE)
    for start in np.linspace(0.0, max(0.0, duration_s - 0.8), 4):
        yield round(float(start) * rate) / rate, slow


def compare(shop: Workshop, case: Case) -> Finding:
    finding = Finding(case.name)
    path = shop.make(case)
    ref = VideoRef(str(path), 0, path.stat().st_size, path.name)
    row = probe(ref, LIMITS)
    if row["reason"] is not None:
        finding.reason = row["reason"]
        if not case.may_refuse:
            finding.wrong.append(f"refused: {row['reason']}")
        return finding
    times, pictures = truth(shop, path, row["width"], row["height"])
    steady = np.arange(FRAMES) / float(Fraction(case.rate))
    if case.filters == "null" and case.after is None and len(times) == FRAMES and np.abs(times - steady).max() > 0.0025:
        finding.peer = f"ffmpeg shows frame {int(np.argmax(np.abs(times - steady)))} elsewhere than it was put"
        times = steady
    if row["frames"] != len(times):
        finding.wrong.append(f"{row['frames']} frames, ffmpeg shows {len(times)}")
    if len(times) > 1 and abs(row["duration_s"] - 1 / row["rate"] - times[-1]) > 0.003:
        finding.wrong.append(f"ends at {row['duration_s'] - 1 / row['rate']:.4f} s, ffmpeg's at {times[-1]:.4f} s")
    small = pictures.astype(np.float32)
    for start, spec in clips_of(row["rate"], row["duration_s"]):
        finding.wrong += check_clip(ref, start, spec, times, small)
    return finding


def check_clip(ref: VideoRef, start: float, spec: ClipSpec, times: np.ndarray, pictures: np.ndarray) -> list[str]:
    """What is wrong with the clip, by all that ffmpeg shows."""
    wanted = start + np.arange(spec.frames) / spec.fps
    try:
        clip = decode_clip(ref, start, spec, LIMITS)
    except VideoError as error:
        gaps = np.abs(times - wanted[:, None]).min(axis=1) > 0.5 / spec.fps - 0.003
        return [] if np.any(gaps) else [f"at {start:.3f} s {spec.fps:g} fps: {error.why}"]
    wrong = []
    for at, frame, second in zip(wanted, clip.frames_FCHW, clip.seconds_F, strict=True):
        said = f"frame wanted at {at:.4f} s ({spec.fps:g} fps)"
        errors = ((pictures - frame.transpose(1, 2, 0)) ** 2).mean(axis=(1, 2, 3))
        number = int(np.argmin(np.abs(times - second)))
        if abs(times[number] - second) > 0.0025:
            wrong.append(f"{said}: ffmpeg shows none at {second:.4f} s")
        elif errors[number] > errors.min() + 1:  # black pictures are alike
            wrong.append(f"{said}: shows that of {times[np.argmin(errors)]:.4f} s, says {second:.4f} s")
        if errors.min() > 255**2 / 10**2.8:
            wrong.append(f"{said}: like none that ffmpeg shows")
        # On display: the latest that is not after it. Containers round times, often to 1 ms.
        either = [max((t for t in times if t <= at + off), default=0.0) for off in (-0.0025, 0.0025)]
        if at - either[0] < 0.4 / spec.fps and min(abs(t - second) for t in either) > 0.003:
            wrong.append(f"{said}: {second:.4f} s instead of {either[0]:.4f} s")
    return wrong


# ---------------------------------------------------------------- the matrix
H264, HEVC = (
    "-c:v libx264 -preset ultrafast -crf 18",
    "-c:v libx265 -preset ultrafast -crf 18 -x265-params log-level=none",
)
VP8, VP9 = (
    "-c:v libvpx -b:v 2M -deadline realtime -cpu-used 8",
    "-c:v libvpx-vp9 -b:v 2M -deadline realtime -cpu-used 8",
)
MPEG4, MPEG2 = "-c:v mpeg4 -q:v 3", "-c:v mpeg2video -q:v 3"
ALT_REF = "-auto-alt-ref 1 -lag-in-frames 16 -arnr-maxframes 5 -g 30"
B2 = "-bf 2 -b_strategy 0 -g 20 -sc_threshold 0"

PLAIN = {
    # codec: (options, containers)
    "h264": (f"{H264} {B2}", "mp4 mov mkv ts m2ts flv avi asf 3gp mpg"),
    "h264 no b": (f"{H264} -bf 0 -g 20", "mp4 mov mkv ts flv avi asf"),
    "h264 pyramid": (f"{H264} -bf 8 -b_strategy 0 -g 40 -x264-params b-pyramid=normal", "mp4 mkv ts flv avi"),
    "h264 open": (f"{H264} -bf 3 -g 12 -x264-params open-gop=1:b-adapt=0", "mp4 mkv ts flv"),
    "h264 intra": (f"{H264} -g 1", "mp4 avi mkv"),
    "h264 refresh": (f"{H264} -bf 0 -g 20 -x264-params intra-refresh=1", "mp4 mkv ts"),
    "h264 interlaced": (f"{H264} -flags +ilme+ildct {B2}", "mp4 mkv ts"),
    "hevc": (f"{HEVC}:bframes=3:b-adapt=0:keyint=20:open-gop=0", "mp4 mov mkv ts flv avi"),
    "hevc open": (f"{HEVC}:bframes=4:b-adapt=0:keyint=16:open-gop=1", "mp4 mkv ts"),
    "hevc fields": (f"{HEVC}:interlace=tff:bframes=2:keyint=20", "mp4 mkv ts"),
    "h264 16 b": (f"{H264} -bf 16 -b_strategy 0 -g 40", "mp4 avi ts"),
    "hevc no b": (f"{HEVC}:bframes=0:keyint=20", "mp4 mkv ts"),
    "mpeg4": (f"{MPEG4} -g 20", "avi mp4 mov mkv 3gp asf ts"),
    "mpeg4 b": (f"{MPEG4} -bf 2 -g 20", "avi mp4 mov mkv asf ts"),
    "xvid b": ("-c:v libxvid -q:v 3 -bf 2 -g 20", "avi mp4 mkv"),
    "mpeg2": (f"{MPEG2} -g 15", "mpg ts mkv mov mp4 avi vob"),
    "mpeg2 b": (f"{MPEG2} -bf 2 -g 15", "mpg ts mkv mov mp4 avi vob"),
    "mpeg2 interlaced": (f"{MPEG2} -bf 2 -g 15 -flags +ilme+ildct", "mpg ts"),
    "mpeg1": ("-c:v mpeg1video -q:v 3 -bf 2 -g 15", "mpg mkv avi"),
    "vp8": (f"{VP8} -g 20", "webm mkv ivf avi"),
    "vp8 hidden": (f"-c:v libvpx -b:v 2M {ALT_REF} -cpu-used 4", "webm mkv ivf avi"),
    "vp9": (f"{VP9} -g 20", "webm mkv mp4 ivf"),
    "vp9 hidden": (f"-c:v libvpx-vp9 -b:v 2M {ALT_REF} -cpu-used 5", "webm mkv mp4 ivf"),
    "av1": ("-c:v libsvtav1 -preset 12 -crf 20 -g 20", "mp4 mkv webm ivf"),
    "av1 aom": ("-c:v libaom-av1 -cpu-used 8 -crf 20 -lag-in-frames 19 -g 30 -usage good", "mp4 mkv"),
    "mjpeg": ("-c:v mjpeg -q:v 3", "avi mov mkv mp4 asf"),
    "prores": ("-c:v prores_ks", "mov mkv"),
    "theora": ("-c:v libtheora -q:v 8 -g 20", "ogv mkv"),
    "wmv1": ("-c:v wmv1 -q:v 3", "asf avi"),
    "wmv2": ("-c:v wmv2 -q:v 3", "asf avi mkv"),
    "msmpeg4": ("-c:v msmpeg4 -q:v 3", "avi asf"),
    "msmpeg4v2": ("-c:v msmpeg4v2 -q:v 3", "avi"),
    "flv1": ("-c:v flv -q:v 3", "flv avi"),
    "h263p": ("-c:v h263p -q:v 3", "avi mov"),
    "ffv1": ("-c:v ffv1", "mkv avi mov"),
    "huffyuv": ("-c:v huffyuv", "avi mkv"),
    "utvideo": ("-c:v utvideo", "avi mkv"),
    "magicyuv": ("-c:v magicyuv", "avi mkv"),
    "raw": ("-c:v rawvideo -pix_fmt yuv420p", "avi mkv"),
    "raw 422": ("-c:v rawvideo -pix_fmt uyvy422", "avi mov"),
    "raw rgb": ("-c:v rawvideo -pix_fmt bgr24", "avi mov"),
    "png": ("-c:v png", "mov avi mkv"),
    "qtrle": ("-c:v qtrle", "mov"),
    "svq1": ("-c:v svq1 -q:v 3", "mov"),
    "cinepak": ("-c:v cinepak -q:v 1", "avi mov"),
    "msvideo1": ("-c:v msvideo1", "avi"),
    "zmbv": ("-c:v zmbv", "avi"),
    "flashsv": ("-c:v flashsv", "flv"),
    "jpeg2000": ("-c:v jpeg2000 -q:v 3", "mov mkv"),
    "snow": ("-c:v snow -q:v 2", "avi"),
    "asv1": ("-c:v asv1 -q:v 3", "avi"),
}  # fmt: skip
REFUSED = {
    "hevc.avi",  # written by ffmpeg without a name that it knows again
    "xvid b.mp4", "xvid b.mkv",  # two pictures in one packet, and the times of others
}  # fmt: skip
RATED = {
    "h264": (f"{H264} {B2}", "mp4 mkv ts flv avi"), "hevc": (f"{HEVC}:bframes=3:keyint=20", "mp4 mkv"),
    "mpeg4": (f"{MPEG4} -bf 2 -g 20", "avi mp4 asf"), "mpeg2": (f"{MPEG2} -bf 2 -g 15", "mpg ts"),
    "vp9": (f"{VP9} -g 20", "webm"), "theora": ("-c:v libtheora -q:v 8", "ogv"), "wmv2": ("-c:v wmv2 -q:v 3", "asf"),
    "mjpeg": ("-c:v mjpeg -q:v 3", "avi"),
}  # fmt: skip
UNEVEN = "settb=1/90000,setpts='(N+0.2*mod(N*7\\,5)+3*floor(N/20))/30/TB'"
"""Frames 1/30 s apart and more or less, with a gap of a tenth of a second each 20."""


TWICE = {
    "ts flv mkv mp4 avi asf": f"{H264} {B2}", "mpg vob": f"{MPEG2} -bf 2 -g 15", "ogv": "-c:v libtheora -q:v 8",
    "webm ivf": f"{VP8} -g 20",
}  # fmt: skip
BLACK = "drawbox=c=black:t=fill:enable='{}'"


def cases() -> list[Case]:
    found = [
        Case(f"{name}.{suffix}", options, may_refuse=f"{name}.{suffix}" in REFUSED)
        for name, (options, suffixes) in PLAIN.items()
        for suffix in suffixes.split()
    ]
    for rate in RATES:
        at = rate.replace("/", "_")
        found += [
            Case(f"{name} at {at}.{suffix}", options, rate)
            for name, (options, suffixes) in RATED.items()
            for suffix in suffixes.split()
            if rate != "30"
        ]
    for suffix in ("mp4", "mov", "mkv", "ts", "flv", "avi", "asf"):
        uneven = f"{H264} {B2} -fps_mode passthrough -enc_time_base 1:90000"
        if suffix in ("avi", "asf"):  # hold no times of display
            uneven = f"{MPEG4} -g 20 -fps_mode passthrough" + (" -enc_time_base 1:1000" if suffix == "asf" else "")
        dropped = "select='not(eq(mod(n,5),3))'"
        found.append(Case(f"uneven.{suffix}", uneven, filters=dropped if suffix == "avi" else UNEVEN))
    found.append(Case("uneven.webm", f"{VP9} -fps_mode passthrough -enc_time_base 1:1000", filters=UNEVEN))
    for size in ((171, 133), (98, 66), (66, 130), (258, 66)):
        odd = "-pix_fmt yuv444p" if size[0] % 2 else ""
        said = f"{size[0]}x{size[1]}"
        found += [
            Case(f"h264 {said}.mp4", f"{H264} {B2} {odd}", size=size),
            Case(f"ffv1 {said}.mkv", "-c:v ffv1", size=size),
        ]
        found.append(Case(f"mjpeg {said}.avi", "-c:v mjpeg -q:v 3", size=size))
    for name, extra in {
        "offset.mkv": "-output_ts_offset 7.3", "offset.ts": "-output_ts_offset 1000",
        "wrap.ts": "-output_ts_offset 95441.5",
        "offset.flv": "-output_ts_offset 5",
        "no edit list.mp4": "-use_editlist 0", "fragmented.mp4": "-movflags frag_keyframe+empty_moov",
        "fragmented cmaf.mp4": "-movflags cmaf+frag_keyframe", "faststart.mp4": "-movflags faststart",
        "negative cts.mp4": "-movflags negative_cts_offsets", "timescale.mp4": "-video_track_timescale 600",
        "late.mp4": "-output_ts_offset 2.5", "late no edit list.mp4": "-output_ts_offset 2.5 -use_editlist 0",
    }.items():  # fmt: skip
        found.append(Case(f"h264 {name}", f"{H264} {B2} {extra}"))
    return found + special_cases()


def special_cases() -> list[Case]:
    h264 = f"{H264} {B2}"
    return [
        Case("cut by an edit list.mp4", h264, after=_cut),
        Case("cut by an edit list.mov", h264, after=_cut),
        Case("cut by an edit list open.mp4", f"{H264} -bf 3 -g 12 -x264-params open-gop=1:b-adapt=0", after=_cut),
        Case("cut in a group.ts", f"{H264} -bf 3 -g 12 -x264-params open-gop=1:b-adapt=0", after=_cut_bytes),
        Case("cut in a group mpeg2.ts", f"{MPEG2} -bf 2 -g 12", after=_cut_bytes),
        Case("cut in a group mpeg2.mpg", f"{MPEG2} -bf 2 -g 12", after=_cut_bytes),
        Case("copied from avi.mp4", f"{h264} -f avi", after=_copied, may_refuse=True),
        Case("copied from avi.mkv", f"{h264} -f avi", after=_copied, may_refuse=True),
        Case("copied from avi mpeg4.mp4", f"{MPEG4} -bf 2 -g 20 -f avi", after=_copied, may_refuse=True),
        Case("every frame called a key.mp4", h264, after=_all_keys),
        Case("every frame called a key mpeg4.mp4", f"{MPEG4} -bf 2 -g 20", after=_all_keys),
        Case("packed.avi", f"{MPEG4} -bf 1 -b_strategy 0 -g 20", after=_packed),
        *(
            Case(f"twice.{suffix}", options, after=_twice, may_refuse=True)
            for suffixes, options in TWICE.items()
            for suffix in suffixes.split()
        ),
        Case("joined later.ts", h264, after=_joined_later, may_refuse=True),
        Case("joined brief.ts", f"{h264} -frames:v 6", after=_twice, may_refuse=True),
        Case("black at times.avi", "-c:v rawvideo -pix_fmt bgr24", filters=BLACK.format("eq(mod(n,7),3)")),
        Case("black.mov", "-c:v rawvideo -pix_fmt rgb24", filters=BLACK.format("lt(mod(n,9),4)")),
        Case("raw stream.h264", h264, may_refuse=True),
        Case("raw stream.hevc", HEVC, may_refuse=True),
        Case("raw stream.m4v", f"{MPEG4} -bf 2 -f m4v", may_refuse=True),
        Case("raw stream.m2v", f"{MPEG2} -bf 2", may_refuse=True),
        Case("raw stream.obu", "-c:v libsvtav1 -preset 12", may_refuse=True),
    ]  # fmt: skip


def _before(path: Path) -> Path:
    return path.with_name("before_" + path.name)


def _cut(shop: Workshop, path: Path) -> None:
    """From the middle of a group of pictures on, without encoding: an edit list says from where it is shown."""
    shop.ffmpeg("-ss", "0.91", "-i", _before(path), "-c", "copy", path)


def _cut_bytes(shop: Workshop, path: Path) -> None:
    data = _before(path).read_bytes()
    block = 188 if path.suffix == ".ts" else 2048
    path.write_bytes(data[len(data) // 5 // block * block :])


def _copied(shop: Workshop, path: Path) -> None:
    shop.ffmpeg("-fflags", "+genpts", "-i", _before(path), "-c", "copy", path)


def _all_keys(shop: Workshop, path: Path) -> None:
    """Without the table of key frames every picture counts as one."""
    path.write_bytes(_before(path).read_bytes().replace(b"stss", b"free"))


def _twice(shop: Workshop, path: Path) -> None:
    path.write_bytes(_before(path).read_bytes() * 2)


def _joined_later(shop: Workshop, path: Path) -> None:
    """Two streams of which the second begins after the first has ended."""
    later = path.with_name("later_" + path.name)
    shop.ffmpeg("-i", _before(path), "-c", "copy", "-output_ts_offset", 30, later)
    path.write_bytes(_before(path).read_bytes() + later.read_bytes())


def _packed(shop: Workshop, path: Path) -> None:
    """As DivX 5 wrote B-frames: each with the picture that it refers to, in one packet; an empty one follows."""
    import av

    with av.open(str(_before(path))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        read = [bytes(p) for p in source.demux(video=0) if p.size]
        marker = b"\0\0\1\xb6"
        written: list[bytes] = []
        for data in read:
            bidirectional = data[data.index(marker) + 4] >> 6 == 2
            if bidirectional:
                time_bits = written[-1][written[-1].index(marker) + 4 :][:4]
                written[-1] += data
                written.append(marker + _not_coded(time_bits))
            else:
                written.append(data)
        at = written[0].index(marker)
        written[0] = written[0][:at] + b"\0\0\1\xb2DivX503b1393p\0" + written[0][at:]
        for n, data in enumerate(written):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = n
            packet.is_keyframe = n == 0 or data[data.index(marker) + 4] >> 6 == 0
            out.mux(packet)


def _not_coded(header: bytes) -> bytes:
    """The header of a P-picture at the same time, with vop_coded 0: no picture. `header`: what follows the start code
    of the other, at a resolution of 30 ticks a second (5 bits)."""
    bits = "".join(f"{byte:08b}" for byte in header)
    seconds = re.match("1*0", bits[2:])
    assert seconds is not None
    upto = 2 + seconds.end()
    kept = "01" + bits[2 : upto + 1 + 5 + 1] + "0"
    kept += "0" + "1" * (-(len(kept) + 1) % 8)
    return int(kept, 2).to_bytes(len(kept) // 8, "big")


def run(chosen: list[Case], folder: Path, show: Callable[[str], Any] = print) -> dict[str, Any]:
    """Compares all; what is printed as the last line."""
    shop = Workshop(folder)
    findings, unmade = [], []
    for case in chosen:
        try:
            finding = compare(shop, case)
        except RuntimeError as error:  # this build of ffmpeg cannot make, or not read, such a file
            unmade.append(case.name)
            show(f"{case.name}: not made: {error}")
            continue
        findings.append(finding)
        for said in finding.wrong[:4]:
            show(f"{case.name}: {said}" + (f" ({len(finding.wrong)} in all)" if len(finding.wrong) > 4 else ""))
    reasons = {f.case: f.reason for f in findings if f.reason is not None}
    return {
        "files": len(findings),
        "differences": sum(bool(f.wrong) for f in findings),
        "refused": len(reasons),
        "reasons": reasons,
        "ffmpeg_errs": {f.case: f.peer for f in findings if f.peer is not None},
        "different": [f.case for f in findings if f.wrong],
        "not_made": unmade,
    }


def main(argv: list[str] | None = None) -> int:
    options = _common.parser(__doc__)
    options.add_argument("--only", default="", help="cases whose name contains this")
    asked = options.parse_args(argv)
    chosen = [case for case in cases() if asked.only in case.name]
    chosen = chosen[::8] if asked.quick else chosen
    with tempfile.TemporaryDirectory() as folder:
        figures = run(chosen, Path(folder))
    print(f"{figures['files']} files, {figures['differences']} differences, {figures['refused']} refused")
    for name, reason in figures["reasons"].items():
        print(f"  refused: {name}: {reason}")
    _common.finish("video_matrix", figures, ("av", "numpy", "imageio-ffmpeg"))
    return 0 if figures["differences"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
