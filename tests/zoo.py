"""Bad and odd video files, made from small good ones: what `lawm index` and decoding have to live with.

python -m tests.zoo FOLDER    # writes them, to look at
"""

import gzip
import io
import os
import struct
import sys
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from made_videos import picture, write_video

RATE, FRAMES = 30, 90
SEEDS = range(8)


def good_ones(folder: Path) -> dict[str, Path]:
    """Undamaged videos that show frame n at n / 30 s, in many containers, codecs and formats."""
    made: dict[str, Path] = {}

    def write(name: str, **options: object) -> None:
        made[name] = folder / name
        write_video(made[name], FRAMES, rate=RATE, **options)  # type: ignore[arg-type]

    write("plain.mp4")
    write("faststart.mp4", container_options={"movflags": "faststart"})
    write("fragmented.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    write("short_gop.mkv", gop=10)
    write("b_frames.mp4", options={"bf": "3", "b-pyramid": "normal"}, gop=30)
    write("open_gop.mp4", options={"bf": "3", "x264-params": "open-gop=1"}, gop=20)
    write("vp9.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, gop=30)
    write("vp8.webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}, gop=30)
    write("av1.mp4", codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}, gop=30)
    write("hevc.mp4", codec="libx265", gop=30)
    write("mpeg4.avi", codec="mpeg4", options={"q": "2"}, gop=12)
    write("mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p", options={"q": "2"})
    write("stream.ts", gop=30)
    write("flash.flv", gop=30)
    write("quick.mov", gop=30)
    write("ten_bit.mp4", pix_fmt="yuv420p10le")
    write("four_four_four.mp4", pix_fmt="yuv444p")
    write("odd_size.webm", codec="libvpx-vp9", width=161, height=121, options={"deadline": "realtime", "cpu-used": "8"})
    write("tiny_picture.mp4", width=64, height=48)
    write("sound.mp4", audio=True)
    write("named_wrong.avi", format="mp4")
    write("name without suffix but.mp4")
    write("ümläut 影片 🎬.mp4")
    write("lossless.mkv", codec="ffv1")
    return made


def odd_times(folder: Path) -> dict[str, Path]:
    """Whole videos whose frames are not at n / 30 s."""
    made: dict[str, Path] = {}

    def write(name: str, frames: int = FRAMES, **options: object) -> None:
        made[name] = folder / name
        write_video(made[name], frames, **{"rate": RATE, **options})  # type: ignore[arg-type]

    write("variable.mkv", times=[Fraction(n, 30) + (Fraction(1, 90) if n % 3 == 0 else 0) for n in range(FRAMES)])
    write("late_start.mkv", times=[Fraction(n, 30) + 7 for n in range(FRAMES)])
    write("gap.mp4", times=[Fraction(n, 30) + (5 if n > 45 else 0) for n in range(FRAMES)])
    write("slow.mp4", 8, rate=2)
    write("one_frame.mp4", 1)
    write("two_frames.mp4", 2)
    write("fast.mp4", 200, rate=120)
    for degrees in (90, 180, 270):
        write(f"turned_{degrees}.mp4", rotation=degrees)
    write("strip.mp4", width=640, height=32)
    made["same_time.mkv"] = folder / "same_time.mkv"
    write_video(made["same_time.mkv"], 20, times=[Fraction(n, 100_000) for n in range(20)])
    return made


def damaged(folder: Path, good: dict[str, Path]) -> dict[str, Path]:
    """Cut off, bytes flipped, zeros, and files that are no videos at all."""
    made: dict[str, Path] = {}

    def put(name: str, data: bytes) -> None:
        made[name] = folder / name
        made[name].write_bytes(data)

    for source in ("plain.mp4", "faststart.mp4", "short_gop.mkv", "vp9.webm", "stream.ts", "mpeg4.avi"):
        data = good[source].read_bytes()
        for share in (0.02, 0.5, 0.97):
            put(f"cut_{share:g}_{source}", data[: int(len(data) * share)])
    for seed in SEEDS:
        source = ("faststart.mp4", "short_gop.mkv", "vp9.webm", "stream.ts")[seed % 4]
        changed = bytearray(good[source].read_bytes())
        generator = np.random.default_rng(seed)
        for at in generator.integers(0, len(changed), 1 + 8 * seed):
            changed[at] ^= 1 << int(generator.integers(8))
        put(f"flipped_{seed}_{source}", bytes(changed))
    plain = good["plain.mp4"].read_bytes()
    put("hole_faststart.mp4", good["faststart.mp4"].read_bytes()[:9000] + bytes(8000) + plain[17000:])
    put("empty.mp4", b"")
    put("one_byte.mp4", b"\0")
    put("zeros.mp4", bytes(100_000))
    put("noise.mkv", np.random.default_rng(0).bytes(50_000))
    put("page.mp4", b"<html><body>403 Forbidden</body></html>")
    put("zipped.mp4", gzip.compress(plain))
    put("garbage_before.mp4", b"x" * 333 + plain)
    put("twice.mp4", plain + plain)
    put("header_only.webm", good["vp9.webm"].read_bytes()[:40])
    put("playlist.ts", b"#EXTM3U\n#EXTINF:3,\nfile:///etc/passwd\n")
    huge = bytearray(good["faststart.mp4"].read_bytes())
    for box in (b"tkhd", b"avc1"):
        at = huge.find(box)
        place = at + (80 if box == b"tkhd" else 28)
        huge[place : place + 4] = struct.pack(">HH", 65535, 65535)
    put("huge.mp4", bytes(huge))
    counts = bytearray(good["faststart.mp4"].read_bytes())
    at = counts.find(b"stts")
    counts[at + 12 : at + 16] = struct.pack(">I", 0x7FFFFFFF)
    put("many_samples.mp4", bytes(counts))
    with av.open(str(folder / "sound_only.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    made["sound_only.mp4"] = folder / "sound_only.mp4"
    with av.open(str(folder / "cover_only.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0, 64, 48), format="rgb24")))
        container.mux(cover.encode())
    made["cover_only.mp4"] = folder / "cover_only.mp4"
    return made


def tars(folder: Path, good: dict[str, Path]) -> list[Path]:
    """Tars that are odd, damaged or hostile."""
    plain = good["plain.mp4"].read_bytes()

    def member(tar: tarfile.TarFile, name: str, data: bytes = plain, **fields: object) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data) if info.isreg() else None)

    def make(name: str) -> tarfile.TarFile:
        return tarfile.open(folder / name, "w")

    with make("traversal.tar") as tar:
        member(tar, "../../../../tmp/escaped.mp4")
        member(tar, "/absolute.mp4")
    with make("links.tar") as tar:
        member(tar, "real.mp4")
        for name, kind in (
            ("soft.mp4", tarfile.SYMTYPE),
            ("hard.mp4", tarfile.LNKTYPE),
            ("device.mp4", tarfile.CHRTYPE),
        ):
            member(tar, name, b"", type=kind, linkname="/etc/passwd")
    with make("duplicates.tar") as tar:
        for _ in range(3):
            member(tar, "same.mp4")
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        member(tar, "deep.mp4")
    with make("nested.tar") as tar:
        member(tar, "inner.tar", inner.getvalue())
        member(tar, "beside.mp4")
    with make("whole.tar") as tar:
        for i in range(3):
            member(tar, f"{i}.mp4")
    whole = (folder / "whole.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "squeezed.tar").write_bytes(gzip.compress(whole))
    (folder / "noise.tar").write_bytes(np.random.default_rng(1).bytes(20_000))
    (folder / "empty.tar").write_bytes(b"")
    names = ("traversal", "links", "duplicates", "nested", "whole", "cut", "squeezed", "noise", "empty")
    return [folder / f"{name}.tar" for name in names]


def main(folder: str) -> None:
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    good = good_ones(root)
    print(
        len(good) + len(odd_times(root)) + len(damaged(root, good)) + len(tars(root, good)), "files in", os.fspath(root)
    )


if __name__ == "__main__":
    main(sys.argv[1])
