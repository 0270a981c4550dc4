"""Import this first: hides what others load if it is there and no service needs (structlog, FastAPI; 100 modules)."""

import sys

for _name in ("pydantic.v1", "pygments", "rich"):
    sys.modules[_name] = None  # type: ignore[assignment]  # an import of it fails as if it were not installed
