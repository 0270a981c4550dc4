"""The way to the services, against small real servers: in whose name, to whom, what goes along, and what comes back."""

import asyncio
from typing import Any

import pytest
import uvicorn

from sojourn_gateway.forwarding import owner_of
from sojourn_shared.errors import NotFound
from sojourn_shared.ids import new_id

from .conftest import Gateway, Upstream

COMPUTER = "01930000-0000-7000-8000-00000000000c"


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("policies", "policy"),
        (f"policies/{COMPUTER}/deploy", "policy"),
        (f"policies/{COMPUTER}/deployment", "expiry"),
        (f"computers/{COMPUTER}", "policy"),
        (f"computers/{COMPUTER}/state", "expiry"),
        (f"computers/{COMPUTER}/document", "expiry"),
        (f"computers/{COMPUTER}/credentials", "policy"),
        ("settings/policies", "policy"),
        ("settings/autonomous-approval/replay", "requests"),
        ("applications", "requests"),
        (f"grants/{COMPUTER}/revoke", "expiry"),
        ("grant-revocations", "expiry"),
        (f"audit/policies/{COMPUTER}", "audit"),
    ],
)
def test_every_path_has_one_owner(path: str, owner: str) -> None:
    """By its first segment, but for the lines that the contract gives to another."""
    assert owner_of(path) == owner


@pytest.mark.parametrize(
    "path",
    [
        *("", "nothing", "settings", "settings/other", "health/ready", "policies/../../../metrics", "policies/./x"),
        *("policies//x", "policies/a\\b", "policies/a?b", "policies/%2e%2e", "/policies", "policies/é"),
    ],
)
def test_no_path_leads_anywhere_else(path: str) -> None:
    """What a parser on the way could read in another way is nothing at all."""
    with pytest.raises(NotFound):
        owner_of(path)


async def test_a_call_goes_in_the_callers_name(gateway: Gateway) -> None:
    """The service learns who, with which roles and OS users; it never sees a key, a cookie, or a field that lies."""
    ben = await gateway.person("ben", "approver", os_users=["ben"])
    lies: dict[str, Any] = {
        "Cookie": "sojourn=x",
        "Sojourn-Enrolment-Token": "sje_x",
        "X-Forwarded-For": "::1",
        "Connection": "x-own",
    }
    lies["User-Agent"] = "caf\xe9".encode("latin-1")  # what is no ASCII passes as it is
    sent = {**lies, "X-Own": "dropped", "Idempotency-Key": "k1", "If-Match": '"3"'}
    async with gateway.client(ben.key) as bens:
        answer = await bens.post(f"/requests/{COMPUTER}/approve?why=a%20b", json={"note": "yes"}, headers=sent)
    (call,) = gateway.services["requests"].calls
    assert answer.json() == {"service": "requests"}
    assert (call["path"], call["query"], call["body"]) == (
        f"/requests/{COMPUTER}/approve",
        "why=a%20b",
        {"note": "yes"},
    )
    caller = call["caller"]
    assert (caller.id, caller.kind, caller.name) == (ben.id, "account", "ben")
    assert (caller.roles, caller.os_users, caller.computer_group_ids) == (frozenset({"approver"}), ("ben",), None)
    assert not {"cookie", "sojourn-enrolment-token", "x-forwarded-for", "x-own", "connection"} & set(call["headers"])
    assert call["headers"]["user-agent"] == "caf\xe9"
    assert (call["headers"]["idempotency-key"], call["headers"]["if-match"]) == ("k1", '"3"')
    assert answer.headers["x-request-id"] == call["headers"]["traceparent"].split("-")[1]


async def test_a_removed_role_bites_at_the_next_call(gateway: Gateway) -> None:
    """Roles and OS users are read from the database at each call."""
    ben = await gateway.person("ben", "approver", os_users=None)
    async with gateway.client() as admin, gateway.client(ben.key) as bens:
        await bens.get("/requests")
        put = {**ben.account, "roles": ["requester"], "os_users": ["ben"]}
        assert (await admin.put(f"/accounts/{ben.id}", json=put, headers={"If-Match": "*"})).status_code == 200
        await bens.get("/requests")
    before, after = (call["caller"] for call in gateway.services["requests"].calls)
    assert (before.roles, before.os_users) == (frozenset({"approver"}), None)
    assert (after.roles, after.os_users) == (frozenset({"requester"}), ("ben",))


async def test_answers_come_back_as_they_were(gateway: Gateway) -> None:
    """Status, body, ETag and Location pass; what belongs to the connection does not."""
    policy = gateway.services["policy"]
    headers = {"etag": '"1"', "location": "/api/v1/policies/x", "keep-alive": "timeout=5", "x-request-id": "other"}
    policy.answers["POST /policies"] = (201, {"id": "x"}, headers)
    policy.answers["GET /policies/x"] = (404, {"type": "/problems/not-found"})
    policy.answers["DELETE /policies/x"] = (204, b"")
    async with gateway.client() as admin:
        made = await admin.post("/policies", json={})
        missing = await admin.get("/policies/x")
        gone = await admin.delete("/policies/x")
    assert (made.status_code, made.json(), made.headers["etag"]) == (201, {"id": "x"}, '"1"')
    assert made.headers["location"] == "/api/v1/policies/x"
    assert "keep-alive" not in made.headers
    assert {one.headers["cache-control"] for one in (made, missing, gone)} == {"no-store"}
    assert len(made.headers.get_list("x-request-id")) == 1
    assert made.headers["x-request-id"] != "other"
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert (gone.status_code, gone.content) == (204, b"")


