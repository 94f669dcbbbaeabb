# Each target is a command that you might type; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run figures report zoo docs test test-lowest style lint bench gpu-check soak sweep slurm-figures clean
.NOTPARALLEL: # two targets would both install into .venv

help: ## Show this help
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: .venv/.installed ## Set up .venv (a few minutes, once)

INSTALL = $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --constraint constraints.txt --editable

.venv/.installed: pyproject.toml constraints.txt
	$(INSTALL) .
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	$(INSTALL) '.[dev,hf,transformers,open-clip,webdataset,slurm]'
	touch .venv/.installed $@

.venv-lowest/.installed: constraints-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/pip install --quiet --no-deps --no-compile --requirement constraints-lowest.txt
	touch $@

run: setup ## Start here: CKA of a small trained ViT, on CPU or GPU
	$(BIN)/vitsee run

FIGURES := $(basename $(notdir $(wildcard conf/figure/*.yaml)))
ZOO ?= mini
.PHONY: $(FIGURES)

$(FIGURES): setup
	$(BIN)/vitsee run figure=$@ zoo=$(ZOO)

report: setup ## Write one HTML page with all results
	$(BIN)/vitsee report

figures: setup ## Draw every published figure (make fig01: only this one; ZOO=paper: with the paper's models)
	$(BIN)/vitsee run figure=all zoo=$(ZOO)

slurm-figures: setup ## Draw them in SLURM jobs, one per figure (SBATCH='--partition=gpu --gpus=1')
	for figure in $(filter-out claims extra_%,$(FIGURES)); do \
		sbatch $(SBATCH) --job-name=$$figure --wrap "$(BIN)/vitsee run figure=$$figure zoo=$(ZOO)"; \
	done

zoo: setup ## Train the next small models on contours (minutes on a GPU, a day on two cores)
	$(BIN)/python scripts/zoo.py

docs: .venv/.installed-dev ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

# One of the tests checks types. Modules are compiled once, not in each process.
test: style ## Check format, lint and types, and run the tests
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q --numprocesses=auto

LOWEST ?= attention block_similarity datasets kernels laws layers layout models receptive_field report state verdicts
# torch finds CUDA's libraries, which are gigabytes, in .venv.
test-lowest: .venv-lowest/.installed .venv/.installed-dev ## Run many tests with the lowest supported versions (LOWEST='kernels state': only these)
	LD_LIBRARY_PATH=$$(printf '%s:' $(CURDIR)/.venv/lib/python3*/site-packages/nvidia/*/lib) PYTHONPATH=$(CURDIR) \
		OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv-lowest/bin/pytest -q --numprocesses=auto -p no:cacheprovider \
		$(LOWEST:%=tests/test_%.py)

style: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

lint: style ## Check format, lint and types only
	$(BIN)/mypy

bench: setup ## Measure time, memory and error of the analyses relative to bare forward passes
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_analyses.py

gpu-check: setup ## Run every analysis on the CPU and on the GPU, and print the largest differences
	$(BIN)/python scripts/gpu_check.py

soak: .venv/.installed-dev ## Kill runs at 1,000 random moments, with other faults in between (an hour)
	VITSEE_KILLS=1000 VITSEE_KILLS_SEED=$$(date +%s) $(BIN)/pytest -q -rP tests/test_faults.py

sweep: .venv/.installed-dev ## Try every timm architecture and every variant of a figure, and write the table of results (an hour)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --numprocesses=auto -m sweep
	OMP_NUM_THREADS=1 $(BIN)/python scripts/families.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/families.py --run

clean: ## Remove .venv, .venv-lowest, site/ and caches; outputs/ stays
	rm -rf .venv .venv-lowest site .hypothesis .pytest_cache .mypy_cache .ruff_cache
