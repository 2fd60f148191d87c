# `make demo`: video in, report out. `make test`: the tests. Both first make .venv where it is missing or out of date.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint bench-quick clean

demo: $(STAMP)
	$(BIN)/lawm demo

# The tests that share a Ray run one after the other in one process, all others beside them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --durations=15

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy lawm jobs

bench-quick: $(STAMP)
	@for name in decode ingest nodes demo train_step rollout population index_growth adaptive fine_tune limits; do echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

# The first Python from 3.11 on that can make virtual environments; `make PYTHON=/path/to/python` chooses another.
# pygame, which the demo's simulator needs, has no wheel for 3.14 yet, hence the order.
CANDIDATES := $(PYTHON) python3.12 python3.13 python3.11 python3
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  found=; \
	  for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "lawm needs Python 3.11 or newer with the venv module, and none of '$(strip $(CANDIDATES))' is one." \
	      "Install it (Debian, Ubuntu: apt install python3-venv) or name one: make PYTHON=/path/to/python" >&2; \
	    exit 2; \
	  fi; \
	  echo "Making $(VENV) with $$found"; \
	  "$$found" -m venv $(VENV); \
	fi; \
	echo "Installing (torch and Ray are large: some minutes the first time)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gym-pusht; \
	touch $(STAMP)

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache
