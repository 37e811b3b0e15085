import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.io.addresses import ascii_host, is_public

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8"]
PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a00:1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1",
    "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "08.8.8.8", "8.8.8.8:80", "[::1]"])
def test_what_is_not_an_address_is_not_public(text: str) -> None:
    assert not is_public(text)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_form(address: ipaddress.IPv4Address) -> None:
    packed = f"{int(address) >> 16:x}:{int(address) & 0xFFFF:x}"
    assert is_public(str(address)) == is_public(f"::ffff:{address}") == is_public(f"2002:{packed}::1")
    assert not is_public(str(address)) or address.is_global


def test_international_names_become_punycode() -> None:
    assert ascii_host("example.com") == "example.com"
    assert ascii_host("Bücher.example") == "xn--bcher-kva.example"
    assert ascii_host("faß.example") == "xn--fa-hia.example"
    with pytest.raises(UnicodeError):
        ascii_host("é" * 80)
