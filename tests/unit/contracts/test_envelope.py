import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import envelope, keys
from contracts.envelope import EnvelopeError

KEY = keys.derive(b"r" * 32, keys.Purpose.ENVELOPE, "cell-1")


def fields(sign_key: bytes = KEY, method: bytes = b"GET", target: bytes = b"/", **changed: bytes) -> dict[bytes, bytes]:
    values = {"tenant": b"t1", "epoch": b"3", "timeout_ms": b"2900", "request_id": b"r-1", "plan": b"free"}
    signature = envelope.signer(sign_key)(envelope.message(**values, method=method, target=target))
    names = (envelope.TENANT, envelope.EPOCH, envelope.TIMEOUT_MS, envelope.REQUEST_ID, envelope.PLAN)
    return dict(zip(names, (values | changed).values(), strict=True)) | {envelope.SIGNATURE: signature}


def test_what_the_router_signed_is_what_the_cell_reads() -> None:
    got = envelope.verify(envelope.signer(KEY), fields(), b"GET", b"/")
    assert got == envelope.Envelope("t1", 3, 2900, "r-1", "free")


@pytest.mark.parametrize("name", ["tenant", "epoch", "timeout_ms", "request_id", "plan"])
def test_a_changed_field_does_not_verify(name: str) -> None:
    with pytest.raises(EnvelopeError, match="signature"):
        envelope.verify(envelope.signer(KEY), fields(**{name: b"9"}), b"GET", b"/")


def test_an_envelope_for_one_request_does_not_open_another() -> None:
    for method, target in ((b"DELETE", b"/"), (b"GET", b"/v1/users")):
        with pytest.raises(EnvelopeError, match="signature"):
            envelope.verify(envelope.signer(KEY), fields(), method, target)


def test_the_key_of_one_cell_does_not_open_another() -> None:
    other = keys.derive(b"r" * 32, keys.Purpose.ENVELOPE, "cell-2")
    with pytest.raises(EnvelopeError, match="signature"):
        envelope.verify(envelope.signer(other), fields(), b"GET", b"/")


@pytest.mark.parametrize("name", envelope.FIELDS)
def test_a_missing_field_is_named(name: bytes) -> None:
    partial = fields()
    del partial[name]
    with pytest.raises(EnvelopeError, match=name.decode()):
        envelope.verify(envelope.signer(KEY), partial, b"GET", b"/")


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_the_fast_signer_is_hmac_sha256(key: bytes, message: bytes) -> None:
    import base64

    expected = base64.urlsafe_b64encode(hmac.new(key, message, hashlib.sha256).digest()).rstrip(b"=")
    assert envelope.signer(key)(message) == expected


def test_a_short_or_malformed_root_key_is_refused_without_showing_it() -> None:
    for text in ("c2hvcnQ", "secret!!" * 8):
        with pytest.raises(keys.InvalidKeyError) as e:
            keys.parse_root(text)
        assert text not in str(e.value)
