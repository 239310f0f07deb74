"""
Names of nodes: ``ip:port`` in one canonical form, and their order.

Invariant: two texts that mean the same address have one canonical form, so that names
can be compared, hashed and sorted as what they are; and the order is total over *all*
texts, so that nodes never disagree on it, whatever a peer may have called itself.

IPv6 addresses are written as RFC 5952 recommends.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from .causality import Name
from .errors import BadName

HOST_CHARACTERS_MAX = 253
PORT_MAX = 65535
_NAME_CHARACTERS_MAX = HOST_CHARACTERS_MAX + len(":65535")
_ACTOR_CHARACTERS_MAX = _NAME_CHARACTERS_MAX + len("#") + 16
_CACHED_NAMES_MAX = 4096

_WANTED = (
    "want an IPv4 address, an IPv6 address in brackets or a host name, "
    "then a colon and a port from 1 to 65535 without leading zeros"
)
# Underscores are no part of RFC 1123, but container names have them.
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# Resolvers read hosts that end so as IPv4 addresses in one of their older notations.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PORT = re.compile("[1-9][0-9]{0,4}")
_INCARNATION = re.compile("[0-9a-f]{16}")

_V4, _V6, _HOST_NAME, _NO_NAME = range(4)
_Order = tuple[int, int, str, int]


def parse_name(text: str) -> Name:
    """
    Bring a node's address into its canonical form.

    :param text: ``host:port``; upper-case host names and long forms of IPv6 addresses
        are taken, blanks are not.
    :raises BadName: if it is no such thing; the message says what it got and wants.
    """
    host, _, port = text.rpartition(":")
    # Checked before lower(), which turns the Kelvin sign into an ordinary k.
    if text.isascii() and _PORT.fullmatch(port) and int(port) <= PORT_MAX:
        canonical = _canonical_host(host.lower())
        if canonical is not None:
            return Name(f"{canonical}:{port}")
    raise BadName(f"got {_shown(text)}, {_WANTED}")


def parse_names(text: str) -> tuple[Name, ...]:
    """
    Bring a comma-separated list into canonical names, in the order given.

    :param text: blanks around the items do not count.
    :raises BadName: if it is empty, if an item is no name, or if two items are the same
        one; the message names the item.
    """
    names: list[Name] = []
    for item in text.split(","):
        name = parse_name(item.strip())
        if name in names:
            raise BadName(f"got {name} twice, want every name once")
        names.append(name)
    return tuple(names)


def name_order(name: Name) -> tuple[object, ...]:
    """
    Order names totally: IPv4 by number, IPv6 by number, host names; then the port.

    :param name: any text; one that is no canonical name comes after all that are.
    :returns: a key for sorting; different names have different keys.
    """
    return _order(name)


def split_name(name: Name) -> tuple[str, int]:
    """
    Tell host, without brackets, and port.

    :raises BadName: if ``name`` is not canonical.
    """
    if _order(name)[0] == _NO_NAME:
        raise BadName(f"got {_shown(name)}, {_WANTED}, all in canonical form")
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def is_name(text: str) -> bool:
    """Tell whether a text is a name in canonical form."""
    return _order(text)[0] != _NO_NAME


@lru_cache(maxsize=_CACHED_NAMES_MAX)
def _cached_is_actor(text: str) -> bool:
    name, mark, incarnation = text.rpartition("#")
    return bool(mark and _INCARNATION.fullmatch(incarnation) and is_name(name))


def is_actor(text: str) -> bool:
    """Tell whether a text is a canonical name, ``#`` and 16 hex digits (R1)."""
    return len(text) <= _ACTOR_CHARACTERS_MAX and _cached_is_actor(text)


def is_ip(name: Name) -> int:
    """Tell the version of IP of a name's address, 4 or 6; 0 for anything else."""
    return {_V4: 4, _V6: 6}.get(_order(name)[0], 0)


def is_loopback(name: Name) -> bool:
    """Tell whether a name can be reached from its own machine only."""
    kind, number, host, _ = _order(name)
    if kind == _V4:
        return ipaddress.IPv4Address(number).is_loopback
    if kind == _V6:
        address = ipaddress.IPv6Address(number)
        return (address.ipv4_mapped or address).is_loopback
    return kind == _HOST_NAME and host == "localhost"


def _order(name: str) -> _Order:
    # What is too long for a name is not cached: a limit in entries bounds no memory.
    if len(name) > _NAME_CHARACTERS_MAX:
        return _NO_NAME, 0, name, 0
    return _cached_order(name)


@lru_cache(maxsize=_CACHED_NAMES_MAX)
def _cached_order(name: str) -> _Order:
    try:
        canonical = parse_name(name)
    except BadName:
        return _NO_NAME, 0, name, 0
    if canonical != name:
        return _NO_NAME, 0, name, 0
    host, _, port = name.rpartition(":")
    if host.startswith("["):
        return _V6, int(ipaddress.IPv6Address(host[1:-1])), "", int(port)
    if _NUMERIC_END.fullmatch(host):
        return _V4, int(ipaddress.IPv4Address(host)), "", int(port)
    return _HOST_NAME, 0, host, int(port)


def _canonical_host(host: str) -> str | None:
    try:
        if host.startswith("[") and host.endswith("]"):
            return f"[{_canonical_v6(host[1:-1])}]"
        if _NUMERIC_END.fullmatch(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    if len(host) <= HOST_CHARACTERS_MAX and _HOST.fullmatch(host):
        return host
    return None


def _canonical_v6(text: str) -> str:
    if "%" in text:
        raise ValueError("a zone means something on one machine only")
    address = ipaddress.IPv6Address(text)
    # Python writes these in hexadecimal before 3.13 and with dots since; all nodes of a
    # cluster must agree on one form.
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")
