# `make test` and `make demo` each do all their set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKDIR ?= runs/demo

.PHONY: test demo lint docs mutations nightly bench clean

demo: $(STAMP)
	$(BIN)/python -m scm_jax demo --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest -n 3 --dist=loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The pages and the API reference, in build/site; any warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Every planted fault of tests/mutations/ must turn its test red: about 10 s each.
mutations: $(STAMP)
	$(BIN)/python tests/run_mutations.py

# What is too long for every change: the suite with notebooks on runs of their own, full
# studies, all meshes and optimized programs; long kill tests; all planted faults.
nightly: $(STAMP)
	SCM_JAX_NIGHTLY=1 $(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder
	$(BIN)/python -m benchmarks.resume_kills --kills=20
	$(BIN)/python -m benchmarks.sweep_kills --runs=6 --kills=20 --steps=600
	$(BIN)/python tests/run_mutations.py

# Each prints JSON lines, the last with the ratio it is about: about 10 minutes.
BENCHMARKS := step_cost compile_time sampling input_pipeline input_wait allocator \
  checkpoint_stall attention precision frechet feature_metrics

bench: $(STAMP)
	set -e; for name in $(BENCHMARKS); do \
	  $(BIN)/python -m benchmarks.$$name --quick; \
	done

# uv installs in a quarter of pip's time; where it cannot, pip does the same.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "scm_jax needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -e '.[dev]' || \
	  $(BIN)/python -m pip install -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
