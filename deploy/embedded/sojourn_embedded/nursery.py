"""Where the services are forked from: a process that has imported everything once, and has read no secret.

Importing the frame costs a second of CPU and 60 MiB; forked services share it. Each drops to its own uid before it
reads its own secrets. A service becomes a child of the launcher and ends with that; the nursery is dismissed once all
are up, and its memory with it.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

import sojourn_embedded.unneeded  # noqa: F401 - before what would load them
from sojourn_shared.service import BadSettings, serve

from . import prepare
from .owners import SERVICES
from .process import CannotStart, Identity, call_this_process, die_with

# Imported at first use, which would be once in each service.
_LATE = (
    "anyio._backends._asyncio",
    "encodings.idna",
    "fastapi.telemetry._runtime",
    "httpcore",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "sqlalchemy.dialects.postgresql.asyncpg",
)


def main() -> None:
    """`python -m sojourn_embedded.nursery DESCRIPTOR`: take orders from a SEQPACKET socket until it is closed.

    Orders: `{"start": service, "environ", "uid", "gid", "log", "parent"}`, `{"prepare": function, "arguments"}`.
    Answers: first of all `{"ready"}`; then to each order `{"started": pid}`, `{"prepared": result}` or `{"problem"}`.
    """
    call_this_process("sj-nursery")
    gc.disable()  # a collection between imports would leave holes, which children fill: in shared pages
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in _LATE:
        importlib.import_module(name)
    services = {name: importlib.import_module(f"sojourn_{name}.app").SERVICE for name in SERVICES}
    gc.freeze()  # a collection in a child would write to every shared page
    _tell(channel, ready=True)
    while packet := channel.recv(1 << 16):
        order, nursery, child = json.loads(packet), os.getpid(), os.fork()
        if child == 0:
            _obey(order, channel, services, nursery)
        os.waitpid(child, 0)  # it leaves at once, or as soon as it has prepared


def _obey(order: dict[str, Any], channel: socket.socket, services: dict[str, Any], nursery: int) -> NoReturn:
    """In the child: do what was ordered, then leave. Never returns into the nursery's loop."""
    status = 1
    try:
        gc.enable()
        if "prepare" in order:
            die_with(nursery, signal.SIGKILL)
            _tell(channel, prepared=getattr(prepare, order["prepare"])(**order["arguments"]))
            status = 0
        elif service := os.fork():
            _tell(channel, started=service)
            status = 0  # and by leaving give the service to the launcher, which waits for such children
        else:
            channel.close()
            status = _serve(order, services[order["start"]])
    except Exception as error:
        traceback.print_exc()
        if "prepare" in order:
            _tell(channel, problem=str(error) if isinstance(error, CannotStart) else f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(order: dict[str, Any], service: Any) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    call_this_process(f"sj-{service.name}")
    Identity(order["uid"], order["gid"]).drop()
    deadline = time.monotonic() + 5
    while os.getppid() != order["parent"] and time.monotonic() < deadline:
        time.sleep(0.001)
    die_with(order["parent"], signal.SIGKILL)
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(order["environ"])
    try:
        serve(service, order["environ"])
    except BadSettings as error:
        sys.stderr.write(f"{service.name}: {error}\n")
        return 1
    return 0


def _tell(channel: socket.socket, **what: Any) -> None:
    channel.send(json.dumps(what).encode())


if __name__ == "__main__":
    main()
