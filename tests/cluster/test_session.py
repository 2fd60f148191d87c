"""lawm/cluster/session.py: how needs are placed and refused, how errors read, what a local Ray leaves behind."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from lawm.cluster import machine
from lawm.cluster.session import DECODE, TRAIN, Need, Session, check_resources, explain, first_unplaced, start
from lawm.config import ClusterConfig, LawmError

CPU_NODE = {"CPU": 4.0, "GPU": 0.0, "role": DECODE}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0, "role": TRAIN}
TRAINERS = Need("training worker", count=2, cpus=4, gpus=1, role=TRAIN, lower="cluster.workers=1")
DECODERS = Need("decode task", count=4, cpus=1, role=DECODE)


@pytest.mark.parametrize(
    ("needs", "nodes", "labels", "missing"),
    [
        ([TRAINERS, DECODERS], [CPU_NODE, GPU_NODE], True, None),
        ([DECODERS, TRAINERS], [CPU_NODE, GPU_NODE], False, None),  # CPUs of the GPU node are kept for who needs them
        ([TRAINERS, DECODERS], [GPU_NODE], True, DECODERS),
        ([replace(TRAINERS, count=3)], [CPU_NODE, GPU_NODE], False, replace(TRAINERS, count=3)),
        ([replace(DECODERS, cpus=5)], [CPU_NODE, CPU_NODE], False, replace(DECODERS, cpus=5)),  # not split over nodes
        ([TRAINERS], [], False, TRAINERS),
    ],
)
def test_needs_are_placed_node_by_node(
    needs: list[Need], nodes: list[dict], labels: bool, missing: Need | None
) -> None:
    before = [dict(node) for node in nodes]
    assert first_unplaced(needs, nodes, labels) == missing
    assert nodes == before


def test_too_few_cpus_says_what_is_asked_what_there_is_and_what_to_set(ray_cluster: Session) -> None:
    need = Need("training worker", count=5, cpus=1, lower="cluster.workers=4")
    with pytest.raises(LawmError, match=r"5 x training worker \(1 CPU each\).*has: 4 CPU.*--set cluster\.workers=4"):
        check_resources([need], ClusterConfig())
    check_resources([replace(need, count=4)], ClusterConfig())
    check_resources([need], ClusterConfig(autoscaling=True))
    with pytest.raises(LawmError, match=r"lawm-role=train.*use_labels=false"):
        check_resources([replace(need, count=1, role=TRAIN)], ClusterConfig(use_labels=True))


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process anyway")
def test_the_tests_that_share_a_ray_are_in_one_process(ray_cluster: Session, request: pytest.FixtureRequest) -> None:
    """pytest-xdist 3.8 writes the group into what pytest 9.2 no longer reads, and then starts a Ray in each process."""
    assert request.node.nodeid.endswith("@ray")


def test_a_lawm_error_is_found_below_the_errors_of_ray(ray_cluster: Session) -> None:
    @ray.remote
    def fail() -> None:
        raise LawmError("codec: no such codec. Choose another")

    with pytest.raises(RayTaskError) as caught:
        ray.get(fail.remote())
    said = "codec: no such codec. Choose another"
    assert explain(caught.value) == said
    assert explain(WorkerGroupError("worker 0 failed", {0: caught.value})) == said
    assert explain(ControllerError(WorkerGroupError("worker 0 failed", {0: LawmError(said)}))) == said


def test_a_bug_in_a_task_stays_a_bug(ray_cluster: Session) -> None:
    @ray.remote
    def fail() -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        ray.get(fail.remote())
    assert explain(caught.value) is None


def test_a_bug_while_a_user_error_is_handled_stays_a_bug() -> None:
    try:
        try:
            raise LawmError("no such file")
        except LawmError:
            raise KeyError("typo")  # noqa: B904
    except KeyError as error:
        assert explain(error) is None


def test_the_peak_of_the_object_store_is_seen(ray_cluster: Session) -> None:
    held = ray.put(np.zeros(64 * 2**20, dtype=np.uint8))
    report = ray_cluster.memory_report()
    del held
    assert 64 * 2**20 <= report.peak_store_bytes <= report.store_bytes == 200 * 2**20
    assert "peak" in str(report)


def test_a_start_within_a_session_uses_that_session(ray_cluster: Session) -> None:
    with start() as inner:
        assert inner is ray_cluster
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster listens there"),
        ("http://127.0.0.1:8265", "lawm submit"),
        ("ray://127.0.0.1:10001", "lawm submit"),
        ("nonsense", "expected HOST:PORT"),
    ],
)
def test_a_wrong_ray_address_is_one_line(address: str, said: str) -> None:
    script = (
        "from lawm.cluster.session import start; from lawm.config import LawmError\n"
        "try:\n    with start(): pass\nexcept LawmError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and done.stdout.startswith(f"RAY_ADDRESS={address}") and done.stdout.count("\n") == 1


LOCAL = """
import os, socket, sys
import ray
from lawm.cluster.session import start
before = dict(os.environ)
with start(num_cpus=2, object_store_bytes=100 * 2**20) as session:
    assert session.local
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
    assert session.memory_report().store_bytes > 0  # by gRPC, which must not ask a proxy for this machine
    mine = {p for p in os.listdir(os.environ["TMPDIR"]) if p.startswith("lawm-")}
    assert len(mine) == 1, mine
    port = int(session.address.rpartition(":")[2])
    # Listening sockets of all processes: local address and port, state 0A.
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    gcs = [row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    assert gcs and all("0100007F" in address for address in gcs), gcs
assert dict(os.environ) == before
assert not [p for p in os.listdir(os.environ["TMPDIR"]) if p.startswith("lawm-")]
"""


def test_a_local_ray_needs_no_home_listens_on_loopback_and_cleans_up() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        env |= {"HOME": "/proc/nowhere", "TMPDIR": folder, "RAY_ADDRESS": ""}
        env |= dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
        done = subprocess.run([sys.executable, "-c", LOCAL], env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


def test_the_temp_dir_is_short_and_dead_ones_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        dead = Path(parent, "lawm-dead")
        dead.mkdir()
        (dead / "lock").touch()
        os.utime(dead / "lock", (0, 0))
        alive, lock = machine.temp_dir()
        os.utime(alive / "lock", (0, 0))
        other, other_lock = machine.temp_dir()
        assert not dead.exists() and alive.is_dir() and other.is_dir()
        lock.close()
        other_lock.close()

        deep = Path(parent, "x" * 60)
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        short, lock = machine.temp_dir()
        assert deep not in short.parents
        assert len(str(short)) + machine.SOCKET_TAIL <= machine.SOCKET_PATH_BYTES
        lock.close()
        short.joinpath("lock").unlink()
        short.rmdir()
