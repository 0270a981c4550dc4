"""What Debian's package database says of a file: made databases for every trap, and this computer's own."""

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sojourn_agent.facts import Packages, facts_of, packages_of, stamp_of
from sojourn_agent.facts.dpkg import Dpkg
from sojourn_agent.facts.owner import Unreadable
from sojourn_shared.contracts.wire import Application, Signature

VERIFIED = Signature(status="verified", by="dpkg")
INVALID = Signature(status="invalid", by="dpkg")
UNSIGNED = Signature(status="unsigned")
UNKNOWN = Signature(status="unknown")
DEBIAN = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="this computer has no dpkg")


class Computer:
    """A root folder with merged /usr, files, and a package database that knows of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for top in ("bin", "lib"):
            (root / "usr" / top).mkdir(parents=True)
            (root / top).symlink_to(f"usr/{top}")
        self.dpkg = root / "var/lib/dpkg"
        self.info = self.dpkg / "info"
        self.info.mkdir(parents=True)
        (self.dpkg / "status").touch()
        self.installs("base", {"/usr/bin/base": b"base"})

    def installs(self, package: str, files: dict[str, bytes], **options: object) -> None:
        """`options`: `qualified` (the list's name names the architecture), `md5sums=False`, `conffiles`, or a field
        of the package's state."""
        told: dict[str, object] = {"qualified": False, "md5sums": True, "conffiles": [], "at": {}} | options
        fields = {
            "Status": "install ok installed",
            "Maintainer": "Example Maintainers <team@example.com>",
            "Architecture": "amd64",
            "Version": "1:2.3-4",
        } | {name: value for name, value in options.items() if name[0].isupper()}
        conffiles = dict.fromkeys(told["conffiles"])  # type: ignore[call-overload]
        names = ["/.", *dict.fromkeys(str(parent) for name in files for parent in Path(name).parents), *files]
        lies_at: dict[str, str] = told["at"]  # type: ignore[assignment]
        for name, content in files.items():
            place = self.root / lies_at.get(name, name).removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        qualified = f"{package}:{fields['Architecture']}" if told["qualified"] else package
        (self.info / f"{qualified}.list").write_text("\n".join(names) + "\n")
        if told["md5sums"]:
            sums = [f"{md5(files[name])}  {name[1:]}\n" for name in files if name not in conffiles]
            (self.info / f"{qualified}.md5sums").write_text("".join(sums))
        stanza = f"Package: {package}\n" + "".join(f"{name}: {value}\n" for name, value in fields.items())
        if conffiles:
            stanza += "Conffiles:\n" + "".join(f" {name} {md5(files[name])}\n" for name in conffiles)
        with (self.dpkg / "status").open("a") as status:
            status.write(f"{stanza}Description: {package}\n Further.\n .\n Lines.\n\n")

    def diverts(self, *diversions: tuple[str, str, str]) -> None:
        (self.dpkg / "diversions").write_text("".join("\n".join((*one, "")) for one in diversions))

    def facts(self, name: str, *, trusted: bool = True) -> Application:
        path = os.path.realpath(self.root / name.removeprefix("/"))
        fd = os.open(path, os.O_RDONLY)
        try:
            before = os.listdir("/proc/self/fd")
            found = facts_of(fd, path, trusted=trusted, packages=packages_of(str(self.root)))
            assert os.listdir("/proc/self/fd") == before, "a descriptor was left open"
            return found
        finally:
            os.close(fd)

    def product(self, name: str) -> str | None:
        return self.facts(name).product


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return Computer(tmp_path)


def test_a_packaged_file_is_known_and_verified(computer: Computer) -> None:
    """Vendor is the maintainer without the address, product the package's name; its recorded digest fits."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"})
    found = computer.facts("/usr/bin/tool")
    assert (found.vendor, found.product, found.version) == ("Example Maintainers", "tool", "1:2.3-4")
    assert (found.package, found.signature) == ("tool 1:2.3-4", VERIFIED)
    assert found.sha256 == hashlib.sha256(b"tool").hexdigest()


def test_an_edited_file_is_invalid(computer: Computer) -> None:
    """Its package's record does not fit it any more; whose it is stays known."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"})
    (computer.root / "usr/bin/tool").write_bytes(b"evil")
    found = computer.facts("/usr/bin/tool")
    assert (found.product, found.signature) == ("tool", INVALID)


def test_a_copy_elsewhere_belongs_to_no_package(computer: Computer) -> None:
    """Not by its content, its name, nor by a path that only begins or ends like a package's."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"})
    for copy in ("/opt/tool", "/opt/usr/bin/tool", "/usr/bin/tool2", "/usr/bin/too", "/usr/bin/more/usr/bin/tool"):
        place = computer.root / copy[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"tool")
        found = computer.facts(copy)
        assert (found.vendor, found.product, found.package, found.signature) == (None, None, None, UNSIGNED), copy


def test_a_path_that_others_can_change_is_never_verified(computer: Computer) -> None:
    """Equal now, another one in a moment; what differs already is invalid there too."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"})
    assert computer.facts("/usr/bin/tool", trusted=False).signature == UNKNOWN
    (computer.root / "usr/bin/tool").write_bytes(b"evil")
    assert computer.facts("/usr/bin/tool", trusted=False).signature == INVALID


