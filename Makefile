# make demo       the method on the shapes world, from nothing: data, both programs, table, figures
# make test       everything that proves it and is quick
# make test-slow  whole programs, real sizes, installs
# make check      linters and types
# make format     what the linters can fix
# make install    the environment alone

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := --dataset shapes --split val
PARALLEL := --numprocesses auto --dist loadscope

.PHONY: demo test test-slow check format install clean

demo: install
	$(BIN)/python save_attn_gem.py $(DEMO)
	$(BIN)/python hybridgl_main.py $(DEMO)

test: install
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: install
	$(BIN)/python -m pytest -m slow $(PARALLEL)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Runs pip only where the requirements or the place of the checkout have changed.
install:
	@wanted=$$( (cat pyproject.toml constraints.txt; pwd) | cksum ); \
	if [ "$$wanted" != "$$(cat $(VENV)/installed 2>/dev/null)" ]; then \
		echo "Installing into $(VENV) (a few GB, once)"; \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt \
			-e ".[dev]" && \
		echo "$$wanted" > $(VENV)/installed; \
	fi

clean:
	rm -rf $(VENV) refer/data/shapes refer/data/images/shapes store runs
