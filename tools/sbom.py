"""Writes what is installed with qvggt as a CycloneDX bill of materials (JSON, version 1.6).

    python tools/sbom.py -o out/sbom.json

It holds qvggt and all that `requirements.in` leads to, with the versions and licences that are
installed, and who needs whom. Nothing but the standard library and `packaging` is used.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NAME = "qvggt_ros"


def required(path: Path = ROOT / "requirements.in") -> list[Requirement]:
    """Return the requirements of a file."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def normal(name: str) -> str:
    """Return a package's name as the index has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(requirements: list[Requirement]) -> dict[str, Distribution]:
    """Return the packages that requirements lead to, by name.

    Raises:
        SystemExit: one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = normal(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name not in found:
            try:
                found[name] = distribution(requirement.name)
            except PackageNotFoundError as error:
                raise SystemExit(f"{requirement} is not installed: pip install -e .") from error
            waiting += [(Requirement(each), "") for each in found[name].requires or ()]
        for wanted in requirement.extras:
            waiting += [(Requirement(each), wanted) for each in found[name].requires or ()]
    return found


def purl(package: Distribution) -> str:
    """Return the package URL: without a local version, which no index has."""
    return f"pkg:pypi/{normal(package.metadata['Name'])}@{package.version.partition('+')[0]}"


def component(package: Distribution) -> dict[str, Any]:
    """Return a package as a component."""
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package.metadata["Name"],
        "version": package.version,
        "purl": purl(package),
    }
    expression = package.metadata.get("License-Expression")
    named = [
        text.rpartition(" :: ")[2]
        for text in package.metadata.get_all("Classifier") or ()
        if text.startswith("License :: ")
    ]
    text = (package.metadata.get("License") or "").strip().partition("\n")[0][:80]
    if not (expression or named or text):
        named = [f"see {file}" for file in package.metadata.get_all("License-File") or ()]
    if expression:
        found["licenses"] = [{"expression": expression}]
    else:
        # A package may be a list of others and no more, as cuda-toolkit, and have none of its own.
        names = named or [text or "NOASSERTION"]
        found["licenses"] = [{"license": {"name": name}} for name in names]
    return found


def needs(package: Distribution, known: dict[str, Distribution]) -> list[str]:
    """Return the references of what a package needs here."""
    wanted = {normal(Requirement(each).name) for each in package.requires or ()}
    return sorted(purl(known[name]) for name in wanted & known.keys())


def bill(requirements: list[Requirement], version: str) -> dict[str, Any]:
    """Return the bill of materials of qvggt."""
    known = installed(requirements)
    root = f"pkg:pypi/{normal(NAME)}@{version}"
    direct = sorted(purl(known[normal(each.name)]) for each in requirements)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": NAME,
                "version": version,
                "purl": root,
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": [component(known[name]) for name in sorted(known)],
        "dependencies": [
            {"ref": root, "dependsOn": direct},
            *({"ref": purl(known[n]), "dependsOn": needs(known[n], known)} for n in sorted(known)),
        ],
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    content = bill(required(), distribution(NAME).version)
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {output}: {len(content['components'])} packages")


if __name__ == "__main__":
    main()
