"""What tests share: one local Ray for the whole run, and small real videos made with PyAV."""

import os
import sys

# Before anything imports torch or ray; workers inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray Train's controller otherwise looks every two seconds, and each checkpoint waits for it.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
# A Ray starts the worker processes that are asked for, and not one for each CPU beforehand.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
if sys.platform == "linux":
    # gloo otherwise looks this machine's name up, which takes half a minute where there is no name server.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from small_runs import SmallSet

    from lawm.cluster.session import Session

MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server (moto) that this process and Ray's workers use for the whole run."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> "Iterator[Session]":
    """A local Ray with 4 logical CPUs; `session.start` in a job under test finds and uses it.

    No more, as each of them becomes a decode worker that has to start. With the dashboard: Jobs need it, and without it
    a trial that Tune stops leaks its placement group.
    """
    from lawm.cluster.session import start

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with start(num_cpus=4, object_store_bytes=200 * 2**20, include_dashboard=True) as session:
            yield session


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of `-n auto`: the tests that share a Ray are one's, all others the rest's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(2, min(4, cores))


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups, wherever it stands among the plugins
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.xdist_group("ray"))
    yield


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """make_video(path, seconds=3.0, fps=10, size=(64, 48), gop=10): H.264 of a square that moves over noise."""
    import av

    def make(
        path: Path, seconds: float = 3.0, fps: int = 10, size: tuple[int, int] = (64, 48), gop: int = 10, seed: int = 0
    ) -> Path:
        width, height = size
        background = np.random.default_rng(seed).integers(0, 128, (height, width, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"g": str(gop), "crf": "30"})
            stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "yuv420p", Fraction(1, fps)
            for i in range(round(seconds * fps)):
                picture = background.copy()
                left = (3 * i) % (width - 16)
                picture[8:24, left : left + 16] = 255
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return make


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> "SmallSet":
    """Twelve real videos of 3 s, indexed, with labels at 4 Hz. Not to be written to."""
    from small_runs import write_small_set

    return write_small_set(tmp_path_factory.mktemp("small_set"), make_video)
