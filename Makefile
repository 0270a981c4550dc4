# Every target does the set-up that it needs. `make` alone prints this list.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up
DISTS  := shared services/policy services/requests services/expiry services/audit services/gateway agent cli deploy/embedded
TYPED  := shared/sojourn_shared $(foreach s,policy requests expiry audit gateway,services/$(s)/sojourn_$(s)) \
          agent/sojourn_agent cli/sojourn_cli deploy/embedded/sojourn_embedded
PYTHON ?= $(shell sh deploy/embedded/choose-python)

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(STAMP)  ## everything on this computer: PostgreSQL, NATS, services, agent (ARGS="--port 9000 --ephemeral")
	@$(BIN)/sojourn up $(ARGS)

.PHONY: demo
demo: $(STAMP)  ## the whole story in a minute, on a throw-away stack
	@$(BIN)/python -m sojourn_embedded.demo $(ARGS)

.PHONY: test
test:  ## lint, types, import rules and every test; T=path runs the tests below that path alone
ifeq ($(shell sh deploy/embedded/is-closed),closed)
	@sh deploy/embedded/in-the-open test T="$(T)"
else
	@$(MAKE) --no-print-directory test-here T="$(T)"
endif

.PHONY: test-here
test-here: $(STAMP)
ifneq ($(T),)
	$(BIN)/pytest $(T)
else
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest
endif

.PHONY: lint
lint: $(STAMP)  ## style, types, import rules, and whether the OpenAPI document is up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/python -m sojourn_embedded.openapi --check

.PHONY: bench
bench: $(STAMP)  ## performance, as ratios measured in one run (ARGS=…)
	@$(BIN)/python bench $(ARGS)

.PHONY: openapi
openapi: $(STAMP)  ## write the OpenAPI document anew from the routers
	$(BIN)/python -m sojourn_embedded.openapi

.PHONY: setup
setup: $(STAMP)  ## the virtual environment .venv, from hash-pinned requirements

# Our own parts are installed in one command, because pip knows nothing of workspaces; --no-deps: all that they need is pinned.
$(STAMP): requirements/embedded.txt $(DISTS:%=%/pyproject.toml)
	@test -n "$(PYTHON)" || { echo "make: Sojourn needs Python 3.11 or newer with venv (on Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/embedded.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(DISTS:%=-e ./%)
	@ln -sf ../../agent/elevate $(BIN)/elevate
	@touch $@

.PHONY: requirements
requirements:  ## pin the newest versions that fit requirements/*.in, with their hashes (needs pip-compile)
	cd requirements && for part in agent service embedded; do \
	    CUSTOM_COMPILE_COMMAND="make requirements" pip-compile --quiet --upgrade --generate-hashes --strip-extras \
	        --no-emit-options --output-file $$part.txt $$part.in; done
