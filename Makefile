# Install the NVIDIA driver, then `make train`. `make` alone lists targets and variables.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

## settings of the run: a YAML file; default: configs/gpt2.yaml with a GPU, configs/smoke.yaml without
CONFIG ?=
## the run's folder in runs/; default: config and time; an existing run continues; report takes several
RUN ?=
## your texts: a file (.txt, .csv, .jsonl, .parquet, ...), a folder, a glob, or several; -: standard input
DATA ?=
## the model to start from: a folder, or a Hub id such as gpt2
MODEL ?=
## settings over the config's ("train.max_steps=40 data.text_column=body"), or options of the target (--help)
ARGS ?=
## what generate completes; @file: each line of a file; -: of standard input; default in a terminal: what you type
PROMPT ?=
## all, a count, a list of indices or UUIDs; 0: the CPU
GPUS ?= all
## a file of docker/flavors/: which versions of CUDA and torch; default: by the GPU
FLAVOR ?=
## docker, local (a venv of the same lock) or auto: docker if an engine answers and an image can be had
RUNNER ?= auto
## another base image, for networks that cannot reach the registry
BASE_IMAGE ?=
## 1: host-setup, publish and clean do not ask
YES ?=
## this machine's Python, 3.8 or later
PYTHON ?= python3

VARIABLES := CONFIG RUN DATA MODEL ARGS PROMPT GPUS FLAVOR RUNNER BASE_IMAGE YES
# They reach the launcher in the environment as the user wrote them, also with `$`, quotes and spaces.
$(foreach name,$(VARIABLES),$(eval override export $(name) := $$(value $(name))))
export MAKETUNE_VARIABLES := $(VARIABLES) PYTHON
export MAKETUNE_GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
export PYTHONPATH := $(CURDIR)/src
export MAKETUNE_CALLED_FROM := $(value PWD)

# With -n (-q, -t) the launcher prints what it would run.
flags = $(filter-out ---%,$(firstword -$(MAKEFLAGS)))
dry = $(if $(findstring n,$(flags))$(findstring q,$(flags))$(findstring t,$(flags)), --dry-run)
launch = @+'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null \
	|| { echo 'error: $(PYTHON) is not a Python 3.8 or later' >&2; echo 'hint: install python3, or name one: make PYTHON=/path/to/python3' >&2; exit 3; }; \
	exec '$(PYTHON)' -B -m maketune_host $@$(dry)

.PHONY: help host-setup doctor image env-verify data train eval generate plan report publish monitor bench smoke shell test test-all lint lock clean

help: ## list targets and variables
	@awk ' \
	/^[a-z-]+:.*## / { target = $$0; sub(/:.*/, "", target); sub(/.*## /, ""); targets = targets sprintf("  %-12s %s\n", target, $$0) } \
	/^## / { meaning = substr($$0, 4) } \
	/^[A-Z_]+ \?=/ { value = ENVIRON[$$1]; variables = variables sprintf("  %-12s %s%s\n", $$1, meaning, value == "" ? "" : "  [" value "]") } \
	END { printf "Usage: make TARGET [VARIABLE=value ...]\n\nTargets:\n%s\nVariables [present value]:\n%s", targets, variables }' Makefile

host-setup: ## install what is missing: Docker with compose and buildx, NVIDIA's toolkit (ARGS=--dry-run: only show it)
	$(launch)

doctor: ## check this machine: what it can do, what is wrong, how to fix it (ARGS=--json)
	$(launch)

image: ## build the image, unless the one for these files exists
	$(launch)

env-verify: ## check packages, libraries, driver, GPU kernels, mounts, user and disk where the steps run
	$(launch)

data: ## read, check, split and tokenize the texts; fetch the model; the only step besides publish with network access
	$(launch)

train: ## do every missing step before it, train (or continue), evaluate and write samples
	$(launch)

eval: ## evaluate a run's model (default: the newest) or MODEL on its texts or DATA: loss, perplexity, bits per byte
	$(launch)

generate: ## complete PROMPT with a run's model (default: the newest)
	$(launch)

plan: ## before anything is installed: does CONFIG fit a GPU, how long does it train, is it worth it (ARGS=--help)
	$(launch)

report: ## write a page about RUN (default: the newest) or several runs (RUN="a b"): curves, figures, how to repeat it
	$(launch)

publish: ## push RUN's model to the Hub, private: ARGS="--to owner/name" (and --public); lists the files and asks
	$(launch)

monitor: ## watch RUN (default: the newest): its GPUs in nvitop, or without a GPU its steps as they come
	$(launch)

bench: ## measure training against the usual scripts on this machine (ARGS=--json; ARGS=data: the data step)
	$(launch)

smoke: ## train a small model from scratch in a minute or two, on any hardware (configs/smoke.yaml)
	$(launch)

shell: ## open a shell where the steps run
	$(launch)

test: ## run style, types and the tests that take minutes (ARGS=--quick: those that need no torch)
	$(launch)

test-all: ## run every test: also containers, a browser, kills (REQUIRE_DOCKER=1, REQUIRE_BROWSER=1: skips are failures)
	$(launch)

lint: ## check style, formatting and types (ARGS=--fix: correct what can be corrected)
	$(launch)

lock: ## resolve docker/locks/ again from pyproject.toml and docker/flavors/ (ARGS=--upgrade: newest versions)
	$(launch)

clean: ## list caches, venvs and images with their sizes, and remove them if you agree; runs/ stays
	$(launch)
