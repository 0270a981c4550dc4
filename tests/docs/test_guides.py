"""The guides are true: every command that they show is run on a real stack, and says what they show."""

import os
import pwd
import shutil
import sys
from pathlib import Path

import pytest

from sojourn_embedded.demo.people import Administrator
from sojourn_embedded.demo.stack import Stack, eventually

from .conftest import PEOPLE
from .conversation import Conversation, File, Shell, read

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


@pytest.mark.root
@pytest.mark.parametrize("guide", ["administrators", "people", "audit", "itsm"])
def test_a_guide_is_true(guide: str, stack: Stack, administrator: Administrator, tmp_path: Path) -> None:
    """Its commands end as it says, and say what it shows."""
    for tool in {"administrators": ["curl"], "itsm": ["curl"], "audit": ["curl", "openssl"]}.get(guide, []):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    conversation, faults = converse((GUIDES / f"{guide}.md").read_text(), stack, administrator, tmp_path)
    assert conversation, "there is nothing in it that runs"
    assert not faults, "\n\n".join(faults)


def converse(
    text: str, stack: Stack, administrator: Administrator, folder: Path
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Run a guide in `folder`; answers each command with what it said, and what is wrong."""
    ready = stack.ready
    computer = administrator.get(f"/computers/{administrator.computer_id}")["name"]

    def shell(who: str) -> Shell:
        environment = {"LANG": "C.UTF-8", "TERM": "xterm", "COLUMNS": "200", "HOME": str(folder), "TZ": "UTC"}
        if who == "administrator":
            scripts = f"{Path(sys.executable).parent}:{os.defpath}"
            environment |= {"PATH": scripts, "SOJOURN_URL": ready["url"], "SOJOURN_TOKEN": ready["admin_token"]}
            return Shell(environment, folder)
        entry = pwd.getpwnam(PEOPLE[who])
        path = f"{Path(ready['elevate']).parent}:{os.defpath}"
        environment |= {"PATH": path, "HOME": "/", "SOJOURN_AGENT_SOCKET": ready["agent_socket"]}
        return Shell(environment, Path("/"), user=entry.pw_uid, group=entry.pw_gid, extra_groups=[])

    def waited(who: str) -> None:
        """Its request is pending, or its application runs."""
        eventually(
            lambda: (
                administrator.get("/requests", status="pending", user=PEOPLE[who])["items"]
                or administrator.get("/elevations", running=True, user=PEOPLE[who])["items"]
            ),
            10,
            f"{who}'s command waits",
        )

    names = {**PEOPLE, "desk-12": computer}
    with Conversation(shell, names, waited) as conversation:
        for part in read(text):
            if isinstance(part, File):
                content = part.content
                for name, real in names.items():
                    content = content.replace(f'"{name}"', f'"{real}"')
                (folder / part.name).write_text(content)
            else:
                conversation.run(part)
        conversation.end()
    return conversation.transcript, conversation.faults