def test_a_merged_usr_knows_both_spellings(computer: Computer) -> None:
    """A package may list `/bin/ls` for `/usr/bin/ls`, where the one folder is a link to the other; only there."""
    computer.installs("old", {"/bin/old": b"old", "/lib/deep/old": b"deep"})
    assert computer.facts("/usr/bin/old").signature == VERIFIED
    assert computer.facts("/usr/lib/deep/old").signature == VERIFIED
    computer.installs("apart", {"/sbin/apart": b"apart"})
    (computer.root / "usr/sbin").mkdir()
    shutil.copy(computer.root / "sbin/apart", computer.root / "usr/sbin/apart")
    assert computer.facts("/sbin/apart").signature == VERIFIED
    assert computer.facts("/usr/sbin/apart").signature == UNSIGNED


def test_a_diverted_file_is_the_package_whose_it_is_now(computer: Computer) -> None:
    """`new` took the name of the file of `old`, which lies under another name since."""
    computer.installs("old", {"/usr/bin/tool": b"old"}, at={"/usr/bin/tool": "/usr/bin/tool.old"})
    computer.installs("new", {"/usr/bin/tool": b"new"})
    computer.diverts(
        ("/usr/bin/else", "/usr/bin/else.old", "new"),
        ("/usr/bin/tool", "/usr/bin/tool.old", "new"),
    )
    now, before = computer.facts("/usr/bin/tool"), computer.facts("/usr/bin/tool.old")
    assert (now.product, now.signature) == ("new", VERIFIED)
    assert (before.product, before.signature) == ("old", VERIFIED)
    shutil.copy(computer.root / "usr/bin/tool", computer.root / "usr/bin/tool.old")
    assert computer.facts("/usr/bin/tool.old").signature == INVALID


def test_what_an_administrator_put_in_place_of_a_diverted_file_is_nobodys(computer: Computer) -> None:
    """A local diversion (`:`) moves every package's file away."""
    computer.installs("old", {"/bin/tool": b"old"}, at={"/bin/tool": "/usr/bin/tool.distrib"})
    (computer.root / "usr/bin/tool").write_bytes(b"old")
    computer.diverts(("/bin/tool", "/bin/tool.distrib", ":"))
    assert computer.facts("/usr/bin/tool").signature == UNSIGNED
    assert computer.facts("/usr/bin/tool.distrib").signature == VERIFIED


def test_alternatives_are_judged_by_what_they_lead_to(computer: Computer) -> None:
    """The link has no owner; the resolved file has one."""
    computer.installs("vim", {"/usr/bin/vim.basic": b"vim"})
    (computer.root / "etc/alternatives").mkdir(parents=True)
    (computer.root / "etc/alternatives/editor").symlink_to(computer.root / "usr/bin/vim.basic")
    (computer.root / "usr/bin/editor").symlink_to(computer.root / "etc/alternatives/editor")
    assert computer.product("/usr/bin/editor") == "vim"


def test_lists_may_name_their_architecture(computer: Computer) -> None:
    """`pkg:amd64.list`: of several architectures that share a file, the one whose record fits."""
    for architecture, content, version in (("i386", b"32", "1"), ("amd64", b"64", "2")):
        computer.installs(
            "lib", {"/usr/lib/helper": content}, qualified=True, Architecture=architecture, Version=version
        )
    found = computer.facts("/usr/lib/helper")
    assert (found.package, found.signature) == ("lib 2", VERIFIED)
    (computer.root / "usr/lib/helper").write_bytes(b"neither")
    assert computer.facts("/usr/lib/helper").signature == INVALID


