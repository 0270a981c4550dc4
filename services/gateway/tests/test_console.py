"""The console in a browser without script: signing in, every page, every form, and what hostile names do there."""

import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from sojourn_gateway.callers import tell_refusals_once

from .conftest import SIGN_IN, Gateway, later

PC = "01930000-0000-7000-8000-00000000000c"
REQUEST = "01930000-0000-7000-8000-00000000000d"
GRANT = "01930000-0000-7000-8000-00000000000e"
POLICY = "01930000-0000-7000-8000-00000000000f"
HERE = "http://127.0.0.1:8400"
HOSTILE = '<script>alert(1)</script>"\u202e\x1b'
AT = "2026-11-02T09:00:00.000000Z"


class Browser:
    """A browser without script: it keeps cookies, sends Origin with a form, and fills in what a form holds."""

    def __init__(self, gateway: Gateway) -> None:
        self.http = gateway.client(None)
        self.http.base_url = httpx.URL(HERE)

    async def open(self, path: str) -> httpx.Response:
        return await self.http.get(path, headers={"Accept": "text/html"})

    async def send(self, path: str, fields: Any, origin: str | None = HERE, token: str | None = None) -> httpx.Response:
        pairs = list(fields.items()) if isinstance(fields, dict) else list(fields)
        if token is not None:
            pairs.append(("form_token", token))
        headers = {"Accept": "text/html", "Content-Type": "application/x-www-form-urlencoded"}
        if origin:
            headers["Origin"] = origin
        return await self.http.post(path, content=urlencode(pairs).encode(), headers=headers)

    async def sign_in(self, token: str = SIGN_IN) -> httpx.Response:
        return await self.send("/sign-in", {"token": token})

    async def form_token(self) -> str:
        page = await self.open("/policies/just-in-time-access/new")
        return token_in(page.text)


def token_in(text: str) -> str:
    match = re.search(r'name="form_token" value="([0-9a-f]{64})"', text)
    assert match
    return match[1]


@pytest.fixture
async def browser(gateway: Gateway) -> AsyncIterator[Browser]:
    one = Browser(gateway)
    yield one
    await one.http.aclose()


