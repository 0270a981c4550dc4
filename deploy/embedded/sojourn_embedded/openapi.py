"""One OpenAPI document for all services, built from their routers and kept beside the gateway, which serves it.

`python -m sojourn_embedded.openapi` writes it; with `--check` it only says whether the kept one is stale.
"""

import json
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from sojourn_shared.service.app import Service, bare_app

SERVICES = ("policy", "requests", "expiry", "audit", "gateway")
OPERATIONS = ("get", "post", "put", "patch", "delete")
PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `type` ends in the code, `errors` says which fields of the body are wrong.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "examples": ["/problems/not-found"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
HEAD = {
    "openapi": "3.1.0",
    "info": {
        "title": "Sojourn",
        "version": "1",
        "description": "Just-in-time privilege elevation. Lists come in pages (`limit`, `cursor`); every POST takes an "
        "`Idempotency-Key`; PUT, PATCH and DELETE need `If-Match`; every refusal is a problem document.",
    },
    "servers": [{"url": "/"}],
    "security": [{"bearer": []}],
}


def build() -> dict[str, Any]:
    """The document. Raises ValueError when two services use one name for two things."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Problem": PROBLEM}
    operations: set[str] = set()
    for name in SERVICES:
        service: Service = import_module(f"sojourn_{name}.app").SERVICE
        part = bare_app(service).openapi()
        for schema, content in part.get("components", {}).get("schemas", {}).items():
            if schema in {"HTTPValidationError", "ValidationError"}:  # ours is a problem
                continue
            if schemas.setdefault(schema, content) != content:
                raise ValueError(f"{name}: {schema} is another service's name for something else")
        for path, methods in part["paths"].items():
            for method in OPERATIONS:
                if operation := methods.get(method):
                    _add(operation, operations, name)
            paths.setdefault(path, {}).update(methods)
    components = {"schemas": dict(sorted(schemas.items())), "securitySchemes": {"bearer": _BEARER}}
    return HEAD | {"paths": dict(sorted(paths.items())), "components": components}


_BEARER = {"type": "http", "scheme": "bearer", "description": "An API key, `sjn_…`."}


def _add(operation: dict[str, Any], known: set[str], service: str) -> None:
    if operation["operationId"] in known:
        raise ValueError(f"{service}: the operation {operation['operationId']} exists twice")
    known.add(operation["operationId"])
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses = operation["responses"]
    if "422" in responses:
        responses["422"] = {"description": responses["422"].get("description") or "Invalid", "content": problem}
    for status, response in responses.items():
        if status >= "400":
            response["content"] = problem
    for status, description in (("401", "`unauthenticated`"), ("default", "Any other refusal")):
        responses.setdefault(status, {"description": description, "content": problem})


def kept() -> Path:
    """Where the document is kept."""
    return Path(str(files("sojourn_gateway"))) / "openapi.json"


def main() -> None:
    """Write the document, or (`--check`) exit 1 when the kept one is stale."""
    text = json.dumps(build(), indent=1, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        kept().write_text(text)
    elif not kept().exists() or kept().read_text() != text:
        sys.exit("services/gateway/sojourn_gateway/openapi.json is stale: run `make openapi` and commit it.")


if __name__ == "__main__":
    main()
