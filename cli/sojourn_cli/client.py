"""Calls of the REST API, for commands: who we are, what the server said, and lists to their end."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getpass
from pathlib import Path
from typing import Any, NoReturn

import httpx

DEFAULT_URL = "http://127.0.0.1:8400"
TIMEOUT_SECONDS = 30.0


class Refused(Exception):
    """The server said no, or could not be asked; the message is for the person at the terminal. Exit status 1."""


class Usage(Exception):
    """The command line makes no sense; the message says what would. Exit status 64."""


class Client:
    """One server and one key: from `SOJOURN_URL` and `SOJOURN_TOKEN`, else from the profile of `sojourn login`."""

    def __init__(self, url: str, token: str | None) -> None:
        """Raises Refused for what can be no address and no key."""
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise Refused(f"{url} is no address of a server: it begins with http:// or https://")
        if token and not (token.isascii() and token.isprintable()):
            raise Refused("this is no API key: a key is one line of plain characters, as `sjn_…` was shown")
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT_SECONDS,
        )

    @classmethod
    def from_environment(cls) -> "Client":
        """Raises Refused when nobody logged in."""
        profile = read_profile()
        url = os.environ.get("SOJOURN_URL") or profile.get("url") or DEFAULT_URL
        token = os.environ.get("SOJOURN_TOKEN")
        if token is None and profile.get("url", "").rstrip("/") == url.rstrip("/"):
            token = profile.get("token")  # a key is only ever sent to the server that it was kept for
        if not token:
            raise Refused(f"you are not logged in to {url}: run `sojourn login`, or set SOJOURN_TOKEN")
        return cls(url, token)

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params=_given(params))

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, json=body)

    def items(self, path: str, *, at_most: int, **params: Any) -> list[Any]:
        """The first `at_most` items of a list, page by page."""
        found: list[Any] = []
        cursor = None
        while len(found) < at_most:
            page = self.get(path, limit=min(500, at_most - len(found)), cursor=cursor, **params)
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return found

    def changed(self, method: str, path: str, body: Any = None) -> Any:
        """PUT, PATCH or DELETE on what is there now: reads the ETag first, so that no change of others is lost."""
        etag = self.response("GET", path).headers.get("etag", "*")
        return self.call(method, path, json=body, headers={"If-Match": etag})

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The decoded answer; text for what is not JSON. Raises Refused."""
        answer = self.response(method, path, **options)
        if not answer.content:
            return None
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text

    def response(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **_given(options))
        except httpx.HTTPError as error:
            self._unreachable(error)
        if answer.is_error:
            raise Refused(_sentence(answer))
        return answer

    def stream(self, path: str, **params: Any) -> Iterator[bytes]:
        """The bytes of a long answer, piece by piece."""
        try:
            with self._http.stream("GET", path, params=_given(params)) as answer:
                if answer.is_error:
                    answer.read()
                    raise Refused(_sentence(answer))
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            self._unreachable(error)

    def _unreachable(self, error: httpx.HTTPError) -> NoReturn:
        raise Refused(f"{self.url} does not answer ({error}): is it running, and is SOJOURN_URL right?") from None


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name.rstrip("_"): value for name, value in params.items() if value is not None}


def _sentence(answer: httpx.Response) -> str:
    """What a problem document says, with its fields."""
    try:
        problem = answer.json()
        lines = [str(problem["detail"])]
        errors = [(error["pointer"], error["detail"]) for error in problem.get("errors", [])]
        if len(errors) == 1 and errors[0][1] == lines[0]:  # it is said already
            lines += [f"  at {place}" for place, _ in errors if place]
        else:
            lines += [f"  {place or 'body'}: {said}" for place, said in errors]
        code = str(problem.get("type", "")).rpartition("/")[2]
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code} and nothing that can be read; is this a Sojourn server?"
    if answer.status_code == 401:
        lines.append("  run `sojourn login` with a key that is valid")
    return f"{lines[0]} ({code})" + "".join(f"\n{line}" for line in lines[1:])


# --- the profile ------------------------------------------------------------------------------------------------------


def profile_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "sojourn" / "profile.json"


def read_profile() -> dict[str, str]:
    try:
        found = json.loads(profile_path().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Refused(f"{profile_path()} cannot be read ({error}): remove it and run `sojourn login`") from None
    return found if isinstance(found, dict) else {}


def write_profile(url: str, token: str) -> Path:
    """Keep a login, readable by its owner alone from the first byte."""
    path = profile_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": url, "token": token}, file)
    temporary.replace(path)
    return path


def read_secret(given: str | None, prompt: str) -> str:
    """A secret from `@FILE`, `-` (standard input) or a prompt. Raises Usage for one that everybody could see."""
    if given is None:
        if not sys.stdin.isatty():
            return sys.stdin.readline().strip()
        return getpass(prompt).strip()
    if given == "-":
        return sys.stdin.readline().strip()
    if given.startswith("@"):
        return read_file(given[1:]).strip()
    raise Usage("a secret on the command line is seen by everybody: give @FILE, or - for standard input")


def read_file(name: str) -> str:
    """A file's text; `-` is standard input. Raises Refused."""
    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).read_text()
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused(f"{name} cannot be read: it is not text in UTF-8") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`. Raises Refused with why it cannot be written."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from None


def read_body(name: str) -> Any:
    """A JSON file as a body to send. Raises Refused with the line at fault."""
    try:
        return json.loads(read_file(name))
    except json.JSONDecodeError as error:
        name = "standard input" if name == "-" else name
        raise Refused(f"{name} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
