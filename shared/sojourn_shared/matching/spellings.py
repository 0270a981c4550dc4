"""One spelling for what compares equal: names, digests, class ids, paths."""

import re
import unicodedata
from functools import lru_cache

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLSID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DRIVE = re.compile(r"[a-z]:")


def folded(text: str) -> str:
    """One spelling for all that Unicode calls a compatibility caseless match (The Unicode Standard, D146)."""
    # In ASCII every form is the same, and lower case the only one.
    return (text.lower() if text.isascii() else _folded_beyond_ascii(text)).strip()


def digest(text: str | None) -> str | None:
    """A SHA-256 in lower case; null when it is none."""
    return lower if text is not None and _SHA256.fullmatch(lower := text.lower()) else None


def bare_clsid(text: str) -> str | None:
    """A class id in lower case without braces; null when it is none."""
    bare = text.strip().lower()
    if bare.startswith("{") and bare.endswith("}"):
        bare = bare[1:-1]
    return bare if _CLSID.fullmatch(bare) else None


def path_parts(path: str, platform: str | None) -> tuple[str, ...] | None:
    """The names that make up an absolute path, the root first; null when it is relative, or has `..` or NUL.

    Windows paths compare without case and know two separators; all others compare exactly. Facts without a
    platform are read by the path's own look.
    """
    if platform == "windows" or (platform is None and not path.startswith("/")):
        root, *names = path.lower().replace("/", "\\").split("\\")
        if not _DRIVE.fullmatch(root):
            return None
    else:
        root, *names = path.split("/")
        if root or not names:
            return None
    if ".." in names or "." in names or "\0" in path:
        return None
    return root, *filter(None, names)


@lru_cache(maxsize=1024)
def _folded_beyond_ascii(text: str) -> str:
    once = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKC", once.casefold())
