"""Addresses: one spelling for one URL, and which IP addresses a crawler may connect to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urldefrag, urlsplit

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def clean_url(url: str) -> str:
    """The URL without fragment, credentials and default port, percent-encoded as browsers do, host in lower case.

    Raises ValueError for what no URL parser accepts.
    """
    from w3lib.url import safe_url_string

    parts = urlsplit(safe_url_string(urldefrag(url.strip()).url))
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    netloc = parts.netloc.rpartition("@")[2].lower()
    return parts._replace(netloc=netloc.removesuffix(default) if default else netloc, path=parts.path or "/").geturl()


def origin_of(url: str) -> str:
    """Scheme and host, the unit that a robots.txt speaks for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_and_port(url: str) -> str:
    """`host:port` with the scheme's default port written out."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def is_public(address: str) -> bool:
    """May a crawler connect to this IP address: globally routable, also when it carries an IPv4 address inside?"""
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast
