"""The client's profile: where its files are, and what of it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from copypool import Client
from copypool.profile import Profile, load_profile
from copypool.protocol.errors import Invalid
from copypool.tls import TlsFiles
from kit.certificates import Authority

URL = 'coordinators = ["https://c1.example:7600"]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "profile.toml"
    path.write_text(URL + text)
    return path


def test_files_are_found_beside_the_profile(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token\nsomething else\n")
    path = written(
        tmp_path, 'token_file = "token"\nca_file = "ca.pem"\ncert_file = "me.pem"\nkey_file = "/keys/me.key"\n'
    )
    profile = load_profile(path)
    assert profile.token == "a-token"
    assert profile.tls == TlsFiles(str(tmp_path / "ca.pem"), str(tmp_path / "me.pem"), "/keys/me.key")


def test_without_tls_settings_the_systems_authorities_are_trusted(tmp_path: Path) -> None:
    assert load_profile(written(tmp_path, 'namespace = "x"\n')).tls is None
    assert load_profile(written(tmp_path, 'server_name = "all.internal"\n')).tls == TlsFiles(server_name="all.internal")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('cert_file = "me.pem"\n', "go together"),
        ('colour = "red"\n', "colour"),
        ('token_file = "none"\n', "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_with_the_profiles_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Invalid, match=rf"profile\.toml.*{says}"):
        load_profile(written(tmp_path, text))


async def test_a_client_refuses_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"none\.pem"):
        await Client.connect(Profile(["https://c1.example:7600"], ca_file=str(tmp_path / "none.pem")))
    authority = Authority(tmp_path)
    async with await Client.connect(coordinators=["https://c1.example:7600"], ca_file=str(authority.certificate)):
        pass
