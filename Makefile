# Every target installs what it needs into .venv, from nothing; up to date it costs nothing.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
# Tests that start no process and prepare no data.
QUICK := tests/config tests/contracts tests/index tests/modules \
	tests/losses/test_pointwise.py tests/losses/test_pairwise.py \
	tests/data/loader/test_collate.py tests/data/loader/test_parquet.py \
	$(filter-out tests/test_one_truth.py,$(wildcard tests/test_*.py))

.PHONY: setup gpu-check demo notebook test test-slow quick test-processors check bench fuzz wheel clean

setup: $(STAMP)

# The stub in packaging/fbgemm-gpu goes in together with torchrec: without it pip takes the
# CUDA build of fbgemm and unpacks it over the CPU build.
$(STAMP): setup.py constraints.txt packaging/fbgemm-gpu/setup.py
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt \
		./packaging/fbgemm-gpu --editable ".[cpu,serve,dev]"
	$(BIN)/pip check
	touch $@

demo: $(STAMP)  ## the whole path on rows made here: a table and ten ranked ads
	$(BIN)/adrec run --config configs/synthetic_demo.yaml --out $(DEMO) -j 1x2

# A cell that fails ends it with an error; the figures and pictures are in the copy.
notebook: $(VENV)/.notebook  ## runs docs/tutorial.ipynb, about a minute
	mkdir -p runs
	$(BIN)/jupyter execute --output=$(CURDIR)/runs/tutorial.ipynb docs/tutorial.ipynb

$(VENV)/.notebook: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt \
		./packaging/fbgemm-gpu --editable ".[cpu,serve,dev,notebook]"
	$(BIN)/pip check
	touch $@

# Files of tests are shared out to two processes: many tests wait for others to start.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(STAMP)  ## what `make test` leaves out
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'slow or four_ranks'

quick: $(STAMP)  ## under a minute: style, types, and the tests without processes
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -x $(QUICK)

test-processors: $(STAMP)  ## parity, losses and sharding as on older processors, other threads
	$(BIN)/python tests/processors.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

bench: demo  ## speed as ratios; raw figures go to benchmarks/results
	$(BIN)/python benchmarks/serving.py --run $(DEMO)
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/server_attack.py --run $(DEMO)
	$(BIN)/python benchmarks/server_load.py --run $(DEMO) --minutes 1

gpu-check: $(STAMP)  ## one card, under four minutes; small on a CPU
	$(BIN)/python benchmarks/gpu.py

fuzz: $(STAMP)  ## ten minutes of broken text at the readers
	$(BIN)/python tests/fuzz_readers.py --minutes 10

wheel: $(STAMP)  ## a wheel and the sources, in dist/; they work without this folder
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python setup.py --quiet sdist --dist-dir dist

clean:
	rm -rf $(VENV) runs
