# `make demo` and `make test` do everything from nothing on a Debian machine with Python 3.11+.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 3
STAMP  := $(VENV)/.installed

# Hundreds of services and commands are started by the suite: none should compile this tree again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check docs bench campaign long packages testbed clean

demo: $(VENV)/.demo
	$(BIN)/python examples/atlas/demo.py

test: packages $(STAMP) $(VENV)/.demo
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) -q -m "not slow and not long"

# Refreshes what is generated from the code, then builds the pages into docs/_build; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx -q -W -n --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

bench: $(STAMP)
	$(BIN)/python -m benchmarks

long: $(STAMP)
	$(BIN)/python -m pytest -m long --timeout 3600
	$(BIN)/python -m pytest examples/driver/tests -k kills --kills 200 --in-flight 100 --timeout 3600

# Leaves its directory behind: `PYTHONPATH=tests .venv/bin/python -m campaigns account DIRECTORY` tells of it again.
campaign: packages $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m campaigns run "$$(mktemp -d)/campaign"

# Slurm, RabbitMQ and an SSH server to play with, and a site on them, until Ctrl-C.
testbed: packages $(STAMP)
	$(BIN)/python -m tests.testbed

clean:
	rm -rf $(VENV) build dist docs/_build demo-output .mypy_cache .pytest_cache .ruff_cache

# Debian packages that the suite tests with. Without root it says what is missing, and skips those tests.
packages:
	@command -v busybox >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		  apt-get update -qq && apt-get install -y -qq --no-install-recommends busybox >/dev/null; } || \
		echo "busybox is missing (apt-get install busybox): the batch script is not tested under its shell"
	@test -x /usr/lib/rabbitmq/bin/rabbitmq-server || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && .ci/install-package rabbitmq-server rabbitmq-server; } || \
		echo "rabbitmq-server is missing (apt-get install rabbitmq-server): its driver is not tested"
	@test -x /usr/sbin/sshd || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		  .ci/install-package openssh-client && .ci/install-package openssh-server ssh; } || \
		echo "sshd is missing (apt-get install openssh-server): transfers over SSH are not tested"
	@test -x /usr/sbin/globus-gridftp-server -a -x /usr/bin/globus-url-copy || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && .ci/install-package openssl && \
		  .ci/install-package globus-gass-copy-progs && \
		  .ci/install-package globus-gridftp-server-progs globus-gridftp-server globus-gridftp-sshftp; } || \
		echo "GridFTP is missing (apt-get install globus-gridftp-server-progs globus-gass-copy-progs): its driver is not tested"
	@test -x /usr/sbin/myproxy-server -a -x /usr/bin/myproxy-logon -a -x /usr/bin/grid-proxy-init || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && .ci/install-package globus-proxy-utils && \
		  .ci/install-package myproxy && .ci/install-package myproxy-server myproxy-server; } || \
		echo "MyProxy is missing (apt-get install myproxy myproxy-server globus-proxy-utils): renewing proxies is not tested"
	@test -x /usr/sbin/slurmctld || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		  .ci/install-package munge munge && .ci/install-package slurm-wlm slurmctld slurmd; } || \
		echo "Slurm is missing (apt-get install munge slurm-wlm): its driver is not tested on a real one"
	@test -x /usr/sbin/slurmdbd && test -x /usr/sbin/mariadbd && test -e /usr/share/doc/slurm-wlm-mysql-plugin || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		  .ci/install-package slurm-wlm-mysql-plugin && .ci/install-package slurmdbd slurmdbd && \
		  .ci/install-package mariadb-server mariadb; } || \
		echo "slurmdbd is missing (apt-get install slurmdbd slurm-wlm-mysql-plugin mariadb-server): Slurm's accounting is not tested"

# The environment is made anew when pyproject.toml changes. A new pip reads dependency groups; who made it by hand has an old one.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("edgecore needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Set PYTHON=...") if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq python3-venv; } || \
		{ echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml drivers/gridftp/pyproject.toml drivers/scp/pyproject.toml drivers/slurm/pyproject.toml examples/driver/pyproject.toml $(BIN)/pip
	$(BIN)/python -m pip install -q 'pip>=25.1'
	$(BIN)/python -m pip install -q -e '.[cli]' -e drivers/gridftp -e drivers/scp -e drivers/slurm -e examples/driver --group dev
	@touch $@

# The event generator comes as a binary wheel only: compiling it takes half an hour.
$(VENV)/.demo: $(STAMP)
	$(BIN)/python -m pip install -q --only-binary pythia8mc --group demo
	@touch $@
