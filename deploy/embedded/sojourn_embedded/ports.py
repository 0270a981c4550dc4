"""The TCP ports of 127.0.0.1 that the parts listen on."""

import contextlib
import socket
from pathlib import Path

from .owners import SERVICES
from .process import CannotStart

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
