"""A connection to Ray: the cluster that RAY_ADDRESS names (a submitted job's own), or a local one.

Also here, because all of lawm/cluster needs it: the node labels of cluster.yaml, the check that a
cluster has what a job asks for, the object store's peak, and one-line readings of Ray's errors.
"""

import logging
import os
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray._private import internal_api, ray_constants
from ray._private.parameter import RayParams
from ray._private.state import state as ray_state
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lawm.cluster.errors import causes as causes
from lawm.cluster.errors import explain, first_line
from lawm.cluster.errors import in_short as in_short
from lawm.cluster.errors import is_death as is_death
from lawm.cluster.machine import LOCAL_CPUS, MIB, beside_the_code, cores, plain_python, store_bytes, temp_dir
from lawm.config import ClusterConfig, LawmError

# Read by Ray's libraries when first used, here and in the processes that Ray starts. What a user has set stays.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_AIR_NEW_OUTPUT": "0",
}.items():
    os.environ.setdefault(_name, _value)

ROLE_LABEL = "lawm-role"
"""The node label of cluster.yaml and deploy/; its values:"""
HEAD, DECODE, TRAIN = "head", "decode", "train"


# ---------------------------------------------------------------- starting and connecting
@dataclass
class Session:
    """A live connection. `local`: this process started the cluster and will end it."""

    local: bool
    address: str
    dashboard: str | None
    _monitor: "_StoreMonitor" = field(repr=False)

    def memory_report(self) -> "MemoryReport":
        """Peak use of the object store and bytes spilled since this session began, over all nodes."""
        return self._monitor.report()


_current: Session | None = None


def verbose() -> bool:
    """LAWM_VERBOSE=1 shows Ray's own log and the workers' output on the terminal."""
    return os.environ.get("LAWM_VERBOSE", "") not in ("", "0")


@contextmanager
def start(
    cluster: ClusterConfig | None = None,
    *,
    needs: Sequence["Need"] = (),
    include_dashboard: bool = False,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
) -> Iterator[Session]:
    """Connects to the cluster in RAY_ADDRESS, or starts a local Ray for as long as the block lasts.

    Inside a process that is already connected (a job within a job, a test) that connection is used
    and left open. `needs` are checked once connected. `include_dashboard` is for where Tune stops
    trials: without the dashboard a stopped trial leaks its placement group in Ray 2.60.
    `num_cpus` and `object_store_bytes` hold for a local Ray only. Raises LawmError.
    """
    global _current
    config = cluster or ClusterConfig()
    if ray.is_initialized():
        if _current is not None:
            check_resources(needs, config)
            yield _current
            return
        opened = _attach(local=False)
        closing = _Undo()
    else:
        address = os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE, "")
        closing = _Undo()
        try:
            if address and address != "local":
                _connect(address)
                opened = _attach(local=False)
            else:
                _start_local(closing, include_dashboard, num_cpus, object_store_bytes)
                opened = _attach(local=True)
        except BaseException:
            ray.shutdown()
            closing.run()
            raise
        closing.disconnect = True
    _current = opened
    opened._monitor.start()
    try:
        check_resources(needs, config)
        yield opened
    finally:
        opened._monitor.stop()
        _current = None
        if closing.disconnect:
            ray.shutdown()
        closing.run()


class _Undo:
    """What a local Ray changed in this process and on the disk, put back when it ends."""

    def __init__(self) -> None:
        self.disconnect = False
        # Ray itself sets this one when it connects.
        self.environment: dict[str, str | None] = {"PYTHONBREAKPOINT": os.environ.get("PYTHONBREAKPOINT")}
        self.folder: Path | None = None
        self.lock: Any = None
        self.multi_node: bool | None = None

    def set_env(self, name: str, value: str) -> None:
        self.environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value

    def run(self) -> None:
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.multi_node is not None:
            ray_constants.ENABLE_RAY_CLUSTER = self.multi_node
        if "RAY_AUTH_MODE" in self.environment:
            _reread_auth()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()


def _attach(local: bool) -> Session:
    context = ray.get_runtime_context()
    url = getattr(ray._private.worker._global_node, "webui_url", None)
    return Session(local, context.gcs_address, f"http://{url}" if url else None, _StoreMonitor())


def _logging() -> dict[str, Any]:
    loud = verbose()
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if loud else logging.ERROR)
    return {"logging_level": logging.INFO if loud else logging.ERROR, "log_to_driver": loud}


def _connect(address: str) -> None:
    if "://" in address:
        raise LawmError(
            f"RAY_ADDRESS={address}: expected the address of a cluster that this machine is part of (HOST:6379 or "
            "auto). To send a job to a cluster from outside, unset it and use `lawm submit --address URL JOB ...`"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise LawmError(f"RAY_ADDRESS={address}: expected HOST:PORT, auto or local")
    if address != "auto" and not listens(host, int(port)):
        raise LawmError(f"RAY_ADDRESS={address}: no Ray cluster listens there. Unset it to run on this machine alone")
    try:
        with beside_the_code():
            ray.init(address=address, **_logging())
    except (ConnectionError, RuntimeError, ValueError, ray_errors.RayError) as error:
        raise LawmError(explain(error) or f"RAY_ADDRESS={address}: cannot connect ({first_line(error)})") from error


def listens(host: str, port: int, seconds: float = 5.0) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout=seconds).close()
    except OSError:
        return False
    return True


