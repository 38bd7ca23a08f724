"""Who may read the live view: this page in a browser, and no other page that the browser shows.

A web server on loopback is reachable for every page that a user has open: it may connect to a
websocket of any address, or give its own name the address 127.0.0.1. The browser says which page
asks (Origin) and by which name (Host), and both are held against what the view is called.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

_PATCHING = Lock()


def refusal(headers: Mapping[str, str], given_host: str) -> str:
    """Return why a request is refused, or nothing.

    Args:
        headers: of the request; names in any case, as `Headers` has them.
        given_host: the name or address that the operator let the view listen on.
    """
    host = headers.get("Host", "")
    name = _hostname(f"//{host}")
    if not name or not (_is_address(name) or name in _own_names(given_host)):
        return f"the view does not answer to the name {host!r}"
    origin = headers.get("Origin")
    # Programs that are no browser send none.
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return f"the view does not answer pages of {origin!r}"
    return ""


def _hostname(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Return whether a name is a number: no name server can make it point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names(given_host: str) -> set[str]:
    own = {"localhost", given_host.lower(), socket.gethostname().lower()}
    return own | {f"{socket.gethostname().lower()}.local", socket.getfqdn().lower()}


@contextmanager
def guarded_server(given_host: str) -> Iterator[None]:
    """Let servers of `websockets` that start meanwhile refuse what `refusal` refuses.

    viser has no place for a check of requests; its constructor starts one server, and returns when
    that listens.
    """
    from websockets.asyncio import server

    def serve(*arguments: Any, process_request: Callable[..., Any] | None, **options: Any) -> Any:
        def check(connection: Any, request: Any) -> Any:
            why = refusal(request.headers, given_host)
            if why:
                return connection.respond(HTTPStatus.FORBIDDEN, f"{why}\n")
            return None if process_request is None else process_request(connection, request)

        return original(*arguments, process_request=check, **options)

    with _PATCHING:
        original = server.serve
        server.serve = serve  # type: ignore[assignment,misc]
        try:
            yield
        finally:
            server.serve = original  # type: ignore[misc]
