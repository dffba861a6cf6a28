"""Nodes of a Ray cluster on this machine, each a process group that can be killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.made import wait_until

RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nodes:
    """A head, and nodes that join it."""

    def __init__(self) -> None:
        # Sockets lie in the folder, and their paths have to be short.
        self._folder = tempfile.TemporaryDirectory(
            prefix="svr", dir="/tmp", ignore_cleanup_errors=True
        )
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = f"127.0.0.1:{free_port()}"

    def start(self, *, cpus: int = 1, **resources: float) -> subprocess.Popen[bytes]:
        """Start a node, the first of which is the head; return when it has said that it runs."""
        port = self.address.rpartition(":")[2]
        role = [f"--address={self.address}"]
        if not self._started:
            role = ["--head", f"--port={port}", f"--temp-dir={self._folder.name}"]
            role += ["--include-dashboard=false"]
        more = [f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats"]
        more += [f"--resources={json.dumps(resources)}"] if resources else []
        log = Path(self._folder.name) / f"node-{len(self._started)}.log"
        with log.open("wb") as file:
            node = subprocess.Popen(
                [str(RAY), "start", *role, *more, "--block"],
                stdout=file,
                stderr=file,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        self._started.append(node)
        wait_until(lambda: "runtime started" in log.read_text() or node.poll(), "a node runs")
        assert node.poll() is None, log.read_text()
        return node

    def close(self) -> None:
        for node in self._started:
            self.kill(node)
        self._folder.cleanup()

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """Kill a node; its workers notice within seconds, and end too."""
        try:
            os.killpg(node.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        node.wait()
