"""Settings of both servers: who overrides whom, what is refused, and what a refusal says. One way for both."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
from msgspec import inspect

from copypool.serving.settings import ConfigError, names_of
from copypool.toml_text import to_toml
from copypool_coordinator import config as coordinator_config
from copypool_node import config as node_config
from copypool_node.__main__ import find_troubles as find_troubles_of_node
from kit.certificates import Authority

NODE: dict[str, Any] = {
    "name": "n1",
    "coordinators": ["http://127.0.0.1:7600"],
    "state_dir": "/x/state",
    "volumes": [{"path": "/x/v", "name": "n1-a", "pool": "primary", "pool_type": "primary"}],
}
COORDINATOR: dict[str, Any] = {
    "name": "c1",
    "etcd": {"endpoints": ["127.0.0.1:2379"]},
    "master_secret_file": "m",
    "admin_token_file": "a",
    "join_token_file": "j",
}


class Server(Protocol):
    ENV_PREFIX: str

    def parse(self, raw: Mapping[str, Any], environment: Mapping[str, str], flags: Sequence[str] = ()) -> Any: ...


both = pytest.mark.parametrize(
    ("server", "minimal"), [(node_config, NODE), (coordinator_config, COORDINATOR)], ids=["node", "coordinator"]
)


def overridden(server: Server, minimal: dict[str, Any], flags: Sequence[str] = (), **variables: str) -> Any:
    return server.parse(minimal, {server.ENV_PREFIX + name: text for name, text in variables.items()}, flags)


@both
def test_flags_go_before_the_environment_and_that_before_the_file(server: Server, minimal: dict[str, Any]) -> None:
    minimal = minimal | {"limits": {"connections": 10}, "zone": "in-file", "listen_port": 1}
    config = overridden(
        server,
        minimal,
        ["limits.connections=30", "advertise_url=http://x:1"],
        LIMITS__CONNECTIONS="20",
        LISTEN_PORT="2",
    )
    assert (config.limits.connections, config.listen_port, config.zone) == (30, 2, "in-file")
    assert config.advertise_url == "http://x:1"


@both
def test_text_is_taken_as_it_is_and_the_rest_as_toml(server: Server, minimal: dict[str, Any]) -> None:
    config = overridden(server, minimal, NAME="7", ZONE="true", INSECURE_PLAINTEXT="true", LOG_LEVEL="debug")
    assert (config.name, config.zone, config.insecure_plaintext, config.log_level) == ("7", "true", True, "debug")
    with pytest.raises(ConfigError, match="LISTEN_PORT is not a TOML value"):
        overridden(server, minimal, LISTEN_PORT="many")
    with pytest.raises(ConfigError, match="more than one"):
        overridden(server, minimal, LISTEN_PORT="1\nname = 2")


@both
def test_a_section_that_the_file_lacks_can_be_given(server: Server, minimal: dict[str, Any]) -> None:
    config = overridden(server, minimal, ["tls.ca_file=a"], TLS__CERT_FILE="c", TLS__KEY_FILE="k")
    assert (config.tls.cert_file, config.tls.key_file, config.tls.ca_file) == ("c", "k", "a")


def test_lists_of_texts_are_toml_or_have_commas() -> None:
    for text in ("http://a:1, http://b:2", '["http://a:1", "http://b:2"]'):
        assert overridden(node_config, NODE, COORDINATORS=text).coordinators == ["http://a:1", "http://b:2"]
    volumes = '[{path = "/y", name = "n1-b", pool = "p", pool_type = "copy", reserve_bytes = 5}]'
    assert overridden(node_config, NODE, VOLUMES=volumes).volumes[0].reserve_bytes == 5
    assert overridden(coordinator_config, COORDINATOR, ETCD__ENDPOINTS="a:1,b:2").etcd.endpoints == ["a:1", "b:2"]


@both
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"colour": 1}, "colour: there is no such setting$"),
        ({"listen_prot": 1}, "listen_prot: there is no such setting; is listen_port meant"),
        ({"limits": {"conections": 1}}, "limits.conections: .* is limits.connections meant"),
        ({"connections": 1}, "is limits.connections meant"),
        ({"limits": {"connections": 0}}, "limits.connections: Expected `int` >= 1"),
        ({"listen_port": 70000}, "listen_port: Expected `int` <= 65535"),
        ({"tls": {"cert_file": "c"}}, "tls: .*key_file"),
        ({"tls": {"cert_file": "c", "key_file": ""}}, "go together"),
        ({"tls": {"cert_file": "c", "key_file": "k", "require_client_cert": True}}, "tls.ca_file"),
        ({"tls": {"cert_file": "c", "key_file": "k", "reload_s": 0}}, "tls.reload_s"),
    ],
)
def test_a_wrong_setting_of_the_file_is_named(
    server: Server, minimal: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        server.parse({**minimal, **more}, {})


def test_an_unknown_key_of_a_volume_is_named_with_its_place() -> None:
    volume = NODE["volumes"][0]
    with pytest.raises(ConfigError, match=r"volumes\[1\]\.pol: .* is volumes\[1\]\.pool meant"):
        node_config.parse({**NODE, "volumes": [volume, {**volume, "pol": "p"}]}, {})


@both
def test_an_unknown_variable_or_flag_is_refused_with_its_like(server: Server, minimal: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{server.ENV_PREFIX}LISTEN_PROT names no .* {server.ENV_PREFIX}LISTEN_PORT"):
        overridden(server, minimal, LISTEN_PROT="1")
    with pytest.raises(ConfigError, match="LIMITS names no setting"):
        overridden(server, minimal, LIMITS="1")
    with pytest.raises(ConfigError, match=r"--set limits.conections names no .* limits.connections"):
        overridden(server, minimal, ["limits.conections=1"])
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        overridden(server, minimal, ["listen_port"])


@both
def test_what_kubernetes_adds_for_a_service_of_that_name_is_no_setting(server: Server, minimal: dict[str, Any]) -> None:
    links = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "1", "SERVICE_PORT_HTTP": "1", "PORT": "tcp://10.0.0.1:1"}
    links |= {"PORT_7600_TCP": "tcp://10.0.0.1:1", "PORT_7600_TCP_ADDR": "10.0.0.1"}
    assert overridden(server, minimal, **links).listen_port == server.parse(minimal, {}).listen_port


def test_the_two_servers_call_alike_what_is_alike() -> None:
    shared = set(names_of(node_config.NodeConfig)) & set(names_of(coordinator_config.Config))
    assert {"name", "listen_host", "listen_port", "advertise_url", "zone", "insecure_plaintext", "log_level"} <= shared
    assert {
        f"tls.{field}" for field in ("cert_file", "key_file", "ca_file", "require_client_cert", "reload_s")
    } <= shared


@pytest.mark.parametrize("minimal", [NODE, COORDINATOR], ids=["node", "coordinator"])
def test_what_is_in_force_can_be_shown_and_read_again(minimal: dict[str, Any], tmp_path: Path) -> None:
    module, server = ("copypool_node", node_config) if minimal is NODE else ("copypool_coordinator", coordinator_config)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(minimal))
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", str(file), "--print-config", "--set", "listen_port=81"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={server.ENV_PREFIX + "LIMITS__CONNECTIONS": "5"},
    )
    shown = server.parse(tomllib.loads(done.stdout), {})
    assert shown == server.parse({**minimal, "listen_port": 81, "limits": {"connections": 5}}, {})


# -- bounds ----------------------------------------------------------------------------------------------------
def numbers_of(kind: inspect.Type, name: str) -> Iterator[tuple[str, inspect.IntType | inspect.FloatType]]:
    """Every number that settings hold, however deep, with its name."""
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        yield name, kind
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from numbers_of(one, name)
    elif isinstance(kind, inspect.ListType):
        yield from numbers_of(kind.item_type, f"{name}[]")
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from numbers_of(field.type, f"{name}.{field.name}".lstrip("."))


@pytest.mark.parametrize("kind", [node_config.NodeConfig, coordinator_config.Config], ids=["node", "coordinator"])
def test_every_number_has_a_least_and_a_most(kind: type[msgspec.Struct]) -> None:
    found = dict(numbers_of(inspect.type_info(kind), ""))
    assert len(found) > 15
    unbounded = [
        name
        for name, number in found.items()
        if (number.ge is None and number.gt is None) or number.le is None or not math.isfinite(number.le)
    ]
    assert unbounded == []


@both
def test_a_number_beyond_all_reason_is_refused_by_name(server: Server, minimal: dict[str, Any]) -> None:
    numbers = [name for name in names_of(type(server.parse(minimal, {}))) if name.endswith(("_s", "connections"))]
    assert len(numbers) > 5
    for name in numbers:
        for text in ("inf", "nan", "1e400", "99999999999999999999", "9999999999999999"):
            with pytest.raises(ConfigError, match=rf"^{re.escape(name)}: "):
                server.parse(minimal, {}, [f"{name}={text}"])


# -- what the settings name ------------------------------------------------------------------------------------
class Files:
    """Files of one server, all as they should be until a test harms one."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.authority = Authority(folder)
        self.certificate = self.authority.issue("server")
        for name, length in (("m", 32), ("a", 24), ("j", 24)):
            (folder / name).write_text("x" * length)
            (folder / name).chmod(0o600)
        (folder / "v").mkdir()
        minimal = NODE if server is node_config else COORDINATOR
        self.raw = {**minimal, "join_token_file": str(folder / "j"), "tls": self.certificate.section}
        if server is node_config:
            self.raw |= {
                "state_dir": str(folder / "state"),
                "volumes": [{**NODE["volumes"][0], "path": str(folder / "v")}],
            }
        else:
            self.raw |= {"master_secret_file": str(folder / "m"), "admin_token_file": str(folder / "a")}

    def check(self, *flags: str) -> list[str]:
        """What `--check-config` would print."""
        config = self.server.parse(self.raw, {}, flags)
        find = find_troubles_of_node if self.server is node_config else coordinator_config.find_troubles
        return find(config)


