# Everything runs from a private virtual environment that the targets make by themselves, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# `make install CUDA=1` rebuilds llama.cpp for NVIDIA GPUs, with CUDA_ARCH=90 for one kind of them and FA=OFF for a quick
# build. Every build has the RPC backend; where pip had one without it in its cache, RPC=1 rebuilds. The stamp remembers
# which build is installed.
BACKEND := cpu$(if $(CUDA),-cuda)$(if $(RPC),-rpc)
# versions and hashes of everything that is installed; `make lock` writes them
LOCKS := requirements-build.lock requirements.lock
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --no-emit-package colorama --no-emit-package httpx2-jsfetch $(if $(UPGRADE),--upgrade)
LLAMA_CMAKE := $(CMAKE_ARGS) -DGGML_RPC=on
STAMP := $(if $(CUDA)$(RPC),$(VENV)/.installed-$(BACKEND),$(VENV)/.installed)
export CUDA_ARCH FA

# the encoders of quant/kernels; installing builds them, and so does a change of their sources
KERNELS := src/minitron_core/libminitron_kernels.so

.PHONY: install demo test test-portable harden check manual lock bench clean
install: $(STAMP) $(KERNELS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Minitron needs Python 3.11 or newer: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# no isolated builds: pip would fetch what compiles llama-cpp-python without asking for hashes
$(VENV)/.installed: pyproject.toml $(LOCKS) | $(BIN)/python
	@echo "Installing; llama.cpp is compiled once, which takes a few minutes"
	$(PIP) --require-hashes --only-binary :all: -r requirements-build.lock
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_ARGS="$(LLAMA_CMAKE)" $(PIP) --require-hashes --no-build-isolation -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --no-index -e .
	# pip does this for all but -e; without it every start compiles where PYTHONDONTWRITEBYTECODE is set
	@$(BIN)/python -m compileall -q src convert quant
	@touch $@

$(KERNELS): hatch_build.py $(wildcard quant/kernels/*) | $(VENV)/.installed
	@$(BIN)/python hatch_build.py || true

ifneq ($(CUDA)$(RPC),)
$(STAMP): $(VENV)/.installed
	$(if $(CUDA),cuda=$$($(BIN)/python scripts/cuda_flags.py) && )\
	sed -n '/^llama-cpp-python==/,/[^\\]$$/p' requirements.lock | PATH="$(abspath $(BIN)):$$PATH" \
	  CMAKE_ARGS="$(LLAMA_CMAKE) -DLLAVA_BUILD=off $$cuda" $(PIP) --require-hashes --no-build-isolation \
	  --no-cache-dir --force-reinstall --no-deps -r /dev/stdin
	@rm -f $(VENV)/.installed-cpu-*; touch $@
endif

demo: install
	@$(BIN)/minitron run examples/nano.toml --resume
	@echo
	@$(BIN)/minitron generate examples/out/Nano-Llama-8.0M-Q4_K_M.gguf "The old house stood" -n 160 --seed 7

# a file's tests stay in one process: they share what its fixtures made
PYTEST := -m pytest -q -n logical --maxprocesses 4 --dist loadfile
test: install
	OMP_WAIT_POLICY=passive $(BIN)/python $(PYTEST)

# the same with llama.cpp compiled for older processors, and for AVX-512 where this one has it
INSTRUCTIONS := $(if $(shell grep -sm1 avx512vl /proc/cpuinfo),avx512) avx2 sse42
test-portable: $(INSTRUCTIONS:%=test-%)
$(INSTRUCTIONS:%=test-%): test-%: build/portable/%/.installed
	OMP_WAIT_POLICY=passive build/portable/$*/bin/python $(PYTEST)

build/portable/%/.installed: pyproject.toml $(LOCKS) scripts/portable.py | install
	mkdir -p build/portable
	$(BIN)/python scripts/portable.py $*
	@touch $@

harden: install
	$(BIN)/python -m pytest -q -m harden -o junit_logging=system-out --junitxml=build/harden.xml; \
	  code=$$?; $(BIN)/python benchmarks/hardening.py build/harden.xml; exit $$code

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

manual: install
	$(BIN)/python -m minitron_cli.manual
	$(BIN)/python -m minitron_convert.families >docs/families.md

lock: install
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv==0.13.9
	build/lock/bin/$(COMPILE) --group build --output-file requirements-build.lock
	build/lock/bin/$(COMPILE) --extra dev pyproject.toml --output-file requirements.lock
	$(MAKE) install
	$(BIN)/python .ci/third_party.py

bench: install
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) $(KERNELS) examples/out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