def the_services_hold(gateway: Gateway, *, name: str = "pc-1", text: str = "why") -> None:
    """One computer, policy, request, grant and run, as the services answer; `name` and `text` stand in every place."""
    application = {
        "path": f"/usr/bin/{text}",
        "executable": text,
        "sha256": "b" * 64,
        "vendor": text,
        "product": text,
        "version": text,
        "package": text,
        "signature": {"status": "verified", "by": text},
        "arguments": ["-u", "", text],
        "working_directory": text,
    }
    rule = {"type": "folder_path", "path": "/usr/bin", "recursive": True, "executable": text, "arguments": [text]}
    times = {"created_at": AT, "updated_at": AT}
    request = {"id": REQUEST, "version": 1, "status": "pending", "computer_id": PC, "computer_name": name, "user": text}
    request |= {"application": application, "duration_minutes": 30, "justification": text, "requested_by_name": name}
    request |= {"external_refs": [{"system": text, "number": text, "url": None}], "expires_at": AT, "decision": None}
    request |= {"checks": [{"name": "hours", "passed": False, "detail": text}], "max_uses": None, "not_before": None}
    request |= {"suggested_rules": [{"match": "folder_path", "rule": rule, "warnings": [{"detail": text}]}], **times}
    request |= {"ends_with_application": False, "problem": None, "grant_id": None}
    decided = request | {"id": PC, "status": "declined", "decision": {"by_name": text, "note": text, "at": AT}}
    grant = {
        "id": GRANT,
        "status": "active",
        "delivery": "applied",
        "computer_id": PC,
        "computer_name": name,
        "uses": 1,
    }
    grant |= {"users": {"all": False, "names": [text]}, "policy_id": POLICY, "policy_name": text, "request_id": None}
    grant |= {"from": AT, "until": AT, "duration_minutes": None, "rules": [rule], "revoked": None, "failure": text}
    grant |= {"ended_at": None, "take_up_until": None, **times}
    revoked = {"by_name": text, "reason": text, "at": AT}
    over = grant | {"id": PC, "status": "revoked", "delivery": "ending", "revoked": revoked, "ended_at": AT}
    run = {"id": PC, "grant_id": GRANT, "user": text, "application": application, "pid": 7, "started_at": AT}
    policy = {"id": POLICY, "version": 3, "name": text, "description": text, "status": "deployed", "revision": 2}
    policy |= {"deployed_revision": 1, "targets": {"all": False, "computer_ids": [PC]}, "users": grant["users"]}
    policy |= {"duration": {"type": "fixed", "minutes": 60, "starts": "on_deploy"}, "created_by_name": text, **times}
    policy |= {"access": {"type": "specific", "rules": [rule]}, "child_processes": "allow", "max_uses": None}
    computer = {"id": PC, "name": name, "connected": True, "agent_version": text, "labels": {text: text}, **times}
    computer |= {"platform": {"os": "linux", "distribution": text, "version": text, "architecture": text}}
    computer |= {"guarantees": {"caller": {"word": "enforced", "why": text}}, "status": "enrolled"}
    computer |= {"standing_rights": [{"user": text, "through": text}]}
    event = {
        "seq": 0,
        "type": "policy.created",
        "time": AT,
        "summary": text,
        "actor": {"name": text},
        "leaf_hash": text,
    }
    event |= {"computer_id": PC}
    totals = {"events": 1, "computers": 1, "grants": 1, "elevations": 0, "users": [text]}
    state = {"last_seen_at": AT, "applied_version": 1, "desired_version": 1, "running": [], "grants": []}

    def page(*items: Any) -> tuple[int, Any]:
        return 200, {"items": list(items), "next_cursor": None}

    answers: dict[str, dict[str, Any]] = {
        "policy": {
            "GET /policies": page(policy),
            f"GET /policies/{POLICY}": (200, policy),
            "GET /computers": page(computer),
            f"GET /computers/{PC}": (200, computer),
            f"GET /computers/{PC}/users": page({"name": text}),
        },
        "requests": {"GET /requests": page(request, decided)},
        "expiry": {
            "GET /grants": page(grant, over),
            "GET /elevations": page(run),
            f"GET /computers/{PC}/state": (200, state),
        },
        "audit": {
            "GET /audit/events": page(event),
            f"GET /audit/policies/{POLICY}": (200, {"totals": totals, "timeline": [event], "next_cursor": None}),
        },
    }
    for service, held in answers.items():
        gateway.services[service].answers |= held


PAGES = [
    "/",
    "/just-in-time-access/requests",
    "/just-in-time-access/active",
    f"/just-in-time-access/active?grant_id={GRANT}",
    "/policies/just-in-time-access",
    "/policies/just-in-time-access/new",
    f"/policies/just-in-time-access/{POLICY}",
    f"/policies/just-in-time-access/{POLICY}/audit",
    "/computers",
    f"/computers/{PC}",
]


# --- signing in -------------------------------------------------------------------------------------------------------


async def test_opening_the_link_signs_nobody_in_and_the_button_does_once(gateway: Gateway, browser: Browser) -> None:
    """A GET changes nothing, however often; the POST uses the link up."""
    for _ in range(2):
        page = await browser.open(f"/sign-in?token={SIGN_IN}")
        assert ">Sign in</button>" in page.text
        assert "set-cookie" not in page.headers
    assert (await browser.open("/")).headers["location"] == "/sign-in"
    entered = await browser.sign_in()
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert cookie.startswith("sojourn=")
    assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Path=/"))
    again = await Browser(gateway).sign_in()
    assert (again.status_code, "used already" in again.text, "set-cookie" in again.headers) == (401, True, False)
    (event,) = await gateway.at.events("session.signed_in")
    assert (event.data.actor.name, event.data.entity["source"]) == ("admin", "192.0.2.7")


