"""Writes services/steps.lock.json: the digest of the code of every step at its version.

    python scripts/lock_steps.py                 takes new steps and raised versions
    python scripts/lock_steps.py --same STEP …   the code of STEP changed, and its result did not

A step whose result changes gets a new version in its decorator. If a new version gives the same result after all,
`cuvee store accept STEP OLD NEW` lets the artifacts of the old one serve.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from services.steps import STEPS, source_digest

LOCK = Path(__file__).parent.parent / "services" / "steps.lock.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--same", nargs="*", default=[], metavar="STEP")
    same = parser.parse_args().same
    old = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    new = {name: {"version": item.version, "digest": source_digest(item)} for name, item in sorted(STEPS.items())}
    changed = [n for n in new if n in old and new[n]["version"] == old[n]["version"] and new[n] != old[n]]
    if left := [name for name in changed if name not in same]:
        sys.exit(f"changed without a new version: {', '.join(left)}; raise the version, or name them with --same")
    LOCK.write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    main()
