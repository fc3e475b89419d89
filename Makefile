# make demo | test | check | lint: each installs what it needs the first time and is quick from then on.
# Everything goes into .venv, except that an active environment which already has torch is used as it is.
# TORCH is the torch requirement, used only where no torch can be imported: make demo TORCH=torch==2.13.0

# PYTHON3 is the Python that .venv is made with.

SHELL := /bin/bash
TORCH ?= torch>=2.11
PYTHON3 ?= python3
HAS_TORCH = -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" 2>/dev/null && echo yes

VENV := .venv
ifneq ($(VIRTUAL_ENV),)
ifeq ($(shell "$(VIRTUAL_ENV)/bin/python" $(HAS_TORCH)),yes)
VENV := $(VIRTUAL_ENV)
endif
endif
PYTHON := $(VENV)/bin/python
STAMPS := $(VENV)/.epigraph

# One extra list per stamp: the demo needs no test tools, and lint, test and check share one set.
EXTRAS_demo := html
EXTRAS_test := html,train,cluster,evaluate,demo,dev
SIZE_demo := 100 MB
SIZE_test := 450 MB

# mlinter holds the models to the structure of in-tree transformers models. Off: TRF028 (licence text in every file),
# TRF038 (tests/models/<name>/ layout), TRF041 (notes that name in-tree checkpoints), TRF057 (@auto_docstring, where
# two sentences of our own say the shapes).
MLINTER_OFF := TRF028 TRF038 TRF041 TRF057

.PHONY: help demo test check lint python-path
help:
	@echo "make demo   read handwritten formulas with the shipped weights and write demo.html"
	@echo "make test   the tests, at most 20 minutes on two cores"
	@echo "make check  the slow rest of the tests"
	@echo "make lint   ruff and mlinter"

demo: $(STAMPS)/demo
	$(PYTHON) scripts/demo.py

test: $(STAMPS)/test
	$(PYTHON) -m pytest -q -m "not slow" -n 2 --dist worksteal

check: $(STAMPS)/test
	$(PYTHON) -m pytest -q -m slow

lint: $(STAMPS)/test
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	@sed $(foreach rule,$(MLINTER_OFF),-e '/^\[rules\.$(rule)\]/,/^default_enabled/s/= true/= false/') \
		"$$($(PYTHON) -c 'from mlinter import mlinter; print(mlinter.DEFAULT_RULE_SPECS_PATH)')" > $(STAMPS)/mlinter.toml
	$(PYTHON) -m mlinter --no-progress --no-cache --rules-toml $(STAMPS)/mlinter.toml src/epigraph/models

python-path:
	@echo $(PYTHON)

# A new .venv sees the packages of a Python that has torch, so that this torch is found and not downloaded again.
$(STAMPS)/torch:
	@if [ ! -x $(PYTHON) ]; then \
		$(PYTHON3) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
			{ echo "epigraph needs Python 3.11 or newer; name one with PYTHON3=python3.12"; exit 1; }; \
		seen=$$($(PYTHON3) $(HAS_TORCH)); \
		$(PYTHON3) -m venv $${seen:+--system-site-packages} $(VENV); \
	fi
	@mkdir -p $(STAMPS)
	@if $(PYTHON) -c "import torch" 2>/dev/null; then \
		echo "torch is importable and used as it is; TORCH=$(TORCH) is not applied"; \
	else \
		echo "Installing $(TORCH). A CPU build is a download of about 200 MB. On Linux the default build of most"; \
		echo "package indexes brings the CUDA libraries, several GB: stop now and choose a CPU build with"; \
		echo "TORCH=torch==2.13.0+cpu and PIP_EXTRA_INDEX_URL set to PyTorch's CPU index, or with TORCH=some/torch.whl"; \
		$(PYTHON) -m pip install "$(TORCH)"; \
	fi
	@$(PYTHON) -c "import torch; print('torch==' + torch.__version__)" > $(STAMPS)/constraints.txt
	@touch $@

# The constraint keeps pip from replacing the torch that is there: if it does not fit, pip says so and changes nothing.
$(STAMPS)/%: pyproject.toml | $(STAMPS)/torch
	@echo "Installing epigraph and what make $* needs: a download of up to $(SIZE_$*)"
	$(PYTHON) -m pip install -c $(STAMPS)/constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@
