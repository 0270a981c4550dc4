"""The peer of `sojourn up`: the same five services, each a process of its own, as where every part has its machine."""

import asyncio
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from ground import Ground
from processes import pss_mib

from sojourn_embedded import prepare
from sojourn_embedded.files import own, write_secret
from sojourn_embedded.nats_server import free_port
from sojourn_embedded.owners import SERVICES
from sojourn_embedded.process import Identity


@dataclass(frozen=True)
class Started:
    """Medians: seconds from starting all five until each is ready; their proportional memory in MiB, if we are root."""

    cold: float
    warm: float
    memory: float | None


def started(ground: Ground, rounds: int, settle_seconds: float) -> Started:
    """Cold on empty databases, warm on those that the cold start left."""
    cold: list[float] = []
    warm: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as name:
        services = Services(ground, own(Path(name) / "keys", Identity.caller()))
        for count in range(rounds):
            ground.tell(f"five separate processes: {count + 1} of {rounds}")
            services.forget()
            for seconds in (cold, warm):
                began = time.perf_counter()
                try:
                    services.start()
                    services.wait()
                    seconds.append(time.perf_counter() - began)
                    if seconds is cold and os.geteuid() == 0:
                        time.sleep(settle_seconds)
                        memory.append(pss_mib(*services.pids))
                finally:
                    services.stop()
    return Started(statistics.median(cold), statistics.median(warm), statistics.median(memory) if memory else None)


class Services:
    """On the bench's own PostgreSQL and NATS, which run already."""

    def __init__(self, ground: Ground, keys: Path) -> None:
        servers = ground.servers
        self._url, self._nats, self._keys = servers.postgres_url, servers.nats.url, keys
        self._gateway_key = prepare.make_keys(str(keys))["gateway_key"]
        self._ports = {name: free_port() for name in SERVICES}
        self._running: list[subprocess.Popen[bytes]] = []
        write_secret(keys / "superuser.url", self._url)
        for user in (*SERVICES, "provisioner"):
            write_secret(keys / f"{user}.creds", servers.nats.creds(user).read_text())
        write_secret(keys / "agent-issuer.json", servers.nats.agent_issuer.json())

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._running]

    def forget(self) -> None:
        """Empty databases again."""
        asyncio.run(self._drop())
        prepare.make_stores(str(self._keys), self._nats)

    def start(self) -> None:
        for name in SERVICES:
            program = [str(Path(sys.executable).with_name(f"sojourn-{name}")), "serve"]
            with (self._keys / f"{name}.log").open("ab") as out:
                self._running.append(
                    subprocess.Popen(program, env=self._environ(name), stdout=out, stderr=out, cwd="/")
                )

    def wait(self) -> None:
        """Until each says that it is ready."""
        deadline = time.perf_counter() + 60
        waiting = set(SERVICES)
        while waiting := {name for name in waiting if not _is_ready(self._ports[name])}:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"after a minute these were not ready: {', '.join(sorted(waiting))}")
            time.sleep(0.02)

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()
        self._running = []

    async def _drop(self) -> None:
        connection = await asyncpg.connect(self._url)
        for name in SERVICES:
            await connection.execute(f"DROP DATABASE IF EXISTS sojourn_{name}")
        await connection.close()

    def _environ(self, name: str) -> dict[str, str]:
        keys = self._keys
        return {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "SOJOURN_DATABASE_URL_FILE": f"{keys}/{name}.database-url",
            "SOJOURN_NATS_URL": self._nats,
            "SOJOURN_NATS_CREDS": f"{keys}/{name}.creds",
            "SOJOURN_LISTEN": f"127.0.0.1:{self._ports[name]}",
            "SOJOURN_GATEWAY_KEYS": self._gateway_key,
            "SOJOURN_GATEWAY_KEY_FILE": f"{keys}/gateway.seed",
            "SOJOURN_LEDGER_KEY_FILE": f"{keys}/ledger.seed",
            "SOJOURN_AGENT_ISSUER_SEED_FILE": f"{keys}/agent-issuer.json",
            "SOJOURN_STATE_KEYS": f"{keys}/documents",
            "SOJOURN_KEY_SET": f"{keys}/key-set.json",
        }


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
