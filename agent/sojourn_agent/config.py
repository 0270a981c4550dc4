"""What the agent of one computer is told at enrolment: `/etc/sojourn/agent.toml`, and where everything lies.

The folder `state` (0700, the keeper's) holds what `keeper/state.py` lists; the secrets are there, never in this file.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/sojourn/agent.toml")
DEFAULT_STATE = Path("/var/lib/sojourn-agent")
DEFAULT_SOCKET = Path("/run/sojourn/agent.sock")


class BadConfig(Exception):
    """The file cannot be used; the message says what and where, and what to do."""


@dataclass(frozen=True)
class Config:
    """`root_key`: base64url of the root's public key, pinned at enrolment; it signs the key set.

    `link_uid`, `link_gid`: whom the link runs as, when the keeper is root (else it stays who the keeper is).
    `cgroup_parent`: the cgroup v2 folder that holds a leaf for each run; None: found in /proc/self/mountinfo.
    """

    server: str
    computer_id: str
    root_key: str
    state: Path = DEFAULT_STATE
    socket: Path = DEFAULT_SOCKET
    link_uid: int | None = None
    link_gid: int | None = None
    cgroup_parent: Path | None = None
    heartbeat_seconds: int = 60


def read_config(path: Path = DEFAULT_CONFIG) -> Config:
    """Raises BadConfig."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        other = "; the agent of `sojourn up` has its own: --config DATA/agent/agent.toml"
        raise BadConfig(f"{path} is not there: enrol this computer first (sojourn-agent enrol){other}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from None
    texts = {name: _text(told, name, path) for name in ("server", "computer_id", "root_key")}
    return Config(
        **texts,
        state=Path(_text(told, "state", path, str(DEFAULT_STATE))),
        socket=Path(_text(told, "socket", path, str(DEFAULT_SOCKET))),
        link_uid=_number(told, "link_uid", path),
        link_gid=_number(told, "link_gid", path),
        cgroup_parent=Path(parent) if (parent := _text(told, "cgroup_parent", path, "")) else None,
        heartbeat_seconds=_number(told, "heartbeat_seconds", path) or 60,
    )


def write_config(config: Config, path: Path = DEFAULT_CONFIG) -> None:
    """Replace `path` as a whole, mode 0644: nothing in it is secret."""
    lines = [f'{name} = "{_escaped(str(getattr(config, name)))}"' for name in _TEXTS if getattr(config, name)]
    lines += [f"{name} = {getattr(config, name)}" for name in _NUMBERS if getattr(config, name) is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


_TEXTS = ("server", "computer_id", "root_key", "state", "socket", "cgroup_parent")
_NUMBERS = ("link_uid", "link_gid", "heartbeat_seconds")


def _text(told: dict[str, object], name: str, path: Path, default: str | None = None) -> str:
    value = told.get(name, default)
    if not isinstance(value, str):
        raise BadConfig(f"{path}: {name} must be a text" if name in told else f"{path}: {name} is missing")
    return value


def _number(told: dict[str, object], name: str, path: Path) -> int | None:
    value = told.get(name)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise BadConfig(f"{path}: {name} must be a whole number")
    return value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
