"""Addresses that only this machine reaches, and requests that web pages of others make to them.

A page of another site can send requests to a server on its reader's machine: with an `Origin`, or
under a host name of its own that it lets point to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from http.server import BaseHTTPRequestHandler


def is_loopback(host: str) -> bool:
    """Whether an address or name, without port, is this machine's own.

    >>> is_loopback("localhost"), is_loopback("[::1]"), is_loopback("127.9.9.9"), is_loopback("a.b")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_foreign(host: str, origin: str | None, *, any_name: bool) -> bool:
    """Whether a page of another site makes the request.

    `host` and `origin` are the request's headers. `any_name`: the server has other names than this
    machine's own, which are unknown; there, only an origin can tell.

    >>> [is_foreign(host, None, any_name=False) for host in ("localhost:8002", "evil.test")]
    [False, True]
    >>> [is_foreign("shop:8002", o, any_name=True) for o in ("http://shop:8002", "null")]
    [False, True]
    """
    if origin is not None and origin.partition("://")[2] != host:
        return True
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return not any_name and not is_loopback(name)


class OwnPagesHandler(BaseHTTPRequestHandler):
    """Answers 403 to requests that pages of other sites make."""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        any_name = not is_loopback(str(self.server.server_address[0]))  # type: ignore[index]
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if is_foreign(host, origin, any_name=any_name):
            self.send_error(403, "Pages of other sites may not use this one")
            return False
        return True
