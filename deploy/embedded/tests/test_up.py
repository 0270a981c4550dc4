"""`sojourn up` on this machine: what runs, as whom, what survives, and what is refused in one sentence."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sojourn_embedded.files import closed_folder
from sojourn_embedded.nats_server import NatsServer
from sojourn_embedded.owners import SERVICES, UIDS, owner_of
from sojourn_embedded.ports import choose_nats_port
from sojourn_embedded.process import Identity

SOJOURN = Path(sys.executable).with_name("sojourn")
AS_ROOT = os.geteuid() == 0
CLOSED = closed_folder(Path(sys.prefix)) if AS_ROOT else None

pytestmark = pytest.mark.skipif(
    CLOSED is not None, reason=f"other users may not enter {CLOSED}: up refuses, as it says"
)
ENDED = (psutil.NoSuchProcess, psutil.ZombieProcess)


@dataclass
class Up:
    """A `sojourn up` in the background."""

    folder: Path
    arguments: Sequence[str]
    environ: dict[str, str] = field(default_factory=dict)

    def start(self) -> "Up":
        """Return when the ready file is there."""
        self.ready_file.unlink(missing_ok=True)
        with open(self.folder / "output", "wb") as output:
            self.process = subprocess.Popen(
                [SOJOURN, "up", "--port", "0", "--ready-file", self.ready_file, *self.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environ},
            )
        eventually(lambda: self.ready_file.exists() or self.process.poll() is not None, within=30)
        assert self.process.poll() is None, self.output
        return self

    @property
    def ready_file(self) -> Path:
        return self.folder / "ready.json"

    @property
    def ready(self) -> dict[str, Any]:
        return dict(json.loads(self.ready_file.read_text()))

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ends(self, by: signal.Signals) -> int:
        self.process.send_signal(by)
        return self.process.wait(30)


def eventually(true: Callable[[], Any], within: float = 10) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(*ENDED):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def refused(*arguments: str | Path, environ: dict[str, str] | None = None) -> str:
    """The one sentence of a `sojourn up` that does not start."""
    done = subprocess.run(
        [SOJOURN, "up", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == 1, done
    sentence, nothing = done.stderr.strip(), done.stdout.strip()
    assert sentence.startswith("sojourn up: ")
    assert "\n" not in sentence
    assert nothing == ""
    return sentence


def status_of(url: str) -> int:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return int(answer.status)
    return 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Every user may traverse it, as pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="sojourn-up-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def running() -> Iterator[Up]:
    """One machine for the tests that harm nothing for good."""
    with tempfile.TemporaryDirectory(prefix="sojourn-up-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        up = Up(Path(folder), ["--data", f"{folder}/data"]).start()
        try:
            yield up
        finally:
            up.ends(signal.SIGTERM)


def test_everything_answers_and_the_ready_file_says_where(running: Up) -> None:
    """Each service on its own port, the gateway, the agent's socket; readable by who started it alone."""
    ready = running.ready
    assert stat.S_IMODE(running.ready_file.stat().st_mode) == 0o600
    for url in (ready["url"], *ready["services"].values()):
        assert status_of(f"{url}/health/ready") == 200
    assert set(ready["pids"]) == {*SERVICES, "agent", "nats", "postgres"}
    for pid in ready["pids"].values():
        assert psutil.pid_exists(pid)
    assert ready["admin_token"].startswith("sjn_")
    assert ready["sign_in_url"].startswith(f"{ready['url']}/sign-in?")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.connect(ready["agent_socket"])
    for part in ("postgres", "nats", *SERVICES, "agent"):
        assert f"  {part} " in running.output


@pytest.mark.skipif(not AS_ROOT, reason="only root starts parts under uids of their own")
def test_each_part_runs_as_a_user_of_its_own(running: Up) -> None:
    """No OS user is created; only the keeper, which elevates, is root."""
    for part, pid in running.ready["pids"].items():
        expected = 0 if part == "agent" else UIDS[part]
        assert set(psutil.Process(pid).uids()) == {expected}, part
        assert part == "agent" or set(psutil.Process(pid).gids()) == {owner_of(part).gid}


@pytest.mark.skipif(not AS_ROOT, reason="only root starts parts under uids of their own")
def test_each_secret_has_one_reader(running: Up) -> None:
    """A service that is taken over reads its own keys and nobody else's."""
    keys = Path(running.ready["data_dir"]) / "keys"
    for file in keys.rglob("*"):
        mode, owner = stat.S_IMODE(file.stat().st_mode), file.stat().st_uid
        if file.name != "key-set.json":  # public keys
            assert mode & 0o077 == 0, file
        if (service := file.name.partition(".")[0]) in SERVICES:
            assert owner == UIDS[service], file
    assert keys.joinpath("root.seed").stat().st_uid == 0
    for folder in ("postgres", "nats"):
        place = keys.parent / folder
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert place.stat().st_uid == UIDS[folder]


