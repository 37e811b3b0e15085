"""Which network addresses a job's URL may lead to: public ones, and no others."""

import ipaddress
import socket

import idna

from sd_core.errors import InvalidImage


def resolve(host: str, port: int, *, allow_private: bool = False) -> list[str]:
    """The host's addresses, in the order to try them. Raises `InvalidImage` if one of them is not public.

    A host that has both public and private addresses is refused: connecting to the checked addresses alone would do,
    but only an attacker publishes such names.
    """
    try:
        found = socket.getaddrinfo(ascii_host(host), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidImage(f"image: the address of {printable(host)} could not be resolved") from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not addresses:
        raise InvalidImage(f"image: the address of {printable(host)} could not be resolved")
    for address in addresses:
        if not (allow_private or is_public(address)):
            raise InvalidImage(f"image: {printable(host)} is not fetched from: it has the non-public address {address}")
    return addresses


def is_public(address: str) -> bool:
    """Whether this is a globally routable unicast address. What is not an address is not public.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4) is judged by that one too.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is not None:
            return is_public(str(inner))
        if found.is_site_local:  # deprecated, but still private where it is used
            return False
    return found.is_global and not (
        found.is_multicast or found.is_reserved or found.is_loopback or found.is_link_local or found.is_unspecified
    )


def ascii_host(host: str) -> str:
    """A host name as DNS and HTTP take it: internationalized names in Punycode. Raises `UnicodeError`."""
    return host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")


def printable(host: str) -> str:
    """A host name for messages: at most 80 plain characters."""
    return ascii(host[:80])[1:-1]