async def test_refusals_are_told_once_a_minute_with_their_count(gateway: Gateway, browser: Browser) -> None:
    """Guessing does not grow the ledger: one event for a source and a minute."""
    for _ in range(5):
        assert (await browser.sign_in("guess")).status_code == 401
    await tell_refusals_once(gateway.at.house)
    assert await gateway.at.events("session.refused") == []
    later(gateway, minutes=1)
    await tell_refusals_once(gateway.at.house)
    (event,) = await gateway.at.events("session.refused")
    assert (event.data.entity["count"], event.data.entity["source"]) == (5, "192.0.2.7")


async def test_a_session_ends_by_idleness_by_its_day_and_by_signing_out(gateway: Gateway, browser: Browser) -> None:
    """And no cookie of before opens anything after."""
    the_services_hold(gateway)
    await browser.sign_in()
    later(gateway, minutes=50)
    assert (await browser.open("/")).status_code == 200
    later(gateway, minutes=50)
    page = await browser.open("/")
    assert page.status_code == 200
    gone = await browser.send("/sign-out", {}, token=token_in(page.text))
    assert gone.headers["location"] == "/sign-in"
    assert (await browser.open("/")).status_code == 303
    assert [event.change for event in await gateway.at.events("session.signed_out")] == ["session.signed_out"]


async def test_idle_for_an_hour_is_over(gateway: Gateway, browser: Browser) -> None:
    """The browser on a desk that somebody left."""
    await browser.sign_in()
    later(gateway, hours=1, seconds=1)
    assert (await browser.open("/")).headers["location"] == "/sign-in"


async def test_an_account_that_is_deleted_is_signed_out(gateway: Gateway) -> None:
    """Its sessions go with it, its link too; a link is made by an administrator, or for oneself."""
    the_services_hold(gateway)
    ben = await gateway.person("ben", "approver", os_users=["ben"])
    eve = await gateway.person("eve", "requester")
    async with gateway.client() as admin, gateway.client(eve.key) as eves:
        assert (await eves.post(f"/accounts/{ben.id}/sign-in-links")).status_code == 403
        link = await admin.post(f"/accounts/{ben.id}/sign-in-links")
        (made,) = await gateway.at.events("session.link_made")  # who can sign in as ben now stands in the ledger
        assert (made.data.actor.name, made.data.entity["account_name"]) == ("admin", "ben")
        assert link.status_code == 201
        bens = Browser(gateway)
        await bens.sign_in(link.json()["url"].partition("token=")[2])
        assert (await bens.open("/")).status_code == 200
        await admin.delete(f"/accounts/{ben.id}", headers={"If-Match": "*"})
        assert (await bens.open("/")).status_code == 303


async def test_no_other_site_sends_our_forms(gateway: Gateway, browser: Browser) -> None:
    """Neither signing in nor anything after it, whatever token the form carries."""
    the_services_hold(gateway)
    others = [None, "null", "http://evil.example", "https://127.0.0.1:9999", "file://127.0.0.1:8400", "http://["]
    for origin in others:
        assert (await browser.send("/sign-in", {"token": SIGN_IN}, origin=origin)).status_code == 403
    await browser.sign_in()
    token = await browser.form_token()
    before = len(gateway.services["expiry"].calls)
    for origin in others:
        answer = await browser.send(f"/just-in-time-access/active/{GRANT}/revoke", {"reason": "x"}, origin, token)
        assert (answer.status_code, len(gateway.services["expiry"].calls)) == (403, before)


async def test_a_form_needs_its_sessions_token(gateway: Gateway, browser: Browser) -> None:
    """None, a wrong one, or another session's: refused. The API by cookie asks for it too."""
    the_services_hold(gateway)
    await browser.sign_in()
    for token in (None, "", "0" * 64):
        answer = await browser.send(f"/policies/just-in-time-access/{POLICY}/deploy", {}, token=token)
        assert answer.status_code == 403
    assert gateway.services["policy"].calls == []
    assert (await browser.http.get("/api/v1/me")).json()["name"] == "admin"
    path, origin = f"/api/v1/policies/{POLICY}/deploy", {"Origin": HERE}
    assert (await browser.http.post(path, headers=origin)).status_code == 403
    token = await browser.form_token()
    assert (await browser.http.post(path, headers=origin | {"X-CSRF-Token": token})).status_code == 200
    assert (await browser.http.post(path, headers={"X-CSRF-Token": token})).status_code == 403


