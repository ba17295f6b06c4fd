"""TLS contexts that follow their files: a renewed certificate is used from the next handshake on, without a restart.

Event loops and HTTP clients are given one `CurrentContext` for good; it makes each new connection with the context that
was loaded last. Open connections stay as they are: nothing is dropped by a rotation, and whom an authority no longer
vouches for keeps the connections that it has. Sessions are not resumed, so every new connection is judged by the files
of now.

Files that cannot be used (half written, key and certificate that do not belong together, expired, a listener's
certificate that its own authorities do not vouch for) never replace what is in use: that goes on, `Rotated.failure` and
a log line say why, and the next change of the files is the next try.

Knows nothing of HTTP or gRPC. TLS 1.2 is the oldest version spoken; names are always checked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from cryptography import x509

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_S = 10.0  #: how often files are looked at unless a setting says otherwise
_FLIGHTS_MAX = 8  #: of a handshake; TLS 1.2 needs four
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name
_AT_ANY_TIME = ssl.VerifyFlags(0x200000)
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class TlsError(Exception):
    """TLS files that cannot be used; the message names the file and says why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. Without an authority the system's are trusted; without a certificate none is shown."""

    authority: str = ""
    certificate: str = ""
    key: str = ""
    #: a name that every server's certificate holds, checked instead of the host that is called; "": that host
    server_name: str = ""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("a certificate and its key go together")

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that there are."""
        return tuple(path for path in (self.authority, self.certificate, self.key) if path)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What the first certificate of a file says of itself."""

    not_before_unix_s: float
    not_after_unix_s: float
    names: frozenset[str]  #: DNS names and addresses, as text
    may_be_client: bool  #: servers that ask for a certificate accept it
    may_be_server: bool

    def trouble(self, now_unix_s: float) -> str:
        """Why nobody accepts it now; "" when it is in its time."""
        if now_unix_s >= self.not_after_unix_s:
            return f"it has expired ({_day(self.not_after_unix_s)})"
        if now_unix_s < self.not_before_unix_s:
            return f"it is not valid before {_day(self.not_before_unix_s)}: is this machine's clock right?"
        return ""

    def covers(self, host: str) -> bool:
        """Whether a client that calls `host` finds it named here. A wildcard stands for one whole first label."""
        host = host.lower().strip("[]")
        return host in self.names or f"*.{host.partition('.')[2]}" in self.names


def read_leaf(path: str) -> Leaf:
    """The first certificate of a PEM file. Blocking. `TlsError` when there is none."""
    # Imported only where there is TLS.
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509.oid import ExtendedKeyUsageOID

    found = _PEM_CERTIFICATE.search(_read(path))
    if found is None:
        raise TlsError(f"{path} holds no certificate")
    try:
        leaf = x509.load_pem_x509_certificate(found.group())
        usages = _usages(leaf)
        return Leaf(
            leaf.not_valid_before_utc.timestamp(),
            leaf.not_valid_after_utc.timestamp(),
            _names(leaf),
            may_be_client=not usages or ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string in usages,
            may_be_server=not usages or ExtendedKeyUsageOID.SERVER_AUTH.dotted_string in usages,
        )
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        raise TlsError(f"{path} holds a certificate that cannot be read: {exc}") from exc


def _names(leaf: x509.Certificate) -> frozenset[str]:
    from cryptography import x509

    try:
        said = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    names = [name.lower() for name in said.get_values_for_type(x509.DNSName)]
    return frozenset(names + [str(address) for address in said.get_values_for_type(x509.IPAddress)])


def _usages(leaf: x509.Certificate) -> set[str]:
    """What the certificate may be used for; empty: for anything."""
    from cryptography import x509

    try:
        return {oid.dotted_string for oid in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value}
    except x509.ExtensionNotFound:
        return set()


