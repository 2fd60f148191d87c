"""ffmpeg itself (the program that imageio-ffmpeg brings along), which knows nothing of this code: what files hold."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

PROGRAM: str = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments: object) -> bytes:
    """Runs it; what it wrote to standard output. Raises RuntimeError with what it said."""
    asked = [PROGRAM, "-nostdin", "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    done = subprocess.run(asked, capture_output=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(asked[5:])}: {done.stderr.decode(errors='replace')[-400:]}")
    return done.stdout


def pictures(path: Path, width: int, height: int, filters: str = "null", stream: str = "0:v:0") -> np.ndarray:
    """All pictures that a full decode shows: uint8 RGB [F, height, width, 3]; turned as the file says."""
    wanted = ["-map", stream, "-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(ffmpeg("-i", path, *wanted), np.uint8).reshape(-1, height, width, 3)
