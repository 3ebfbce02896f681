# Everything that a person or a build machine does here has one word. `make help` lists the words.
#
# A recipe is one bash script that stops at its first error. What one needs to know goes to standard error.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help env run test check client format bench bench-compare profile lock clean packages

PYTHON := .venv/bin/python
# `make test ARGS=tests/test_docs.py`, `make run ARGS='--seconds 20'`, `make bench ARGS=…`
ARGS :=
# `make bench-compare BASE=main~3`, `make profile SCENARIO=public_notice`
BASE :=
SCENARIO :=

# install WHAT PACKAGE…: Debian packages where this user may install them, otherwise one sentence with the command.
define FUNCTIONS
say() { printf '== %s\n' "$$*" >&2; }
die() { printf 'vestnik: %s\n' "$$*" >&2; exit 1; }
install() {
  local what=$$1 root=; shift
  local by_hand="$$what is needed and missing: run \`sudo apt-get install $$*\` (or what your system calls it), then try again."
  command -v apt-get >/dev/null || die "$$by_hand"
  if [ "$$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || die "$$by_hand"
    root='sudo -n'
  fi
  say "Installing $$* with apt-get, because $$what is needed"
  $$root apt-get update -q >&2 || say "apt-get update failed; trying with the package lists that are here"
  $$root env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "$$@" >&2 || die "$$by_hand"
}
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: .venv/.ready ## the environment in .venv/, from requirements.lock; at once when nothing changed

# Ready means: made from exactly this lock and this pyproject.toml, in this place.
.venv/.ready: requirements.lock pyproject.toml
	@$(FUNCTIONS)
	suitable() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
	find_python() {
	  for python in python3.11 python3.12 python3.13 python3.14 python3; do
	    if suitable "$$python"; then echo "$$python"; return; fi
	  done
	}
	if ! suitable $(PYTHON) || ! $(PYTHON) -m pip --version >/dev/null 2>&1; then
	  base=$$(find_python)
	  if [ -z "$$base" ]; then install "Python 3.11 or newer" python3 python3-venv; base=$$(find_python); fi
	  [ -n "$$base" ] || die "Python 3.11 or newer is needed, and this system's own is older: install python3.11, then try again."
	  if ! "$$base" -c 'import ensurepip' 2>/dev/null; then
	    version=$$("$$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	    install "the venv module of Python $$version" "python$$version-venv"
	  fi
	  say "Making .venv with $$("$$base" --version)"
	  "$$base" -m venv --clear .venv
	fi
	say "Installing $$(grep -c == requirements.lock) pinned packages into .venv (a minute or two the first time)"
	$(PYTHON) -m pip install --disable-pip-version-check --progress-bar off --require-hashes -r requirements.lock |
	  sed -un -e 's/^Collecting /   /p' -e 's/^Installing collected.*/   unpacking them all/p' >&2
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-index --no-deps --no-build-isolation --editable . >&2
	touch $@
	say "The environment is ready: .venv/bin/vestnik --help"

packages:
	@$(FUNCTIONS)
	redis() { redis-server --version 2>/dev/null | sed -n 's/.*v=\([0-9]*\).*/\1/p'; }
	if [ -z "$$(redis)" ]; then
	  install "Redis 7 or newer" redis-server
	  # The tests start servers of their own on free ports; what came as a service need not go on running.
	  if [ -d /run/systemd/system ]; then
	    if [ "$$(id -u)" = 0 ]; then systemctl disable --now redis-server; else sudo -n systemctl disable --now redis-server; fi
	  fi >&2 || say "The redis-server service may be running now; the tests do not need it"
	fi
	[ "$$(redis)" -ge 7 ] || die "Redis 7 or newer is needed and redis-server here is version $$(redis): install a newer one, then try again."
	postgresql() {
	  for program in /usr/lib/postgresql/*/bin/postgres "$$(command -v postgres || true)"; do
	    if [ -x "$$program" ]; then "$$program" --version | sed -n 's/.* \([0-9][0-9]*\)[.a-z].*/\1/p'; fi
	  done | sort -n | tail -n 1
	}
	as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; else sudo -n "$$@"; fi; }
	if [ -z "$$(postgresql)" ]; then
	  # Debian's package makes and starts a server unless it is told not to; the tests start their own.
	  install "PostgreSQL 15 or newer" postgresql-common
	  conf=/etc/postgresql-common/createcluster.conf
	  as_root cp -p "$$conf" "$$conf.before"
	  trap 'as_root mv "$$conf.before" "$$conf"' EXIT
	  as_root pg_conftool "$$conf" set create_main_cluster false
	  install "PostgreSQL 15 or newer" postgresql
	fi
	[ "$$(postgresql)" -ge 15 ] || die "PostgreSQL 15 or newer is needed and the newest here is version $$(postgresql): install a newer one, then try again."
	command -v strace >/dev/null || install "strace" strace
	command -v faketime >/dev/null || install "libfaketime" faketime
	# The proxies that are shipped with a configuration; here they only read it, or run on free ports.
	for proxy in nginx haproxy; do
	  if ! PATH="$$PATH:/usr/sbin" command -v "$$proxy" >/dev/null; then
	    install "$$proxy" "$$proxy"
	    if [ -d /run/systemd/system ]; then as_root systemctl disable --now "$$proxy" >&2 || say "The $$proxy service may be running now; the tests do not need it"; fi
	  fi
	done
	# The account page is tried in a browser, its client on Node.
	node() { command node --version 2>/dev/null | sed -n 's/^v\([0-9]*\).*/\1/p'; }
	[ -n "$$(node)" ] || install "Node 18 or newer" nodejs
	[ "$$(node)" -ge 18 ] || die "Node 18 or newer is needed and node here is version $$(node): install a newer one, then try again."
	command -v npm >/dev/null || install "npm" npm
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || install "Chromium" chromium

run: env ## gateway, sample agencies that publish, and a phone that prints what arrives; Ctrl-C ends it
	@$(PYTHON) -m client_sim.demo $(ARGS)

test: env packages ## the whole test suite, with the real servers that it needs on free ports
	@if [ -n "$(ARGS)" ]; then exec $(PYTHON) -m pytest $(ARGS); fi; \
	$(PYTHON) -m pytest -q -n 3 --dist worksteal --ignore tests/faults && \
	echo "== Faults, one at a time: they are judged by the clock" && \
	$(PYTHON) -m pytest -q tests/faults

check: env ## style and format (ruff), types (mypy strict), who may import whom (import-linter)
	@$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

client: ## builds vestnik-client from gateway/web/client/src; what is built is committed
	@mkdir -p .cache/web
	cp gateway/web/client/package.json gateway/web/client/package-lock.json .cache/web/
	cd .cache/web && npm ci --no-audit --no-fund >&2
	node ../../gateway/web/client/build.mjs .

format: env ## writes the code as `make check` wants it
	@$(PYTHON) -m ruff check --fix --quiet .
	$(PYTHON) -m ruff format .

bench: env ## the benchmark, of one node and of several: one table, and JSON in bench-results/
	@$(PYTHON) -m loadtests.bench $(ARGS)

bench-compare: env ## this tree against BASE=commit by turns: ratios with their spread, and what is noise
	@[ -n "$(BASE)" ] || { printf 'vestnik: say what to compare with: make bench-compare BASE=main~1\n' >&2; exit 2; }
	$(PYTHON) -m loadtests.bench.compare $(BASE) $(ARGS)

profile: env ## a flame graph of the gateway under SCENARIO=name (`vestnik-load list`)
	@[ -n "$(SCENARIO)" ] || { printf 'vestnik: say which: make profile SCENARIO=public_notice\n' >&2; exit 2; }
	.venv/bin/vestnik-load run $(SCENARIO) --profile gateway $(ARGS)

lock: env ## writes requirements.lock anew from pyproject.toml; ARGS=--upgrade moves every pin
	@$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --disable-pip-version-check --quiet uv
	.venv/lock/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-emit-index-url --no-emit-find-links --annotation-style line --quiet -o requirements.lock $(ARGS) >/dev/null

clean: ## removes .venv and caches; data/ stays
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
