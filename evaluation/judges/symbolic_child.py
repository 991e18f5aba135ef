"""The child of `symbolic.py`: reads [gold, prediction] a line, writes [alike, why] a line. Runs as a script."""

from __future__ import annotations

import json
import sys


def compare(gold: str, prediction: str) -> tuple[bool | None, str]:
    from math_verify import parse, verify

    # Both with and without dollar signs: the parser looks for LaTeX in an environment only.
    try:
        wanted = parse(f"${gold}$", parsing_timeout=0, raise_on_error=True) or parse(gold, parsing_timeout=0)
        given = parse(f"${prediction}$", parsing_timeout=0) or parse(prediction, parsing_timeout=0)
    except Exception as error:  # whatever SymPy and ANTLR raise on strange text; the caller counts it as unsure
        return None, f"math-verify cannot read the pair: {type(error).__name__}"
    if not wanted:
        return None, "math-verify cannot read the gold"
    if not given:
        return False, "math-verify finds no expression in the prediction"
    try:
        alike = verify(wanted, given, timeout_seconds=0, raise_on_error=True)
    except Exception as error:
        return None, f"math-verify failed: {type(error).__name__}"
    return bool(alike), "math-verify: equal" if alike else "math-verify: not equal"


def main() -> None:
    import math_verify  # noqa: F401 - import before the first deadline runs

    out = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may enter the protocol
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        gold, prediction = json.loads(line)
        print(json.dumps(compare(gold, prediction)), file=out, flush=True)


if __name__ == "__main__":
    main()