def server_context(files: TlsFiles, *, ask_clients: bool) -> ssl.SSLContext:
    """A listener's context. Blocking. With `ask_clients` whoever shows a certificate shows one of the authority's.

    Who shows none is let in as well: which requests need one is for the server to say (`serving.connections`).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    _show(context, files)
    if ask_clients:
        _trust(context, files.authority)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """The context of calls to others: checks their names, and shows a certificate where there is one. Blocking."""
    if files.authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody yet; checks names
        _trust(context, files.authority)
    else:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.certificate:
        _show(context, files)
    return context


def _check_own(files: TlsFiles, server: ssl.SSLContext) -> None:
    """`TlsError` for a listener's certificate that whoever trusts `files.authority` refuses, by a handshake in memory.

    Servers share their authorities, so it would be of use to none of the others. Names and times are not judged here:
    the former depend on who calls, and an expired certificate may be renewed soon.
    """
    caller = client_context(TlsFiles(files.authority))
    caller.check_hostname = False
    caller.verify_flags |= _AT_ANY_TIME
    to_caller, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (caller.wrap_bio(to_caller, to_server), server.wrap_bio(to_server, to_caller, server_side=True))
    for _ in range(_FLIGHTS_MAX):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as exc:
                shown, trusted = files.certificate, files.authority
                raise TlsError(f"{shown} is not taken by those who trust {trusted}: {exc.verify_message}") from exc
            except ssl.SSLError as exc:
                raise TlsError(f"{files.certificate} is of no use to a listener: {exc.reason or exc}") from exc
            if side is sides[0]:
                return
    raise AssertionError("a handshake in memory does not end")


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cadata=_read(path).decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as exc:
        raise TlsError(f"{path} holds no certificate of an authority: {exc}") from exc


def _show(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, _Encrypted) as exc:
        reason = str(exc) if isinstance(exc, _Encrypted) else exc.reason or str(exc)
        raise TlsError(f"{files.certificate} and {files.key} are no certificate with its key: {reason}") from exc
    except OSError as exc:
        # load_cert_chain does not say which of the two it is.
        for path in (files.certificate, files.key):
            _read(path)
        raise TlsError(f"{files.certificate}, {files.key}: {exc.strerror}") from exc


class _Encrypted(Exception):
    """A key that asks for a password; a server has nobody to ask."""


def _no_password() -> str:
    raise _Encrypted("the key is encrypted; a server cannot ask for its password")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise TlsError(f"cannot read {path}: {exc.strerror}") from exc


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().isoformat(timespec="minutes")


class CurrentContext(ssl.SSLContext):
    """Stands for the context that was loaded last; a handshake that has begun keeps the one it began with."""

    current: ssl.SSLContext
    _server_name: str

    def __new__(cls, first: ssl.SSLContext, server_name: str = "") -> Self:
        """`first` until `replace`. With `server_name`, that is checked instead of the host that is called."""
        self = super().__new__(cls, first.protocol)
        self.current = first
        self._server_name = server_name
        return self

    def __init__(self, first: ssl.SSLContext, server_name: str = "") -> None:
        """See `__new__`."""

    def replace(self, context: ssl.SSLContext) -> None:
        """Use this one for every handshake from now on."""
        self.current = context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """ssl: the seam of every event loop's TLS."""
        name = None if server_side else self._server_name or server_hostname
        return self.current.wrap_bio(incoming, outgoing, server_side, name, session)


_Stamp = tuple[tuple[int, ...] | None, ...]


class Rotated(Generic[T]):
    """Something made of files, made anew when they change. `value` is always whole and usable."""

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], T]) -> None:
        """Blocking. `make` raises `TlsError` for files that cannot be used; so does this, the first time."""
        self.files = files
        self._make = make
        self._seen = self._stamp()
        self.value = make(files)
        self.leaf = read_leaf(files.certificate) if files.certificate else None
        self.loads = 1  #: times that files were taken over, the first one included
        self.failures = 0  #: times that changed files could not be
        self.failure = ""  #: why the files of now are not in use; "": they are

    def look(self, now_unix_s: float) -> bool:
        """Take the files over if they changed since the last look and can be used. Blocking. True: `value` is new."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        try:
            value = self._make(self.files)
            leaf = read_leaf(self.files.certificate) if self.files.certificate else None
            if leaf is not None and (trouble := leaf.trouble(now_unix_s)):
                raise TlsError(f"{self.files.certificate} is not taken over: {trouble}")
        except TlsError as exc:
            self._seen = stamp
            self.failures += 1
            self.failure = str(exc)
            log.error("changed TLS files cannot be used, and those of before stay in use: %s", exc)
            return False
        # Of before the reading: files that were written meanwhile, perhaps a mixture, are read again by the next look.
        self._seen = stamp
        self.value, self.leaf = value, leaf
        self.loads += 1
        self.failure = ""
        log.info("TLS files taken over: %s", ", ".join(self.files.paths))
        return True

    def _stamp(self) -> _Stamp:
        """What changes whenever a file is written, replaced, or made readable; links are followed."""
        return tuple(_stamp_of(path) for path in self.files.paths)


def _stamp_of(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True, slots=True)
class _Contexts:
    client: ssl.SSLContext
    server: ssl.SSLContext | None


class Chain:
    """A process's certificate and whom it trusts: the contexts of its calls and, if it listens, of its listener."""

    def __init__(self, files: TlsFiles, *, listens: bool = False, ask_clients: bool = False) -> None:
        """Blocking. `TlsError` when the files cannot be used; an expired certificate can: it may be renewed soon.

        A listener's certificate must be vouched for by `files.authority` where there is one.
        """

        def make(of: TlsFiles) -> _Contexts:
            client = client_context(of)
            if not listens:
                return _Contexts(client, None)
            server = server_context(of, ask_clients=ask_clients)
            if of.authority:
                _check_own(of, server)
            return _Contexts(client, server)

        self._rotated = Rotated(files, make)
        first = self._rotated.value
        self.client = CurrentContext(first.client, files.server_name)
        self.server = CurrentContext(first.server) if first.server is not None else None

    @property
    def state(self) -> Rotated[Any]:
        """How often files were taken over, why not the last time, and what the certificate says."""
        return self._rotated

    def look(self, now_unix_s: float) -> bool:
        """Take changed files over. Blocking; one call at a time."""
        if not self._rotated.look(now_unix_s):
            return False
        self.client.replace(self._rotated.value.client)
        if self.server is not None and self._rotated.value.server is not None:
            self.server.replace(self._rotated.value.server)
        return True

    async def follow(self, every_s: float) -> None:
        """Look at the files every so often, until cancelled."""
        leaf = self._rotated.leaf
        if leaf is not None and (trouble := leaf.trouble(time.time())):
            what = self._rotated.files.certificate
            log.error("%s: %s; it is shown nevertheless, until the file is renewed", what, trouble)
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(self.look, time.time())
            except Exception:
                log.exception("a look at the TLS files failed by a bug; those of before stay in use")
