"""A data set that LeRobot itself has written (0.4.4), read here and by LeRobot's own reader.

`golden/lerobot.tar.gz` is what `write` below makes. LeRobot's reader gives each step the frame of its number;
where `lerobot` can be imported, a set is written anew and both readers are compared, step by step.
"""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import number_of, picture

from lawm.config import ClipSpec, VideoLimits
from lawm.data import ReadSpec, Recording, layout
from lawm.video import decode_clip

LENGTHS, FPS = (9, 14, 11), 15
GOLDEN = Path(__file__).parent.parent / "golden/lerobot.tar.gz"


def write(root: Path) -> None:
    """Frame i of episode e shows 256 e + i; its action is [i, e]. With LeRobot's own writer."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    video = {"dtype": "video", "shape": (120, 160, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": names, "action": names, "observation.images.front": video}
    made = LeRobotDataset.create("me/set", FPS, features, root=root, use_videos=True, vcodec="h264")
    for e, length in enumerate(LENGTHS):
        for i in range(length):
            numbers = {"observation.state": np.float32([e, i]), "action": np.float32([i, e]), "task": "t"}
            made.add_frame(numbers | {"observation.images.front": picture(256 * e + i, 160, 120)})
        made.save_episode()
    made.finalize()


def read(root: Path) -> list[Recording]:
    how = layout("lerobot")
    spec = how.choices(str(root), ReadSpec("lerobot"))
    return [r for batch in how.batches(str(root), spec) for r in how.read(batch, spec, "")]


def shown(found: Recording, step: int, length: int) -> int:
    start = min(step, length - 2)
    clip = decode_clip(found.ref, start / FPS, ClipSpec(frames=2, fps=FPS, size=96), VideoLimits())
    return number_of(clip.frames_FCHW[step - start])


def test_what_lerobot_has_written(tmp_path: Path) -> None:
    with tarfile.open(GOLDEN) as tar:
        tar.extractall(tmp_path, filter="data")
    for e, found in enumerate(read(tmp_path / "set")):
        assert (found.ref.key, found.reason, found.note) == (f"front/episode_{e:06d}", None, None)
        assert found.labels is not None
        assert found.labels.actions.tolist() == [[i, e] for i in range(LENGTHS[e])]
        assert [shown(found, i, LENGTHS[e]) for i in range(LENGTHS[e])] == [256 * e + i for i in range(LENGTHS[e])]


class _Frames:
    """What torchvision.io.VideoReader over PyAV was, for versions that have it no more."""

    def __init__(self, path: str, stream: str = "video") -> None:
        import av

        self.container = av.open(str(path))

    def seek(self, at: float, keyframes_only: bool = True) -> None:
        self.container.seek(int(at * 1e6), backward=True)

    def __iter__(self) -> Any:
        import torch

        for frame in self.container.decode(video=0):
            data = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"pts": float(frame.pts * frame.time_base), "data": data}  # type: ignore[operator]


def test_lerobots_own_reader_shows_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lerobot")
    import torchvision
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if not hasattr(torchvision.io, "VideoReader"):
        monkeypatch.setattr(torchvision.io, "VideoReader", _Frames, raising=False)
        monkeypatch.setattr(torchvision, "set_video_backend", lambda name: None, raising=False)
    write(tmp_path / "set")
    theirs = LeRobotDataset("me/set", root=tmp_path / "set", video_backend="pyav")
    ours = read(tmp_path / "set")
    assert len(theirs) == sum(LENGTHS)
    for place in range(len(theirs)):
        step = theirs[place]
        e, i = int(step["episode_index"]), int(step["frame_index"])
        frame = (step["observation.images.front"].numpy() * 255).astype(np.uint8)[:, 7:112, 27:132]  # as a clip is cut
        assert number_of(frame) == shown(ours[e], i, LENGTHS[e]) == 256 * e + i
        assert ours[e].labels is not None
        np.testing.assert_array_equal(step["action"].numpy(), ours[e].labels.actions[i])
