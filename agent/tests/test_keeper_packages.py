"""Rules by product, vendor and verified executable, with a real keeper and this computer's own packages (as root)."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn_agent.testing import Computer, a_computer, eventually
from sojourn_shared.contracts import wire

ENV = Path("/usr/bin/env")
RECORD = Path("/var/lib/dpkg/info/coreutils.md5sums")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates"),
    pytest.mark.skipif(
        not RECORD.exists() or "usr/bin/env\n" not in RECORD.read_text(), reason="coreutils is no package of dpkg here"
    ),
]
BOB = 64_001


@pytest.fixture(scope="module")
def maintainer() -> str:
    told = subprocess.run(["dpkg-query", "-W", "-f", "${Maintainer}", "coreutils"], capture_output=True, check=True)
    return told.stdout.decode().partition(" <")[0]


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


@pytest.fixture
def installed() -> Iterator[Path]:
    """A program that root alone can change, in a folder that no package knows."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-", dir="/opt"))
    folder.chmod(0o755)
    shutil.copy(ENV, folder / "env")
    yield folder / "env"
    shutil.rmtree(folder)


@pytest.fixture
def edited(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Computer]:
    """A computer on which somebody changed `env` in its place: for the keeper alone, another file is mounted there."""
    with installed.open("ab") as out:
        out.write(b"\0")
    wrapper = installed.with_name("python")
    mount = f'mount --bind {shlex.quote(str(installed))} {ENV} && exec {shlex.quote(sys.executable)} "$@"'
    wrapper.write_text(f'#!/bin/sh\nexec unshare --mount sh -c {shlex.quote(mount)} sh "$@"\n')
    wrapper.chmod(0o755)
    if subprocess.run([wrapper, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    monkeypatch.setattr(sys, "executable", str(wrapper))
    with a_computer() as computer:
        yield computer


def rules(maintainer: str) -> dict[str, wire.Rule]:
    return {
        "product": wire.ProductRule(product="CoreUtils"),
        "vendor": wire.VendorRule(vendor=maintainer.upper()),
        "verified executable": wire.VerifiedExecutableRule(executable="env", product="coreutils", vendor=maintainer),
    }


@pytest.mark.parametrize("kind", ["product", "vendor", "verified executable"])
def test_a_rule_on_the_package_elevates_its_programs(computer: Computer, maintainer: str, kind: str) -> None:
    """And the report of the start names the package; a program of another package is refused."""
    computer.grant(rules(maintainer)[kind])
    done = computer.elevate("--", "env", "id", "-u", uid=BOB)
    assert (done.status, done.out) == (0, "0\n")
    started = eventually(lambda: computer.server.of_kind(wire.StartedReport))[0].application
    assert (started.product, started.vendor) == ("coreutils", maintainer)
    assert started.package == f"coreutils {started.version}"
    assert started.signature == wire.Signature(status="verified", by="dpkg")
    refused = computer.elevate("--no-wait", "--", "/bin/sh", "-c", "id", uid=BOB)
    assert refused.status == 77
    assert "the rule says" in refused.err


def test_a_copy_in_another_folder_is_of_no_package(computer: Computer, maintainer: str, installed: Path) -> None:
    """The same bytes under the same name, and root's: but no package vouches for what lies beside it."""
    computer.grant(*rules(maintainer).values())
    refused = computer.elevate("--no-wait", "--", str(installed), "id", uid=BOB)
    assert refused.status == 77
    assert "not known on this computer" in refused.err
    told = computer.elevate("--facts", "--", str(installed), uid=BOB).out
    assert "unsigned: it belongs to no package" in told
    assert "vendor" not in told


def test_a_users_own_copy_is_neither_verified_nor_run(computer: Computer, maintainer: str) -> None:
    """Its folder is not root's alone."""
    computer.grant(*rules(maintainer).values())
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-"))
    try:
        shutil.copy(ENV, folder / "env")
        for part in (folder, folder / "env"):
            os.chown(part, BOB, -1)
        assert "is not elevated" in computer.elevate("--no-wait", "--", str(folder / "env"), "id", uid=BOB).err
        assert "unsigned" in computer.elevate("--facts", "--", str(folder / "env"), uid=BOB).out
    finally:
        shutil.rmtree(folder)


def test_an_edited_file_of_a_package_is_refused(edited: Computer, maintainer: str) -> None:
    """It lies where the package's file lay, and is root's; its record says that it is another one."""
    edited.grant(*rules(maintainer).values())
    refused = edited.elevate("--no-wait", "--", "env", "id", "-u", uid=BOB)
    assert refused.status == 77
    assert "does not fit the file" in refused.err
    report = eventually(lambda: edited.server.of_kind(wire.RefusedReport))[0]
    assert report.application.signature == wire.Signature(status="invalid", by="dpkg")
    told = edited.elevate("--facts", "--", "env", uid=BOB).out
    assert "invalid: it is not what its package brought (recorded by dpkg)" in told
    edited.grant(wire.ProductRule(product="coreutils", verified=False))
    assert edited.elevate("--", "env", "id", "-u", uid=BOB).out == "0\n"


def test_facts_show_the_package(computer: Computer, maintainer: str) -> None:
    """To the person, before anything is asked."""
    told = computer.elevate("--facts", "--", "env", uid=BOB).out.splitlines()
    shown = dict(line.split(None, 1) for line in told if not line.startswith("trusted"))
    assert (shown["vendor"], shown["product"]) == (maintainer, "coreutils")
    assert shown["package"] == f"coreutils {shown['version']}"
    assert shown["signature"] == "verified by dpkg: it is what its package brought"


def test_a_class_id_is_not_applicable_and_says_so(computer: Computer) -> None:
    """There are none on Linux: such a rule never matches."""
    computer.grant(wire.ClsidRule(clsid="{00000000-0000-0000-0000-000000000001}"))
    refused = computer.elevate("--no-wait", "--", "env", "id", uid=BOB)
    assert refused.status == 77
    assert "clsid is not applicable on linux" in refused.err


def test_nothing_of_the_search_stays_in_the_keeper(computer: Computer) -> None:
    """Neither descriptors nor memory: each search is a warden's."""
    assert computer.keeper is not None
    proc = Path(f"/proc/{computer.keeper.pid}")

    def held() -> tuple[int, int]:
        """Descriptors, and KiB of its own."""
        memory = (proc / "smaps_rollup").read_text().partition("Private_Dirty:")[2]
        return len(list((proc / "fd").iterdir())), int(memory.split()[0])

    def look_at(*names: str) -> None:
        for name in names:
            assert computer.elevate("--facts", "--", name, uid=BOB).status == 0

    look_at("env")
    descriptors, memory = held()
    look_at("id", "true", "ls", "cat", "head", "tail", "wc", "sort")
    eventually(lambda: held()[0] <= descriptors)
    assert held()[1] - memory < 1024
