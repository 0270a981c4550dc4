"""One kind of signature, one purpose each, one spelling."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn_shared.signing import BadSignature, PrivateKey, PublicKey, UnknownKey, base64url, from_base64url, verify

KEY, STRANGER = PrivateKey(bytes(range(32))), PrivateKey(bytes(range(1, 33)))
KEYS = {KEY.kid: KEY.public}


def test_the_signature_of_rfc_8037_is_made() -> None:
    """RFC 8037, appendix A.1 and A.4: the private key's public half, and the signature over the example's text."""
    key = PrivateKey(from_base64url("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))
    assert key.public.text == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    text = key.sign(b"Example of Ed25519 signing", "sojourn-state")
    assert text.split(".")[1] == "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    assert verify(text, "sojourn-state", {key.kid: key.public}) == b"Example of Ed25519 signing"


@given(st.binary(max_size=300))
def test_what_was_signed_is_what_is_read(payload: bytes) -> None:
    """Any bytes come back as they were."""
    assert verify(KEY.sign(payload, "sojourn-report"), "sojourn-report", KEYS) == payload


def test_the_header_names_algorithm_key_and_purpose() -> None:
    """Exactly `alg`, `kid` and `typ`."""
    header = json.loads(from_base64url(KEY.sign(b"{}", "sojourn-time").split(".")[0]))
    assert header == {"alg": "EdDSA", "kid": KEY.kid, "typ": "sojourn-time"}


def test_a_signature_for_one_purpose_serves_no_other() -> None:
    """A report is never taken for a document, whoever signed it."""
    with pytest.raises(BadSignature, match="signed as sojourn-report, expected sojourn-state"):
        verify(KEY.sign(b"{}", "sojourn-report"), "sojourn-state", KEYS)


def test_an_unknown_key_is_told_apart() -> None:
    """The reader's key set may be older than the key: that is no forgery yet, and names the key."""
    with pytest.raises(UnknownKey) as caught:
        verify(STRANGER.sign(b"{}", "sojourn-state"), "sojourn-state", KEYS)
    assert caught.value.kid == STRANGER.kid


def test_a_stranger_who_takes_the_name_of_a_key_is_refused() -> None:
    """The key id is only a name: the signature decides."""
    with pytest.raises(BadSignature, match="does not fit"):
        verify(STRANGER.sign(b"{}", "sojourn-state"), "sojourn-state", {STRANGER.kid: KEY.public})


def test_every_altered_character_is_noticed() -> None:
    """No character of a signed text can be another one: not in the header, the payload or the signature."""
    text = KEY.sign(b'{"version": 7}', "sojourn-state")
    for place, character in enumerate(text):
        other = "A" if character != "A" else "B"
        with pytest.raises(BadSignature):
            verify(text[:place] + other + text[place + 1 :], "sojourn-state", KEYS)


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "HS256"}, {"jwk": {}}, {"crit": ["b64"]}, {"typ": "JOSE"}])
def test_other_algorithms_and_unknown_header_fields_are_refused(header: dict[str, object]) -> None:
    """Nothing in a header can talk the reader out of its one algorithm and its own keys."""
    known = {"alg": "EdDSA", "kid": KEY.kid, "typ": "sojourn-state"}
    _, payload, signature = KEY.sign(b"{}", "sojourn-state").split(".")
    with pytest.raises(BadSignature, match="not a compact JWS"):
        verify(f"{base64url(json.dumps(known | header).encode())}.{payload}.{signature}", "sojourn-state", KEYS)


@pytest.mark.parametrize("text", ["", ".", "..", "a.b", "a.b.c", "é.b.c", "e30.e30.e30.e30", "e30=.e30.e30"])
def test_what_is_no_jws_is_refused(text: str) -> None:
    """Junk of any shape is one error, never another exception."""
    with pytest.raises(BadSignature):
        verify(text, "sojourn-state", KEYS)


def test_base64url_has_one_spelling() -> None:
    """No padding, no other alphabet, no white space, no second spelling of the same bytes."""
    assert from_base64url(base64url(b"\xfb\xff")) == b"\xfb\xff"
    for other in ("-_8=", "+/8", "-_9", "-_8\n", " -_8", "-_"[:1]):
        with pytest.raises(ValueError, match="not base64url"):
            from_base64url(other)


def test_a_key_is_text_and_a_fingerprint() -> None:
    """A public key reads back from its text; its fingerprint is 32 hex digits; 31 bytes are no key."""
    assert PublicKey.from_text(KEY.public.text).raw == KEY.public.raw
    assert len(KEY.public.fingerprint) == 32
    assert PrivateKey(KEY.seed).kid == KEY.kid
    assert PrivateKey.generate().kid != PrivateKey.generate().kid
    with pytest.raises(ValueError, match="32 bytes"):
        PublicKey.from_text(base64url(bytes(31)))
