"""The licence that lies beside files: LICENSE, COPYING and the like, as an SPDX identifier where its text is known."""

from __future__ import annotations

import re
from pathlib import Path

NAMES = re.compile(r"(?i)^(?:licen[cs]e|copying|unlicense|copyright)s?(?:[-_.][\w.-]*)?$")
LONGEST = 400_000  # bytes; more is no licence
SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+-]+)")

# phrases that stand in a licence's text and in no other's; the first that fits counts: what quotes others comes first
TEXTS: tuple[tuple[str, str], ...] = (
    ("AGPL-3.0-only", r"gnu affero general public license version 3"),
    ("LGPL-3.0-only", r"gnu lesser general public license version 3"),
    ("LGPL-2.1-only", r"gnu lesser general public license version 2\.1"),
    ("GFDL-1.3-only", r"gnu free documentation license version 1\.3"),
    ("GFDL-1.2-only", r"gnu free documentation license version 1\.2"),
    ("GPL-3.0-only", r"gnu general public license version 3"),
    ("GPL-2.0-only", r"gnu general public license version 2"),
    ("Apache-2.0", r"apache license,? version 2\.0"),
    ("MPL-2.0", r"mozilla public license,? version 2\.0"),
    ("EPL-2.0", r"eclipse public license - v 2\.0"),
    ("CC0-1.0", r"cc0 1\.0 universal|creativecommons\.org/publicdomain/zero/1\.0"),
    *(
        (f"CC-BY{code}-{version}", rf"creative commons attribution{name} {version.replace('.', chr(92) + '.')}")
        for version in ("4.0", "3.0", "2.5", "2.0")
        for code, name in (
            ("-NC-ND", "-noncommercial-noderiv(?:ative)?s"),
            ("-NC-SA", "-noncommercial-sharealike"),
            ("-NC", "-noncommercial"),
            ("-ND", "-noderiv(?:ative)?s"),
            ("-SA", "-sharealike"),
            ("", ""),
        )
    ),
    ("Unlicense", r"this is free and unencumbered software released into the public domain"),
    ("MIT", r"permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("ISC", r"permission to use, copy, modify, and/or distribute this software for any purpose"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*nor the names? of"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("blessing", r"may you do good and not evil"),
)


def is_licence(name: str) -> bool:
    """Whether a file is called as licences are."""
    return NAMES.match(name) is not None


def licence_in(folder: Path) -> tuple[str, Path | None]:
    """(SPDX identifier, the file that says it) of a folder; ("unknown", a file) where its text is not known, and
    ("unknown", None) where there is no such file."""
    found = [path for path in sorted(folder.iterdir()) if is_licence(path.name) and path.is_file()]
    for path in found:
        licence = licence_of(path)
        if licence != "unknown":
            return licence, path
    return "unknown", found[0] if found else None


def licence_of(path: Path) -> str:
    """SPDX identifier of the licence whose text a file holds; "unknown" where it cannot be told."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST).decode("utf-8", "replace")
    except OSError:
        return "unknown"
    named = SPDX.search(text)
    if named:
        return named[1]
    plain = re.sub(r"[\s*#_]+", " ", text).lower().replace("license, version", "license version")
    return next((licence for licence, phrase in TEXTS if re.search(phrase, plain)), "unknown")
