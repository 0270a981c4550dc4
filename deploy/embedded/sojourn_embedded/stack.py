"""Everything of Sojourn on this machine, from nothing to ready: read `Stack.bring_up` from top to bottom."""

import hashlib
import json
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import agent
from .data import Data
from .files import write_secret
from .nats_server import NatsServer
from .owners import SERVICES, owner_of
from .parts import Forked, Nursery, Program
from .ports import choose_nats_port, hold
from .postgres import Postgres
from .process import CannotStart
from .supervisor import Supervisor


@dataclass(frozen=True)
class Wishes:
    """What the person at the terminal asked for. A URL given means that the server is somebody else's."""

    data: Path | None = None
    ephemeral: bool = False
    port: int = 8400
    agent: bool = True
    ready_file: Path | None = None
    database_url: str | None = None
    nats_url: str | None = None
    nats_creds: Path | None = None


class Stack:
    """The parts of one machine. `say` tells people one line."""

    def __init__(self, data: Data, ports: Mapping[str, int], wishes: Wishes, say: Callable[[str], None]) -> None:
        self._data = data
        self._ports = ports
        self._wishes = wishes
        self._say = say
        self._pids: dict[str, Callable[[], int | None]] = {}
        self._ready: dict[str, object] | None = None
        self._held: list[socket.socket] = []
        self.supervisor = Supervisor(say, self._write_ready_file)
        self.url = f"http://127.0.0.1:{ports['gateway']}"

    def bring_up(self) -> None:
        """Return when everything answers, and the ready file says so. Raises CannotStart, and Stopped."""
        data, supervisor = self._data, self.supervisor
        self._held = [hold(port, owner_of(name)) for name, port in self._ports.items()]
        nursery = Nursery(data.log("nursery"), data.lock)
        nursery.need("up")  # it imports for a second; meanwhile:
        self._start_postgres()
        nursery.wait()
        made = nursery.prepare("make_keys", keys=str(data.keys))
        nats_url = self._start_nats(nursery)
        supervisor.wait_for(*(name for name in ("postgres", "nats") if name in self._pids))
        nursery.prepare("make_stores", keys=str(data.keys), nats_url=nats_url)
        nursery.prepare("migrate_all", keys=str(data.keys))

        token = self._kept_token()
        sign_in = secrets.token_urlsafe(32)
        self._write_bootstrap(token, sign_in)
        for name in SERVICES:
            environ = self._environ(name, nats_url, made["gateway_key"])
            port = self._ports[name]
            part = Forked(name, nursery, environ, identity=owner_of(name), log=data.log(name), port=port)
            supervisor.launch(part)
            self._pids[name] = _pid_of(part)
        supervisor.wait_for(*SERVICES)

        computer_id = self._start_agent(nursery, nats_url) if self._wishes.agent else None
        nursery.release("up")

        self._ready = {
            "url": self.url,
            "nats_url": nats_url,
            "data_dir": str(data.path),
            "admin_token": token,
            "sign_in_url": f"{self.url}/sign-in?token={sign_in}",
            "computer_id": computer_id,
            "agent_socket": str(data.agent_socket) if self._wishes.agent else None,
            "elevate": str(data.elevate) if self._wishes.agent else None,
            "services": {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items() if name != "gateway"},
        }
        self._write_ready_file()
        self._tell(self._ready)

    def stop(self) -> None:
        """End everything in order: first what elevates, last what stores."""
        self.supervisor.stop(
            (["agent"], signal.SIGTERM, 10),
            (["gateway"], signal.SIGTERM, 5),
            ([name for name in SERVICES if name != "gateway"], signal.SIGTERM, 5),
            (["nats"], signal.SIGTERM, 5),
            (["postgres"], signal.SIGINT, 20),
        )
        for held in self._held:
            held.close()
        if self._wishes.ready_file:
            self._wishes.ready_file.unlink(missing_ok=True)

    def _start_postgres(self) -> None:
        data, file = self._data, self._data.keys / "superuser.url"
        if self._wishes.database_url:
            write_secret(file, self._wishes.database_url)
            return
        password = self._kept(data.keys / "postgres.password", lambda: secrets.token_urlsafe(24))
        server = Postgres(
            folder=data.postgres,
            identity=owner_of("postgres"),
            password=password,
            log=data.log("postgres"),
            socket_folder=data.run / "postgres",
            keep_open=(data.lock,),
        )
        write_secret(file, server.url())
        self._watch("postgres", server.launch, server.is_ready)

    def _start_nats(self, nursery: Nursery) -> str:
        data, keys = self._data, str(self._data.keys)
        if self._wishes.nats_url:
            nursery.prepare("take_accounts", keys=keys, source=str(self._wishes.nats_creds))
            return self._wishes.nats_url
        remembered = data.keys / "nats.port"
        port = choose_nats_port(remembered, any_free=self._wishes.port == 0)
        write_secret(remembered, str(port))
        nursery.prepare("make_accounts", keys=keys, nats_folder=str(data.nats), port=port)
        server = NatsServer(data.nats, owner_of("nats"), port, data.log("nats"), keep_open=(data.lock,))
        self._watch("nats", server.launch, server.is_ready, server.is_stuck)
        return server.url

    def _start_agent(self, nursery: Nursery, nats_url: str) -> str:
        """The id of this computer, enrolled through the gateway like any other."""
        data = self._data
        computer_id = agent.enrolled(data, self.url, nats_url, nursery)
        agent.install_elevate(data)
        self._watch("agent", lambda: agent.start(data), lambda: agent.is_ready(data))
        self.supervisor.wait_for("agent")
        return computer_id

    def _watch(
        self,
        name: str,
        launch: Callable[[], "subprocess.Popen[bytes]"],
        is_ready: Callable[[], bool],
        is_stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        program = Program(name, self._data.log(name), launch, is_ready, is_stuck)
        self.supervisor.launch(program)
        self._pids[name] = _pid_of(program)

    def _kept_token(self) -> str:
        """The first administrator's API key: the same at every start, so that scripts go on working."""
        return self._kept(self._data.keys / "admin.token", lambda: f"sjn_{secrets.token_urlsafe(32)}")

    @staticmethod
    def _kept(file: Path, make: Callable[[], str]) -> str:
        if not file.exists():
            write_secret(file, make())
        return file.read_text().strip()

    def _write_bootstrap(self, token: str, sign_in: str) -> None:
        """What the gateway needs for the first account: of its secrets only what they hash to."""
        bootstrap = {
            "admin_os_users": os_users_of_the_starter(),
            "admin_token_sha256": hashlib.sha256(token.encode()).hexdigest(),
            "sign_in_sha256": hashlib.sha256(sign_in.encode()).hexdigest(),
        }
        write_secret(self._data.keys / "bootstrap.json", json.dumps(bootstrap), owner_of("gateway"))

    def _environ(self, name: str, nats_url: str, gateway_key: str) -> dict[str, str]:
        """The settings of one service. Secrets are paths: it reads them after it dropped to its own uid."""
        keys = self._data.keys
        own: dict[str, dict[str, str]] = {
            "policy": {
                "SOJOURN_AGENT_ISSUER_SEED_FILE": f"{keys}/agent-issuer.json",
                "SOJOURN_NATS_PUBLIC_URLS": nats_url,
                "SOJOURN_PUBLIC_URL": self.url,
                "SOJOURN_KEY_SET": f"{keys}/key-set.json",
            },
            "requests": {"SOJOURN_PUBLIC_URL": self.url},
            "expiry": {
                "SOJOURN_STATE_KEYS": f"{keys}/documents",
                "SOJOURN_PUBLIC_URL": self.url,
                "SOJOURN_KEY_SET": f"{keys}/key-set.json",
            },
            "audit": {"SOJOURN_LEDGER_KEY_FILE": f"{keys}/ledger.seed"},
            "gateway": {
                "SOJOURN_PUBLIC_URL": self.url,
                "SOJOURN_GATEWAY_KEY_FILE": f"{keys}/gateway.seed",
                "SOJOURN_BOOTSTRAP_FILE": f"{keys}/bootstrap.json",
                **{
                    f"SOJOURN_{service.upper()}_URL": f"http://127.0.0.1:{self._ports[service]}"
                    for service in SERVICES
                    if service != "gateway"
                },
            },
        }
        return {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "SOJOURN_DATABASE_URL_FILE": f"{keys}/{name}.database-url",
            "SOJOURN_NATS_URL": nats_url,
            "SOJOURN_NATS_CREDS": f"{keys}/{name}.creds",
            "SOJOURN_LISTEN": f"127.0.0.1:{self._ports[name]}",
            "SOJOURN_LISTEN_HELD": "1",
            "SOJOURN_GATEWAY_KEYS": gateway_key,
            **own[name],
        }

    def _write_ready_file(self) -> None:
        """Again whenever a pid changed; whoever waits for it sees the old one or the new one, never half of it."""
        if self._ready is None or self._wishes.ready_file is None:
            return
        pids = {name: pid() for name, pid in self._pids.items()}
        write_secret(self._wishes.ready_file, json.dumps({**self._ready, "pids": pids}, indent=2) + "\n")

    def _tell(self, ready: Mapping[str, object]) -> None:
        self._say("")
        self._say(f"  console    {ready['url']}")
        self._say(f"  sign in    {ready['sign_in_url']}  (works once)")
        sojourn = Path(sys.executable).parent / "sojourn"
        self._say(f"  command    {sojourn} login --url {ready['url']} --token @{self._data.keys}/admin.token")
        if ready["elevate"]:
            where = "" if self._data.is_default else f"SOJOURN_AGENT_SOCKET={ready['agent_socket']} "
            self._say(f"  elevate    {where}{ready['elevate']}")
        if self._wishes.agent and os.geteuid() != 0:
            self._say("  The agent only observes: without root it elevates nothing. For the real thing: sudo make run")
        self._say("  Ctrl-C ends everything.")


def os_users_of_the_starter() -> list[str]:
    """The OS users that are the first administrator: nobody approves their own request, here too."""
    names = []
    try:
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        raise CannotStart(f"Your user number {os.getuid()} has no name here: start as a user with one.") from None
    if (sudoer := os.environ.get("SUDO_USER")) and sudoer not in names:
        names.append(sudoer)
    return names


def _pid_of(part: Program | Forked) -> Callable[[], int | None]:
    return lambda: part.pid
