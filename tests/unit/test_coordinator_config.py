"""Settings: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from copypool_coordinator.config import ConfigError, Secrets, advertised, load, load_secrets, parse

MINIMAL: dict[str, Any] = {
    "name": "c1",
    "etcd": {"endpoints": ["127.0.0.1:2379"]},
    "master_secret_file": "m",
    "admin_token_file": "a",
    "join_token_file": "j",
}


def test_a_minimal_file_is_enough_and_stays_on_loopback() -> None:
    config = parse(MINIMAL, {})
    assert (config.listen_host, config.session_ttl_s, config.grace_s) == ("127.0.0.1", 15, 600)
    assert advertised(config, 7600) == "http://127.0.0.1:7600"


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"etcd": {"endpoints": []}}, "endpoints"),
        ({"etcd": {"endpoints": ["http://a:2379"]}}, "without a scheme"),
        ({"etcd": {"endpoints": ["a:1", "b"]}}, "'b' is not of the form host:port"),
        ({"etcd": {"endpoints": ["a:70000"]}}, "'a:70000' is not"),
        ({"etcd": {"endpoints": ["a:1"], "user": "u"}}, "password_file"),
        ({"etcd": {"endpoints": ["a:1"], "cert_file": "c"}}, "key_file"),
        ({"etcd": {"endpoints": ["a:1"], "endpoint": "b"}}, "endpoint"),
        ({"name": "No Name"}, "name"),
        ({"listen_port": 70000}, "listen_port"),
        ({"listen_host": "192.0.2.1"}, "tls"),
        ({"listen_host": "storage.example"}, "tls"),
        ({"listen_host": "0.0.0.0", "insecure_plaintext": True}, "advertise_url"),
        ({"advertise_url": "storage:7600"}, "advertise_url"),
        ({"shared_port": 7600}, "shared_port and listen_port"),
        ({"shared_port": 70000}, "shared_port"),
        ({"shared_port": 7700, "advertise_url": "http://c1:7700"}, "names shared_port"),
        ({"shared_port": 7700, "advertise_url": "http://c1:port"}, "advertise_url"),
        ({"bootstrap": {"primary_pool": "x", "copy_pool": "x"}}, "same"),
        ({"log_level": "loud"}, "log_level"),
        ({"session_ttl_s": 1}, "session_ttl_s"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse({**MINIMAL, **changes}, {})


def test_plaintext_beyond_loopback_needs_a_word() -> None:
    config = parse({**MINIMAL, "listen_host": "192.0.2.1", "insecure_plaintext": True}, {})
    assert advertised(config, 1) == "http://192.0.2.1:1"
    tls = {"cert_file": "c", "key_file": "k"}
    assert advertised(parse({**MINIMAL, "listen_host": "::", "advertise_url": "https://c1/", "tls": tls}, {}), 1) == (
        "https://c1"
    )


def test_the_environment_overrides_and_an_unknown_variable_is_refused() -> None:
    config = parse(
        MINIMAL,
        {
            "COPYPOOL_COORDINATOR_LISTEN_PORT": "7601",
            "COPYPOOL_COORDINATOR_NAME": "7",
            "COPYPOOL_COORDINATOR_ETCD__ENDPOINTS": '["a:1", "b:2"]',
            "COPYPOOL_COORDINATOR_LIMITS__STREAMS": "3",
            "HOME": "/",
        },
    )
    assert (config.listen_port, config.name, config.etcd.endpoints, config.limits.streams) == (
        7601,
        "7",
        ["a:1", "b:2"],
        3,
    )
    for variable in ("COPYPOOL_COORDINATOR_LISTEN_PROT", "COPYPOOL_COORDINATOR_ETCD__X", "COPYPOOL_COORDINATOR_ETCD"):
        with pytest.raises(ConfigError, match=variable):
            parse(MINIMAL, {variable: "1"})


def _write(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_secret_files_are_private_long_enough_and_never_shown(tmp_path: Path) -> None:
    files = {
        "master_secret_file": _write(tmp_path / "m", b"m" * 32),
        "admin_token_file": _write(tmp_path / "a", b"a" * 24 + b"\n"),
        "join_token_file": _write(tmp_path / "j", b"j" * 24, 0o640),
    }
    secrets = load_secrets(parse({**MINIMAL, **files}, {}))
    assert secrets == Secrets(b"m" * 32, "a" * 24, "j" * 24)
    assert "mmm" not in repr(secrets)
    for field, content, mode in (
        ("master_secret_file", b"m" * 31, 0o600),
        ("admin_token_file", b"a" * 23, 0o600),
        ("join_token_file", b"j" * 24, 0o644),
    ):
        wrong = {**files, field: _write(tmp_path / "wrong", content, mode)}
        with pytest.raises(ConfigError, match=field):
            load_secrets(parse({**MINIMAL, **wrong}, {}))
    with pytest.raises(ConfigError, match="join_token_file"):
        load_secrets(parse({**MINIMAL, **files, "join_token_file": str(tmp_path / "none")}, {}))


def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("name = ")
    with pytest.raises(ConfigError, match=r"c\.toml"):
        load(path, {})
