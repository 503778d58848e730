"""Which licence a model goes out under, given what its sources allow.

Whether training text binds the model's licence is for a lawyer. What can be said here is where nobody needs one: text
whose licence asks for no more than its notice allows the default. For any other the person who publishes says it.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmcore.errors import UsageError

DEFAULT = "Apache-2.0"
UNKNOWN = "unknown"  # nobody said: the card and the report say that
# SPDX identifiers in lower case, without their version: each asks for attribution or a notice, or for nothing
ALLOWING = (
    "0bsd",
    "apache",
    "blueoak",
    "bsd",
    "bsl",
    "cc-by",
    "cc-pddc",
    "cc0",
    "isc",
    "mit",
    "mit-0",
    "ncsa",
    "odc-by",
    "pddl",
    "postgresql",
    "psf",
    "python",
    "unicode",
    "unicode-dfs",
    "unlicense",
    "upl",
    "wtfpl",
    "zlib",
    "public-domain",
)


def allows_default(licence: str) -> bool:
    """Whether text under this SPDX identifier asks for no more than the default gives, or nobody said its licence."""
    name = licence.strip().lower().replace(" ", "-")
    words = name.split("-")
    plain = "-".join(word for word in words if not word[:1].isdigit() or word == "0bsd")
    if words[:1] == ["bsd"]:
        plain = "bsd"  # BSD-3-Clause
    return name == UNKNOWN or plain in ALLOWING


def model_licence(asked: str, sources: Mapping[str, str]) -> str:
    """What was asked for, or the default where every source (name -> licence) allows it.

    Raises UsageError naming the source that does not.
    """
    if asked:
        return asked
    for source, licence in sources.items():
        if not allows_default(licence):
            raise UsageError(
                f"publish.licence: missing; source {source!r} is {licence!r}, which does not allow the default "
                f"{DEFAULT}: say under which licence the model goes, and give its text as publish.licence_text"
            )
    return DEFAULT