def _start_local(undo: _Undo, include_dashboard: bool, num_cpus: int | None, store: int | None) -> None:
    undo.folder, undo.lock = temp_dir()
    # Without this Ray binds its servers to all interfaces. The variable tells the processes that Ray starts, the
    # constant (read when ray was imported) tells this one; both make 127.0.0.1 the node's address.
    undo.set_env(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        undo.set_env("GLOO_SOCKET_IFNAME", "lo")  # else it looks this machine's name up, which can take a minute
    # Ray speaks to itself by gRPC, which obeys HTTP_PROXY, and of the exceptions only those in lower case.
    kept = list(filter(None, map(os.environ.get, ("no_grpc_proxy", "no_proxy", "NO_PROXY"))))[:1]
    undo.set_env("no_grpc_proxy", ",".join([*kept, "127.0.0.1", "localhost"]))
    # Of Ray Train, for one machine: no process that asks whether the node is being taken away (each run would wait for
    # its start), and checkpoints that wait for a controller which looks more often than every two seconds.
    for name, value in {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}.items():
        if name not in os.environ:
            undo.set_env(name, value)
    undo.multi_node, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    # Ray guards a new cluster by a token that it writes into the home folder, which may be read-only or shared by
    # machines. This one is the session's own, so that other users of this machine cannot run code here.
    if not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        undo.set_env("RAY_AUTH_MODE", "token")
        undo.set_env("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _reread_auth()
    try:
        with _own_ports(), beside_the_code(), plain_python(undo.folder):
            ray.init(
                address="local",
                num_cpus=num_cpus or max(LOCAL_CPUS, cores()),
                object_store_memory=store or store_bytes(undo.folder),
                include_dashboard=include_dashboard,
                dashboard_host="127.0.0.1",
                _temp_dir=str(undo.folder),
                **_logging(),
            )
    except Exception as error:  # a slow start raises a bare Exception
        log = f"{undo.folder}/session_latest/logs"
        said = explain(error) or f"a local Ray could not be started: {first_line(error)}"
        keep = undo.folder
        if verbose():
            undo.folder = None
            said += f" (logs: {log})"
        else:
            said += " LAWM_VERBOSE=1 shows more"
        if not keep.exists():
            said += f"; {keep} vanished"
        raise LawmError(said) from error


@contextmanager
def _own_ports() -> Iterator[None]:
    """The node's agent takes a free port: Ray's own choice is the same for every Ray of a machine, and jobs then find
    no agent on the second. `ray.init` has no argument for it."""
    known = RayParams.__init__.__defaults__
    taken = ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    RayParams.__init__.__defaults__ = tuple(0 if value == taken else value for value in known or ())
    try:
        yield
    finally:
        RayParams.__init__.__defaults__ = known


def _reread_auth() -> None:
    """Ray's C++ side keeps the mode and the token that it has seen first."""
    RayConfig.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def train_snapshot() -> str:
    """The file in which Ray Train keeps its own list of a run's checkpoints."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    return CHECKPOINT_MANAGER_SNAPSHOT_FILENAME


# ---------------------------------------------------------------- what a job asks for
@dataclass(frozen=True)
class Need:
    """`count` processes that each hold `cpus` and `gpus` of one node at the same time.

    `role` is the node label that they are placed by (ROLE_LABEL) when `cluster.use_labels`;
    `lower` the setting that asks for less, as typed: "cluster.workers=1".
    """

    what: str
    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    role: str | None = None
    lower: str = ""

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f" + {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.count} x {self.what} ({each}{' each' if self.count > 1 else ''})"


def label_selector(cluster: ClusterConfig, role: str) -> dict[str, str]:
    """The `label_selector` of tasks, actors and bundles of that role; empty unless `cluster.use_labels`."""
    return {ROLE_LABEL: role} if cluster.use_labels else {}


def on_this_node() -> dict[str, Any]:
    """Options of an actor that has to live as long as its caller: else Ray may put it on a node that goes first."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"scheduling_strategy": here}


def decode_slots(cluster: ClusterConfig) -> int:
    """How many decode tasks the cluster can run at once, now."""
    role = label_selector(cluster, DECODE).get(ROLE_LABEL)
    nodes = [node for node in ray.nodes() if node["Alive"] and (role is None or node["Labels"].get(ROLE_LABEL) == role)]
    return max(1, sum(int(node["Resources"].get("CPU", 0.0) / cluster.decode_cpus) for node in nodes))


def check_resources(needs: Sequence[Need], cluster: ClusterConfig) -> None:
    """Raises LawmError when the nodes cannot hold all of `needs` at once: what is asked, what there is, what to set.

    Ray itself would wait for ever. A cluster that grows on demand (`cluster.autoscaling`) is let be.
    """
    if cluster.autoscaling or not needs:
        return
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [
        {kind: node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")} | {"role": node["Labels"].get(ROLE_LABEL)}
        for node in alive
    ]
    missing = first_unplaced(needs, nodes, cluster.use_labels)
    if missing is None:
        return
    has = ", ".join(sorted(_describe_node(node, cluster.use_labels) for node in nodes)) or "no nodes"
    ways = [f"--set {missing.lower}"] if missing.lower else []
    role = missing.role if cluster.use_labels else None
    if role and not any(node["role"] == role for node in nodes):
        ways.append("--set cluster.use_labels=false")
    if _current is None or not _current.local:
        ways.append("--set cluster.autoscaling=true if nodes come on demand")
    where = f" on nodes labelled {ROLE_LABEL}={role}" if role else ""
    raise LawmError(
        f"too little room in the cluster for {missing}{where}. Asked for in all: {'; '.join(map(str, needs))}. "
        f"The cluster has: {has}. Add nodes" + "".join(f", or {way}" for way in ways)
    )


def first_unplaced(needs: Sequence[Need], nodes: Sequence[Mapping[str, Any]], use_labels: bool) -> Need | None:
    """The first need that finds no room when the largest are placed first; None when all fit."""
    left = [dict(node) for node in nodes]
    units = [need for need in needs for _ in range(need.count)]
    units.sort(key=lambda need: (-need.gpus, not need.role, -need.cpus))
    for need in units:
        fits = [
            node
            for node in left
            if node["CPU"] + 1e-6 >= need.cpus
            and node["GPU"] + 1e-6 >= need.gpus
            and (not use_labels or need.role is None or node["role"] == need.role)
        ]
        if not fits:
            return need
        # The fullest node that still fits, and one without a GPU if none is needed.
        best = min(fits, key=lambda node: (node["GPU"] - need.gpus, node["CPU"]))
        best["CPU"] -= need.cpus
        best["GPU"] -= need.gpus
    return None


def _describe_node(node: Mapping[str, Any], labels: bool) -> str:
    gpus = f" + {node['GPU']:g} GPU" if node["GPU"] else ""
    role = f" ({ROLE_LABEL}={node['role'] or 'unset'})" if labels else ""
    return f"{node['CPU']:g} CPU{gpus}{role}"


# ---------------------------------------------------------------- the object store
@dataclass(frozen=True)
class MemoryReport:
    """Bytes over all nodes: in use now, and the largest of samples taken every half second."""

    used_store_bytes: int
    peak_store_bytes: int
    store_bytes: int
    spilled_bytes: int

    def __str__(self) -> str:
        return (
            f"object store: peak {self.peak_store_bytes / MIB:.0f} of {self.store_bytes / MIB:.0f} MiB, "
            f"spilled {self.spilled_bytes / MIB:.0f} MiB"
        )


def memory_report() -> MemoryReport:
    """The open session's MemoryReport; raises RuntimeError outside of `start`."""
    if _current is None:
        raise RuntimeError("memory_report() is for inside `with start(...)`")
    return _current.memory_report()


class _StoreMonitor:
    """Samples the raylets' store statistics, the source of `ray memory --stats-only`."""

    PERIOD_S = 0.5

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lawm-store-monitor", daemon=True)
        self._used = self._peak = self._capacity = self._spilled = 0
        self._spilled_before: int | None = None

    def start(self) -> None:
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def report(self) -> MemoryReport:
        self._sample()
        return MemoryReport(self._used, self._peak, self._capacity, self._spilled - (self._spilled_before or 0))

    def _run(self) -> None:
        while not self._stop.wait(self.PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        try:
            stats = internal_api.get_memory_info_reply(ray_state, timeout_seconds=10).store_stats
        except Exception:
            # A busy or dying raylet misses a sample; a figure for people must not end a run.
            return
        with self._lock:
            self._used = stats.object_store_bytes_used
            self._peak = max(self._peak, self._used)
            self._capacity = stats.object_store_bytes_avail
            self._spilled = max(self._spilled, stats.spilled_bytes_total)
            if self._spilled_before is None:
                self._spilled_before = self._spilled


def say(line: str) -> None:
    """A line for people, on stderr, where progress lines make room for it."""
    print(f"lawm: {line}", file=sys.stderr, flush=True)


@contextmanager
def watching(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` about twice a second while the block runs, and once after it; what it raises is let go:
    an actor may be gone with its node, and a progress line must not end a run."""
    done = threading.Event()

    def try_to_tell() -> None:
        with suppress(Exception):
            tell()

    def watch() -> None:
        while not done.wait(0.5):
            try_to_tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)
        try_to_tell()
