# Everything runs from a private virtual environment that the targets make by themselves, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# `make install CUDA=1` (or RPC=1) rebuilds llama.cpp with that backend; the stamp remembers which build is installed.
BACKEND := cpu$(if $(CUDA),-cuda)$(if $(RPC),-rpc)
LLAMA_CMAKE := $(if $(CUDA),-DGGML_CUDA=on) $(if $(RPC),-DGGML_RPC=on)
LLAMA := llama-cpp-python==0.3.36
STAMP := $(if $(CUDA)$(RPC),$(VENV)/.installed-$(BACKEND),$(VENV)/.installed)

.PHONY: install demo test harden check manual bench clean
install: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Minitron needs Python 3.11 or newer: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing; llama.cpp is compiled once, which takes a few minutes"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

ifneq ($(CUDA)$(RPC),)
$(STAMP): $(VENV)/.installed
	$(if $(CUDA),@command -v nvcc >/dev/null || { echo "CUDA=1 needs the CUDA toolkit: nvcc is not on the PATH"; exit 1; })
	CMAKE_ARGS="$(CMAKE_ARGS) $(LLAMA_CMAKE)" $(BIN)/python -m pip install --no-cache-dir --force-reinstall --no-deps $(LLAMA)
	@rm -f $(VENV)/.installed-cpu-*; touch $@
endif

demo: install
	@$(BIN)/minitron run examples/nano.toml --resume
	@echo
	@$(BIN)/minitron generate examples/out/Nano-Llama-8.0M-Q4_K_M.gguf "The old house stood" -n 160 --seed 7

test: install
	$(BIN)/python -m pytest -q

harden: install
	$(BIN)/python -m pytest -q -m harden

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

manual: install
	$(BIN)/python -m minitron_cli.manual

bench: install
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) examples/out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
