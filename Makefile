# Install the NVIDIA driver, then `make train`. `make` alone shows what there is.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

## the run's settings; by default configs/gpt2.yaml with a GPU, configs/smoke.yaml without
CONFIG ?=
## the run's folder in runs/; by default the config's name and the time; one that exists is continued; report takes several
RUN ?=
## your texts: a file (.txt, .csv, .jsonl, .parquet, ...), a folder or a glob, anywhere, or several; -: standard input
DATA ?=
## a model to start from: a folder, or a Hub id as gpt2
MODEL ?=
## handed through: "train.max_steps=40 data.text_column=body" to steps, options to host-setup, doctor, plan, bench, test and lock
ARGS ?=
## what generate completes; @file: each line of a file, -: of standard input, none: what you type in the terminal
PROMPT ?=
## all, a count, a list of indices or UUIDs, or 0: none, and meant so
GPUS ?= all
## which pins: cu124 (by default with a GPU) or cpu
FLAVOR ?=
## docker, local (a venv of the same lock), or auto: docker where an engine answers
RUNNER ?= auto
## another base image, where the registry is out of reach
BASE_IMAGE ?=
## 1: host-setup, publish and clean do not ask
YES ?=
## the host's Python, 3.8 or later
PYTHON ?= python3

VARIABLES := CONFIG RUN DATA MODEL ARGS PROMPT GPUS FLAVOR RUNNER BASE_IMAGE YES
# As the user wrote them, also with `$`, quotes and spaces: they go to the launcher in the environment, not as shell words.
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

.PHONY: help host-setup doctor image env-verify data train eval generate plan report publish monitor bench smoke shell test lint lock clean

help: ## show this
	@awk ' \
	/^[a-z-]+:.*## / { target = $$0; sub(/:.*/, "", target); sub(/.*## /, ""); targets = targets sprintf("  %-12s %s\n", target, $$0) } \
	/^## / { meaning = substr($$0, 4) } \
	/^[A-Z_]+ \?=/ { value = ENVIRON[$$1]; variables = variables sprintf("  %-12s %s%s\n", $$1, meaning, value == "" ? "" : "  [" value "]") } \
	END { printf "Usage: make TARGET [VARIABLE=value ...]\n\nTargets:\n%s\nVariables [present value]:\n%s", targets, variables }' Makefile

host-setup: ## install what is missing: Docker with compose and buildx, NVIDIA's toolkit (ARGS=--dry-run: show it)
	$(launch)

doctor: ## say what this machine can do, what is wrong with it and how to mend that (ARGS=--json)
	$(launch)

image: ## build the image, if the one for these files is not there
	$(launch)

env-verify: ## check packages, libraries, driver and GPU, kernels that really run, mounts, user, disk
	$(launch)

data: ## read, check, split and tokenize the texts; fetch the model; has a network, as publish has, and no other step
	$(launch)

train: ## train, or go on training: does all that is missing before it, then evaluates and samples
	$(launch)

eval: ## judge a run's model (the newest's, or MODEL=) on its texts (or DATA=): loss, perplexity, bits per byte
	$(launch)

generate: ## complete PROMPT with a run's model (the newest's); in a terminal without PROMPT a session
	$(launch)

plan: ## before anything is installed: does CONFIG fit this GPU (or another), how long, is it worth it (ARGS=--help)
	$(launch)

report: ## a page about RUN (else the newest), or about several side by side (RUN="a b"): curves, figures, how to repeat it
	$(launch)

publish: ## push RUN's model to the Hub, private: ARGS="--to owner/name" (and --public); shows what goes, and asks
	$(launch)

monitor: ## watch a run (RUN=, else the newest): nvitop on its GPUs; without a GPU its steps as they come
	$(launch)

bench: ## measure training against the usual scripts on this machine (ARGS=--json; ARGS=data: the data step)
	$(launch)

smoke: ## train with configs/smoke.yaml, whatever the hardware: a small model from scratch in a minute or two
	$(launch)

shell: ## open a shell where the steps run
	$(launch)

test: ## run the tests (REQUIRE_DOCKER=1, REQUIRE_BROWSER=1: what is missing is a failure)
	$(launch)

lint: ## check style, formatting and types
	$(launch)

lock: ## resolve docker/locks/ anew from pyproject.toml (ARGS=--upgrade: newest versions)
	$(launch)

clean: ## list caches, venvs and images with their sizes, and remove them if you say so; runs/ stays
	$(launch)
