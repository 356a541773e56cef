# make quickstart: from clone to pictures.   make test: the whole suite, lint and types.   make faults: break trainings.
# PYTHON chooses the interpreter, VENV the virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt
QUICK = runs/quickstart
FASHION = /usr/share/datasets/fashion-mnist

.PHONY: quickstart test faults lint data clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv is missing: apt install python3-venv"; exit 1; }
	@echo "installing torch and the rest (a few minutes) ..."
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e .[test]
	@touch $@

data:
	@test -d $(FASHION) -a -x /usr/bin/bible || { export DEBIAN_FRONTEND=noninteractive; \
		(apt-get update -q && apt-get install -y -q dataset-fashion-mnist bible-kjv) >/dev/null 2>&1 \
		&& echo "installed Debian's packages dataset-fashion-mnist and bible-kjv"; } \
		|| echo "Fashion-MNIST will come from the Hugging Face hub; the King James Bible needs Debian's package bible-kjv"

quickstart: $(VENV)/.installed data
	$(BIN)/maskgen train image/fashion-maskgit-quick --output $(QUICK) --resume auto
	$(BIN)/maskgen sample $(QUICK) --class all --num 80 --output $(QUICK)/samples.png
	$(BIN)/maskgen evaluate $(QUICK) --num 1000 --output $(QUICK)/report.json
	@echo "picture: $(QUICK)/samples.png   scores: above, and in $(QUICK)/report.json"

test: $(VENV)/.installed-test data lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

faults: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info runs/quickstart
