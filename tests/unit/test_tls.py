"""Contexts that follow their files, by handshakes in memory: who is refused, and what a renewal does to whom."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from copypool.dev.certificates import Pair
from copypool.tls import Chain, Rotated, TlsError, TlsFiles, client_context, read_leaf, server_context
from kit.certificates import Authority, Certificate, replace

HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


class Handshake:
    """A client and a server that talk through memory."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, host: str = HOST) -> None:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server, server_side=False, server_hostname=host)
        self.server = server.wrap_bio(to_server, to_client, server_side=True)

    def step(self) -> bool:
        """Whether both are through; raises what either of them refuses."""
        done = True
        for side in (self.client, self.server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
        return done

    def finish(self) -> Handshake:
        while not self.step():
            pass
        return self

    @property
    def serial(self) -> int:
        """Of the certificate that the server showed."""
        der = self.client.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


class Pairs:
    """A certificate that may sign others, in a chain of any length."""

    def __init__(self, name: str, issuer: Pairs | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name((issuer or self).name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        )
        self.pem = builder.sign((issuer or self).key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.key_pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def chain_of(certificate: Certificate, *, ask_clients: bool = False) -> Chain:
    return Chain(certificate.files, listens=True, ask_clients=ask_clients)


def shake(client: Chain, server: Chain, host: str = HOST) -> Handshake:
    assert server.server is not None
    return Handshake(client.client, server.server, host).finish()


def serial_of(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.certificate).serial_number


# -- who is refused --------------------------------------------------------------------------------------------
def test_both_sides_know_each_other_by_name(authority: Authority) -> None:
    done = shake(chain_of(authority.issue("a")), chain_of(authority.issue("b"), ask_clients=True))
    assert done.client.version() == "TLSv1.3"
    peer = done.server.getpeercert()
    assert peer
    assert ("DNS", "localhost") in peer["subjectAltName"]


def test_a_server_of_another_authority_is_refused(authority: Authority, stranger: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"local issuer|self.signed"):
        shake(chain_of(authority.issue("a")), chain_of(stranger.issue("b")))


@pytest.mark.parametrize(
    ("begins_in", "ends_in", "says"),
    [
        (timedelta(days=-2), timedelta(hours=-1), "expired"),
        (timedelta(hours=1), timedelta(days=1), "not yet valid"),
    ],
)
def test_a_server_out_of_its_time_is_refused(
    authority: Authority, begins_in: timedelta, ends_in: timedelta, says: str
) -> None:
    server = chain_of(authority.issue("b", begins_in=begins_in, ends_in=ends_in))
    with pytest.raises(ssl.SSLCertVerificationError, match=says):
        shake(chain_of(authority.issue("a")), server)


def test_a_server_of_another_name_is_refused(authority: Authority) -> None:
    server = chain_of(authority.issue("b", hosts=["b.example"]))
    client = chain_of(authority.issue("a"))
    for host in (HOST, "c.example"):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            shake(client, server, host)
    shake(client, server, "b.example")


def test_a_name_that_all_servers_share_is_checked_instead_of_the_host(authority: Authority) -> None:
    files = authority.issue("a").files
    client = Chain(TlsFiles(files.authority, server_name="storage.internal"))
    shake(client, chain_of(authority.issue("b", hosts=["b.example", "storage.internal"])), "10.0.0.7")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(client, chain_of(authority.issue("c", hosts=["10.0.0.7"])), "10.0.0.7")


def test_a_client_without_certificate_is_let_in_and_is_nobody(authority: Authority) -> None:
    nobody = Chain(TlsFiles(str(authority.certificate)))
    assert not shake(nobody, chain_of(authority.issue("b"), ask_clients=True)).server.getpeercert()


def test_a_client_whose_certificate_is_not_good_is_refused(authority: Authority, stranger: Authority) -> None:
    server = chain_of(authority.issue("b"), ask_clients=True)
    wrong = stranger.issue("a")
    expired = authority.issue("c", ends_in=timedelta(hours=-1))
    no_client = authority.issue("d", calls=False)
    for certificate in (wrong, expired, no_client):
        files = TlsFiles(str(authority.certificate), str(certificate.certificate), str(certificate.key))
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(Chain(files), server)


def test_old_versions_are_not_spoken(authority: Authority) -> None:
    files = authority.issue("a").files
    for context in (server_context(files, ask_clients=True), client_context(files), client_context(TlsFiles())):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_context(files).check_hostname
    assert client_context(TlsFiles()).check_hostname


# -- renewal ---------------------------------------------------------------------------------------------------
def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(authority: Authority) -> None:
    certificate = authority.issue("b")
    client, server = chain_of(authority.issue("a")), chain_of(certificate)
    before = shake(client, server).serial
    renewed = authority.pair("b")
    assert server.server is not None
    begun = Handshake(client.client, server.server)
    replace(certificate, renewed)
    assert shake(client, server).serial == before, "nobody has looked yet"
    assert server.look(time.time())
    assert shake(client, server).serial == serial_of(renewed) != before
    assert begun.finish().serial == before
    assert not server.look(time.time())
    assert (server.state.loads, server.state.failures, server.state.failure) == (2, 0, "")


def test_an_authority_is_exchanged_by_trusting_both_for_a_while(authority: Authority, stranger: Authority) -> None:
    a, b = authority.issue("a"), authority.issue("b")
    client, server = chain_of(a), chain_of(b, ask_clients=True)
    old = authority.certificate.read_bytes()
    authority.certificate.write_bytes(old + stranger.certificate.read_bytes())
    assert client.look(time.time())
    assert server.look(time.time())
    replace(b, stranger.pair("b"))
    assert server.look(time.time())
    shake(client, server)
    replace(a, stranger.pair("a"))
    assert client.look(time.time())
    shake(client, server)
    authority.certificate.write_bytes(stranger.certificate.read_bytes())
    assert client.look(time.time())
    assert server.look(time.time())
    shake(client, server)


@pytest.mark.parametrize(
    "harm", ["half", "other key", "expired", "early", "gone", "unreadable authority", "encrypted key"]
)
def test_files_that_cannot_be_used_leave_those_of_before_in_use(authority: Authority, harm: str) -> None:
    certificate = authority.issue("b")
    client, server = chain_of(authority.issue("a")), chain_of(certificate)
    before = shake(client, server).serial
    trusted = authority.certificate.read_bytes()
    renewed = authority.pair("b")
    if harm == "half":
        certificate.certificate.write_bytes(renewed.certificate[: len(renewed.certificate) // 2])
    elif harm == "other key":
        certificate.key.write_bytes(renewed.key)
    elif harm == "expired":
        replace(certificate, authority.pair("b", ends_in=timedelta(hours=-1)))
    elif harm == "early":
        replace(certificate, authority.pair("b", begins_in=timedelta(hours=1)))
    elif harm == "gone":
        certificate.key.unlink()
    elif harm == "unreadable authority":
        authority.certificate.write_bytes(b"nothing of the kind")
    else:
        key = serialization.load_pem_private_key(renewed.key, None)
        certificate.certificate.write_bytes(renewed.certificate)
        certificate.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"password"),
            )
        )
    for _ in range(2):
        assert not server.look(time.time())
    assert shake(client, server).serial == before
    assert server.state.failures == 1, "what has not changed is not tried again"
    assert server.state.failure

    authority.certificate.write_bytes(trusted)
    replace(certificate, renewed)
    assert server.look(time.time())
    assert shake(client, server).serial == serial_of(renewed)
    assert server.state.failure == ""


def test_a_certificate_of_an_authority_that_is_not_trusted_is_not_taken_over(
    authority: Authority, stranger: Authority
) -> None:
    certificate = authority.issue("b")
    client, server = chain_of(authority.issue("a")), chain_of(certificate)
    before = shake(client, server).serial
    replace(certificate, stranger.pair("b"))
    assert not server.look(time.time())
    assert shake(client, server).serial == before
    assert "b.pem is not taken by those who trust " in server.state.failure
    assert server.state.failures == 1
    replace(certificate, authority.pair("b"))
    assert server.look(time.time())
    assert shake(client, server).serial != before


def test_a_listener_does_not_begin_with_a_certificate_that_its_own_authorities_refuse(
    authority: Authority, stranger: Authority
) -> None:
    other = stranger.issue("b").files
    for authorities in (authority.certificate.read_bytes(), b""):
        trusted = authority.certificate.with_name("trusted.pem")
        trusted.write_bytes(authorities + stranger.certificate.read_bytes())
        Chain(TlsFiles(str(trusted), other.certificate, other.key), listens=True)
    with pytest.raises(TlsError, match=r"b\.pem is not taken by those who trust .*ca\.pem"):
        Chain(TlsFiles(str(authority.certificate), other.certificate, other.key), listens=True)


def test_what_lies_between_the_certificate_and_its_authority_comes_from_the_certificates_file(tmp_path: Path) -> None:
    root = Pairs("root")
    between = Pairs("between", root)
    leaf = Pairs("b", between)
    (tmp_path / "ca.pem").write_bytes(root.pem)
    (tmp_path / "b.key").write_bytes(leaf.key_pem)
    files = TlsFiles(*(str(tmp_path / name) for name in ("ca.pem", "b.pem", "b.key")))
    (tmp_path / "b.pem").write_bytes(leaf.pem + between.pem)
    server = Chain(files, listens=True)
    shake(Chain(TlsFiles(files.authority)), server)
    (tmp_path / "b.pem").write_bytes(leaf.pem)
    assert not server.look(time.time())
    assert "local issuer" in server.state.failure


def test_files_that_change_while_they_are_read_are_read_again(authority: Authority) -> None:
    certificate = authority.issue("b")
    versions: list[bytes] = []

    def make(files: TlsFiles) -> bytes:
        versions.append(Path(files.certificate).read_bytes())
        if len(versions) == 2:
            replace(certificate, authority.pair("b"))  # just behind the reader
        return versions[-1]

    rotated = Rotated(certificate.files, make)
    replace(certificate, authority.pair("b"))
    assert rotated.look(time.time())
    assert rotated.look(time.time())
    assert rotated.value == certificate.certificate.read_bytes()
    assert not rotated.look(time.time())


def test_a_process_begins_with_an_expired_certificate_and_takes_the_renewed_one(authority: Authority) -> None:
    certificate = authority.issue("b", ends_in=timedelta(hours=-1))
    client, server = chain_of(authority.issue("a")), chain_of(certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(client, server)
    replace(certificate, authority.pair("b"))
    server.look(time.time())
    shake(client, server)


# -- what is said of files -------------------------------------------------------------------------------------
def test_a_certificate_tells_its_time_names_and_uses(authority: Authority) -> None:
    found = read_leaf(str(authority.issue("b", hosts=["*.nodes.example", "::1"], calls=False).certificate))
    assert found.trouble(time.time()) == ""
    assert "expired" in found.trouble(time.time() + 3 * 86400)
    assert "not valid before" in found.trouble(time.time() - 3 * 86400)
    assert found.covers("n1.nodes.example")
    assert found.covers("[::1]")
    assert not found.covers("nodes.example")
    assert not found.covers("a.n1.nodes.example")
    assert (found.may_be_server, found.may_be_client) == (True, False)


def test_a_refusal_names_the_file(authority: Authority, tmp_path: Path) -> None:
    good = authority.issue("a").files
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for files, says in (
        (TlsFiles(str(tmp_path / "none.pem"), good.certificate, good.key), "none.pem"),
        (TlsFiles(good.authority, str(tmp_path / "none.pem"), good.key), "none.pem"),
        (TlsFiles(good.authority, good.certificate, str(empty)), "empty.pem"),
        (TlsFiles(str(empty), good.certificate, good.key), "empty.pem"),
    ):
        with pytest.raises(TlsError, match=says):
            Chain(files)
    with pytest.raises(ValueError, match="go together"):
        TlsFiles("ca", "certificate")
