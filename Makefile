PYTHON ?= python3

demo: .venv/installed
	rm -rf runs/demo
	.venv/bin/python train.py --mode prefix --demo

test: .venv/installed-dev
	.venv/bin/python -m pytest

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -r requirements.txt
	touch $@

.venv/installed-dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -r requirements-dev.txt
	touch $@

.PHONY: demo test