# --- pages ------------------------------------------------------------------------------------------------------------


async def test_hostile_names_are_shown_and_do_nothing(gateway: Gateway, browser: Browser) -> None:
    """No markup of theirs, nothing unseen, nothing that turns the text round; and the page allows no inline script."""
    the_services_hold(gateway, name=HOSTILE, text=HOSTILE)
    await browser.sign_in()
    for path in PAGES:
        page = await browser.open(path)
        assert page.status_code == 200, page.text
        assert "<script>alert" not in page.text
        assert not re.search("[\u202e\x1b]", page.text)
        if not path.endswith("/new"):
            assert r"&lt;script&gt;alert(1)&lt;/script&gt;&#34;\u202e\x1b" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe-inline" not in page.headers["content-security-policy"]
        assert not re.search(r"<[^>]+\s(style|on\w+)=", page.text.replace(r"\u202e", ""))


async def test_pages_lead_strangers_to_the_door(browser: Browser) -> None:
    """Without a session there is nothing to see."""
    for path in PAGES:
        answer = await browser.open(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in"), path


async def test_pages_speak_of_names_not_ids(gateway: Gateway, browser: Browser) -> None:
    """An id stands in addresses only."""
    the_services_hold(gateway)
    await browser.sign_in()
    for path in PAGES:
        page = (await browser.open(path)).text
        words = unescape(re.sub(r"<[^>]*>", " ", page))
        assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-7", words), path


async def test_a_service_that_is_down_takes_only_its_part_along(gateway: Gateway, browser: Browser) -> None:
    """The rest of the page is there, and it says what is missing."""
    the_services_hold(gateway, text="quick reason")
    await browser.sign_in()
    await gateway.services["expiry"].stop()
    page = await browser.open("/")
    assert page.status_code == 200
    assert "quick reason" in page.text
    page = await browser.open("/just-in-time-access/active")
    assert "does not reply" in page.text


async def test_an_unknown_page_is_a_page_and_an_unknown_resource_a_problem(browser: Browser) -> None:
    """Each in the words of whoever asks."""
    page = await browser.open("/settings/nothing")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    other = await browser.http.get("/settings/nothing")
    assert (other.status_code, other.headers["content-type"]) == (404, "application/problem+json")


# --- forms ------------------------------------------------------------------------------------------------------------


async def test_a_request_is_approved_and_declined_with_a_note(gateway: Gateway, browser: Browser) -> None:
    """In the name of the person signed in, with what was typed; a refusal stands beside the form with it."""
    the_services_hold(gateway)
    requests = gateway.services["requests"]
    requests.answers[f"POST /requests/{REQUEST}/approve"] = (200, {"id": REQUEST})
    refusal = {
        "type": "/problems/self-approval",
        "title": "Nobody decides on their own request",
        "detail": "It is yours.",
    }
    requests.answers[f"POST /requests/{REQUEST}/decline"] = (403, refusal)
    await browser.sign_in()
    token = await browser.form_token()
    where = f"/just-in-time-access/requests/{REQUEST}"
    fields = {"note": " go ahead ", "minutes": "15", "match": "", "arguments": "exact"}
    approved = await browser.send(f"{where}/approve", fields, token=token)
    assert approved.headers["location"] == "/just-in-time-access/requests?done=approved"
    call = requests.calls[-1]
    assert call["body"] == {"note": "go ahead", "duration_minutes": 15, "arguments": "exact"}
    assert call["caller"].name == "admin"
    declined = await browser.send(f"{where}/decline", {"note": "no <b>way</b>", "minutes": "15"}, token=token)
    assert declined.status_code == 403
    assert "It is yours." in declined.text
    assert 'value="no &lt;b&gt;way&lt;/b&gt;"' in declined.text
    assert (await browser.send(f"{where}/eat", {}, token=token)).status_code == 404


async def test_a_grant_is_revoked_with_a_reason(gateway: Gateway, browser: Browser) -> None:
    """And while the computer has not confirmed, the page says ending."""
    the_services_hold(gateway)
    expiry = gateway.services["expiry"]
    expiry.answers[f"POST /grants/{GRANT}/revoke"] = (200, {"id": GRANT})
    await browser.sign_in()
    page = await browser.open("/just-in-time-access/active")
    assert ">ending</span>" in page.text
    where = f"/just-in-time-access/active/{GRANT}/revoke"
    answer = await browser.send(where, {"reason": "laptop lost"}, token=token_in(page.text))
    assert answer.headers["location"] == "/just-in-time-access/active?done=revoked"
    assert expiry.calls[-1]["body"] == {"reason": "laptop lost"}


FORM = [
    ("name", "Printer drivers"),
    ("description", "until Friday"),
    ("computers", "some"),
    ("computer_ids", PC),
    ("users_are", "some"),
    ("users", "alice, bob"),
    ("duration", "window"),
    ("minutes", "60"),
    ("starts", "on_deploy"),
    ("from", "2026-11-24T10:13"),
    ("until", "2026-11-24T12:00"),
    ("rules-0-type", "folder_path"),
    ("rules-0-path", "/usr/bin"),
    ("rules-0-executable", "id"),
    ("rules-0-arguments", "exact"),
    ("rules-0-lines", "-u\n a b"),
    ("rules-1-type", "vendor"),
    ("rules-1-vendor", "Debian"),
    ("rules-1-verified", "1"),
    ("rules-1-sha256", "left over from another type"),
    ("rules-1-arguments", "none"),
]


async def test_a_policy_is_written_and_deployed(gateway: Gateway, browser: Browser) -> None:
    """The form becomes the body of the contract; *Deploy Immediately* deploys what was saved."""
    the_services_hold(gateway)
    policy = gateway.services["policy"]
    policy.answers |= {
        "POST /policies": (201, {"id": POLICY}),
        f"POST /policies/{POLICY}/deploy": (202, {"id": POLICY}),
    }
    await browser.sign_in()
    token = await browser.form_token()
    fields = [*FORM, ("once", "k1"), ("action", "deploy")]
    answer = await browser.send("/policies/just-in-time-access/new", fields, token=token)
    assert answer.headers["location"] == f"/policies/just-in-time-access/{POLICY}?done=deployed"
    await browser.send("/policies/just-in-time-access/new", fields, token=token)
    changed = [("name", "Another"), *fields[1:]]
    await browser.send("/policies/just-in-time-access/new", changed, token=token)
    create, deploy, again, _, other, _ = (call for call in policy.calls if call["method"] == "POST")
    pressed = [call["headers"]["idempotency-key"] for call in (create, again, other)]
    assert pressed[0] == pressed[1] != pressed[2]
    assert create["body"] == {
        "name": "Printer drivers",
        "description": "until Friday",
        "targets": {"computer_ids": [PC]},
        "users": {"names": ["alice", "bob"]},
        "duration": {"type": "window", "from": "2026-11-24T10:13:00Z", "until": "2026-11-24T12:00:00Z"},
        "access": {
            "type": "specific",
            "rules": [
                {
                    "type": "folder_path",
                    "path": "/usr/bin",
                    "executable": "id",
                    "recursive": False,
                    "arguments": ["-u", " a b"],
                },
                {"type": "vendor", "vendor": "Debian", "verified": True, "arguments": []},
            ],
        },
    }
    assert deploy["path"] == f"/policies/{POLICY}/deploy"


async def test_what_is_wrong_is_said_at_its_field_and_nothing_typed_is_lost(gateway: Gateway, browser: Browser) -> None:
    """The API's pointers lead to the fields; every value is still there."""
    the_services_hold(gateway)
    errors = [
        {"pointer": "/access/rules/1/vendor", "detail": "vendor: no"},
        {"pointer": "/name", "detail": "name: taken"},
    ]
    refusal = {"title": "The request cannot be understood", "detail": "2 fields are wrong.", "errors": errors}
    gateway.services["policy"].answers["POST /policies"] = (422, refusal)
    await browser.sign_in()
    answer = await browser.send(
        "/policies/just-in-time-access/new", [*FORM, ("action", "save")], token=await browser.form_token()
    )
    assert answer.status_code == 422
    assert 'id="name-complaint-1">name: taken' in answer.text
    assert 'id="rules-1-complaint-1">vendor: no' in answer.text
    for value in ("Printer drivers", "until Friday", "alice, bob", "2026-11-24T10:13", "/usr/bin", "Debian"):
        assert f'value="{value}"' in answer.text
    assert "-u\n a b</textarea>" in answer.text
    assert f'value="{PC}" checked' in answer.text


async def test_rules_are_added_and_removed_without_script(gateway: Gateway, browser: Browser) -> None:
    """Buttons give the form back with one rule more or less; nothing is saved."""
    the_services_hold(gateway)
    await browser.sign_in()
    token = await browser.form_token()
    more = await browser.send("/policies/just-in-time-access/new", [*FORM, ("action", "add_rule")], token=token)
    less = await browser.send("/policies/just-in-time-access/new", [*FORM, ("action", "remove_rule-0")], token=token)
    assert (more.status_code, more.text.count('class="rule"')) == (200, 3)
    assert (less.text.count('class="rule"'), 'value="Debian"' in less.text) == (1, True)
    assert all(call["method"] == "GET" for call in gateway.services["policy"].calls)


async def test_a_policy_is_withdrawn_and_deleted(gateway: Gateway, browser: Browser) -> None:
    """Deleting names the version that was seen; a refusal is shown on the policy's page."""
    the_services_hold(gateway)
    policy = gateway.services["policy"]
    deployed = {"title": "The policy is deployed", "detail": "Withdraw it first."}
    policy.answers |= {f"POST /policies/{POLICY}/withdraw": (202, {}), f"DELETE /policies/{POLICY}": (409, deployed)}
    await browser.sign_in()
    token = await browser.form_token()
    where = f"/policies/just-in-time-access/{POLICY}"
    assert "done=withdrawn" in (await browser.send(f"{where}/withdraw", {}, token=token)).headers["location"]
    refused = await browser.send(f"{where}/delete", {"version": "3"}, token=token)
    assert (refused.status_code, "Withdraw it first." in refused.text) == (409, True)
    assert [call["headers"]["if-match"] for call in policy.calls if call["method"] == "DELETE"] == ['"3"']


async def test_the_command_that_enrols_is_shown_once(gateway: Gateway, browser: Browser) -> None:
    """With the server's public address; a reload asks for a new one."""
    the_services_hold(gateway)
    made = {"token": "sje_secret", "max_uses": 1, "expires_at": AT}
    gateway.services["policy"].answers["POST /enrolment-tokens"] = (201, made)
    await browser.sign_in()
    answer = await browser.send("/computers", {"name": "lab"}, token=await browser.form_token())
    assert f"sudo sojourn-agent enrol --server {HERE} --token sje_secret" in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert "sje_secret" not in (await browser.open("/computers")).text


async def test_who_may_not_decide_sees_no_button(gateway: Gateway) -> None:
    """An auditor reads; the API would refuse anyway."""
    the_services_hold(gateway)
    ann = await gateway.person("ann", "auditor")
    async with gateway.client() as admin:
        link = (await admin.post(f"/accounts/{ann.id}/sign-in-links")).json()["url"]
    anns = Browser(gateway)
    await anns.sign_in(link.partition("token=")[2])
    for path in PAGES:
        if not path.endswith("/new"):
            page = await anns.open(path)
            assert not re.search(r"<button[^>]*>(Approve|Decline|Revoke|Withdraw|Deploy|Make)", page.text), path


async def test_the_api_has_a_page_and_a_document(browser: Browser) -> None:
    """Both without signing in, and with nothing from elsewhere."""
    page = await browser.open("/api/v1/docs")
    assert page.status_code == 200
    assert "/api/v1/policies/{policy_id}/deploy" in page.text
    assert not re.search(r'(src|href)="(https?:)?//', page.text)
    document = await browser.http.get("/api/v1/openapi.json")
    assert document.json()["openapi"].startswith("3.1")
    assert (await browser.http.get("/static/console.css")).status_code == 200
