"""The TCP ports of 127.0.0.1 that the parts listen on."""

import contextlib
import os
import socket
import sys
from pathlib import Path

from .owners import SERVICES
from .process import CannotStart, Identity

NATS_DEFAULT = 4222


def choose_ports(first: int) -> dict[str, int]:
    """A port for the gateway, and one for each service: `first` and the four after it; free ones if `first` is 0.

    Raises CannotStart, naming the port that is in use.
    """
    names = ("gateway", *(service for service in SERVICES if service != "gateway"))
    if first == 0:
        return dict(zip(names, _free_ports(len(names)), strict=True))
    if not 0 < first <= 65535 - len(names):
        raise CannotStart(f"--port {first}: give a number from 1 to {65535 - len(names)}, or 0 for any free ones.")
    ports = {name: first + offset for offset, name in enumerate(names)}
    for name, port in ports.items():
        if not is_free(port):
            raise CannotStart(
                f"Port {port} of 127.0.0.1 (for {name}) is in use: stop what listens there, "
                "or give another first port with --port (0: any free ones)."
            )
    return ports


def choose_nats_port(remembered: Path, *, any_free: bool) -> int:
    """The port of the last start if it is free, because agents were told it; else the usual one, else a free one."""
    with contextlib.suppress(OSError, ValueError):
        if is_free(port := int(remembered.read_text())):
            return port
    if not any_free and is_free(NATS_DEFAULT):
        return NATS_DEFAULT
    return _free_ports(1)[0]


def hold(port: int, owner: Identity) -> socket.socket:
    """Keep `port` for `owner` while the socket is open: any user may otherwise take it when its part is not there yet,
    or is just started again, and would be sent what is meant for the part.

    Nobody listens on it by this. The part binds with SO_REUSEPORT, which the kernel allows to the same uid alone.
    Raises CannotStart.
    """
    ours = os.geteuid()
    os.seteuid(owner.uid)  # a socket belongs to who makes it
    try:
        held = socket.socket()
    finally:
        os.seteuid(ours)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what lingers of closed connections does not count
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind(("127.0.0.1", port))
    except OSError as error:
        held.close()
        raise CannotStart(f"Port {port} of 127.0.0.1 cannot be had: {error.strerror}.") from None
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # or whoever sets it too could bind beside us
    return held


def is_listened_on_by(port: int, owner: Identity) -> bool:
    """Whether it is `owner` who listens on `port`, and not somebody who was quicker."""
    address = int.from_bytes(socket.inet_aton("127.0.0.1"), sys.byteorder)
    here = f"{address:08X}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, _, _, _, uid, *_ = line.split()
        if (local, state) == (here, _LISTENING):
            return int(uid) == owner.uid
    return False


_LISTENING = "0A"


def is_free(port: int) -> bool:
    """Whether a server could listen there now. What lingers of closed connections does not count, as for servers."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
