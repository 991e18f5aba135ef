"""What sharing saves: the sweep over k of DMT (Table 5) as one run, against a run of its own for every k.

    python benchmarks/sweep.py

Each run starts from an empty store, so that a run alone also reads its pools, converts the model, trains stage 1 and
measures the base, as a user without a shared store would. Seconds are those of the command, start of Ray included;
training seconds are those of the `train` steps. `--values none,all` takes fewer values of k.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, machine, table

RECIPE = Path(__file__).parent.parent / "recipes" / "papers" / "dmt" / "table5.yaml"
VALUES = "none,1/16,1/8,1/4,1/2,all"


def run(values: Sequence[str], profile: str, settings: Sequence[str]) -> dict[str, Any]:
    """One `cuvee run` in an empty store: seconds, and what its steps were."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "services.cli", "run", str(RECIPE), "--profile", profile, "--json"]
        command += ["--store", folder, "--set", f"arms.grid.k=[{', '.join(values)}]", "--set", "contrasts=~"]
        command += [word for setting in settings for word in ("--set", setting)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"k = {', '.join(values)} failed:\n{done.stderr[-2000:]}")
    steps = json.loads(done.stdout)["steps"]
    trained = [step["seconds"] for step in steps if step["name"].endswith("· train")]
    return {"seconds": seconds, "steps": len(steps), "trainings": len(trained), "training seconds": sum(trained)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", default=VALUES)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    values = args.values.split(",")
    lines = [{"run": "one sweep", **run(values, args.profile, args.settings)}]
    print(lines[0], flush=True)
    for value in values:
        lines.append({"run": f"k = {value} alone", **run([value], args.profile, args.settings)})
        print(lines[-1], flush=True)
    lines.append({"run": "all of these", **{key: sum(line[key] for line in lines[1:]) for key in list(lines[0])[1:]}})
    text = [
        machine("torch", "deepspeed", "ray", "vllm"),
        f"{RECIPE.name} in the profile {args.profile}" + (f" with {', '.join(args.settings)}" if args.settings else ""),
        "",
        table(lines),
        "",
        f"The sweep takes {lines[0]['seconds'] / lines[-1]['seconds']:.0%} of the time of separate runs.",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sweep.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
