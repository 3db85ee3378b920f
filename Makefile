# `make demo` runs the main job, `make test` the tests; every target does its own set-up in .venv first.

BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test lint format bench clean help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: $(READY)  ## simulate a small platform, train both tasks, evaluate, write HTML reports (about five minutes)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh experiments/demo.sh

# Threads that wait go to sleep early: beside other work they would spin where those they wait for should run.
# A process that crashes tells where, those too that a test starts. A file of tests stays in one process, with what it made.
test: $(READY)  ## run the tests
	@GOMP_SPINCOUNT=1000 PYTHONFAULTHANDLER=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)  ## run the benchmarks beside other libraries, write benchmarks/results.json (hours)
	@$(BIN)/python -m benchmarks.run

clean:  ## remove the virtual environment, the demo's output and caches
	rm -rf .venv runs build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: its version decides which build the registry serves. PYTHON=... names another interpreter.
$(READY): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.11 python3 python3.12 python3.13; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found="$$python"; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "reeltalk needs Python 3.11 or newer with its venv module, and found none on the PATH." >&2; \
	    echo "Install it (Debian, Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.11 ..." >&2; \
	    exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$found" --version); this happens once" >&2; \
	"$$found" -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,offline]'
	@touch $(READY)
