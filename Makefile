PYTHON ?= python3

demo: .venv/installed
	rm -rf runs/demo
	.venv/bin/python describe.py tiny --data sample --out runs/demo/base
	.venv/bin/python train.py --mode prefix --demo
	.venv/bin/python train.py --mode finetune --demo
	.venv/bin/python compare.py runs/demo/base runs/demo/prefix runs/demo/finetune --tables 3 \
		--out runs/demo

test: .venv/installed-dev
	.venv/bin/python -m pytest

long: .venv/installed-dev
	.venv/bin/python -m pytest -m long

results: .venv/installed
	.venv/bin/python -m experiments.make
	.venv/bin/python -m experiments.show

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -r requirements.txt
	touch $@

.venv/installed-dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -r requirements-dev.txt
	touch $@

.PHONY: demo test long results
