"""A computer with a real keeper, and a server made of real signatures, for tests (as root, or observed only).

The test plays the link: what the keeper hears are real documents, times and key sets, signed by keys made here; what
it says are real reports, verified here. `elevate` runs as throw-away uids.
"""

import contextlib
import fcntl
import functools
import json
import os
import pwd
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import nkeys

from sojourn_agent import between, keeper
from sojourn_agent.config import Config, read_config, write_config
from sojourn_agent.keeper.leaves import find_parent
from sojourn_agent.keeper.state import State
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.signing import PrivateKey, base64url, verify

ELEVATE = Path(__file__).parent.parent / "elevate"


class FakeServer:
    """Signs what expiry and policy would sign, and plays the link to one keeper at a time."""

    def __init__(self, computer_id: str, keeper_key: PrivateKey) -> None:
        self.root, self.key = PrivateKey.generate(), PrivateKey.generate()
        self.computer_id = computer_id
        self.keeper_key = keeper_key
        self.epoch, self.version = 1, 0
        self.grants: dict[str, wire.Grant] = {}
        self.asking = wire.Asking()
        self.blocked: list[str] = []
        self.valid_for = timedelta(hours=168)
        self.document = ""
        self.offset = timedelta(0)
        """How far the server's clock is ahead of this machine's."""
        self.answers_heartbeats = True
        self.terms = wire.TermsAnswer(allowed=True, longest_minutes=480, approvers=["Carol"])
        self.decisions: dict[str, wire.Decision] = {}
        self.heard: list[Any] = []
        self.reports: list[Any] = []
        self.delivers = True
        self._end: socket.socket | None = None
        self._write = threading.Lock()
        self.sign()

    def key_set(self, *keys: PrivateKey, epoch: int | None = None) -> str:
        named = [wire.DocumentKey(kid=key.kid, x=key.public.text) for key in (keys or (self.key,))]
        body = wire.encode(wire.KeySet(epoch=self.epoch if epoch is None else epoch, keys=named))
        return self.root.sign(body, "sojourn-keys")

    def sign(self, **changes: Any) -> str:
        """A new document with all grants; `changes` replace its fields."""
        now = system_clock() + self.offset
        self.version = max(self.version + 1, int(now.timestamp() * 1000))
        document = wire.Document(
            v=1,
            computer_id=self.computer_id,
            epoch=self.epoch,
            version=self.version,
            issued_at=now,
            valid_until=now + self.valid_for,
            asking=self.asking,
            blocked=self.blocked,
            grants=[msgspec.Raw(wire.encode(grant)) for grant in self.grants.values()],
        )
        document = msgspec.structs.replace(document, **changes)
        self.document = self.key.sign(wire.encode(document), "sojourn-state")
        return self.document

    def grant(self, *rules: wire.Rule, **fields: Any) -> wire.Grant:
        """A grant of half an hour for everybody, put into the document and pushed; `fields` replace its fields."""
        now = system_clock() + self.offset
        told: dict[str, Any] = {
            "id": new_id(now),
            "users": wire.Users(all=True),
            "from_": now - timedelta(seconds=1),
            "until": now + timedelta(minutes=30),
            "rules": list(rules),
        }
        grant = wire.Grant(**(told | fields))
        self.grants[grant.id] = grant
        self.push("grant")
        return grant

    def revoke(self, grant: wire.Grant, reason: str = "no longer needed", **fields: Any) -> None:
        at = system_clock() + self.offset
        revoked = wire.Revoked(at=at, reason=reason, **fields)
        self.grants[grant.id] = msgspec.structs.replace(grant, revoked=revoked)
        self.push("revoke")

    def push(self, kind: Any = "grant", body: str | None = None) -> None:
        """The newest document (or `body`) to the keeper, if there is one."""
        self.send(between.Pushed(kind=kind, body=self.sign() if body is None else body))

    def decide(self, request_id: str, **fields: Any) -> None:
        decision = wire.Decision(request_id=request_id, **fields)
        self.decisions[request_id] = decision
        self.send(between.Pushed(kind="decision", body=wire.encode(decision).decode()))

    def send(self, message: wire.Wire) -> None:
        with self._write, contextlib.suppress(OSError):
            if self._end is not None:
                self._end.sendall(between.pack(message))

    def of_kind(self, kind: type[Any]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    def play_link(self, end: socket.socket, *, connected: bool = True) -> None:
        self._end = end
        threading.Thread(target=self._listen, args=(end,), daemon=True).start()
        if connected:
            self.send(between.Connected(up=True))

    def _listen(self, end: socket.socket) -> None:
        frames = between.Frames(between.FromKeeper)
        with end, contextlib.suppress(OSError):
            while chunk := end.recv(1 << 20):
                for message in frames.feed(chunk):
                    self._hear(message)

    def _hear(self, message: Any) -> None:
        self.heard.append(message)
        match message:
            case between.Ask(kind="heartbeat"):
                if self.answers_heartbeats:
                    self.send(between.Answer(ask=message.ask, body=self.answer(message.body)))
            case between.Ask(kind="terms"):
                self.send(between.Answer(ask=message.ask, body=wire.encode(self.terms).decode()))
            case between.Ask(kind="decision"):
                asked = msgspec.json.decode(message.body, type=wire.AskDecision)
                decision = self.decisions.get(asked.request_id)
                body = wire.encode(decision).decode() if decision else None
                self.send(between.Answer(ask=message.ask, body=body))
            case between.Report():
                payload = verify(message.jws, "sojourn-report", {self.keeper_key.kid: self.keeper_key.public})
                report = msgspec.json.decode(payload, type=wire.Report)
                if all(report.id != known.id for known in self.reports):
                    self.reports.append(report)
                if self.delivers:
                    self.send(between.Delivered(report_id=message.report_id))

    def answer(self, heartbeat: str, *, document: str | None = None) -> str:
        beat = msgspec.json.decode(heartbeat, type=wire.Heartbeat)
        newest = self.epoch, self.version
        time = wire.SignedTime(
            computer_id=self.computer_id,
            nonce=beat.nonce,
            server_time=system_clock() + self.offset,
            epoch=newest[0],
            version=newest[1],
        )
        newer = self.document if (beat.epoch, beat.version) < newest else None
        signed = self.key.sign(wire.encode(time), "sojourn-time")
        return wire.encode(wire.HeartbeatAnswer(time=signed, document=document or newer)).decode()


class Computer:
    """A state folder, a socket, and a keeper that can be started, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.computer_id = new_id(system_clock())
        self.keeper_key = PrivateKey.generate()
        self.server = FakeServer(self.computer_id, self.keeper_key)
        self.config = Config(
            server="http://127.0.0.1:1",
            computer_id=self.computer_id,
            root_key=self.server.root.public.text,
            state=folder / "state",
            socket=folder / "run" / "agent.sock",
        )
        write_config(self.config, folder / "agent.toml")
        self.config.state.mkdir(mode=0o700)
        self.state = State(self.config.state)
        self.state.write("keeper.seed", base64url(self.keeper_key.seed))
        self.state.write("link.seed", nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode())
        self.state.write("keys.jws", self.server.key_set())
        credentials = wire.Credentials(
            jwt="e30", expires_at=datetime(2100, 1, 1, tzinfo=UTC), nats_urls=["nats://127.0.0.1:1"], inbox_prefix="_I"
        )
        self.state.write("credentials.json", wire.encode(credentials).decode())
        self.elevate_file = folder / "elevate"
        shutil.copyfile(ELEVATE, self.elevate_file)
        self.elevate_file.chmod(0o755)
        self.keeper: subprocess.Popen[bytes] | None = None
        self._callers: list[subprocess.Popen[bytes]] = []
        self.log = folder / "keeper.log"

    def start(self, *, connected: bool = True, uid: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        told = [sys.executable, "-m", "sojourn_agent.testing", str(self.folder / "agent.toml"), str(theirs.fileno())]
        with self.log.open("ab") as log:
            self.keeper = subprocess.Popen(told, pass_fds=[theirs.fileno()], stderr=log, user=uid)
        theirs.close()
        eventually(self._answers, 10)
        self.server.play_link(ours, connected=connected)
        if connected:
            self.catches_up()

    def stop(self) -> None:
        if self.keeper is not None and self.keeper.poll() is None:
            self.keeper.terminate()
            self.keeper.wait(15)

    def kill(self) -> None:
        assert self.keeper is not None
        self.keeper.kill()
        self.keeper.wait()

    def close(self) -> None:
        self.stop()
        for caller in self._callers:
            caller.kill()
            caller.wait()
            for stream in (caller.stdin, caller.stdout, caller.stderr):
                if stream is not None:
                    stream.close()

    def command(self, *words: str) -> list[str]:
        return [str(self.elevate_file), *words]

    def popen(self, *words: str, uid: int, **options: Any) -> Any:
        env = {"SOJOURN_AGENT_SOCKET": str(self.config.socket), "LANG": "C.UTF-8"} | options.pop("env", {})
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        options = {"cwd": "/", "user": uid, "group": uid, "extra_groups": []} | options
        start: Any = subprocess.Popen  # its overloads do not know options given as a dictionary
        process = start(self.command(*words), env=env, **options)
        self._callers.append(process)
        return process

    def elevate(self, *words: str, uid: int, timeout: float = 20, **options: Any) -> "Finished":
        process = self.popen(*words, uid=uid, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Finished(process.returncode, out or b"", err or b"")

    def grant(self, *rules: wire.Rule, **fields: Any) -> wire.Grant:
        """As the server's, and the keeper holds it."""
        grant = self.server.grant(*(rules or (wire.FolderPathRule(path="/usr/bin"),)), **fields)
        self.catches_up()
        return grant

    def catches_up(self) -> None:
        eventually(lambda: self.agent()["document_version"] == self.server.version)

    def ended(self, grant: wire.Grant) -> wire.EndedReport:
        """The report of the grant's end, as soon as it came."""
        found = eventually(lambda: [r for r in self.server.of_kind(wire.EndedReport) if r.grant_id == grant.id])
        return found[0]  # type: ignore[no-any-return]

    def agent(self) -> dict[str, Any]:
        """What the keeper says of itself."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.settimeout(5)
            caller.connect(str(self.config.socket))
            caller.send(b'{"v": 1, "op": "agent"}')
            told: dict[str, Any] = json.loads(caller.recv(1 << 17))["data"]
            return told

    def _answers(self) -> bool:
        assert self.keeper is not None
        if self.keeper.poll() is not None:
            raise AssertionError(f"the keeper ended: {self.log.read_text()}")
        with contextlib.suppress(OSError):
            return bool(self.agent())
        return False


class Finished:
    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status, self.out, self.err = status, out.decode(errors="replace"), err.decode(errors="replace")

    def __repr__(self) -> str:
        return f"<exit {self.status}, out {self.out!r}, err {self.err!r}>"


@contextlib.contextmanager
def a_computer() -> Iterator[Computer]:
    """With a running, connected keeper; everything of it is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-agent-"))
    computer = Computer(folder)
    try:
        computer.start()
        yield computer
    finally:
        computer.close()
        _remove_leaves(computer.computer_id)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leaves(computer_id: str) -> None:
    """What a keeper that was killed could not remove any more; its wardens have just emptied it."""
    try:
        parent = find_parent(computer_id)
    except ValueError:
        return

    def emptied(folder: Path) -> bool:
        return "populated 0" in (folder / "cgroup.events").read_text()

    for folder in (*parent.glob("*/"), parent):
        with contextlib.suppress(OSError, AssertionError):
            eventually(functools.partial(emptied, folder), 2)
            folder.rmdir()


@contextlib.contextmanager
def os_user(name: str) -> Iterator[tuple[str, int]]:
    """A throw-away user of this computer; answers its name and uid."""
    told = f"{name}{os.getpid() % 100_000}"
    # Others may hold the lock on /etc/passwd for a moment.
    eventually(lambda: _run("useradd", "--no-create-home", "--no-user-group", "--shell", "/bin/sh", told), 10)
    try:
        yield told, pwd.getpwnam(told).pw_uid
    finally:
        eventually(lambda: _run("userdel", "--force", told), 10)


def _run(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


class Typist:
    """`elevate` in a terminal of its own, with a person at it."""

    def __init__(self, computer: Computer, *words: str, uid: int, **options: Any) -> None:
        self.terminal, slave = os.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.fchown(slave, uid, -1)
        streams = {"stdin": slave, "stdout": slave, "stderr": slave} | options
        take = lambda: fcntl.ioctl(0 if streams["stdin"] is slave else 1, termios.TIOCSCTTY, 0)  # noqa: E731
        self.process = computer.popen(
            *words, uid=uid, start_new_session=True, preexec_fn=take, env={"TERM": "xterm"}, **streams
        )
        os.close(slave)
        self.shown = ""

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def sees(self, text: str, seconds: float = 10) -> str:
        """Reads until `text` is shown; answers all that was shown."""
        until = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.terminal], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise AssertionError(f"{text!r} was not shown: {self.shown!r}")
            try:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")
            except OSError:
                if text not in self.shown:
                    raise AssertionError(f"{text!r} was not shown: {self.shown!r}") from None
        return self.shown

    def leaves(self, seconds: float = 10) -> int:
        """Reads on until the process has ended; answers its exit status."""
        until = time.monotonic() + seconds
        while (status := self.process.poll()) is None and time.monotonic() < until:
            if select.select([self.terminal], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self.terminal, 65536).decode(errors="replace")
        with contextlib.suppress(OSError):
            while select.select([self.terminal], [], [], 0.05)[0]:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")
        os.close(self.terminal)
        assert status is not None, f"it did not leave: {self.shown!r}"
        return int(status)


def eventually(holds: Callable[[], Any], seconds: float = 5) -> Any:
    """The first true answer of `holds`, looked at every few milliseconds."""
    until = time.monotonic() + seconds
    while True:
        if answer := holds():
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"it did not come to hold within {seconds} s")
        time.sleep(0.005)


if __name__ == "__main__":
    import logging

    logging.basicConfig(format="%(relativeCreated)d %(message)s", level=logging.INFO)
    keeper.run(read_config(Path(sys.argv[1])), link=socket.socket(fileno=int(sys.argv[2])))


def as_user(uid: int, act: Callable[[], Any]) -> int:
    """`act` in a child with another user's rights; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            status = int(act() or 0)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
