"""Whatever a service answers, it answers nobody without a proof; a new route is covered by being there."""

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from sojourn_embedded import openapi
from sojourn_shared.service.app import bare_app
from sojourn_shared.service.auth import Caller, declared_roles, mint
from sojourn_shared.service.routing import Route
from sojourn_shared.service.testing import ADMIN, TestHouse
from sojourn_shared.signing import PrivateKey

from .conftest import SERVICES, SOME_ID, Endpoint, endpoints_of, service_named, with_ids

API = "/api/v1"
OPEN_AT_A_SERVICE = {"/health/live", "/health/ready", "/metrics"}
OPEN_AT_THE_GATEWAY = {f"GET {API}/openapi.json", f"GET {API}/docs"}
"""What everybody may read: how the API is used."""
OWN_PROOF = {f"POST {API}/computers/{{computer_id}}/{what}" for what in ("credentials", "document")}
"""A computer's agent proves itself in the body of these, and the gateway passes them on."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def guarded(house: TestHouse) -> list[Endpoint]:
    """What of a service is not open by intention. An empty walk proves nothing, so it fails."""
    found = [endpoint for endpoint in endpoints_of(house.app) if endpoint.template not in OPEN_AT_A_SERVICE]
    assert len(found) >= 5, f"{house.house.name}: the walk found only {[str(one) for one in found]}"
    return found


def matches(template: str, path: str) -> bool:
    """Whether a path lies at a template: /computers/enrol lies at /computers/{computer_id}, too."""
    parts, wanted = template.split("/"), path.split("/")
    return len(parts) == len(wanted) and all("{" in a or a == b for a, b in zip(parts, wanted, strict=True))


def is_problem(answer: httpx.Response, status: int, code: str) -> bool:
    """Whether this is that problem, in the shape that every problem has."""
    if answer.headers["content-type"] != "application/problem+json":
        return False
    body = answer.json()
    return (
        answer.status_code == body["status"] == status
        and body["type"] == f"/problems/{code}"
        and bool(body["title"] and body["detail"])
        and body["instance"] == answer.request.url.path
    )


async def answers(house: TestHouse, token: str | None) -> dict[str, httpx.Response]:
    """What every guarded endpoint answers to somebody with that token."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with house.client(None) as nobody:
        return {
            str(one): await nobody.request(one.method, f"http://service{one.path}", headers=headers)
            for one in guarded(house)
        }


async def test_every_route_of_every_service_needs_the_gateways_token(house: TestHouse) -> None:
    """Without it, with rubbish, a stranger's, one for another service or one that is over: 401, and why."""
    name, now = house.house.name, house.clock()
    other = next(one for one in SERVICES if one != name)
    tokens = {
        "none": None,
        "rubbish": "a.b.c",
        "an API key": "sjn_" + "a" * 43,
        "another gateway's": mint(ADMIN, name, PrivateKey.generate(), now),
        "for another service": mint(ADMIN, other, house.gateway_key, now),
        "over": mint(ADMIN, name, house.gateway_key, now - timedelta(seconds=66)),
        "not yet": mint(ADMIN, name, house.gateway_key, now + timedelta(seconds=6)),
        "not signed as a token": house.gateway_key.sign(b'{"aud": "sojourn-%s"}' % name.encode(), "sojourn-report"),
    }
    for what, token in tokens.items():
        wrong = {
            endpoint: f"{answer.status_code} {answer.text[:200]}"
            for endpoint, answer in (await answers(house, token)).items()
            if not is_problem(answer, 401, "unauthenticated") or answer.headers["www-authenticate"] != "Bearer"
        }
        assert not wrong, f"token: {what}"


async def test_the_gateways_token_opens(house: TestHouse) -> None:
    """The same walk with a right token meets no 401 (or the test above would praise a service that is shut)."""
    streams = {f"GET {API}/audit/stream"}  # has no end
    async with house.client() as admin:
        for endpoint in guarded(house):
            if str(endpoint) not in streams and not endpoint.for_computers:
                answer = await admin.request(endpoint.method, f"http://service{endpoint.path}")
                assert answer.status_code != 401, endpoint


async def test_a_caller_without_roles_is_let_in_nowhere(house: TestHouse) -> None:
    """Somebody whose last role was taken away meets 403 at every route, and so does a computer's agent at people's."""
    fallen = replace(ADMIN, roles=frozenset())
    agent = Caller(id=SOME_ID, kind="computer", name="a computer", roles=frozenset({"administrator"}))
    for caller in (fallen, agent):
        token = mint(caller, house.house.name, house.gateway_key, house.clock())
        found = await answers(house, token)
        for endpoint in guarded(house):
            if not (caller is agent and endpoint.for_computers):
                assert is_problem(found[str(endpoint)], 403, "not-permitted"), (caller.kind, endpoint)


async def test_an_agent_proves_itself(house: TestHouse) -> None:
    """What only computers call (enrol, credentials, document) answers one that shows no proof with what is wrong."""
    agent = Caller(id=SOME_ID, kind="computer", name="a computer", roles=frozenset())
    async with house.client(agent) as somebody:
        for endpoint in guarded(house):
            if endpoint.for_computers:
                for body in ({}, {"renewal": "a.b.c"}):
                    answer = await somebody.request(endpoint.method, f"http://service{endpoint.path}", json=body)
                    assert answer.status_code in {401, 404, 422}, endpoint
                    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", [*SERVICES, "gateway"])
