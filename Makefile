# The front door: `make` alone prints what it offers.
#   PYTHON=python3.12     the interpreter that .venv is made from (3.10 or newer)
#   TOOLKIT=pypi          compile with PyPI's nvcc even where a CUDA toolkit is installed
#   TORCH_CUDA_ARCH_LIST  the GPU architectures to compile for, as in torch
#   V=1                   show what the compilers are called with
#   ARGS="..."            more arguments for train, test, test-matrix and bench
#   MATRIX="2.10.0 ..."   the releases of torch that test-matrix takes
#   WHEEL_FROM=sdist      compile the wheel from a source archive, not from this tree
PYTHON ?= python3
TOOLKIT ?= auto
PIP_VERSION := 25.3
# From the oldest that a wheel is for to the newest, each with its latest fixes.
MATRIX ?= 2.10.0 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0
WHEEL_FROM ?= tree

BIN := .venv/bin
STAMPS := .venv/stamps
unexport PYTHONPATH  # the installed wheel is what runs, whatever the caller's path holds

# The CUDA toolkit that setup.py will find, by its rules: a folder with nvcc and the static runtime.
# Empty where there is none: the wheel is then compiled with the one of the dependency group `nvcc`.
CUDA :=
ifneq ($(TOOLKIT),pypi)
CUDA := $(firstword $(shell for home in "$$CUDA_HOME" "$$CUDA_PATH" \
  "$$(dirname "$$(dirname "$$(readlink -f "$$(command -v nvcc || echo /-)")")")" /usr/local/cuda; do \
  [ ! -f "$$home/bin/nvcc" ] || ! grep -q 'CUDART_VERSION *13...$$' "$$home/include/cuda_runtime_api.h" || \
  ls "$$home"/lib64/libcudart_static.a "$$home"/lib/libcudart_static.a; \
  done 2>/dev/null))
endif
PYPI_CUDA := CUDA_HOME="$$(cd .venv/lib/python*/site-packages/nvidia/cu13 && pwd)"

ARCHIVE := $(if $(filter sdist,$(WHEEL_FROM)),dist/dwconv-*.tar.gz)
SOURCES := setup.py pyproject.toml README.md LICENSE \
  $(shell find csrc dwconv -name __pycache__ -prune -o -name '*.md' -o -name '*.so' -o -print)
FORMATTED := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
  -o -name '*.inc')

.PHONY: help train test check-cpu test-matrix lint actionlint format build wheel sdist wheels check-wheel \
  check-tag bench clean
.DELETE_ON_ERROR:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(STAMPS)/train $(STAMPS)/installed ## train the example network, here and with nn.Conv2d
	$(BIN)/python examples/train.py $(ARGS)

test: check-cpu $(STAMPS)/test $(STAMPS)/installed ## run the test suite against the installed wheel
	$(BIN)/pytest $(ARGS)

check-cpu: $(STAMPS)/cpu $(STAMPS)/test ## try the wheel for CPU tensors alone, as of Windows and macOS
	$(BIN)/pytest --noconftest tests/check_cpu.py

test-matrix: dist/built ## run the CPU tests on one wheel with every torch of MATRIX
	$(MAKE) check-wheel
	$(BIN)/python tests/matrix.py $(MATRIX) -- $(ARGS)

lint: $(STAMPS)/build $(STAMPS)/lint ## check format, style, types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github/workflows

actionlint: $(STAMPS)/actionlint ## check the syntax of the workflows (needs GitHub once)
	$(BIN)/actionlint .github/workflows/*.yml

format: $(STAMPS)/lint ## rewrite the sources in the format that lint checks
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

build: $(STAMPS)/installed ## compile, and install the wheel into .venv

wheel: dist/built ## compile the wheel into dist/

sdist: $(STAMPS)/sdist ## pack the sources into dist/
	rm -f dist/dwconv-*.tar.gz
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'

wheels: sdist $(STAMPS)/wheel ## compile release wheels into dist/release/ (needs docker)
	$(BIN)/cibuildwheel --platform linux --output-dir dist/release dist/dwconv-*.tar.gz

check-wheel: $(STAMPS)/wheel ## look into the wheels of dist/: ABI, libraries, contents, size
	$(BIN)/pytest --noconftest tests/check_wheel.py

check-tag: ## whether the tag in $TAG is that of this version and the changelog knows it
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); \
	[ "$$TAG" = "v$$version" ] || { echo "tag '$$TAG' is not v$$version" >&2; exit 1; }; \
	grep -q "^## \[$$version\]" CHANGELOG.md || { echo "no $$version in CHANGELOG.md" >&2; exit 1; }

bench: $(STAMPS)/installed ## time every kernel beside PyTorch (needs a GPU)
	$(BIN)/python -I -m dwconv bench $(ARGS)

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -exec rm -rf {} +

# Below: files that make keeps, so that nothing is installed or compiled twice.
$(STAMPS)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dwconv needs Python 3.10 or newer: set PYTHON")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet pip==$(PIP_VERSION)
	@mkdir -p $(STAMPS) && touch $@

# One dependency group of pyproject.toml; nvcc is resolved together with what it compiles against.
$(STAMPS)/nvcc: GROUPS := --group build
GROUP_STAMPS := $(addprefix $(STAMPS)/, sdist build nvcc train test lint actionlint wheel)
$(GROUP_STAMPS): pyproject.toml | $(STAMPS)/pip
	$(BIN)/pip install $(GROUPS) --group $(@F)
	@touch $@

dist/built: $(SOURCES) dist/settings | $(STAMPS)/$(if $(CUDA),build,nvcc)
	rm -rf build/lib* build/bdist* dist/dwconv-*.whl
	$(if $(ARCHIVE),$(MAKE) sdist)
	$(if $(CUDA),,$(PYPI_CUDA)) $(BIN)/pip wheel $(if $(V),-v) $(or $(ARCHIVE),.) \
	  --no-deps --no-build-isolation --wheel-dir dist
	@touch $@

COMMIT = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
SETTINGS = $(TORCH_CUDA_ARCH_LIST) $(or $(CUDA),pypi) $(WHEEL_FROM) $(COMMIT)
# Changes only when the answer does: another architecture list, toolkit or commit is another wheel.
dist/settings: FORCE
	@mkdir -p dist
	@echo '$(SETTINGS)' | cmp --silent - $@ || echo '$(SETTINGS)' > $@

$(STAMPS)/cpu: $(SOURCES) | $(STAMPS)/build
	rm -rf build/lib* build/bdist* build/cpu
	DWCONV_CUDA=0 $(BIN)/pip wheel --quiet . --no-deps --no-build-isolation --wheel-dir build/cpu
	@touch $@

$(STAMPS)/installed: dist/built
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/dwconv-*.whl
	@$(BIN)/python -I -c 'from dwconv import _C; print("built with", _C.build_info())'
	@touch $@

FORCE:
