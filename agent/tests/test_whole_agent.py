"""The whole agent as it is installed: enrolled by its command, keeper and link as processes, a real NATS server."""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import nats as nats_client
import pytest

from sojourn_agent.packets import VERSION, Hello, ToClient, Told, pack
from sojourn_embedded.testing import TestNats
from sojourn_shared.clock import milliseconds, system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service.nats_accounts import agent_jwt

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root: the agent elevates for real here")

AGENT = (sys.executable, "-m", "sojourn_agent.main")
ELEVATE = Path(__file__).parents[1] / "elevate"
MOST_MEMORY = 45.0
"""MiB of proportional set size, for all processes of an agent that runs nothing."""


@dataclass
class Computer:
    """An enrolled computer with a running agent, and an expiry service that a test holds in its hand."""

    folder: Path
    server: Any
    nats: TestNats
    client: Any
    grants: list[wire.Grant] = field(default_factory=list)
    version: int = 0
    keeper: subprocess.Popen[bytes] | None = None

    @property
    def subject(self) -> str:
        return f"sojourn.agent.{self.server.computer_id}"

    def start(self) -> None:
        self.keeper = subprocess.Popen([*AGENT, "run", f"--config={self.folder}/agent.toml"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.keeper
        self.keeper.send_signal(number)
        return self.keeper.wait(15)

    def document(self) -> str:
        now = system_clock()
        document = wire.Document(
            v=1,
            computer_id=self.server.computer_id,
            epoch=1,
            version=self.version,
            issued_at=now,
            valid_until=now + timedelta(days=7),
            grants=[msgspec.Raw(wire.encode(grant)) for grant in self.grants],
        )
        key = self.server.document_key
        return str(key.sign(wire.encode(document), "sojourn-state"))

    async def answer(self, message: Any) -> None:
        """A heartbeat, as expiry answers it."""
        beat = msgspec.json.decode(message.data, type=wire.Heartbeat)
        time = wire.SignedTime(
            computer_id=self.server.computer_id,
            nonce=beat.nonce,
            server_time=system_clock(),
            epoch=1,
            version=self.version,
        )
        signed = self.server.document_key.sign(wire.encode(time), "sojourn-time")
        document = self.document() if (beat.epoch, beat.version) < (1, self.version) else None
        await self.client.publish(message.reply, wire.encode(wire.HeartbeatAnswer(time=signed, document=document)))

    async def writes(self, *grants: wire.Grant, push: str = "grant") -> None:
        """A new document, pushed."""
        self.grants = list(grants)
        self.version = max(self.version + 1, milliseconds(system_clock()))
        await self.client.publish(f"{self.subject}.{push}", self.document().encode())
        await self.client.flush()

    def status(self) -> dict[str, Any]:
        """What the agent says of itself; empty while it cannot be asked."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking, contextlib.suppress(OSError):
            asking.settimeout(5)
            asking.connect(str(self.folder / "agent.sock"))
            asking.sendall(pack(Hello(v=VERSION, op="agent")))
            told = msgspec.json.decode(asking.recv(wire.PACKET_LIMIT), type=ToClient)
            if isinstance(told, Told) and isinstance(told.data, dict):
                return told.data
        return {}

    async def shows(self, **wanted: Any) -> dict[str, Any]:
        status: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                while {name: status.get(name) for name in wanted} != wanted:
                    await asyncio.sleep(0.02)
                    status = await asyncio.to_thread(self.status)
                return status
        raise AssertionError(f"expected {wanted}, the agent shows {status}")

    async def elevates(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """As an ordinary user who has nothing but the number 65534."""
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-IS"]
        return await asyncio.to_thread(
            subprocess.run,
            [*as_nobody, str(self.folder / "elevate"), *command],
            env={"SOJOURN_AGENT_SOCKET": str(self.folder / "agent.sock"), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def processes(self) -> list[int]:
        """The keeper and all that came of it."""
        assert self.keeper
        found = [self.keeper.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found


@pytest.fixture
async def computer(server: Any, nats: TestNats, throw_away_folder: Path) -> AsyncIterator[Computer]:
    """Enrolled and running, with an empty document."""
    folder = throw_away_folder / server.computer_id
    folder.mkdir(0o755)
    (folder / "elevate").write_bytes(ELEVATE.read_bytes())
    (folder / "elevate").chmod(0o755)
    (folder / "token").write_text(server.token)
    issuer = nats.agent_issuer
    server.nats_url = nats.url
    server.jwt_for = lambda key: agent_jwt(issuer.seed, issuer.account, server.computer_id, key, system_clock())
    client = await nats_client.connect(
        nats.url, user_credentials=str(nats.creds("expiry")), inbox_prefix="_INBOX_expiry", reconnect_time_wait=0.1
    )
    made = Computer(folder, server, nats, client)
    await client.subscribe("sojourn.agent.*.ask.heartbeat", queue="expiry", cb=made.answer)
    places = [f"--config={folder}/agent.toml", f"--state={folder}/state", f"--socket={folder}/agent.sock"]
    enrol = [*AGENT, "enrol", f"--server={server.url}", f"--token=@{folder}/token", *places]
    await asyncio.to_thread(subprocess.run, enrol, check=True, timeout=30, stdout=subprocess.DEVNULL)
    await made.writes()
    made.start()
    try:
        await made.shows(connected=True, time_confirmed=True, document_version=made.version)
        yield made
    finally:
        try:
            made.stop()
        except subprocess.TimeoutExpired:
            made.stop(signal.SIGKILL)
            raise
        finally:
            await client.close()
        leave = [*AGENT, "leave", "--yes", f"--config={folder}/agent.toml"]
        await asyncio.to_thread(subprocess.run, leave, check=True, timeout=30, stdout=subprocess.DEVNULL)


def grant_for(path: str, minutes: float = 5) -> wire.Grant:
    now: datetime = system_clock()
    sha256 = hashlib.sha256(Path(path).resolve().read_bytes()).hexdigest()
    return wire.Grant(
        id=new_id(now),
        users=wire.Users(all=True),
        from_=now,
        until=now + timedelta(minutes=minutes),
        rules=[wire.FileHashRule(sha256=sha256)],
    )


async def test_a_pushed_grant_elevates_and_a_pushed_revoke_ends_it(computer: Computer) -> None:
    """From the push to the program as root, and back: nothing before, nothing of another file, nothing after."""
    assert (await computer.elevates("--check", "--", "/usr/bin/id")).returncode == 77

    granted = grant_for("/usr/bin/id")
    await computer.writes(granted)
    await computer.shows(document_version=computer.version)
    ran = await computer.elevates("--", "/usr/bin/id", "-u")
    assert (ran.returncode, ran.stdout) == (0, "0\n"), ran.stderr
    assert (await computer.elevates("--check", "--", "/usr/bin/env")).returncode == 77

    revoked = wire.Revoked(at=system_clock(), reason="enough")
    await computer.writes(msgspec.structs.replace(granted, revoked=revoked), push="revoke")
    await computer.shows(document_version=computer.version)
    assert (await computer.elevates("--check", "--", "/usr/bin/id")).returncode == 77


async def test_what_was_missed_is_fetched_on_return(computer: Computer) -> None:
    """The bus was away while a grant was written: connected again, the agent asks, and has it."""
    computer.nats.stop()
    try:
        await computer.shows(connected=False)
        computer.grants, computer.version = [grant_for("/usr/bin/id")], milliseconds(system_clock())
    finally:
        computer.nats.start()  # not in a thread: the server would end with it
    await computer.shows(connected=True, document_version=computer.version)
    assert (await computer.elevates("--check", "--", "/usr/bin/id")).returncode == 0


async def test_a_killed_link_is_replaced_and_grants_go_on(computer: Computer) -> None:
    """The unprivileged half dies: what is granted goes on meanwhile, and another connects."""
    await computer.writes(grant_for("/usr/bin/id"))
    await computer.shows(document_version=computer.version)
    links = [pid for pid in computer.processes() if b"sojourn_agent.link" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(links) == 1
    os.kill(links[0], signal.SIGKILL)
    assert (await computer.elevates("--", "/usr/bin/id", "-u")).stdout == "0\n"
    await computer.shows(connected=True)
    assert links[0] not in computer.processes()


async def test_no_link_outlives_its_keeper(computer: Computer) -> None:
    """`kill -9` of the keeper takes the link with it; the next keeper goes on with what is on disk."""
    await computer.writes(grant_for("/usr/bin/id"))
    await computer.shows(document_version=computer.version)
    others = computer.processes()[1:]
    computer.stop(signal.SIGKILL)
    async with asyncio.timeout(5):
        while any(Path(f"/proc/{pid}").exists() for pid in others):
            await asyncio.sleep(0.01)
    computer.start()
    await computer.shows(connected=True, document_version=computer.version)
    assert (await computer.elevates("--", "/usr/bin/id", "-u")).stdout == "0\n"


async def test_the_agent_is_small(computer: Computer) -> None:
    """All its processes together, connected and idle, by proportional set size."""
    async with asyncio.timeout(20):  # at first it tries its promises on dummies: that is not idle
        while len(computer.processes()) > 2:
            await asyncio.sleep(0.1)
    sizes = {}
    for pid in computer.processes():
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", told, re.MULTILINE)
        assert found
        sizes[pid] = int(found[1]) / 1024
    assert len(sizes) == 2
    assert sum(sizes.values()) < MOST_MEMORY, sizes
