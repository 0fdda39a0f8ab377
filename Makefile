# make train  sets up what is missing and trains a deep graph network;  make test  sets up and runs the tests.
# Both use the active virtual environment if it has torch, else .venv (created with PYTHON, default python3).

PYTHON ?= python3
# All cores: left to itself nproc answers OMP_NUM_THREADS.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2> /dev/null || echo 1)
ARGS ?=
FILTER ?=
CASES ?= 10000

has_torch = import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)
ENV := $(shell if "$$VIRTUAL_ENV/bin/python" -c '$(has_torch)' 2> /dev/null; then echo "$$VIRTUAL_ENV"; else echo .venv; fi)
EXTRAS := deepspeed,pyg,train,transformers,docs,dev
STAMP := $(ENV)/.gossamer-$(shell pwd | cksum | cut -d' ' -f1)
CXX_SOURCES = $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

BIN := $(abspath $(ENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: help setup train train-lm train-long-range train-recsys test test-sanitized test-threads fuzz lint format package typecheck bench bench-full gate scoreboard gpu-check docs wheel clean

help:
	@echo "make train [ARGS=...]         train a 32-layer graph network with two local workers"
	@echo "make train-long-range [ARGS=...]  train DRew on a task of long range, data parallel over two local workers"
	@echo "make train-lm [ARGS=...]      train a language model with hash layers with two local workers"
	@echo "make train-recsys [ARGS=...]  train a recommender by sampling (LiGNN) with two local workers, and measure its techniques"
	@echo "make test [ARGS=...]          run the tests"
	@echo "make lint | format            check, or mend, the formatting; make typecheck runs mypy"
	@echo "make bench [FILTER=...]       every operator over its sizes: share of the floor, ratios, growth; bench-full: more"
	@echo "make gate                     fails if an operator fell below 40 % of the speed recorded for this instruction set"
	@echo "make test-sanitized           the operator tests under the address and undefined-behaviour sanitizers"
	@echo "make test-threads             every multi-threaded operator and the queue under the thread sanitizer"
	@echo "make fuzz [CASES=...]         damaged arguments for every public function, under sanitizers"
	@echo "make scoreboard [FILTER=...]  measure all goals (or some) and write benchmarks/results/scoreboard.md"
	@echo "make gpu-check                on a machine with a GPU: build, test and measure its kernels"
	@echo "make docs | wheel | clean"

# Set-up: once, and again when the native sources or the requirements change.
setup: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt scripts/setup.sh $(CXX_SOURCES)
	@PYTHON="$(PYTHON)" scripts/setup.sh "$(ENV)" "$(EXTRAS)"
	@touch "$@"

train: $(STAMP)
	@$(BIN)/python examples/train_gnn.py $(ARGS)

train-long-range: $(STAMP)
	@$(BIN)/python examples/train_long_range.py $(ARGS)

train-lm: $(STAMP)
	@$(BIN)/python examples/train_lm.py $(ARGS)

train-recsys: $(STAMP)
	@$(BIN)/python examples/train_recsys.py $(ARGS)

# A test that hangs ends the run after ten minutes (faulthandler_timeout), with the stacks of all threads.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup --max-worker-restart=0 $(ARGS)

# The CPU kernels built with the address and undefined-behaviour sanitizers, under the tests that call operators
# directly; pipelines and scripts would only run the same kernels again.
SANITIZED := $(CURDIR)/build/address,undefined
OPERATOR_TESTS := $(wildcard tests/test_graph_*.py tests/test_sparse_nn_*.py)
SANITIZED_TESTS = $(OPERATOR_TESTS)
fuzz: SANITIZED_TESTS = tests/test_fuzz.py tests/test_fuzz_files.py
fuzz: export GOSSAMER_FUZZ_CASES := $(CASES)
fuzz test-sanitized: $(STAMP)
	@GOSSAMER_SANITIZE=address,undefined GOSSAMER_CUDA=0 $(BIN)/pip install --quiet --no-deps --no-build-isolation \
		--upgrade --target "$(SANITIZED)/site" .
	@PYTHONPATH="$(SANITIZED)/site" LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
		$(BIN)/pytest -n $(JOBS) --dist loadgroup -m "not launch" -p no:cacheprovider $(SANITIZED_TESTS) $(ARGS)

# What is tested for any number of threads, and the queue, under the thread sanitizer, with four threads. The sanitizer
# cannot follow torch's OpenMP: tests/native/threads.cpp runs the kernels' loops on threads that it can.
THREADED := $(CURDIR)/build/thread
test-threads: $(STAMP)
	@GOSSAMER_SANITIZE=thread GOSSAMER_CUDA=0 $(BIN)/pip install --quiet --no-deps --no-build-isolation \
		--upgrade --target "$(THREADED)/site" .
	@c++ -std=c++20 -O1 -g1 -fPIC -shared -fsanitize=thread tests/native/threads.cpp -o "$(THREADED)/threads.so"
	@PYTHONPATH="$(THREADED)/site" LD_PRELOAD="$$(c++ -print-file-name=libtsan.so) $(THREADED)/threads.so" \
		TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 OMP_NUM_THREADS=4 \
		setarch --addr-no-randomize $(BIN)/pytest -m "not launch" -k thread -p no:cacheprovider $(OPERATOR_TESTS) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) && echo "clang-format: $(words $(CXX_SOURCES)) files already formatted"

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The Python files laid out as they are installed; an editable install would hide them from mypy and the documentation.
package: $(STAMP)
	@mkdir -p build && rm -rf build/package
	@$(BIN)/python setup.py --quiet build_py --build-lib build/package > build/package.log 2>&1 || (cat build/package.log; false)

typecheck: $(STAMP) package
	MYPYPATH=build/package $(BIN)/mypy -p gossamer

scoreboard: $(STAMP)
	@$(BIN)/python benchmarks/scoreboard.py $(FILTER) $(ARGS)

# Every operator over its sizes; of some of them (FILTER) only the table is shown.
bench: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep.py $(FILTER) $(if $(FILTER),,--write) $(ARGS)

bench-full: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep.py $(FILTER) --full $(if $(FILTER),,--write) $(ARGS)

gate: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/regression.py $(ARGS)

# With the torch that is there and nothing more: no set-up, no network.
gpu-check:
	@$(PYTHON) scripts/gpu_check.py $(ARGS)

docs: $(STAMP) package
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "documentation: built in site/"

wheel: $(STAMP)
	@rm -rf build/lib* dist
	$(BIN)/pip wheel --no-build-isolation --no-deps -w dist .

clean:
	rm -rf build dist site *.egg-info src/*.egg-info src/gossamer/*.so .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -f $(ENV)/.gossamer-*
