"""Name resolution for the crawler: only public addresses are handed on to be connected to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from scrapy.resolver import HostResolution

from llmcore.sources.urls import is_public

refused_addresses: dict[str, str] = {}  # host:port -> the private address that it resolved to


class PublicResolver:
    """Name resolution that hands on public addresses only: what was checked is what is connected to (no rebinding).

    `private_hosts` (host or host:port) are exempt. Redirects and IP literals pass through here as well.
    """

    def __init__(self, reactor: Any, private_hosts: Iterable[str]) -> None:
        self.reactor, self.inner, self.private_hosts = reactor, reactor.nameResolver, frozenset(private_hosts)

    @classmethod
    def from_crawler(cls, crawler: Any, reactor: Any) -> PublicResolver:
        return cls(reactor, crawler.settings.getlist("PRIVATE_HOSTS"))

    def install_on_reactor(self) -> None:
        """Called by Scrapy when its reactor starts."""
        self.reactor.installNameResolver(self)

    def resolveHostName(
        self,
        receiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> HostResolution:
        """Twisted's IHostnameResolver."""
        allowed = {hostName, f"{hostName}:{portNumber}"} & self.private_hosts
        checked = receiver if allowed else _PublicOnly(receiver, f"{hostName}:{portNumber}")
        return cast(
            HostResolution, self.inner.resolveHostName(checked, hostName, portNumber, addressTypes, transportSemantics)
        )


class _PublicOnly:
    def __init__(self, receiver: Any, host: str) -> None:
        self.receiver, self.host = receiver, host

    def resolutionBegan(self, resolution: Any) -> None:
        self.receiver.resolutionBegan(resolution)

    def addressResolved(self, address: Any) -> None:
        if is_public(address.host):
            self.receiver.addressResolved(address)
        else:
            refused_addresses[self.host] = address.host

    def resolutionComplete(self) -> None:
        self.receiver.resolutionComplete()
