"""The keeper: the privileged half of the agent. It judges, starts and ends elevated applications, and signs reports.

No network, no asyncio, no NATS: everything from outside comes through the link, and counts only by its signature.
"""

import socket

from sojourn_agent.config import Config


def run(config: Config, *, link: socket.socket | None = None) -> None:
    """Keep this computer until SIGTERM or SIGINT. `link`: a connected socket whose other end plays the link (tests).

    Raises `keeper.state.Unusable` with a sentence when it cannot begin.
    """
    from .keeper import Keeper  # noqa: PLC0415 - enrolment imports `keeper.state` alone

    Keeper(config, link=link).run()
