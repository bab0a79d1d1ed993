# `make` lists the targets. All work from a bare checkout: the first call makes the virtual environment.
PYTHON ?= python3
TORCH_INSTALL ?= torch==2.13.0
# More than there are cores, of which there should be two: most tests wait for processes half of their time.
TEST_PROCESSES ?= 4
MINUTES ?= 120
SEED ?= $(shell $(PYTHON) -c 'import random; print(random.randrange(1, 100000))')
PROMPT ?= A golden star flies right at night

BIN := .venv/bin
STAMP := .venv/.installed
export PROMPT
# Whatever the locale: what is printed and written is in UTF-8.
export PYTHONUTF8 := 1

# 200 clips at once are decoded by all cores there are: beside other tests it would measure those.
DECODING := tests/chaos/test_many_nodes.py

.DEFAULT_GOAL := help
.PHONY: help setup demo run test train-tiny chaos attack bench lint types format messages clips screenshots lock clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: setup ## a clip from a prompt through the whole stack: make demo PROMPT="a pink heart growing over the sea"
	@$(BIN)/python -m videoplatform.demo --prompt "$$PROMPT"

run: setup ## serve everything on this machine until Ctrl-C: make run PORT=8000 GPU_NODE_PORT=8081
	@$(BIN)/python -m videoplatform.run

test: setup lint ## linters, types and all tests; in another order: make test SHUFFLE=7
	$(BIN)/python -m pytest -n $(TEST_PROCESSES)

train-tiny: setup ## the demonstration model anew, or on from where it was stopped: make train-tiny MINUTES=120
	$(BIN)/python -m gpu_node.demo_model.training --minutes $(MINUTES)

chaos: setup ## every fault at full strength, about half an hour (needs PgBouncer): make chaos SEED=7
	@rm -rf .data/chaos
	-CHAOS=full CHAOS_SEED="$(SEED)" CHAOS_REPORT=.data/chaos $(BIN)/python -m pytest tests/chaos -n 2 --ignore $(DECODING)
	-CHAOS=full CHAOS_SEED="$(SEED)" CHAOS_REPORT=.data/chaos $(BIN)/python -m pytest $(DECODING)
	@$(BIN)/python -m tests.chaos.scorecard .data/chaos docs/reliability docs/reliability.md

attack: setup ## attack a running copy on this machine in bounded rounds, about five minutes; the table goes into docs/security.md
	@rm -rf .data/attack
	-ATTACK=full ATTACK_REPORT=.data/attack $(BIN)/python -m pytest tests/attack
	@$(BIN)/python -m tests.attack.report .data/attack docs/security.md

bench: setup ## delay of a background task and of the bot's answer, each beside the plain way
	@$(BIN)/python -m benchmarks.dispatch_latency
	@$(BIN)/python -m benchmarks.bot_latency

lint: setup types ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## the type checker
	SECRET_KEY=only-for-the-type-checker $(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

MESSAGES := SECRET_KEY=only-to-read-words $(BIN)/python manage.py
WHERE := --locale ru --no-obsolete --no-wrap --add-location file --ignore '.venv/*' --ignore 'tests/*'

messages: setup ## collect the texts of templates, Python and scripts into locale/ (needs gettext)
	$(MESSAGES) makemessages $(WHERE)
	$(MESSAGES) makemessages $(WHERE) --domain djangojs
	$(MESSAGES) compilemessages --locale ru --ignore '.venv/*'

clips: setup ## make the clips of the front page with the demonstration model
	$(BIN)/python -m tests.front_clips

screenshots: setup ## every page, both widths and themes, into .data/screenshots; README's into docs/screenshots
	DJANGO_SETTINGS_MODULE=videoplatform.settings $(BIN)/python -m tests.screenshots

setup: $(STAMP) ## make the virtual environment (the other targets do when needed)

$(STAMP): requirements.txt $(wildcard requirements/*.txt)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "Making a virtual environment failed (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing into .venv; the first time this takes some minutes (torch is large)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INSTALL)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# torch is left out: its index depends on the card, and it is installed first.
lock: setup ## hashes of all that is installed, for deploy/: requirements/*.lock from requirements/*.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@for part in platform node test; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --override requirements/without-torch.txt \
		requirements/$$part.txt -o requirements/$$part.lock || exit 1; done

clean: ## remove the virtual environment and caches; .data (database, clips) and .env stay
	rm -rf .venv .data/demo demo.mp4 .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
