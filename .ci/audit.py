"""Looks up known weaknesses of the pinned libraries: `make audit`. Needs the network: pip-audit asks pypi.org.

Exit status 0 if everything was looked up and nothing is known, 1 if a weakness is known, 2 if nothing can be said.
pip-audit itself ends well where the index knows no advisories, so one library with known weaknesses is looked up too:
if none is found there, nothing found elsewhere means anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONTROL = ("jinja2", "2.10")  # PYSEC-2019-217 (CVE-2019-10906) and others


def verdict(found: list[dict[str, Any]], control: list[dict[str, Any]]) -> tuple[int, str]:
    """Exit status and message, from the libraries as pip-audit lists them in JSON."""
    known = [(one["name"], one["version"], weak) for one in found for weak in one.get("vulns", ())]
    unknown = [one["name"] for one in found if "skip_reason" in one]
    lines = [
        f"{name} {version}: {weak['id']} {' '.join(weak.get('aliases', ()))}, "
        f"mended in {', '.join(weak.get('fix_versions', ())) or 'no version yet'}"
        for name, version, weak in known
    ]
    if not found or not any(one.get("vulns") for one in control):
        lines.append(
            f"NOTHING CAN BE SAID about the other libraries: {CONTROL[0]} {CONTROL[1]} has known weaknesses, and the "
            "index told none of them. Run it where pypi.org is reached."
        )
        return (1 if known else 2), "\n".join(lines)
    if unknown:
        lines.append(f"{len(unknown)} of {len(found)} libraries could not be looked up: {', '.join(unknown)}")
    if known:
        lines.append(f"{len(known)} weaknesses are known")
        return 1, "\n".join(lines)
    lines.append(f"no weakness is known of {len(found) - len(unknown)} libraries")
    return (2 if unknown else 0), "\n".join(lines)


def looked_up(pins: Path) -> list[dict[str, Any]]:
    """What pip-audit says about each pinned library; nothing where it does not reach its service."""
    with tempfile.TemporaryDirectory() as room:
        told = Path(room) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(told)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not told.exists() or not told.read_text():
            sys.stderr.write(f"pip-audit failed: {done.stderr.strip().splitlines()[-1:]}\n")
            return []
        return json.loads(told.read_text(encoding="utf-8"))["dependencies"]


def main(pins: Path) -> int:
    """Prints the verdict; returns the exit status."""
    with tempfile.TemporaryDirectory() as room:
        control = Path(room) / "control.txt"
        control.write_text("==".join(CONTROL) + "\n")
        status, message = verdict(looked_up(pins), looked_up(control))
    sys.stdout.write(message + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
