"""Writes THIRD_PARTY.md: every package that is installed, its version, what for, and its license.

Packages and versions are those of the lock files, licenses those that the installed packages
declare. `make lock` runs it after installing; it needs the oldest Python that Minitron supports,
where nothing of the lock files is left out.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-build.lock")
TABLE = ROOT / "THIRD_PARTY.md"
HEAD = """# Third-party software

What `make install` installs, written by `make lock` from the lock files and from what the packages
say of themselves. Nothing of it is copied into this repository. `llama-cpp-python` is compiled from
its source, which contains llama.cpp and ggml (MIT) and what they bring along: cpp-httplib (MIT),
nlohmann/json (MIT), miniaudio (MIT-0 or public domain), stb_image (MIT or public domain),
subprocess.h (public domain) and hash functions; see its folder `vendor`.

| package | version | needed | license |
|---|---|---|---|
"""


class Package(NamedTuple):
    name: str
    version: str
    needed: str
    license: str


def locked() -> dict[str, str]:
    """Version by name, of all lock files."""
    text = "\n".join((ROOT / name).read_text() for name in LOCKS)
    return dict(re.findall(r"^([a-z0-9-]+)==([^ \n]+)", text, re.MULTILINE))


def closure(wanted: Iterable[str]) -> Iterator[str]:
    """The names of requirements and of what they require, as this Python resolves them."""
    stack, seen = [Requirement(text) for text in wanted], set()
    while stack:
        requirement = stack.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needs = map(Requirement, metadata.requires(name) or ())
            stack += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]
        yield name


def needed() -> dict[str, str]:
    """What each package is for; the first reason of several."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    reasons = {
        "always": project["project"]["dependencies"],
        **{f"for {extra}": extras[extra] for extra in ("serve", "cluster")},
        "to compile": project["dependency-groups"]["build"],
        "to test": extras["dev"],
    }
    found: dict[str, str] = {}
    for reason, wanted in reasons.items():
        for name in closure(wanted):
            found.setdefault(name, reason)
    return found


def declared_license(name: str) -> str:
    """An SPDX expression where there is one; else the short name, else the classifiers."""
    about = metadata.metadata(name)
    short = about.get("License") or ""
    kinds = [c.split(" :: ")[-1] for c in about.get_all("Classifier", ()) if "License ::" in c]
    # a whole text, or a family of licenses: the classifiers say it better
    if len(short) > 40 or short in ("", "BSD"):
        short = " and ".join(kinds) or short.partition("\n")[0]
    return about.get("License-Expression") or short


def table() -> list[Package]:
    reasons = needed()
    return [
        Package(name, version, reasons[name], declared_license(name))
        for name, version in sorted(locked().items())
    ]


if __name__ == "__main__":
    TABLE.write_text(HEAD + "".join(f"| {' | '.join(row)} |\n" for row in table()))
