# The words people type. What is missing is installed first, into .venv: for the demo and the
# notebooks (`make demo`), or all that the checks need too (`make test`).
#   PYTHON=/path/to/python3    the Python that .venv is made with
#   TORCH_INDEX=ADDRESS        a further package index, such as PyTorch's for its CPU builds
#   PIP_ARGS=...               any other options for pip
PYTHON ?= python3
BIN := .venv/bin
# named after the metadata's text, not its date: nbdev-export rewrites pyproject.toml unchanged
HASH := $(shell cat settings.ini setup.py pyproject.toml | cksum | cut -d' ' -f1)
STAMP := .venv/.installed-$(HASH)
STAMP_DEV := .venv/.installed-dev-$(HASH)
PIP := $(BIN)/python .ci/install.py $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_ARGS)

.PHONY: demo lab app try test test-all lint sync docs bench notebooks readme links

demo: $(STAMP)
	$(BIN)/sginet-demo

# JupyterLab at the index, its table of contents open beside it, in a workspace of its own; a
# notebook that is run and saved differs in its outputs alone
lab: export JUPYTERLAB_WORKSPACES_DIR = $(CURDIR)/.venv/workspaces
lab: $(STAMP)
	@$(BIN)/jupyter lab workspaces import .ci/lab.jupyterlab-workspace
	$(BIN)/jupyter lab --LabApp.default_url=/lab/workspaces/sginet \
		--LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
		--ContentsManager.pre_save_hook=nbdev.clean.clean_jupyter

# the explorers as one page, for this machine's own browser alone
app: $(STAMP)
	$(BIN)/voila nbs/app.ipynb --Voila.config_file_paths=nbs/voila --port=8866

# the page that derains in the visitor's browser, on this machine alone
try: $(STAMP_DEV)
	$(BIN)/python .ci/try_page.py _docs/try --serve 8867

# all that a change needs, in minutes: sync, lint, notebooks, quick tests
test: $(STAMP_DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/test

# and what takes longer: all notebooks, several processes, kills, browser, site, wheel
test-all: $(STAMP_DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/test all

# how the code looks, and what ruff finds; `ruff format .` mends most of it
lint: $(STAMP_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# are notebooks, package and README the same thing?
sync: $(STAMP_DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/sync

# the site, in _docs/: notebooks with their outputs, lessons, a page for each module, search
docs: $(STAMP_DEV)
	$(BIN)/python .ci/docs.py

# how fast the network and the start of the commands are here
bench: $(STAMP)
	$(BIN)/sginet-bench

# run every notebook in place and keep its outputs; NB=nbs/models/02_frm.ipynb for one
notebooks: $(STAMP_DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" python .ci/notebooks.py $(NB)

readme: $(STAMP_DEV)
	$(BIN)/python .ci/readme.py > README.md

# the badge and the first cell of each lesson, after `repository` in settings.ini was changed
links: $(STAMP_DEV)
	$(BIN)/python .ci/links.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; say PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv

$(STAMP): | $(BIN)/python
	$(PIP) '.[notebooks]'
	rm -f .venv/.installed-*
	touch $@

$(STAMP_DEV): | $(BIN)/python
	$(PIP) '.[dev]'
	rm -f .venv/.installed-*
	touch $(STAMP) $@
