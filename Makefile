# The words people type. `make demo` and `make test` build .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# named after what the metadata says, not after its date: nbdev-export rewrites pyproject.toml, unchanged, every time
STAMP := .venv/.installed-$(shell cat settings.ini setup.py pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: demo test lab app docs bench sync notebooks readme links

demo: $(STAMP)
	$(BIN)/sginet-demo

test: $(STAMP) sync
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest -q

# JupyterLab at the index, its table of contents open beside it, in a workspace of its own
lab: export JUPYTERLAB_WORKSPACES_DIR = $(CURDIR)/.venv/workspaces
lab: $(STAMP)
	@$(BIN)/jupyter lab workspaces import .ci/lab.jupyterlab-workspace
	$(BIN)/jupyter lab --LabApp.default_url=/lab/workspaces/sginet

# the site, in _docs/: notebooks with their outputs, lessons, a page for each module, search; nothing is run or fetched
docs: $(STAMP)
	$(BIN)/python .ci/docs.py

# how fast the network is here, and how fast crops are read
bench: $(STAMP)
	$(BIN)/sginet-bench
	$(BIN)/python -c 'from sginet.data import bench_crops; bench_crops()'

# the explorers as one page, for this machine's own browser alone
app: $(STAMP)
	$(BIN)/voila nbs/app.ipynb --Voila.ip=127.0.0.1 --port=8866

# are notebooks, package and README the same thing?
sync: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/sync

# run every notebook in place and keep its outputs; NB=nbs/05_frm.ipynb for one
notebooks: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" python .ci/notebooks.py $(NB)

readme: $(STAMP)
	$(BIN)/python .ci/readme.py > README.md

# the badge and the first cell of each lesson, after `repository` in settings.ini was changed
links: $(STAMP)
	$(BIN)/python .ci/links.py

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; say PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -e '.[dev]'
	rm -f .venv/.installed-*
	touch $@
