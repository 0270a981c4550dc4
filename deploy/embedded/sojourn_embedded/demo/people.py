"""The people of the story: an administrator who calls the API, and users of the computer who run `elevate`."""

import contextlib
import fcntl
import hashlib
import os
import pty
import pwd
import re
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from .stack import Stack, eventually


class Refusal(Exception):
    """The API said no; `code` is the problem's."""

    def __init__(self, answer: httpx.Response) -> None:
        problem = answer.json()
        super().__init__(f"{answer.status_code} {problem['detail']} {problem.get('errors', '')}")
        self.status = answer.status_code
        self.code = problem["type"].rpartition("/")[2]


class Administrator:
    """Somebody with an API key; every method is one call."""

    def __init__(self, stack: Stack, token: str | None = None) -> None:
        ready = stack.ready
        self.computer_id: str = ready["computer_id"]
        self.http = httpx.Client(
            base_url=f"{ready['url']}/api/v1",
            headers={"Authorization": f"Bearer {token or ready['admin_token']}"},
            timeout=10,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._answered(self.http.get(path, params=params))

    def post(self, path: str, body: Any = None) -> Any:
        return self._answered(self.http.post(path, json=body if body is not None else {}))

    def put(self, path: str, **changes: Any) -> Any:
        """Change some fields of what is there."""
        found = self.http.get(path)
        headers = {"If-Match": found.headers["etag"]}
        return self._answered(self.http.put(path, json=self._answered(found) | changes, headers=headers))

    def deploys(self, name: str, **body: Any) -> Any:
        """Create and deploy a policy for this computer; it is in force when this returns."""
        made = self.post("/policies", {"name": name, "targets": {"computer_ids": [self.computer_id]}, **body})
        return self.post(f"/policies/{made['id']}/deploy")

    def grant_of(self, policy: Any) -> Any:
        """The newest grant of a policy, once the computer has confirmed it."""

        def applied() -> Any:
            grants = self.get("/grants", policy_id=policy["id"])["items"]
            return grants[0] if grants and grants[0]["delivery"] == "applied" else None

        return eventually(applied, 5, f"{policy['name']} is applied on the computer")

    def pending(self, user: str) -> Any:
        """The newest pending request of a user, once it has come."""

        def newest() -> Any:
            found = self.get("/requests", status="pending", user=user)["items"]
            return found[0] if found else None

        return eventually(newest, 5, f"{user}'s request is pending")

    def elevations_of(self, grant_id: str) -> Any:
        return self.get("/elevations", grant_id=grant_id)["items"]

    @staticmethod
    def _answered(answer: httpx.Response) -> Any:
        if answer.is_error:
            raise Refusal(answer)
        return answer.json() if answer.content else None


class Person:
    """An ordinary user of this computer."""

    def __init__(self, name: str, stack: Stack) -> None:
        self.name = name
        entry = pwd.getpwnam(name)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        ready = stack.ready
        self._elevate = ready["elevate"]
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "HOME": "/",
            "SOJOURN_AGENT_SOCKET": ready["agent_socket"],
        }

    def elevate(self, *arguments: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run `elevate` to its end, without a terminal."""
        with self.elevating(*arguments) as run:
            out, err = run.communicate(timeout=seconds)
        return subprocess.CompletedProcess(run.args, run.returncode, out, err)

    @contextlib.contextmanager
    def elevating(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """`elevate` while it runs, without a terminal."""
        run = subprocess.Popen([self._elevate, *arguments], text=True, **self._how(), **_PIPES)
        try:
            yield run
        finally:
            if run.poll() is None:
                run.kill()
                run.wait()
            for stream in (run.stdout, run.stderr):
                if stream is not None:
                    stream.close()

    @contextlib.contextmanager
    def at_a_terminal(self, *arguments: str) -> Iterator["Terminal"]:
        """`elevate` at a terminal of its own."""
        terminal, end = pty.openpty()
        os.chown(os.ttyname(end), self.uid, self.gid)
        run = subprocess.Popen(
            [self._elevate, *arguments],
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            preexec_fn=_own_the_terminal,  # noqa: PLW1509 - demo and tests start it from their one thread
            **self._how(),
        )
        os.close(end)
        try:
            yield Terminal(run, terminal)
        finally:
            if run.poll() is None:
                run.kill()
                run.wait()
            os.close(terminal)

    def _how(self) -> dict[str, Any]:
        how = {"env": self._environment, "cwd": "/"}
        return how | ({"user": self.uid, "group": self.gid, "extra_groups": []} if os.geteuid() == 0 else {})


def _own_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # or Ctrl-C there would be a mere character


_PIPES: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


class Terminal:
    """What a person sees and types."""

    def __init__(self, run: "subprocess.Popen[bytes]", fd: int) -> None:
        self.run = run
        self.shown = ""
        self._fd = fd

    def sees(self, pattern: str, seconds: float = 10) -> str:
        """Wait until the terminal shows `pattern`. Raises TimeoutError with what it shows instead."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown)) is None:
            if not self._read(deadline - time.monotonic()):
                raise TimeoutError(f"no {pattern!r} on the terminal, which shows:\n{self.shown}")
        return found[0]

    def types(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def ends(self, seconds: float = 10) -> int:
        """The exit status, once it has ended; what it still said is in `shown`."""
        deadline = time.monotonic() + seconds
        while self.run.poll() is None and time.monotonic() < deadline:
            self._read(0.02)
        while self._read(0.02):
            pass
        return self.run.wait(0.1)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._fd], [], [], max(seconds, 0))[0]:
            return False
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)


class ThrowAwayUsers:
    """OS users for the time of a block (needs root)."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._made: list[str] = []

    def __enter__(self) -> Self:
        for name in self.names:
            with contextlib.suppress(KeyError):
                pwd.getpwnam(name)
                self.__exit__()
                raise FileExistsError(f"there is a user {name} on this computer already; nothing was changed")
            command = ["useradd", "--no-create-home", "--no-log-init", "--shell", "/bin/sh", name]
            subprocess.run(command, check=True, capture_output=True)
            self._made.append(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._made:
            subprocess.run(["userdel", "--force", name], check=False, capture_output=True)
        self._made = []


def is_gone(pid: int) -> bool:
    """Whether a process runs no more (one that only waits for its parent counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def file_hash(path: str) -> dict[str, str]:
    """The `file_hash` rule for a file of this computer."""
    return {"type": "file_hash", "sha256": hashlib.sha256(Path(path).resolve().read_bytes()).hexdigest()}


def folder(path: str) -> dict[str, str]:
    """The `folder_path` rule for a folder of this computer."""
    return {"type": "folder_path", "path": str(Path(path).resolve())}


def specific(*rules: Any) -> dict[str, Any]:
    return {"type": "specific", "rules": list(rules)}


def fixed(minutes: int) -> dict[str, Any]:
    return {"type": "fixed", "minutes": minutes}


def only(*names: str) -> dict[str, Any]:
    return {"all": False, "names": list(names)}


EVERYBODY: dict[str, Any] = {"all": True, "names": []}
