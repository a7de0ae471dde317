"""Where a page listens: ``PORT`` or ``HOST:PORT``, and whose requests are answered there."""

from __future__ import annotations

import ipaddress
import re
import socket

from openvis_rt.errors import InputError

__all__ = ["LOOPBACK", "is_allowed_host", "is_loopback", "parse_place"]

LOOPBACK = "127.0.0.1"


def parse_place(text: str) -> tuple[str, int]:
    """Host and port of ``PORT``, ``HOST:PORT`` or ``[IPV6]:PORT``; a port alone is the loopback's.

    Raises:
        InputError: it is none of these.
    """
    found = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+)):)?([0-9]{1,5})", text)
    if found is None or int(found[3]) > 65535:
        raise InputError(
            f"--serve takes a port (8000; 0 for any free one), or HOST:PORT; got {text!r}"
        )
    return found[1] or found[2] or LOOPBACK, int(found[3])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_allowed_host(header: str | None, host: str) -> bool:
    """Whether the ``Host`` of a request is one by which this server is rightly reached.

    A foreign page may let its own name point here (DNS rebinding), and would then read what is
    served; so a name is taken only if it is this machine's. Addresses are no names.

    Args:
        header: of the request.
        host: where the server was told to listen.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+))(?::[0-9]{1,5})?", header or "")
    if found is None:
        return False
    asked = (found[1] or found[2]).lower()
    if is_loopback(host):
        return is_loopback(asked)
    own = socket.gethostname().lower()
    if asked in {host.lower(), "localhost", own, own.partition(".")[0] + ".local"}:
        return True
    try:
        ipaddress.ip_address(asked)
    except ValueError:
        return False
    return True