@pytest.mark.skipif(not AS_ROOT, reason="only root shares its agent with other users")
def test_every_user_reaches_elevate_and_the_agents_socket(running: Up) -> None:
    """Although keys and logs beside them are closed."""
    ready = running.ready
    probe = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])"
    for argv in (["/usr/bin/python3", "-c", probe, ready["agent_socket"]], [ready["elevate"], "--help"]):
        assert subprocess.run(argv, user=65534, group=65534, extra_groups=[], check=False).returncode == 0, argv
    closed = Path(ready["data_dir"]) / "keys" / "root.seed"
    assert subprocess.run(["cat", closed], user=65534, group=65534, check=False, stderr=subprocess.DEVNULL).returncode


def test_a_second_up_on_the_same_folder_is_refused(running: Up) -> None:
    """It names the process that is there, and harms nothing of it."""
    data = running.ready["data_dir"]
    assert f"already running on {data} (process {running.process.pid})" in refused("--data", data)
    assert status_of(f"{running.ready['url']}/health/ready") == 200


def test_a_port_in_use_is_named(running: Up, open_folder: Path) -> None:
    """Before anything is started."""
    port = running.ready["url"].rpartition(":")[2]
    assert f"Port {port} of 127.0.0.1" in refused("--data", open_folder / "data", "--port", port)


@pytest.mark.parametrize("part", ["expiry", "gateway", "nats", "postgres"])
def test_a_part_that_dies_is_started_again(running: Up, part: str) -> None:
    """With a line that says so, and its new pid in the ready file."""
    before = running.ready["pids"][part]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: running.ready["pids"][part] != before, within=20)
    assert f"{part:<10} ended (killed by SIGKILL)" in running.output
    for url in (running.ready["url"], *running.ready["services"].values()):
        eventually(lambda url=url: status_of(f"{url}/health/ready") == 200)


def test_a_folder_with_other_things_is_left_alone(open_folder: Path) -> None:
    """A wrong --data costs nobody their files or their modes."""
    (open_folder / "letter").write_text("dear")
    mode = open_folder.stat().st_mode
    assert "holds other things" in refused("--data", open_folder)
    assert [file.name for file in open_folder.iterdir()] == ["letter"]
    assert open_folder.stat().st_mode == mode


@pytest.mark.skipif(not AS_ROOT, reason="only root starts parts under uids of their own")
def test_a_closed_folder_is_named(open_folder: Path) -> None:
    """Parts that run as users of their own could not reach their data."""
    closed = open_folder / "closed"
    closed.mkdir(0o700)
    assert f"may not enter {closed}," in refused("--data", closed / "deep" / "data")
    assert list(closed.iterdir()) == []


def test_a_secret_on_the_command_line_is_refused(open_folder: Path) -> None:
    """Every user of the machine can read the list of processes."""
    sentence = refused("--data", open_folder / "data", "--database-url", "postgresql://a:secret@127.0.0.1/x")
    assert "@FILE" in sentence
    assert "secret" not in sentence


def test_options_that_contradict_each_other_are_refused(open_folder: Path) -> None:
    """Each in a sentence that says what to do."""
    assert "--ephemeral" in refused("--data", open_folder / "data", "--ephemeral")
    assert "belong together" in refused("--data", open_folder / "data", "--nats-url", "nats://127.0.0.1:1")
    assert "--ready-file" in refused("--data", open_folder / "data", "--ready-file", open_folder / "no" / "file")
    assert "--port 70000" in refused("--data", open_folder / "data", "--port", "70000")


def test_sigkill_leaves_no_orphan_and_the_next_start_finds_everything(open_folder: Path) -> None:
    """Not even a process of PostgreSQL; keys, token and this computer's identity are the same afterwards."""
    up = Up(open_folder, ["--data", str(open_folder / "data")]).start()
    before, processes = up.ready, up.processes()
    assert len(processes) > len(SERVICES) + 3
    up.ends(signal.SIGKILL)
    again = up.start()  # at once: it waits for those that are still ending
    assert [process for process in processes if not is_gone(process)] == []
    for same in ("admin_token", "computer_id", "nats_url", "data_dir", "agent_socket"):
        assert again.ready[same] == before[same], same
    assert again.ready["sign_in_url"] != before["sign_in_url"]
    assert again.ends(signal.SIGTERM) == 0


