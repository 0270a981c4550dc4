"""The data folder of one machine, the lock on it, and the folder for its sockets."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .files import closed_folder, own, write_public
from .process import CannotStart, Identity

DEFAULT_FOR_ROOT = Path("/var/lib/sojourn")
_SOCKET_PATH_MAX = 107  # bytes, sockaddr_un
_LONGEST_SOCKET = "/postgres/.s.PGSQL.5432"


@dataclass(frozen=True)
class Data:
    """`DATA/{keys,postgres,nats,agent,logs,bin}`, held by an exclusive lock; `run` holds the sockets.

    The lock is handed on to PostgreSQL, NATS and the services' nursery, so that it is free only when all of them are
    gone, even if this process is killed.
    """

    path: Path
    run: Path
    lock: int
    ephemeral: bool

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def agent(self) -> Path:
        return self.path / "agent"

    @property
    def agent_socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def elevate(self) -> Path:
        """The person's command, on a path that every user may traverse."""
        return self.path / "bin" / "elevate"

    @property
    def is_default(self) -> bool:
        return self.path == DEFAULT_FOR_ROOT

    def log(self, part: str) -> Path:
        return self.path / "logs" / f"{part}.log"

    def close(self) -> None:
        """Remove what does not outlive a run. Everything that was started has ended."""
        shutil.rmtree(self.run, ignore_errors=True)
        if self.ephemeral:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def open_data(path: Path | None, *, ephemeral: bool) -> Data:
    """Make or find the folder, and lock it. `path` None: the default. Raises CannotStart; nothing was changed then."""
    as_root = os.geteuid() == 0
    if ephemeral:
        path = Path(tempfile.mkdtemp(prefix="sojourn-"))
    path = (path or default_data()).absolute()
    if path.exists() and not (path / "lock").exists():
        if not path.is_dir():
            raise CannotStart(f"{path} is not a folder: give another one with --data.")
        if any(path.iterdir()) and not ephemeral:
            raise CannotStart(f"{path} holds other things, and nothing of Sojourn: give another folder with --data.")
    if as_root and (closed := closed_folder(path.parent)):
        raise CannotStart(
            f"Other users may not enter {closed}, but the parts of Sojourn run as users of their own and need {path}: "
            "give another folder with --data (or allow entering: chmod o+x)."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        own(path, Identity.caller(), 0o711 if as_root else 0o700)
        for name in ("keys", "bin", "agent"):
            own(path / name, Identity.caller(), 0o711 if as_root and name != "agent" else 0o700)
        own(path / "logs", Identity.caller())
    except PermissionError as error:
        raise CannotStart(f"{error.filename} cannot be written: give another folder with --data.") from None
    return Data(path, _run_folder(path), lock, ephemeral)


def default_data() -> Path:
    return DEFAULT_FOR_ROOT if os.geteuid() == 0 else Path.home() / ".local/share/sojourn"


def _lock(path: Path) -> int:
    file = path / "lock"
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + 15
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            # The parts of one that was killed hold the lock for the moment that they need to end.
            if _is_alive(holder) or time.monotonic() > deadline:
                os.close(lock)
                raise CannotStart(
                    f"Sojourn is already running on {path} (process {holder or 'unknown'}): stop it first, "
                    "or give another folder with --data."
                ) from None
            time.sleep(0.05)
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return lock


def _is_alive(pid: str) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def _run_folder(data: Path) -> Path:
    """For sockets: on a path that every user may traverse if root starts it, and short enough for an address.

    As root `/run/sojourn` for the default data folder, unless something else is there.
    """
    mark = hashlib.sha256(str(data).encode()).hexdigest()[:8]
    if os.geteuid() == 0:
        candidates = [Path(f"/run/sojourn-{mark}")]
        if data == DEFAULT_FOR_ROOT:
            candidates.insert(0, Path("/run/sojourn"))
        for folder in candidates:
            if not folder.exists() or _belongs_to(folder, data):
                own(folder, Identity.caller(), 0o755)
                write_public(folder / ".data", str(data))
                return folder
        raise CannotStart(f"{candidates[-1]} belongs to something else: remove it, or give another folder with --data.")
    folder = data / "run"
    if len(os.fsencode(folder)) + len(_LONGEST_SOCKET) > _SOCKET_PATH_MAX:
        folder = Path(tempfile.gettempdir()) / f"sojourn-{mark}-{secrets.token_hex(4)}"
    return own(folder, Identity.caller())


def _belongs_to(folder: Path, data: Path) -> bool:
    with contextlib.suppress(OSError):
        return folder.stat().st_uid == 0 and (folder / ".data").read_text() == str(data)
    return False
