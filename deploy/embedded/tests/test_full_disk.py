"""NATS on a disk that is full gives its streams up for good; once there is room, the supervisor starts it again."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import nats as nats_client
import nats.errors
import pytest

from sojourn_embedded import supervisor
from sojourn_embedded.files import write_secret
from sojourn_embedded.nats_server import NatsServer, free_port
from sojourn_embedded.parts import Program
from sojourn_embedded.process import Identity
from sojourn_embedded.supervisor import Stopped, Supervisor
from sojourn_embedded.testing import provision_as_provisioner
from sojourn_shared.clock import system_clock
from sojourn_shared.service.nats_accounts import PROVISIONER, Accounts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """48 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


async def test_nats_is_started_again_once_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was acknowledged is lost, and publishing goes on without anybody's help."""
    monkeypatch.setattr(supervisor, "adopt_orphans", lambda: None)
    monkeypatch.setattr(supervisor, "CHECK_EVERY", 0.2)
    accounts = Accounts.kept(None, system_clock())
    server = NatsServer(small_disk, Identity.caller(), free_port(), tmp_path / "nats.log")
    write_secret(small_disk / "nats.conf", accounts.server_config(port=server.port, store=small_disk / "jetstream"))
    for user in (PROVISIONER, "expiry"):
        write_secret(tmp_path / f"{user}.creds", accounts.credentials(user))
    lines: list[str] = []
    watching = Supervisor(lines.append, lambda: None)
    watching.launch(Program("nats", server.log, server.launch, server.is_ready, server.is_stuck))
    watching.wait_for("nats")
    await provision_as_provisioner(server.url, tmp_path / f"{PROVISIONER}.creds")
    assert await _publish(server.url, tmp_path / "expiry.creds", 10) == 10

    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as out:
        try:
            while True:
                out.write(b"0" * 65536)
        except OSError:
            pass
    acknowledged = 10 + await _publish(server.url, tmp_path / "expiry.creds", 50)
    assert acknowledged < 60

    thread = threading.Thread(target=_watch, args=[watching])
    thread.start()
    try:
        await asyncio.sleep(0.5)
        assert len(lines) == 1, "nothing helps while there is no room"
        filler.unlink()
        async with asyncio.timeout(20):
            while not any("ready again" in line for line in lines):
                await asyncio.sleep(0.05)
        assert "runs, but does nothing" in lines[1]
        assert await _publish(server.url, tmp_path / "expiry.creds", 10) == 10
    finally:
        watching._asked_to_stop = True
        thread.join()
        server.stop()


def _watch(watching: Supervisor) -> None:
    with pytest.raises(Stopped):
        watching.run()


async def _publish(url: str, credentials: Path, count: int) -> int:
    """How many of `count` events were acknowledged before the first that was not."""
    connection = await nats_client.connect(
        url, user_credentials=str(credentials), inbox_prefix="_INBOX_expiry", allow_reconnect=False
    )
    try:
        for done in range(count):
            try:
                await connection.jetstream().publish("sojourn.events.expiry.grant.made.1", b"x" * 10_000, timeout=1)
            except nats.errors.Error:
                return done
        return count
    finally:
        await connection.close()
