# Every target sets up .venv itself; a target that finds it fresh does not touch it again.
PYTHON ?= python3
# LIGHT=1: without torch and transformers, in an environment of its own (python -m llmasos.light).
VENV   := .venv$(if $(LIGHT),-light)
STAMP  := $(VENV)/.installed
NATIVE := $(wildcard drivers/cpu/native/*.c drivers/cpu/native/*.h drivers/cpu/native/*.inc)
BIN    := $(VENV)/bin

PEERS  := llama_cpp vllm openvino

.PHONY: run demo test test-optimised test-dtypes mutation mutation-changed quick coverage lint types rules bench peers docs screens site clean
.DEFAULT_GOAL := run

$(STAMP): pyproject.toml setup.py $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "LLMasOS needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (once$(if $(LIGHT),,; torch and transformers are large downloads)) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef LIGHT
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -m llmasos.light | xargs $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-warn-conflicts --no-compile # Python compiles what is imported when it is: a fifth of the disk space and of the time
else
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
endif
	@touch $@

run: $(STAMP)
	@$(BIN)/llmasos

demo: $(STAMP)
	@$(BIN)/llmasos demo

# Tests start kernels and drivers by the hundred, and none is to compile its sources again; container images like to say so.
unexport PYTHONDONTWRITEBYTECODE
# As many processes of tests as there are cores, four at most: one more was not quicker, and tests waited longer.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
# The kernel, the system calls and the SDK, as far as no OS process and no long computing is in it: for the loop while coding.
QUICK  := tests/kernel tests/syscalls tests/userland/test_sdk_*.py -m 'not processes and not long' --hypothesis-profile=quick

# WAY="--optimised": in another way.
test: $(STAMP)
	@$(PYTEST) $(WAY)

# Once more with all processes that tests start run without asserts: no safety may hang on one. As long as `make test`.
test-optimised: $(STAMP)
	@$(PYTEST) --optimised

# With each of the dtypes that models get by default, on whatever CPU. Twice as long as `make test`.
test-dtypes: $(STAMP)
	@$(PYTEST) --default-dtype fp32
	@$(PYTEST) --default-dtype bf16

# How many faults of the kernel's core its tests notice: hours; goes on where it was stopped (python -m tests.mutation --help).
mutation: $(STAMP)
	@$(BIN)/python -m tests.mutation run --workers 2
	@$(BIN)/python -m tests.mutation report

# Only in lines that differ from a revision: minutes.
REV ?= HEAD^
mutation-changed: $(STAMP)
	@$(BIN)/python -m tests.mutation changed $(REV) --workers 2

quick: $(STAMP)
	@LLMASOS_TEST_EXAMPLES=$${LLMASOS_TEST_EXAMPLES:-3} $(PYTEST) $(QUICK)

# Lines of the kernel, the system calls and the SDK that make quick runs; the floor is in pyproject.toml.
coverage: $(STAMP)
	@LLMASOS_TEST_EXAMPLES=$${LLMASOS_TEST_EXAMPLES:-3} $(PYTEST) $(QUICK) --cov --cov-report=term:skip-covered

# Types take as long as everything else together.
lint: $(STAMP)
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=line types rules

types: $(STAMP)
	@$(BIN)/mypy

rules: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.kernel.floors
	@$(BIN)/python -m docs.generate --check
	@$(BIN)/python -m llmasos.userland.sdk.mirror --check

bench: $(STAMP)
	@$(BIN)/python -m benchmarks --keep

# The environments of the engines that benchmarks/peers compares this system with; one that fails does not stop the others.
# llama.cpp's source is unpacked too: tests use the chat templates and vocabularies that lie in it.
peers: $(STAMP)
	@$(MAKE) --no-print-directory --keep-going $(PEERS:%=.peers/%/.installed) || { \
		for peer in $(PEERS); do test -e .peers/$$peer/.installed || failed="$$failed $$peer"; done; \
		echo "These could not be installed, see above:$$failed. The others can be compared: $(BIN)/python -m benchmarks.peers" >&2; \
		exit 1; }

.peers/llama_cpp/.installed: export CMAKE_ARGS := -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF
# For pictures and sounds; PyPI's are built for another torch than the one vLLM wants, and importing them ends in an error.
.peers/vllm/.installed: UNWANTED := torchvision torchaudio torchcodec
.peers/%/.installed: benchmarks/peers/requirements/%.txt
	@echo "Setting up .peers/$* (once) ..."
	@rm -f $@
	@test -x .peers/$*/bin/python || $(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@test "$*" != llama_cpp || { \
		.peers/$*/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: -d .peers/$*/sdist \
			$$(grep llama-cpp-python $<) && mkdir -p .peers/$*/src && tar -xzf .peers/$*/sdist/*.tar.gz -C .peers/$*/src; }
	@test -z "$(UNWANTED)" || .peers/$*/bin/python -m pip uninstall --quiet --yes $(UNWANTED)
	@touch $@

docs: $(STAMP)
	@$(BIN)/python -m docs.generate
	@$(BIN)/python -m tests.file_matrix
	@$(BIN)/python -m llmasos.userland.sdk.mirror

# The pictures of the documents, each of a real session.
screens: $(STAMP)
	@$(BIN)/python -m docs.shell_screens
	@$(BIN)/python -m docs.screens

# All documents as a site, in build/site. Its tools are in an environment of their own: they read the sources and import nothing.
# Not --quiet: mkdocs would not count its warnings then, and each ends the build (strict).
.venv-docs/.installed: pyproject.toml
	@echo "Setting up .venv-docs (once) ..."
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@$(PYTHON) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["docs"], sep="\n")' > .venv-docs/wanted.txt
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-docs/wanted.txt
	@touch $@

site: .venv-docs/.installed
	@NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/.venv-docs/bin:$$PATH" .venv-docs/bin/python -m mkdocs build
	@echo "build/site/index.html"

clean:
	rm -rf .venv .venv-docs .venv-light .peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