async def test_an_agent_calls_without_a_login(gateway: Gateway) -> None:
    """Enrolment passes its token on in a field of its own; renewal comes in the computer's name; both have no roles."""
    policy, expiry = gateway.services["policy"], gateway.services["expiry"]
    async with gateway.client("sje_secret") as agent, gateway.client(None) as nobody, gateway.client() as admin:
        await agent.post("/computers/enrol", json={"name": "pc"})
        await nobody.post(f"/computers/{COMPUTER}/credentials", json={"renewal": "x"})
        await nobody.post(f"/computers/{COMPUTER}/document", json={"renewal": "x"})
        assert (await nobody.post("/computers/enrol", json={})).status_code == 401
        assert (await admin.post("/computers/enrol", json={})).status_code == 401
        assert (await nobody.get(f"/computers/{COMPUTER}/document")).status_code == 401
    enrol, renew = policy.calls
    (document,) = expiry.calls
    assert enrol["headers"]["sojourn-enrolment-token"] == "sje_secret"
    for call in (enrol, renew, document):
        assert (call["caller"].kind, call["caller"].roles) == ("computer", frozenset())
    assert renew["caller"].id == document["caller"].id == COMPUTER
    assert "sojourn-enrolment-token" not in renew["headers"]


async def test_a_service_that_is_down_is_said_to_be(gateway: Gateway) -> None:
    """503 with what to do; when it is back, so are its answers."""
    await gateway.services["expiry"].stop()
    async with gateway.client() as admin:
        for method in ("GET", "POST"):
            answer = await admin.request(method, "/grants")
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
            assert "expiry" in answer.json()["detail"]
            assert answer.headers["retry-after"]
        assert (await admin.get("/policies")).status_code == 200


async def test_a_service_that_breaks_off_is_asked_again_only_when_it_may_be(gateway: Gateway) -> None:
    """A read is repeated on a new connection; a write is not, and the answer says that nobody knows."""

    async def cut(scope: Any, receive: Any, send: Any, service: Upstream) -> None:
        if scope["method"] == "GET" and len(service.calls) > 1:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        for connection in list(service.server.server_state.connections):
            connection.transport.abort()

    requests = gateway.services["requests"]
    requests.answers |= {"GET /requests": cut, "POST /requests": cut}
    async with gateway.client() as admin:
        assert (await admin.get("/requests")).status_code == 200
        refused = await admin.post("/requests", json={})
    assert (refused.status_code, len(requests.calls)) == (503, 3)
    assert "not known" in refused.json()["detail"]


async def test_an_event_stream_flows_and_ends_when_its_reader_leaves(gateway: Gateway) -> None:
    """Each event is there when it was sent; the service learns that the reader has gone."""

    async def stream(_scope: Any, receive: Any, send: Any, service: Upstream) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"id: 1\ndata: {}\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        service.left.set()

    audit = gateway.services["audit"]
    audit.answers["GET /audit/stream"] = stream
    door = Upstream("door", audit.key, gateway.at.clock)
    config = uvicorn.Config(gateway.at.app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    door.server = uvicorn.Server(config)
    door.task = asyncio.create_task(door.server._serve())  # type: ignore[attr-defined]
    while not door.server.started:
        await asyncio.sleep(0.01)
    port = door.server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = gateway.client().headers["authorization"]
    writer.write(f"GET /api/v1/audit/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n\r\n".encode())
    text = await asyncio.wait_for(reader.readuntil(b"data: {}\n\n"), 5)
    assert b"200 OK" in text
    assert b"text/event-stream" in text
    writer.close()
    await asyncio.wait_for(audit.left.wait(), 5)
    await door.stop()


async def test_wrong_methods_and_long_bodies_are_problems_here_too(gateway: Gateway) -> None:
    """405 on the gateway's own paths; 413 before a service is bothered."""
    async with gateway.client() as admin:
        assert (await admin.patch("/accounts")).status_code == 405
        long = await admin.post("/policies", content=b"x" * (1024 * 1024 + 1))
        assert (long.status_code, long.json()["type"]) == (413, "/problems/too-large")
        assert (await admin.get(f"/nothing/{new_id(gateway.at.clock())}")).status_code == 404
    assert gateway.services["policy"].calls == []


async def test_a_query_that_no_url_can_hold_is_refused(gateway: Gateway) -> None:
    """Seventy thousand characters: a sentence, not a fault."""
    async with gateway.client() as admin:
        scope = {"type": "http", "method": "GET", "path": "/api/v1/policies", "query_string": b"q=" + b"x" * 70_000}
        scope |= {"headers": [(b"authorization", admin.headers["authorization"].encode())], "client": ("192.0.2.7", 1)}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        await gateway.at.app(scope | {"scheme": "http", "server": ("x", 80), "raw_path": b""}, receive, send)
    assert sent[0]["status"] == 422