def test_configuration_files_have_their_record_in_the_state(computer: Computer) -> None:
    """An edited one does not fit; a removed package owns what it left behind no more."""
    name = "/etc/cron.daily/with space"
    computer.installs("cron", {name: b"run", "/usr/bin/cron": b"cron"}, conffiles=[name])
    assert computer.facts(name).signature == VERIFIED
    (computer.root / name[1:]).write_bytes(b"edited")
    assert computer.facts(name).signature == INVALID
    computer.installs("gone", {"/etc/gone": b"x"}, conffiles=["/etc/gone"], Status="deinstall ok config-files")
    assert computer.facts("/etc/gone").signature == UNSIGNED


@pytest.mark.parametrize(
    ("status", "signature"),
    [
        ("install ok unpacked", VERIFIED),
        ("hold ok half-configured", VERIFIED),
        ("install ok triggers-pending", VERIFIED),
        ("install ok half-installed", UNKNOWN),
        ("install reinstreq installed", UNKNOWN),
        ("deinstall ok half-installed", UNKNOWN),
        ("purge ok not-installed", UNSIGNED),
        ("install ok invented", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_package_that_is_not_whole_proves_nothing(computer: Computer, status: str, signature: Signature) -> None:
    """While it is unpacked, removed or broken its record may be another version's."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"}, Status=status)
    assert computer.facts("/usr/bin/tool").signature == signature


def test_without_a_record_nothing_is_verified(computer: Computer) -> None:
    """Some packages bring no digests, or not of all files; whose the file is stays known."""
    computer.installs("bare", {"/usr/bin/bare": b"bare"}, md5sums=False)
    computer.installs("part", {"/usr/bin/part": b"part"})
    record = computer.info / "part.md5sums"
    for told in (
        "",
        f"{'z' * 32}  usr/bin/part\n",
        f"x{md5(b'part')}  usr/bin/part\n",
        f"{md5(b'part')} usr/bin/part\n",
    ):
        record.write_text(told)
        found = computer.facts("/usr/bin/part")
        assert (found.product, found.signature) == ("part", UNKNOWN), told
    assert (computer.product("/usr/bin/bare"), computer.facts("/usr/bin/bare").signature) == ("bare", UNKNOWN)


@pytest.mark.parametrize(
    ("maintainer", "vendor"),
    [
        ("Example Maintainers <team@example.com>", "Example Maintainers"),
        ('"Example, Inc." <team@example.com>', "Example, Inc."),
        ("Ærlig Programvare & Søn <x@example.com>", "Ærlig Programvare & Søn"),
        ("Example Maintainers", "Example Maintainers"),
        ("<team@example.com>", None),
        ("team@example.com", None),
        ("", None),
        ("Eve\x1b]0;owned\x07 <eve@example.com>", None),
        ("x" * 1001, None),
    ],
)
def test_the_vendor_is_the_maintainers_name(computer: Computer, maintainer: str, vendor: str | None) -> None:
    """Without the address; a text that the server would not take is not known."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"}, Maintainer=maintainer)
    assert computer.facts("/usr/bin/tool").vendor == vendor


def test_the_longest_lists_are_searched_to_their_end(computer: Computer) -> None:
    """However the reading cuts them: names and records that lie across a cut, and a last line without its feed."""
    size = 256 * 1024
    name = "/usr/bin/tool"
    computer.installs("tool", {name: b"tool"})
    for begins in range(size - 60, size + 12):
        paths, records = "/" + "x" * 62 + "\n", "0" * 32 + "  " + "y" * 29 + "\n"
        before = begins // 64 + 1
        for after in ("", "\n", "\n/more\n"):
            (computer.info / "tool.list").write_text(f"{(paths * before)[: begins - 1]}\n{name}{after}")
            record = f"{(records * before)[: begins - 1]}\n{md5(b'tool')}  {name[1:]}{after}"
            (computer.info / "tool.md5sums").write_text(record)
            assert computer.facts(name).signature == VERIFIED, (begins, after)


def _replaced(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "part", ["status", "info", "info/base.list", "info/tool.list", "info/tool.md5sums", "diversions"]
)
@pytest.mark.parametrize("damage", ["pipe", "folder", "loop", "noise", "empty", "huge", "writable", "foreign"])
def test_a_damaged_database_neither_crashes_nor_hangs_nor_verifies(
    computer: Computer, part: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its files are instead: what cannot be read is not known, and never said to be nobody's."""
    computer.installs("tool", {"/usr/bin/tool": b"evil"})
    computer.diverts()
    (computer.info / "tool.md5sums").write_text(f"{md5(b'tool')}  usr/bin/tool\n")
    place = computer.dpkg / part
    match damage:
        case "pipe":
            _replaced(place)
            os.mkfifo(place)
        case "folder" if part != "info":
            _replaced(place)
            place.mkdir()
        case "loop":
            _replaced(place)
            place.symlink_to(place)
        case "noise" if part != "info":
            place.write_bytes(os.urandom(100_000))
        case "empty" if part != "info":
            place.write_bytes(b"")
        case "huge" if part != "info":
            with place.open("r+b") as out:
                out.truncate(1 << 40)
            monkeypatch.setattr(Dpkg.__init__, "__kwdefaults__", {"limit": 0.2})
        case "writable":
            place.chmod(0o777)
        case "foreign" if os.geteuid() == 0:
            os.chown(place, 64_001, -1)
        case _:
            pytest.skip("there is no such damage")
    began = time.monotonic()
    found = computer.facts("/usr/bin/tool")
    assert time.monotonic() - began < 2
    assert found.signature.status != "verified"
    if found.signature == UNSIGNED:  # nobody can tell such a list from one that is whole and names other files
        assert (part, damage) in {("info/tool.list", "noise"), ("info/tool.list", "empty")}
    assert found.sha256 == hashlib.sha256(b"evil").hexdigest()


def test_a_path_that_no_line_can_hold_has_no_owner(computer: Computer) -> None:
    """A line feed in a name must not be read as two lines of a list."""
    computer.installs("tool", {"/usr/bin/tool": b"tool"})
    odd = computer.root / "usr\n/usr/bin/tool"
    odd.parent.mkdir(parents=True)
    odd.write_bytes(b"tool")
    assert computer.facts("usr\n/usr/bin/tool").signature == UNSIGNED


def test_a_change_of_packages_is_noticed(computer: Computer) -> None:
    """dpkg renames new files into place: what was remembered of older ones is out of date then."""
    seen = {stamp_of(packages_of(str(computer.root)))}
    computer.installs("tool", {"/usr/bin/tool": b"tool"})
    seen.add(stamp_of(packages_of(str(computer.root))))
    (computer.info / "tool.md5sums").rename(computer.info / "tool.md5sums-old")
    seen.add(stamp_of(packages_of(str(computer.root))))
    computer.diverts(("/a", "/b", "tool"))
    seen.add(stamp_of(packages_of(str(computer.root))))
    assert len(seen) == 4


def test_a_question_takes_no_longer_than_it_may(computer: Computer) -> None:
    """The limit counts for all files together."""
    with pytest.raises(Unreadable, match="takes too long"):
        Dpkg(str(computer.root), limit=-1).owners(f"{computer.root}/usr/bin/base")


@DEBIAN
def test_this_computers_own_programs_are_known_as_dpkg_knows_them() -> None:
    """Beside `dpkg-query --search`, which takes ten times as long: the same owner for every program, links resolved."""
    programs = [program for program in sorted(Path("/usr/bin").iterdir()) if program.is_file()]
    packages = packages_of()
    for path in sorted({os.path.realpath(program) for program in programs[:: len(programs) // 40 or 1]}):
        said = dpkg_says(path)
        if any("diversion" in line for line in said):
            continue
        found = facts_of_file(path, packages)
        owners: set[str | None] = {
            name.strip().partition(":")[0] for line in said for name in line.rpartition(": ")[0].split(",")
        }
        assert {found.product} == (owners or {None}), path
        assert found.signature.status in ({"verified", "unknown"} if owners else {"unsigned"}), path


@DEBIAN
def test_this_computers_diverted_files_are_their_packages() -> None:
    """Under the name that they have now, and verified."""
    lines = Path("/var/lib/dpkg/diversions").read_text().split("\n")
    for path in lines[0:-1:3] + lines[1:-1:3]:
        if os.path.isfile(path) and not os.path.islink(path):
            assert facts_of_file(os.path.realpath(path), packages_of()).signature == VERIFIED, path


def facts_of_file(path: str, packages: Packages) -> Application:
    fd = os.open(path, os.O_RDONLY)
    try:
        return facts_of(fd, path, trusted=True, packages=packages)
    finally:
        os.close(fd)


def dpkg_says(path: str) -> list[str]:
    spellings = [path, path.removeprefix("/usr")]
    told = subprocess.run(["dpkg-query", "--search", *spellings], capture_output=True, text=True, check=False)
    return told.stdout.splitlines()
