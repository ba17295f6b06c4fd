"""Where a process listens, and how others name it. Pure."""

from __future__ import annotations

import ipaddress

from copypool.serving.settings import ConfigError


def is_loopback(host: str) -> bool:
    """Whether a listener on this host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def base_url(advertise_url: str, host: str, port: int, *, tls: bool) -> str:
    """The base URL by which others call a process: the advertised one, else one made of what it listens on."""
    if advertise_url:
        return advertise_url.rstrip("/")
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def check_listener(host: str, advertise_url: str, *, tls: bool, insecure_plaintext: bool) -> None:
    """`ConfigError` when others would be served without TLS, or could not know where."""
    if not tls and not insecure_plaintext and not is_loopback(host):
        raise ConfigError(
            f"listen_host {host!r} is reachable from other machines and there is no TLS: give certificate and key "
            "under [tls], or set insecure_plaintext = true in a network that you trust"
        )
    if advertise_url and not advertise_url.startswith(("http://", "https://")):
        raise ConfigError("advertise_url begins with http:// or https://")
    if not advertise_url and host in ("0.0.0.0", "::"):
        raise ConfigError("advertise_url is needed: listen_host is no address that others can call")
