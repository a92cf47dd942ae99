# make demo       the method on the shapes world, from nothing: data, both programs, table, figures
# make test       everything that proves it and is quick
# make test-slow  whole programs, real sizes, installs
# make check      linters and types
# make format     what the linters can fix
# make install    the environment alone; VENV=FOLDER names another than .venv, new or not

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

# Runs pip only where the requirements or the place of the checkout have changed. An environment that
# is there is used as it is, and its torch and torchvision stay, whatever is pinned: they may be those
# for CPUs alone.
install:
	@wanted=$$( (cat pyproject.toml constraints.txt; pwd) | cksum ); \
	if [ "$$wanted" != "$$(cat $(VENV)/installed 2>/dev/null)" ]; then \
		echo "Installing into $(VENV) (once, a few GB where torch is not there yet)"; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || exit 1; \
		cp constraints.txt $(VENV)/constraints.txt && \
		kept=$$($(BIN)/python -m pip list --format=freeze | grep -E '^torch(vision)?=='); \
		if [ -n "$$kept" ]; then \
			echo "Keeping" $$kept; \
			{ grep -vE '^torch(vision)?==' constraints.txt; echo "$$kept"; } > $(VENV)/constraints.txt; \
		fi; \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet \
			-c $(VENV)/constraints.txt -e ".[dev]" && \
		echo "$$wanted" > $(VENV)/installed; \
	fi

clean:
	rm -rf $(VENV) build dist
