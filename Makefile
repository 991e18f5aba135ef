.PHONY: setup quickstart test test-slow test-kill test-cluster lint clean

BIN := .venv/bin

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt requirements-data.txt scripts/setup.sh
	bash scripts/setup.sh

quickstart: setup  ## Set up, run the main job, show its table and report.
	$(BIN)/cuvee run recipes/quickstart.yaml

test: setup  ## Set up and run the tests.
	$(BIN)/pytest -m "not slow and not kill and not cluster"

test-slow: setup  ## Proofs and recipes that take minutes.
	$(BIN)/pytest -m slow

test-kill: setup  ## Kills workers, drivers and commands at random moments.
	$(BIN)/pytest -m kill

test-cluster: setup  ## Several Ray nodes on this machine.
	$(BIN)/pytest -m cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv cuvee-store build *.egg-info
