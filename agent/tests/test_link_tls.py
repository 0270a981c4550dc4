"""TLS to the server and to NATS: verified, by this computer's authorities or by those named, or not spoken at all."""

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sojourn_agent.link import https
from sojourn_embedded.nats_server import NatsServer, free_port
from sojourn_embedded.testing import TestNats

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")


@pytest.fixture(scope="module")
def certificate(throw_away_folder: Path) -> Path:
    """A folder with cert.pem and key.pem, good for `localhost` alone, and its own authority."""
    folder = throw_away_folder / "certificate"
    folder.mkdir(0o755)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "key.pem").chmod(0o644)  # the server runs as another user
    return folder


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    """Of an HTTPS server that answers everything with 200 and the login that it got."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = self.headers.get("Authorization", "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that does not trust it hangs up

    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_named_authority_is_trusted_for_its_name_alone(certificate: Path, port: int) -> None:
    """The token arrives at whom the authority vouches for; another name for the same server is another server."""
    pem = (certificate / "cert.pem").read_text()
    answer = https.post(f"https://localhost:{port}", "/x", b"{}", token="t", ca_pem=pem)
    assert answer == (200, b"Bearer t")
    with pytest.raises(https.NoAnswer, match=r"does not trust: .*mismatch"):
        https.post(f"https://127.0.0.1:{port}", "/x", b"{}", token="t", ca_pem=pem)


def test_a_stranger_is_not_trusted(port: int) -> None:
    """A certificate that no authority of this computer signed: a sentence, and no token sent."""
    with pytest.raises(https.NoAnswer, match="does not trust: self-signed certificate"):
        https.post(f"https://localhost:{port}", "/x", b"{}", token="t")


@pytest.fixture
def tls_url(nats: TestNats, certificate: Path, throw_away_folder: Path) -> Iterator[str]:
    """Of a NATS server of the same accounts that speaks TLS only."""
    folder = throw_away_folder / "nats-tls"
    folder.mkdir(0o755, exist_ok=True)
    shutil.chown(folder, nats.server.identity.uid, nats.server.identity.gid)
    server = NatsServer(folder, nats.server.identity, free_port(), throw_away_folder / "nats-tls.log")
    tls = f"tls {{ cert_file: '{certificate}/cert.pem', key_file: '{certificate}/key.pem' }}\n"
    (folder / "nats.conf").write_text(nats.accounts.server_config(port=server.port, store=folder / "js") + tls)
    (folder / "nats.conf").chmod(0o644)
    server.start()
    yield f"tls://localhost:{server.port}"
    server.stop()


async def test_nats_is_spoken_over_verified_tls(world: Any, tls_url: str, certificate: Path) -> None:
    """The authority that enrolment named vouches for the bus too."""
    credentials = msgspec.structs.replace(world.credentials(), nats_urls=[tls_url])
    world.links(credentials, ca_pem=(certificate / "cert.pem").read_text())
    await world.connected()


async def test_a_bus_that_nobody_vouches_for_gets_nothing(world: Any, tls_url: str) -> None:
    """Unreachable, not refused: no credential is renewed because of it, and none was shown."""
    world.links(msgspec.structs.replace(world.credentials(), nats_urls=[tls_url]))
    assert "certificate verify failed" in (await world.connected(False)).why
    assert world.server.calls == []