def test_every_route_declares_its_roles_and_is_the_frames(name: str) -> None:
    """Below /api/v1 there is no route that the frame does not guard, and beside it only health and metrics."""
    found = [one for one in endpoints_of(bare_app(service_named(name))) if one.template.startswith(f"{API}/")]
    found = [one for one in found if str(one).replace("HEAD", "GET") not in OPEN_AT_THE_GATEWAY]
    assert len(found) >= 5
    for endpoint in found:
        assert isinstance(endpoint.route, Route), f"{endpoint} is not made with service.router()"
        assert declared_roles(endpoint.route.dependant), endpoint


async def test_a_service_has_nothing_beside_its_api(house: TestHouse) -> None:
    """Nothing lies outside /api/v1 but health and metrics: no second door."""
    beside = {one.template for one in endpoints_of(house.app) if not one.template.startswith(f"{API}/")}
    assert beside == OPEN_AT_A_SERVICE


@pytest.mark.parametrize("credential", [None, "Bearer sjn_" + "x" * 43, "Bearer sje_" + "x" * 64, "Basic YTpi"])
async def test_every_path_of_the_gateway_needs_a_credential(gateway: TestHouse, credential: str | None) -> None:
    """Every documented operation, its own or a service's, is 401 at the front door before anybody is asked."""
    operations = {
        f"{method.upper()} {path}"
        for path, methods in openapi.build()["paths"].items()
        for method in methods
        if method in openapi.OPERATIONS
    } | {str(one) for one in endpoints_of(gateway.app) if one.template.startswith(f"{API}/")}
    operations = {one for one in operations if one.replace("HEAD", "GET") not in OPEN_AT_THE_GATEWAY}
    assert len(operations) > 40
    assert operations > OWN_PROOF
    headers = {"Authorization": credential} if credential else {}
    async with gateway.client(None) as stranger:
        for operation in sorted(operations - OWN_PROOF):
            if operation == f"POST {API}/computers/enrol" and credential and "sje_" in credential:
                continue  # this is a credential there, for policy to judge
            gateway.clock.advance(timedelta(seconds=1))  # or the rate would say no first
            method, path = operation.split(" ")
            answer = await stranger.request(method, f"http://service{with_ids(path)}", headers=headers)
            assert is_problem(answer, 401, "unauthenticated"), f"{operation}: {answer.status_code} {answer.text}"
        for operation in OWN_PROOF:
            method, path = operation.split(" ")
            answer = await stranger.request(method, f"http://service{with_ids(path)}", headers=headers)
            assert is_problem(answer, 503, "unavailable"), "passed on, and nobody is there"


async def test_an_unknown_path_is_no_way_in(gateway: TestHouse) -> None:
    """Neither spelling of a path reaches a service without a credential."""
    for path in ("policies/", "policies//x", "Policies", "%70olicies", "policies/..%2fhealth/live", "../metrics", "x"):
        async with gateway.client(None) as stranger:
            answer = await stranger.get(f"http://service{API}/{path}")
            assert answer.status_code in {401, 404}, path
            assert answer.headers["content-type"] == "application/problem+json"


async def test_nothing_there_and_nothing_possible_are_problems(house: TestHouse) -> None:
    """404 at a path that is not, 405 for each method that a path has not, everywhere in the same shape."""
    has: dict[str, set[str]] = {}
    for endpoint in endpoints_of(house.app):
        has.setdefault(endpoint.template, set()).add(endpoint.method)
    async with house.client() as admin:
        for path in ("/", "/api", "/api/v1", "/api/v2/policies", f"{API}/nothing", f"{API}/nothing/{SOME_ID}", "/docs"):
            assert is_problem(await admin.get(f"http://service{path}"), 404, "not-found"), path
        for template in has:
            same = {one for other, some in has.items() if matches(other, with_ids(template)) for one in some}
            for method in (one for one in METHODS if one not in same):
                answer = await admin.request(method, f"http://service{with_ids(template)}")
                if method == "HEAD":
                    assert answer.status_code == 405
                    continue
                assert is_problem(answer, 405, "method-not-allowed"), f"{method} {template}: {answer.status_code}"
                assert set(answer.headers["allow"].split(", ")) <= same


def test_one_document_describes_every_route() -> None:
    """All services' routes are in it, each under an operationId of its own."""
    document = openapi.build()  # raises when two services use one name for two things
    ids = [
        operation["operationId"]
        for methods in document["paths"].values()
        for method, operation in methods.items()
        if method in openapi.OPERATIONS
    ]
    assert len(ids) == len(set(ids))
    described = {
        (method.upper(), with_ids(path))
        for path, methods in document["paths"].items()
        for method in methods
        if method in openapi.OPERATIONS
    }
    for name in (*SERVICES, "gateway"):
        for endpoint in endpoints_of(bare_app(service_named(name))):
            if endpoint.template.startswith(f"{API}/") and str(endpoint).replace("HEAD", "GET") not in (
                OPEN_AT_THE_GATEWAY
            ):
                assert (endpoint.method, endpoint.path) in described, f"{name}: {endpoint} is not described"
