# Everything a person may do here; `make help` lists it. All of it sets itself up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
NATIVE := $(wildcard kernels/qvggt_kernels/native/*.cpp kernels/qvggt_kernels/native/*.h)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-quick test-ros test-slow test-timing torture lint format bench docs clean

help: ## list what can be done
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## make the virtual environment that all the rest uses

$(VENV)/.ready: requirements.txt requirements-dev.txt tools/install_torch.py setup.py pyproject.toml $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python tools/install_torch.py
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

run: setup ## fly through a room that the network has never seen, into out/sample
	$(BIN)/qvggt synth -o $(OUT)/sample-recording --world room --flight survey --seed 1 \
		--frames 80 --width 256 --height 192 --step 0.1 --overwrite
	$(BIN)/qvggt replay $(OUT)/sample-recording -o $(OUT)/sample --overwrite

# Optional: without open3d, the tests that compare with it are skipped and say so.
$(VENV)/.reference: $(VENV)/.ready requirements-reference.txt
	-$(BIN)/python -m pip install --quiet -r requirements-reference.txt && touch $@

test: setup $(VENV)/.reference ## run the tests (about 20 minutes on two cores)
	$(BIN)/python -m pytest

QUICK := test/core/geometry test/core/stream test/core/doctor test/core/test_optional.py \
	test/core/evaluate/test_trajectory.py test/kernels/test_packing.py test/kernels/test_native.py \
	test/ros/test_conversions.py test/ros/test_replay.py test/cli/test_doctor_command.py

test-quick: ## run the quick tests with PYTHON and what is installed there
	$(PYTHON) -m pytest $(QUICK)

test-slow: setup ## run the tests of VGGT-1B's size too (6 GB of memory)
	$(BIN)/python -m pytest -m "slow or vggt_1b"

test-timing: setup ## run the tests that a busy machine may fail
	$(BIN)/python -m pytest -m timing

torture: setup ## fuzzing, faults and load (20 minutes on two cores)
	cd test && ../$(BIN)/python -m torture --output ../$(OUT)/torture.json

# In a shell with ROS 2 and the workspace sourced; launch_testing's plugin does not bear pytest 8+.
test-ros: ## run the tests of the node on an installed ROS 2
	python3 -m pytest -p no:launch_testing -p no:launch_ros test/ros/node

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/mypy

format: setup ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

bench: setup ## measure speed and memory on this machine, into out/bench (ORIGINAL=clone of vggt)
	$(BIN)/qvggt bench -o $(OUT)/bench $(if $(ORIGINAL),--original $(ORIGINAL))

$(VENV)/.docs: $(VENV)/.ready requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	touch $@

docs: $(VENV)/.docs ## build the documentation as a site, links checked, into out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(OUT)/site

clean: ## remove what was made, the environment included
	rm -rf $(VENV) $(OUT) build install log *.egg-info .mypy_cache .ruff_cache .pytest_cache
