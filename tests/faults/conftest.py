"""A stack whose parts are killed, and the questions that tell whether anything was lost or happened twice."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from sojourn_embedded.demo.people import Administrator, Person, ThrowAwayUsers
from sojourn_embedded.demo.stack import Stack, eventually

AS_ROOT = os.geteuid() == 0
ALICE = "sj-fault-alice"
SERVICES = ("policy", "requests", "expiry", "audit", "gateway")
RECOVERY_SECONDS = 40.0  # until a killed part answers again; 2 to 5 s on an idle machine, PostgreSQL included

COUNTED = {"policy", "computer", "enrolment_token", "request", "grant", "elevation", "settings", "account", "key"}
"""Entities whose version counts their changes: 1, 2, 3 … (an agent's is a time, and sessions have none)."""


@dataclass
class World:
    """A running stack, people, and what the ledger must hold because somebody was answered 2xx."""

    stack: Stack
    admin: Administrator
    approver: Administrator | None
    """Somebody else, who decides on what the administrator asks for."""
    person: Person | None
    """An ordinary user of the computer; None without root."""
    promised: set[tuple[str, str, int]] = field(default_factory=set)
    """(kind, id, version) of every change that was answered 2xx."""
    _lines: list[dict[str, Any]] = field(default_factory=list)
    _checkpoint: str = ""

    def promise(self, kind: str, entity: Any) -> Any:
        """Remember an answer: this entity exists at this version, and the ledger will say how it came to be."""
        self.promised.add((kind, entity["id"], entity["version"]))
        return entity

    @contextlib.contextmanager
    def deaf(self, part: str) -> Iterator[None]:
        """A part that neither hears nor answers, though its connections stand."""
        pid = self.stack.pid(part)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have been killed meanwhile
                os.kill(pid, signal.SIGCONT)

    def kills(self, part: str) -> int:
        """`kill -9`; the pid that was."""
        pid = self.stack.pid(part)
        os.kill(pid, signal.SIGKILL)
        return pid

    def is_back(self, part: str, pid: int) -> None:
        """Return when a part that had `pid` was started again and the whole answers."""
        eventually(lambda: self.stack.pid(part) != pid, RECOVERY_SECONDS, f"{part} is started again")
        for path in ("/policies", "/requests", "/grants", "/audit/events", "/me"):
            eventually(lambda path=path: self._answers(path), RECOVERY_SECONDS, f"{path} is answered again")

    def _answers(self, path: str) -> bool:
        try:
            return self.admin.http.get(path).status_code == 200
        except httpx.HTTPError:
            return False

    def all_of(self, path: str) -> list[Any]:
        """All items of a list, page by page."""
        items: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.admin.get(path, limit=200, **cursor)
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = {"cursor": page["next_cursor"]}

    def converges(self, status: str, **where: str) -> None:
        """The one grant of a policy or request comes to `status`, and the computer confirms it."""
        confirmed = ("ended" if status == "revoked" else "applied") if AS_ROOT else None

        def there() -> bool:
            found = self.admin.get("/grants", **where)["items"]
            return [one["status"] for one in found] == [status] and confirmed in {None, found[0]["delivery"]}

        eventually(there, RECOVERY_SECONDS, f"the grant of {where} is {status} and {confirmed or 'there'}")

    def keeps_checkpoint(self, outside: Path) -> None:
        """Keep the checkpoint of now in a file outside."""
        self.settles()
        outside.write_text(self.admin.http.get("/audit/checkpoint").raise_for_status().text)

    def is_proven(self, since: Path) -> None:
        """`sojourn audit verify`: every entry is what was signed, and the first ones are those of a kept checkpoint."""
        ready = self.stack.ready
        done = subprocess.run(
            [sys.executable, "-m", "sojourn_cli.main", "audit", "verify", "--since", str(since)],
            env={**os.environ, "SOJOURN_URL": ready["url"], "SOJOURN_TOKEN": ready["admin_token"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    # --- nothing lost, nothing twice ----------------------------------------------------------------------------------

    def settles(self) -> None:
        """Return when no event waits in any outbox, and the ledger holds all that was promised."""
        eventually(lambda: self._waiting() == 0, RECOVERY_SECONDS, "every outbox is empty")
        eventually(lambda: self.promised <= self._told(), RECOVERY_SECONDS, "the ledger holds what was answered")

    def _told(self) -> set[tuple[str, str, int]]:
        return {(kind_of(line), line["subject"], line["data"].get("version")) for line in self.ledger()}

    def _waiting(self) -> float:
        return sum(self._metric(name, "sojourn_outbox_waiting") for name in SERVICES)

    def _metric(self, service: str, name: str) -> float:
        ready = self.stack.ready
        text = httpx.get(f"{ready['services'].get(service, ready['url'])}/metrics", timeout=10).text
        (value,) = (line.split()[1] for line in text.splitlines() if line.startswith(f"{name} "))
        return float(value)

    def ledger(self) -> list[dict[str, Any]]:
        """Every line of the ledger, as anybody may export it; asked for again when there is a new checkpoint."""
        checkpoint = self.admin.http.get("/audit/checkpoint").raise_for_status().text
        if checkpoint != self._checkpoint:
            export = self.admin.http.get("/audit/export", params={"format": "jsonl"}).raise_for_status()
            self._lines, self._checkpoint = [json.loads(line) for line in export.text.splitlines()], checkpoint
        return self._lines

    def is_whole(self) -> None:
        """Nothing was lost, nothing happened twice: one event for each change, and every change that was answered."""
        self.settles()
        lines = self.ledger()
        assert [line["seq"] for line in lines] == list(range(len(lines)))
        assert repeated(line["id"] for line in lines) == {}, "an event is in the ledger twice"
        versions: dict[tuple[str, str], list[int]] = defaultdict(list)
        for line in lines:
            if (kind := kind_of(line)) in COUNTED and "version" in line["data"]:
                versions[kind, line["subject"]].append(line["data"]["version"])
        assert {"computer", "enrolment_token", "account"} <= {kind for kind, _ in versions}
        for entity, found in versions.items():
            first = min(found) if entity[0] == "settings" else 1  # settings are there before anybody changes them
            assert sorted(found) == list(range(first, first + len(found))), f"{entity} has a change lost, or told twice"
        assert {name: self._metric(name, "sojourn_parked") for name in SERVICES} == dict.fromkeys(SERVICES, 0)


def kind_of(line: Any) -> str:
    """`policy` of `policy.created`."""
    kind: str = line["type"].partition(".")[0]
    return kind


def repeated(some: Iterator[Any]) -> dict[Any, int]:
    return {one: count for one, count in Counter(some).items() if count > 1}


def with_argument(argument: str, *, uid: int) -> int | None:
    """The pid of a process of that user whose last argument this is, if there is one."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")[:-1]
            if words[-1:] == [argument.encode()] and words[0].endswith(b"sleep") and place.stat().st_uid == uid:
                return int(place.name)
    return None


NAMES = (f"number {number}" for number in itertools.count(1))
"""Names that nobody had before."""


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """One stack for all that is killed part by part; as root with a real agent and an ordinary user."""
    with contextlib.ExitStack() as stack_of:
        if AS_ROOT:
            stack_of.enter_context(ThrowAwayUsers(ALICE))
        stack = stack_of.enter_context(Stack())
        admin = stack_of.enter_context(Administrator(stack))
        body = {"name": "Aud", "email": "aud@example.com", "roles": ["approver"], "os_users": []}
        account = admin.post("/accounts", body)
        key = admin.post("/api-keys", {"name": "Aud's", "account_id": account["id"]})["key"]
        approver = stack_of.enter_context(Administrator(stack, key))
        yield World(stack, admin, approver, Person(ALICE, stack) if AS_ROOT else None)