@pytest.mark.parametrize("server", [node_config, coordinator_config], ids=["node", "coordinator"])
def test_check_config_reads_secrets_and_certificates(server: Server, tmp_path: Path) -> None:
    files = Files(tmp_path, server)
    assert files.check() == []
    assert files.check("tls.require_client_cert=true") == []
    assert "others look for n.example" in files.check("advertise_url=https://n.example:1")[0]
    assert "others look for all.internal" in files.check("tls.server_name=all.internal")[0]
    file = tmp_path / "config.toml"
    file.write_text(to_toml(files.raw))
    module = "copypool_node" if server is node_config else "copypool_coordinator"
    for flag, code, says in (("zone=z1", 0, ""), ("tls.ca_file=/none", 2, "cannot read /none")):
        done = subprocess.run(
            [sys.executable, "-m", module, "--config", str(file), "--check-config", "--set", flag],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={},
        )
        assert (done.returncode, done.stdout, says in done.stderr) == (code, "", True)

    (tmp_path / "j").chmod(0o644)
    files.authority.issue("server", ends_in=timedelta(hours=-1))
    found = files.check()
    assert len(found) == 2, "everything is told at once"
    assert "it has expired" in found[0]
    assert "join_token_file: " in found[1]
    (tmp_path / "j").chmod(0o600)

    Authority(tmp_path, "stranger").issue("server")
    assert "is not taken by those who trust" in files.check()[0]
    files.authority.issue("server", calls=False)
    assert files.check() == []
    assert "not meant for clients" in files.check("tls.require_client_cert=true")[0]

    replaced = files.authority.pair("server")
    files.certificate.key.write_bytes(replaced.key)
    assert "no certificate with its key" in files.check()[0]
    files.certificate.certificate.unlink()
    assert "server.pem" in files.check()[0]


def test_check_config_of_a_node_looks_at_its_folders_and_of_a_coordinator_at_etcds_files(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    node = Files(tmp_path / "n", node_config)
    (tmp_path / "n" / "v").rmdir()
    (tmp_path / "n" / "j").unlink()
    found = node.check()
    assert ["no directory" in line for line in found] == [True, False]
    assert "join_token_file" in found[1]

    (tmp_path / "c").mkdir()
    coordinator = Files(tmp_path / "c", coordinator_config)
    assert coordinator.check(f"etcd.ca_file={coordinator.authority.certificate}") == []
    assert "etcd: cannot read /none" in coordinator.check("etcd.ca_file=/none")[0]
    assert "etcd.password_file" in coordinator.check("etcd.user=u", "etcd.password_file=/none")[0]
