# Verbs for people and for CI. `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SECONDS ?= 10
PLACE ?= /var/tmp/onesec-bench
export ONESEC_WERROR := 1
NEEDS := gcc clang make pkg-config python3-dev python3-venv librust-blake3-dev libzstd-dev liblmdb-dev \
	libcurl4-openssl-dev libfuse3-dev libseccomp-dev fuse3 erofs-utils crun runc skopeo umoci mmdebstrap golang-github-containers-common casync \
	fio zstd attr podman iproute2 docker-registry nginx openssl chromium fonts-dejavu-core
SANITIZED := tests/unit/cext tests/unit/cache tests/property tests/interop/test_run.py tests/interop/test_whole_road.py \
	tests/fuse/test_mount.py tests/fuse/test_chunk_store.py tests/fuse/test_object_server.py tests/fuse/test_objects.py \
	tests/fuse/test_remote_objects.py tests/fuse/test_remote_process.py tests/fuse/test_read_ahead.py tests/security/test_fetch_link.py \
	tests/security/test_spans_between_images.py tests/fuse/test_prefetch.py tests/fuse/test_learned_reads.py \
	tests/fuse/test_portable.py tests/fuse/test_prefill.py tests/fuse/test_boot_reads.py tests/unit/lazyfs/test_bootpack.py
# What has threads of ours.
THREADED := tests/unit/cext tests/unit/cache $(filter-out %_cuts.py %_faults.py,$(wildcard tests/property/test_store*.py)) tests/interop/test_run.py \
	tests/fuse/test_mount.py tests/fuse/test_chunk_store.py tests/fuse/test_object_server.py tests/fuse/test_objects.py \
	tests/fuse/test_remote_objects.py tests/fuse/test_remote_process.py tests/fuse/test_read_ahead.py tests/security/test_fetch_link.py \
	tests/security/test_spans_between_images.py tests/fuse/test_prefetch.py tests/fuse/test_learned_reads.py \
	tests/fuse/test_prefill.py

.PHONY: help setup test lint types sanitize fuzz reference demo bench bench-micro clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .make/apt .make/venv ## install what is missing, make .venv, build the C parts

.make/apt: Makefile
	@mkdir -p .make
	@missing=""; for name in $(NEEDS); do dpkg-query -W -f='$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; done; \
	if [ -n "$$missing" ]; then \
		sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		.ci/again $$sudo apt-get update -q && .ci/again $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi
	@# What clang's sanitizers link with has its version in its name.
	@runtime=libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev; \
	if ! dpkg-query -W -f='$${Status}' $$runtime 2>/dev/null | grep -q 'ok installed'; then \
		sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		.ci/again $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$runtime; \
	fi
	@touch $@

.make/venv: pyproject.toml setup.py $(wildcard cext/src/*.c cext/src/*.h)
	@mkdir -p .make
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	.ci/again $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

test: setup ## run the whole suite; TESTS=… a part of it
	$(BIN)/python -m pytest -q $(TESTS)

lint: setup ## ruff, clang-format, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror cext/src/*.[ch] tests/support/*.c benchmarks/micro/*.c benchmarks/macro/programs/*.[ch]
	$(BIN)/codespell -L clen --skip './.*,./build,*.json,./uv.lock' .

types: setup ## mypy --strict, sources and tests
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy --explicit-package-bases tests docs/reference/generate.py

sanitize: setup ## the C-related tests under ASan+UBSan, then under TSan
	.ci/sanitize address,undefined $(SANITIZED)
	.ci/sanitize thread $(THREADED)

fuzz: setup ## fuzz every decoder for SECONDS each
	ONESEC_FUZZ_SECONDS=$(SECONDS) .ci/sanitize address,undefined tests/fuzz

reference: setup ## write docs/reference from the code
	$(BIN)/python docs/reference/generate.py

demo: setup ## build a torch image, start it from an empty page cache, say where the time went
	$(BIN)/python -m benchmarks.demo

bench: setup ## measure against the peers: every scenario, JSON and a report in benchmarks/results (an hour, 40 GB)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m onesec bench --place $(PLACE) --results benchmarks/results

bench-micro: setup ## measure the kernels: pytest-benchmark, JSON in benchmarks/results
	$(BIN)/python -m pytest benchmarks/micro -o python_files='bench_*.py' -o python_functions='bench_*' \
		--benchmark-json=benchmarks/results/micro.json

clean: ## remove what was built
	rm -rf .make $(VENV) build dist *.egg-info cext/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
