"""Settings, bandwidth, ranges and cluster time of a node."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from copypool.protocol.versions import time_ms_of
from copypool.serving.settings import ConfigError
from copypool_node.clock import ClusterClock
from copypool_node.config import NodeConfig, parse
from copypool_node.pacing import Pace

GOOD = """
name = "n1"
coordinators = ["http://127.0.0.1:7300"]
state_dir = "/x/state"
volumes = [{ path = "/x/v", name = "n1-a", pool = "primary", pool_type = "primary" }]
"""


def load(more: str = "", **environment: str) -> NodeConfig:
    return parse(tomllib.loads(GOOD + more), {f"COPYPOOL_NODE_{key}": value for key, value in environment.items()})


def test_defaults_and_what_is_made_of_them() -> None:
    config = load()
    assert config.url == "http://127.0.0.1:7400"
    assert config.host_domain == "n1"


def test_the_environment_overrides_the_file() -> None:
    config = load(LISTEN_PORT="7500", COORDINATORS="http://a:1, http://b:2", ZONE="z1")
    assert (config.listen_port, config.coordinators, config.zone) == (7500, ["http://a:1", "http://b:2"], "z1")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("colour = 1", "colour"),
        ("[limits]\nqueue_recrods = 1", "queue_recrods"),
        ('listen_host = "0.0.0.0"', "TLS"),
        ('zone = "UP"', "zone"),
        ('log_level = "loud"', "log_level"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(more: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(more)


def test_a_public_listener_needs_tls_or_a_clear_word() -> None:
    assert load('listen_host = "192.0.2.1"\ninsecure_plaintext = true').listen_host == "192.0.2.1"
    tls = '[tls]\ncert_file = "c"\nkey_file = "k"\nca_file = "a"'
    public = 'listen_host = "0.0.0.0"\nadvertise_url = "https://n1.example:7400/"'
    assert load(f"{public}\n{tls}").url == "https://n1.example:7400"


def test_two_volumes_of_one_name_are_refused() -> None:
    both = GOOD.replace("}]", '}, { path = "/x/w", name = "n1-a", pool = "copy", pool_type = "copy" }]')
    with pytest.raises(ConfigError, match="same name"):
        parse(tomllib.loads(both), {})


def test_check_config_tells_by_exit_code_and_sentence(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(GOOD.replace("/x/", f"{tmp_path}/") + f'join_token_file = "{tmp_path / "token"}"\n')
    (tmp_path / "v").mkdir()
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("t" * 24)
    bad.write_text(GOOD + "colour = 1")
    for file, code, says in ((good, 0, ""), (bad, 2, "colour"), (tmp_path / "none.toml", 2, "cannot read")):
        done = subprocess.run(
            [sys.executable, "-m", "copypool_node", "--config", str(file), "--check-config"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_cluster_time_is_the_reply_plus_monotonic_time() -> None:
    now_s = 50.0
    clock = ClusterClock(lambda: now_s)
    clock.adopt(1_000_000)
    now_s += 2.5
    assert clock.now_ms() == 1_002_500
    first = clock.mint()
    clock.adopt(900_000)
    second = clock.mint()
    assert second > first, "versions rise although the clock was set back"
    assert time_ms_of(first) == 1_002_500


def test_a_pace_spreads_bytes_and_saves_no_credit() -> None:
    now_s = 0.0
    pace = Pace(1000, lambda: now_s)
    assert pace.reserve(1000) == 0.0
    assert pace.reserve(1000) == pytest.approx(1.0)
    now_s = 100.0
    assert pace.reserve(500) == 0.0
    assert pace.reserve(500) == 0.0
    assert pace.reserve(500) == pytest.approx(0.5)
    assert Pace(0).reserve(10**9) == 0.0
