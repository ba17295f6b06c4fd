"""The error tree is one table: total, unambiguous, and it survives the wire."""

from __future__ import annotations

import msgspec
import pytest

from copypool.protocol import errors


def test_every_class_has_its_own_code_and_a_legal_status() -> None:
    seen: dict[str, type[errors.CopypoolError]] = {}
    pending = [errors.CopypoolError]
    while pending:
        cls = pending.pop()
        # Elsewhere a class may be refined for its module's own use; on the wire it is what it refines.
        pending.extend(child for child in cls.__subclasses__() if child.__module__ == errors.__name__)
        assert cls.code not in seen, f"{cls.__name__} and {seen[cls.code].__name__} share the code {cls.code}"
        seen[cls.code] = cls
        assert 400 <= cls.http_status <= 599
        assert cls.exit_code not in (0, 3), "0 is success and 3 is `status`: not healthy"
        assert cls.__doc__
    assert seen == errors.BY_CODE


@pytest.mark.parametrize("cls", errors.BY_CODE.values())
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_an_error_survives_the_wire(cls: type[errors.CopypoolError], codec: str) -> None:
    body = errors.to_body(cls("what, where, what next", extent=7))
    encoded = msgspec.json.encode(body) if codec == "json" else msgspec.msgpack.encode(body)
    back = errors.from_response(cls.http_status, encoded, f"application/{codec}")
    assert type(back) is cls
    assert back.message == "what, where, what next"
    assert back.details == {"extent": 7}


def test_an_unknown_code_keeps_message_and_retryability() -> None:
    body = msgspec.json.encode({"code": "from_the_future", "message": "m", "retryable": True, "details": {}})
    assert errors.from_response(503, body).retryable
    body = msgspec.json.encode({"code": "from_the_future", "message": "m", "retryable": False, "details": {}})
    assert not errors.from_response(400, body).retryable


@pytest.mark.parametrize(("status", "retryable"), [(502, True), (503, True), (504, True), (404, False), (500, False)])
def test_a_page_of_some_proxy_is_not_taken_for_ours(status: int, retryable: bool) -> None:
    error = errors.from_response(status, b"<html>Bad Gateway</html>", "text/html")
    assert error.retryable is retryable
    assert str(status) in error.message


def test_only_errors_that_a_repeat_can_mend_are_retryable() -> None:
    for cls in errors.BY_CODE.values():
        assert cls.retryable is (issubclass(cls, errors.RetryLater) or cls is errors.OutcomeUnknown)
