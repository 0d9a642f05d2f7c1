# The two commands of the README are `make repro` and `make test`; both set everything up themselves.
PYTHON ?= python3
VENV := .venv
# The folder of this file. `dir` and `abspath` would take a path with spaces for several.
HERE := $(strip $(patsubst %Makefile,%,$(MAKEFILE_LIST)))
READY := $(VENV)/ready
# Stages are `python -m pipeline.<stage>`: the environment's Python must come first.
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: repro test test-slow verify smoke study scm unlock ui plan profile sync

repro: $(READY) scm unlock  ## The whole comparison of params.yaml; goes on where it was stopped
	$(IN_VENV) maskdm plan --brief
	$(IN_VENV) dvc repro

test: $(READY)  ## Lint, types, tests
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy
	$(IN_VENV) pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## What takes long or repeats a property with whole stages: `make test` leaves it out
	$(IN_VENV) pytest -m slow

verify: $(READY)  ## Train one row of every published table again and write the pages again: what still holds here? Nightly
	$(IN_VENV) maskdm verify $(if $(BUDGET),--budget $(BUDGET))

scm:  ## Tell DVC of a project without git, downloaded as an archive, that it has none: it would stop
	@git rev-parse --git-dir >/dev/null 2>&1 || test -e .dvc/config.local || printf '[core]\n    no_scm = true\n' > .dvc/config.local

unlock:  ## Remove those of DVC's own files that a kill or a full disk has torn: DVC stops at half of one
	@test ! -e .dvc/tmp/rwlock || $(PYTHON) -m json.tool .dvc/tmp/rwlock /dev/null 2>/dev/null || rm .dvc/tmp/rwlock
	@$(IN_VENV) $(PYTHON) "$(HERE)pipeline/unlock.py" dvc.lock study/dvc.lock

smoke: $(READY)  ## The same pipeline on scikit-learn's digits, in a copy of the project: build/smoke
	$(IN_VENV) python -m tests.workspace build/smoke smoke
	cd build/smoke && $(MAKE) -f ../../Makefile scm unlock && $(IN_VENV) dvc repro

study: $(READY) scm unlock  ## When and how much masking pays, with several seeds: hours; goes on where it was stopped
	$(IN_VENV) dvc repro study/dvc.yaml
	@test ! -e reports/index.html || $(IN_VENV) dvc repro --force --single-item page  # it shows the study's budgets, too

ui: $(READY)  ## MLflow's UI on the project's runs, at http://127.0.0.1:5000
	$(IN_VENV) maskdm ui

plan: $(READY)  ## Steps, images, FLOPs and estimated time of every arm: make plan [PROFILE=celeba64]
	$(IN_VENV) maskdm plan $(PROFILE)

profile: $(READY)  ## Make a profile the one that `make repro` runs: make profile PROFILE=celeba64
	$(IN_VENV) maskdm profile $(PROFILE)

docs/cli.md: $(READY) $(wildcard maskdm/cli/*.py)  ## The commands' help texts as a page
	$(IN_VENV) typer maskdm.cli.app utils docs --name maskdm --output $@

sync: $(READY)  ## Rebuild MLflow's store from records/, after a clone or a DVC cache hit
	$(IN_VENV) maskdm sync

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
