# Needs Python 3.11 or later with pip, and make. Everything is installed into .venv; `make test`
# also needs a browser (see `needs`).
PYTHON ?= python3
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help venv demo figures pendulum models long-training self-improvement bench adaptation needs check test \
	test-processors test-nightly fix clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: .venv/.installed-dev ## Make .venv with all that development needs

demo: .venv/.installed-report ## Meta-train, adapt, evaluate, write a report (runs/demo)
	rm -rf runs/demo
	.venv/bin/ssm-metarl train --family cartpole --core state_space --seed 0 --out runs/demo
	.venv/bin/ssm-metarl adapt --model runs/demo --task '{"force": 7, "sign": 1}' --out runs/demo/weak.safetensors
	.venv/bin/ssm-metarl evaluate --model runs/demo --num_tasks 200 --seed 10000 --report runs/demo/report

SEEDS = 0 1 2 3 4 5 6 7 8 9

figures: demo ## Train on ten seeds (10 minutes), and put them into docs/figures.md
	for seed in $(SEEDS); do \
		rm -rf runs/seed-$$seed; \
		.venv/bin/ssm-metarl train --family cartpole --seed $$seed --out runs/seed-$$seed || exit; \
		for split in id ood; do \
			.venv/bin/ssm-metarl evaluate --model runs/seed-$$seed --num_tasks 200 --seed 10000 \
				--split $$split --json > runs/seed-$$seed/$$split.json || exit; \
		done \
	done
	.venv/bin/python docs/update_readme.py $(SEEDS)

models: .venv/.installed-report ## Train, evaluate and ship the four models with their cards (10 minutes)
	rm -rf runs/cartpole runs/cartpole_hybrid_real_model runs/cartpole_in_context runs/pendulum_in_context
	.venv/bin/ssm-metarl train --family cartpole --seed 0 --tasks_per_epoch 32 \
		--max_env_steps 2900000 --out runs/cartpole
	.venv/bin/ssm-metarl train --family cartpole --seed 0 --core state_space \
		--adaptation_mode hybrid --out runs/cartpole_hybrid_real_model
	.venv/bin/ssm-metarl train --mode in_context --family cartpole --seed 0 --out runs/cartpole_in_context
	.venv/bin/ssm-metarl train --mode in_context --family pendulum --seed 0 --out runs/pendulum_in_context
	.venv/bin/python docs/ship_models.py cartpole cartpole_hybrid_real_model cartpole_in_context \
		pendulum_in_context

long-training: .venv/.installed-report ## Train five times as long, and draw the curve (3 minutes)
	rm -rf runs/long
	.venv/bin/ssm-metarl train --family cartpole --seed 0 --max_env_steps 7250000 --out runs/long
	.venv/bin/python docs/draw_long_training.py

PENDULUM_SEEDS = $(SEEDS)

pendulum: .venv/.installed-report ## Train both modes on ten seeds of the pendulum (40 minutes)
	for seed in $(PENDULUM_SEEDS); do for mode in meta_rl in_context; do \
		out=runs/pendulum-$$mode-$$seed; rm -rf $$out; \
		.venv/bin/ssm-metarl train --mode $$mode --family pendulum --seed $$seed --out $$out || exit; \
		for split in id ood; do \
			.venv/bin/ssm-metarl evaluate --model $$out --num_tasks 200 --seed 50000 \
				--split $$split --json > $$out/$$split.json || exit; \
		done \
	done; done
	.venv/bin/python docs/update_pendulum.py $(PENDULUM_SEEDS)

RSI_SEEDS = 0 1 2 3 4

self-improvement: .venv/.installed-dev ## Run and audit the ten published lineages (an hour)
	rm -rf runs/half runs/rsi-*
	.venv/bin/ssm-metarl train --family cartpole --seed 1 --max_env_steps 200000 \
		--calibration_tasks 0 --out runs/half
	for seed in $(RSI_SEEDS); do for model in half cartpole; do \
		from=$$model; [ $$model = half ] && from=runs/half; \
		lineage=runs/rsi-$$model-$$seed; mkdir -p $$lineage; \
		.venv/bin/ssm-metarl rsi run --model $$from --cycles 3 --seed $$seed \
			--max_env_steps 20000000 --lineage $$lineage --json > $$lineage/run.json || exit; \
		.venv/bin/ssm-metarl rsi audit --lineage $$lineage --num_tasks 500 --json > $$lineage/audit.json || exit; \
		.venv/bin/ssm-metarl rsi plot --lineage $$lineage || exit; \
	done; done
	.venv/bin/python -m benchmarks.gate_simulation > docs/results/rsi_gate.json
	.venv/bin/python docs/update_rsi.py $(RSI_SEEDS)

bench: .venv/.installed-bench ## Measure speed and memory against other libraries (10 minutes)
	.venv/bin/python -m benchmarks.performance
	PYTHONPATH=. .venv/bin/python docs/update_performance.py

adaptation: .venv/.installed-report ## Compare all ways to adapt, ten seeds each (two hours; goes on where it was)
	.venv/bin/ssm-metarl bench adaptation --out ssm_metarl/app/results
	.venv/bin/python docs/update_adaptation.py

check: .venv/.installed-dev ## Format, lint, types, import contract, fast tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTEST) -m "not slow and not gate and not nightly"

BROWSERS = chromium chromium-browser google-chrome

# What pip cannot install: a browser for the tests of the web app, and where Debian splits it off
# from Python, the package that makes virtual environments.
needs:
	@missing=; \
	for name in $(BROWSERS); do command -v $$name > /dev/null && break; done || \
		missing=chromium; \
	[ -x .venv/bin/python ] || $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		missing="$$missing $(notdir $(PYTHON))-venv"; \
	[ -n "$$missing" ] || exit 0; \
	as_root=; [ $$(id -u) = 0 ] || as_root="sudo -n"; \
	if command -v apt-get > /dev/null && $$as_root true 2> /dev/null; then \
		echo "make test: installing with apt-get:" $$missing && \
		$$as_root apt-get update -qq && \
		$$as_root apt-get install -y -qq --no-install-recommends $$missing > /dev/null && exit 0; \
	fi; \
	echo "make test needs what is missing here, please install:" $$missing >&2; exit 1

test: needs check ## What continuous integration runs: check, a real meta-training, the wheel
	$(PYTEST) -m "slow and not nightly"
	rm -rf build/lib build/bdist.* build/wheel
	.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	.venv/bin/python -m zipfile --list build/wheel/*.whl | grep 'ssm_metarl/py\.typed'
	! .venv/bin/python -m zipfile --list build/wheel/*.whl | grep '^benchmarks\|/benchmarks/'

test-processors: .venv/.installed-dev ## Numerical tests as on other x86-64 processors (10 minutes)
	.venv/bin/python tests/processors.py

test-nightly: test demo .venv/.installed-ray ## Long counts, the gate's certificate, Ray, the demo
	$(PYTEST) -m "gate or nightly"

fix: .venv/.installed-dev ## Format, and repair what the linter can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean: ## Remove .venv, builds and caches
	rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
		.ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv whose creation failed would look complete to the next run: it is removed.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "ssm-metarl needs Python 3.11 or later; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing). Name another one:" \
			"make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install python3-venv" \
			"(on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# A stamp for each set of extras. A torch that is already in .venv (a CUDA or a CPU build, put
# there by hand) stays as it is; otherwise the constraints choose its version.
.venv/.installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@if .venv/bin/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; \
		then grep -v '^torch==' constraints.txt; else cat constraints.txt; \
		fi > .venv/constraints.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv/constraints.txt --editable '.[$*]'
	@touch $@