@pytest.mark.skipif(not AS_ROOT, reason="only root's agent elevates")
@pytest.mark.parametrize("who", ["launcher", "agent"])
def test_what_runs_elevated_ends_with_what_started_it(open_folder: Path, who: str) -> None:
    """SIGKILL of the launcher, and of the keeper, ends the elevated program too; the keeper comes back."""
    up = Up(open_folder, ["--data", str(open_folder / "data")]).start()
    ready = up.ready
    everything = {
        "name": "sleepers",
        "targets": {"computer_ids": [ready["computer_id"]]},
        "users": {"all": True},
        "duration": {"type": "fixed", "minutes": 60},
        "access": {"type": "specific", "rules": [{"type": "folder_path", "path": "/usr/bin"}]},
    }
    with httpx.Client(
        base_url=f"{ready['url']}/api/v1", headers={"Authorization": f"Bearer {ready['admin_token']}"}, timeout=10
    ) as admin:
        policy = admin.post("/policies", json=everything).raise_for_status().json()
        admin.post(f"/policies/{policy['id']}/deploy").raise_for_status()
    environ = {"SOJOURN_AGENT_SOCKET": ready["agent_socket"], "PATH": os.defpath}

    def elevate(*arguments: str) -> "subprocess.Popen[bytes]":
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        return subprocess.Popen([ready["elevate"], *arguments], env=environ, **quiet, **nobody)

    eventually(lambda: elevate("--check", "--", "/usr/bin/sleep", "987").wait() == 0)
    with elevate("--", "/usr/bin/sleep", "98765") as run:
        eventually(lambda: _running("98765"))
        os.kill(up.process.pid if who == "launcher" else ready["pids"]["agent"], signal.SIGKILL)
        eventually(lambda: not _running("98765"))
        assert run.wait(10) != 0
    if who == "agent":
        eventually(lambda: up.ready["pids"]["agent"] != ready["pids"]["agent"])
        assert up.ends(signal.SIGTERM) == 0
    else:
        up.process.wait()


def _running(argument: str) -> list[int]:
    return [
        each.pid for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["/usr/bin/sleep", argument]
    ]


def test_the_agent_follows_a_bus_that_had_to_move(open_folder: Path) -> None:
    """Somebody took NATS's port between two runs: everything has another address, and connects."""
    up = Up(open_folder, ["--data", str(open_folder / "data")]).start()
    before = up.ready
    assert up.ends(signal.SIGTERM) == 0
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", int(before["nats_url"].rpartition(":")[2])))
        thief.listen()
        again = up.start().ready
        assert again["nats_url"] != before["nats_url"]
        state = f"{again['url']}/api/v1/computers/{again['computer_id']}/state"
        eventually(lambda: _get(state, again["admin_token"])["connected"] is True)
        assert up.ends(signal.SIGTERM) == 0


def _get(url: str, token: str) -> dict[str, Any]:
    return dict(httpx.get(url, headers={"Authorization": f"Bearer {token}"}).raise_for_status().json())


def test_sigterm_ends_everything_in_order(open_folder: Path) -> None:
    """Without an agent, in a folder that is removed; the ready file goes too."""
    up = Up(open_folder, ["--ephemeral", "--no-agent"]).start()
    ready, processes = up.ready, up.processes()
    assert ready["computer_id"] is None
    assert "agent" not in ready["pids"]
    assert up.ends(signal.SIGTERM) == 0
    assert [process for process in processes if not is_gone(process)] == []
    assert not Path(ready["data_dir"]).exists()
    assert not up.ready_file.exists()


def test_servers_of_ones_own(open_folder: Path, postgres_url: str) -> None:
    """With --database-url and --nats-url no server is started, and everything works on those that are there."""
    bus = open_folder / "bus"
    subprocess.run([SOJOURN, "nats-config", bus], check=True, stdout=subprocess.DEVNULL)
    config = bus / "nats.conf"
    port = choose_nats_port(bus / "none", any_free=True)
    config.write_text(config.read_text().replace("port: 4222", f"port: {port}"))
    server = NatsServer(bus, Identity.caller(), port, open_folder / "nats.log")
    server.start()
    try:
        up = Up(
            open_folder,
            ["--data", str(open_folder / "data"), "--no-agent", "--nats-url", server.url, "--nats-creds", str(bus)],
            {"SOJOURN_DATABASE_URL": postgres_url},
        ).start()
        assert set(up.ready["pids"]) == set(SERVICES)
        assert up.ready["nats_url"] == server.url
        for url in up.ready["services"].values():
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
                assert b'"nats":"connected"' in answer.read().replace(b" ", b"")
        assert up.ends(signal.SIGINT) == 0
    finally:
        server.stop()
