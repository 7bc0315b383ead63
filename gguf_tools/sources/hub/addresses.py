"""Addresses of servers: the hub's, those that it redirects to, and one that the user gives."""

from __future__ import annotations

from urllib.parse import urlsplit

LONGEST_URL = 8192
PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int]:
    """The scheme, the host and the port of a URL. Raises ValueError if it has none of this form."""
    parts = urlsplit(url)
    port = PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    return parts.scheme, (parts.hostname or "").lower(), port


def is_url(text: str) -> bool:
    """Whether a request can be sent to this address: http or https, a host, a port that exists, no characters out of ASCII."""
    try:
        scheme, host, port = origin(text)
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text and len(text) <= LONGEST_URL
    return plain and scheme in PORTS and bool(host) and port > 0


def is_server(text: str) -> bool:
    """Whether this is the address of a server, to which paths can be added."""
    return is_url(text) and not set(text) & set("?#\\")


def has_user(text: str) -> bool:
    """Whether an address has a user's name, and so perhaps a password, or may be meant to: it must not be shown."""
    return "@" in text and (not is_url(text) or urlsplit(text).username is not None)
