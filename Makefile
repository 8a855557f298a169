PYTHON ?= python3

demo: .venv/installed
	rm -rf runs/demo
	@echo "What the base alone makes of the test tables:"
	.venv/bin/python describe.py tiny --data sample
	@echo "What it makes of them with a prefix:"
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
