"""`make bench`: how fast Sojourn is, beside peers and limits measured in the same run. `python bench [PART …]`."""

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable

import ledger
import structlog
from figures import Figure, shown
from servers import Servers, servers

PARTS: dict[str, Callable[[Servers], AsyncIterator[Figure]]] = {"ledger": ledger.measure}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"which of: {', '.join(PARTS)} (all of them)")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with servers() as running:
        for name in chosen:
            asyncio.run(print_part(name, running))


async def print_part(name: str, running: Servers) -> None:
    print(f"\n{name}\n{'-' * len(name)}")
    async for figure in PARTS[name](running):
        print(shown(figure), flush=True)


if __name__ == "__main__":
    main()
