"""What `elevate` costs a person who holds a grant: a covered command beside the bare one."""

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

from figures import Figure
from ground import Ground
from processes import timed_in_turn

from sojourn_embedded.demo.people import file_hash, fixed, only, specific

RUNS = 50
COMMAND = "/usr/bin/true"


def measure(ground: Ground) -> Iterator[Figure]:
    stack, user = ground.stack, ground.user
    policy = ground.admin.deploys(
        "Nothing", users=only(user.name), duration=fixed(30), access=specific(file_hash(COMMAND))
    )
    ground.admin.grant_of(policy)
    ground.tell(f"{RUNS} runs of each")
    elevate = stack.ready["elevate"]
    interpreter = Path(elevate).read_text().partition("\n")[0].removeprefix("#!").split()
    environ = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "SOJOURN_AGENT_SOCKET": stack.ready["agent_socket"]}
    commands = {
        "bare": [COMMAND],
        "python": [*interpreter, "-c", "pass"],
        "elevate": [elevate, "--", COMMAND],
    }
    taken = timed_in_turn(commands, rounds=RUNS, environ=environ, uid=user.uid, gid=user.gid)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    yield Figure(f"elevate -- {COMMAND}, start to end", medians["elevate"], "ms", "bare", medians["bare"])
    yield Figure("", medians["elevate"], "ms", f"{Path(interpreter[0]).name} alone, doing nothing", medians["python"])
    if sudo := shutil.which("sudo"):  # by root, who needs no rule in sudoers
        as_root = {"sudo": [sudo, "-n", "--", COMMAND]}
        median = statistics.median(timed_in_turn(as_root, rounds=RUNS, environ=environ, uid=0, gid=0)["sudo"])
        yield Figure("", medians["elevate"], "ms", "sudo -n, by root", median)
