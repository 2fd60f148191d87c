"""A Ray cluster of several labelled nodes on this machine (`ray.cluster_utils.Cluster`), for tests and benchmarks.

The cluster lives in a process of its own, so that it neither meets nor outlives what its user has open. The nodes
share the machine's cores: `cpus` are what Ray counts, not what there is.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent
STORE_BYTES = 128 << 20
"""Each node's object store."""


class Nodes:
    """A head that is labelled as a train node, and decode nodes that come and go.

    `environment` is what a process needs to work on it, before it imports ray: RAY_ADDRESS, the token, and what keeps
    Ray to loopback. Nothing here imports ray but the process that holds the nodes.
    """

    def __init__(self, train_cpus: int = 2, dashboard: bool = False, system: dict[str, Any] | None = None) -> None:
        """`system`: settings of Ray's own, such as how soon a node counts as lost."""
        self._train_cpus = train_cpus
        self._first = {"dashboard": dashboard, "system": system}

    def __enter__(self) -> "Nodes":
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray listens on all interfaces
        }
        if sys.platform == "linux":
            self.environment["GLOO_SOCKET_IFNAME"] = "lo"
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | self.environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            text=True,
        )
        try:
            self.head = self.add("train", self._train_cpus)
            about = self._ask("about")
        except BaseException:
            self.close()
            raise
        self.environment["RAY_ADDRESS"] = about["address"]
        self.dashboard: str | None = about["dashboard"]
        return self

    def add(self, role: str, cpus: int) -> str:
        """Adds a node and waits until the cluster knows it; its id."""
        return str(self._ask("add", role=role, cpus=cpus, **self._first)["id"])

    def kill(self, node: str) -> None:
        """Kills all processes of that node, without warning."""
        self._ask("kill", id=node)

    def tasks(self) -> list[dict[str, Any]]:
        """What has run or runs, from Ray's own record: name, id of the node (None: not placed yet), state, selector.
        Needs the dashboard."""
        return list(self._ask("tasks")["tasks"])

    def close(self) -> None:
        """Ends all nodes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, what: str, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that holds the nodes has ended; what it said is above")
        return dict(json.loads(line))


def serve(lines: Sequence[str] | Any, answers: Any) -> None:
    """The process that holds the nodes: does what each line asks until there are no more."""
    from ray.cluster_utils import Cluster
    from ray.util.state import list_tasks

    from benchmarks._servers import free_port
    from lawm.cluster.machine import temp_dir
    from lawm.cluster.session import ROLE_LABEL

    folder, lock = temp_dir()
    os.environ["RAY_TMPDIR"] = str(folder)  # where Cluster notes its address, else in a folder that all Rays share
    (folder / "ray").mkdir()
    cluster = Cluster()
    nodes: dict[str, Any] = {}
    try:
        for line in lines:
            asked = json.loads(line)
            answer: dict[str, Any] = {}
            if asked["do"] == "add":
                first = {
                    "temp_dir": str(folder),
                    "include_dashboard": asked["dashboard"],
                    "dashboard_port": free_port(),
                    "_system_config": asked["system"],
                }
                node = cluster.add_node(
                    num_cpus=asked["cpus"],
                    object_store_memory=STORE_BYTES,
                    dashboard_agent_listen_port=free_port(),  # else one port for all Rays of the machine
                    labels={ROLE_LABEL: asked["role"]},
                    **({} if nodes else first),
                )
                nodes[node.node_id] = node
                answer["id"] = node.node_id
            elif asked["do"] == "kill":
                cluster.remove_node(nodes.pop(asked["id"]), allow_graceful=False)
            elif asked["do"] == "tasks":
                found = list_tasks(address=cluster.address, limit=10_000, detail=True, raise_on_missing_output=False)
                kept = ("name", "type", "node_id", "state", "label_selector")
                answer["tasks"] = [{name: getattr(task, name) for name in kept} for task in found]
            else:
                answer = {"address": cluster.address, "dashboard": cluster.webui_url or None}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


if __name__ == "__main__":
    # Ray prints to standard output, which is for answers alone.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, out)
