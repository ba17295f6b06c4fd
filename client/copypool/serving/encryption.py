"""The `[tls]` section of a server, alike for all: what it says, and what is wrong with its files."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from copypool.serving.settings import ConfigError
from copypool.tls import LOOK_S, Chain, TlsError, TlsFiles, read_leaf


class TlsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files. The same certificate serves and, as a client, identifies this process to others."""

    cert_file: str  #: the certificate, and whatever lies between it and its authority; `advertise_url` is named in it
    key_file: str  #: its private key, not encrypted
    #: authorities that others are checked by, and `cert_file` when it is loaded; empty: those of the system, for others
    ca_file: str = ""
    #: on routes between servers, callers must show a certificate of `ca_file`; clients with tokens need none
    require_client_cert: bool = False
    #: a name that the certificates of all servers hold; calls check it instead of the host that is called, which may be
    #: an address that no certificate can name; empty: the host
    server_name: str = ""
    reload_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = LOOK_S  #: renewed files are in use after this time

    @property
    def files(self) -> TlsFiles:
        """For `copypool.tls`."""
        return TlsFiles(self.ca_file, self.cert_file, self.key_file, self.server_name)


def check_section(tls: TlsSection | None) -> None:
    """`ConfigError` for a section that contradicts itself."""
    if tls is None:
        return
    if not tls.cert_file or not tls.key_file:
        raise ConfigError("tls.cert_file and tls.key_file go together, and neither is empty")
    if tls.require_client_cert and not tls.ca_file:
        raise ConfigError("tls.require_client_cert needs tls.ca_file: the authority that callers are checked by")


def load_chain(tls: TlsSection | None) -> Chain | None:
    """The process's contexts; None: it speaks plaintext. Blocking. `ConfigError` when the files cannot be used."""
    if tls is None:
        return None
    try:
        return Chain(tls.files, listens=True, ask_clients=tls.require_client_cert)
    except TlsError as exc:
        raise ConfigError(f"tls: {exc}") from exc


def troubles(tls: TlsSection | None, url: str) -> list[str]:
    """Everything that would keep others from calling `url`, or this process from calling them. Blocking."""
    if tls is None:
        return []
    try:
        Chain(tls.files, listens=True, ask_clients=tls.require_client_cert)
        leaf = read_leaf(tls.cert_file)
    except TlsError as exc:
        return [f"tls: {exc}"]
    found = []
    if trouble := leaf.trouble(time.time()):
        found.append(f"tls.cert_file: {tls.cert_file}: {trouble}")
    called = tls.server_name or urlsplit(url).hostname
    if url.startswith("https:") and called and not leaf.covers(called):
        names = ", ".join(sorted(leaf.names)) or "nothing"
        found.append(f"tls.cert_file: others look for {called}, and {tls.cert_file} is for {names}")
    if not leaf.may_be_server:
        found.append(f"tls.cert_file: {tls.cert_file} is not meant for servers (extended key usage)")
    if tls.require_client_cert and not leaf.may_be_client:
        found.append(f"tls.cert_file: {tls.cert_file} is not meant for clients too (extended key usage)")
    return found
