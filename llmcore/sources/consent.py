"""What a site allows: robots.txt (RFC 9309) and training opt-outs (noai, TDM reservation, AIPREF, Content-Signal)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protego import Protego

ROBOTS_BYTES = 512 * 1024  # RFC 9309, 2.5: at least 500 KiB are parsed

_NO_TRAINING = re.compile(r"(?:^|[\s,;])(?:ai-train|train-ai|genai)\s*=\s*(?:no|n)\b", re.IGNORECASE)
_META = re.compile(rb"<meta\b[^>]{0,1000}>", re.IGNORECASE)
_ATTRIBUTE = re.compile(rb"""\b(name|content)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)


@dataclass(frozen=True)
class Robots:
    """The rules of one origin for one robot. refused: why nothing at all may be fetched."""

    rules: Protego | None
    token: str
    refused: str | None = None
    training_refused: Sequence[tuple[str, str]] = ()

    @classmethod
    def from_response(cls, status: int, body: bytes, token: str) -> Robots:
        """RFC 9309, 2.3.1: 2xx is parsed, other 4xx allow everything, 5xx and 429 (come back later) allow nothing."""
        from protego import Protego

        if status >= 500 or status == 429:
            return cls(None, token, f"robots.txt unreachable: status {status}")
        if not 200 <= status < 300:
            return cls(None, token)
        text = body[:ROBOTS_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
        return cls(Protego.parse(text), token, None, tuple(training_refusals(text, token)))

    def forbids(self, url: str, path: str) -> str | None:
        """Why the URL may not be fetched; None if it may."""
        if self.refused:
            return self.refused
        if self.rules is not None and not self.rules.can_fetch(url, self.token):
            return "robots.txt disallows it"
        for prefix, line in self.training_refused:
            if path.startswith(prefix):
                return f"robots.txt: {line}"
        return None

    @property
    def delay(self) -> float:
        """Seconds between two requests that the site asks for (Crawl-delay or Request-rate, the larger)."""
        if self.rules is None:
            return 0.0
        rate = self.rules.request_rate(self.token)
        return max(
            self.rules.crawl_delay(self.token) or 0.0, rate.seconds / rate.requests if rate and rate.requests else 0.0
        )

    @property
    def sitemaps(self) -> list[str]:
        """The sitemaps that robots.txt names."""
        return [] if self.rules is None else list(self.rules.sitemaps)


def training_refusals(robots: str, token: str) -> Iterator[tuple[str, str]]:
    """(path prefix, line) of every Content-Signal or Content-Usage line that refuses training to this robot."""
    agents: list[str] = []
    in_rules = True
    for line in robots.splitlines():
        field, colon, value = line.split("#", 1)[0].partition(":")
        field, value = field.strip().lower(), value.strip()
        if not colon:
            continue
        if field == "user-agent":
            agents = [value.lower()] if in_rules else [*agents, value.lower()]
            in_rules = False
            continue
        in_rules = True
        for_us = not agents or "*" in agents or token.lower() in agents
        if for_us and field in ("content-signal", "content-usage") and _NO_TRAINING.search(value):
            prefix = value.split()[0] if value.startswith("/") else "/"
            yield prefix, f"{field}: {value}"


def training_opt_out(headers: dict[str, list[str]], html: bytes, token: str) -> str | None:
    """Why a fetched page may not be used for training; None if nothing refuses it. Header names are lower case."""
    for value in headers.get("x-robots-tag", []):
        if refuses_ai(value, token):
            return f"X-Robots-Tag: {value}"
    if any(value.strip() == "1" for value in headers.get("tdm-reservation", [])):
        return "TDM-Reservation: 1"
    for name in ("content-usage", "content-signal"):
        for value in headers.get(name, []):
            if _NO_TRAINING.search(value):
                return f"{name}: {value}"
    for tag in _META.findall(html[:65_536]):
        fields = {key.lower(): (b1 or b2 or b3).decode("latin-1") for key, b1, b2, b3 in _ATTRIBUTE.findall(tag)}
        name, content = fields.get(b"name", "").lower(), fields.get(b"content", "")
        if name in ("robots", token.lower()) and refuses_ai(content, token):
            return f"meta {name}: {content}"
        if name == "tdm-reservation" and content.strip() == "1":
            return "meta tdm-reservation: 1"
    return None


def refuses_ai(value: str, token: str) -> bool:
    """Does a robots directive list hold `noai` for this robot? `otherbot: noai` speaks to another one."""
    addressee = "*"
    for part in value.split(","):
        agent, colon, rest = part.partition(":")
        if colon and not agent.strip().lower().startswith(("max-", "unavailable_after")):
            addressee, part = agent.strip().lower(), rest
        if part.strip().lower() == "noai" and addressee in ("*", "robots", token.lower()):
            return True
    return False
