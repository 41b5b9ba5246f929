# Every target sets up .venv by itself: Python 3.11 or newer and make are all it takes.

DATA   ?=
CONFIG ?= edge
RUN    ?=
OUT    ?=
VIDEO  ?=
TABLE  ?=
BUNDLE ?=
ENGINE ?=
PRECISION ?=
SPLIT  ?=
PYTHON_VERSION ?=
EXTRAS ?=
WHEELHOUSE ?=
ARGS   ?=

PYTHON ?= python3
PY     := .venv/bin/python
SFN_RT := .venv/bin/sfn-rt
STAMP  := .venv/.stamp

# pip must not make another environment's packages look installed
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help demo train export calibrate eval ablate test check bench wheelhouse gpu-check clean
.DELETE_ON_ERROR:

help:  ## this text
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	  | while IFS='|' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done
	@echo
	@echo "ARGS is passed on, as in: make train DATA=videos ARGS=--resume"

demo: $(STAMP)  ## train, export, score, evaluate on made-up video, or on DATA=folder
	$(PY) scripts/demo.py $(if $(DATA),--data "$(DATA)") $(ARGS)

train: $(STAMP)  ## DATA=folder [CONFIG=edge] [RUN=runs/edge]: a run folder
	$(call need,DATA,a folder of normal videos)
	$(PY) -m sfn_train train "$(DATA)" --config "$(CONFIG)" --out "$(or $(RUN),runs/$(CONFIG))" $(ARGS)

export: $(STAMP)  ## RUN=folder [OUT=bundle] [ENGINE=1]: ONNX graphs, parity checked, in a bundle
	$(call need,RUN,a run folder that make train wrote)
	$(PY) -m sfn_export bundle "$(RUN)" --out "$(or $(OUT),bundle)" $(ARGS)
	$(if $(ENGINE),$(PY) -m sfn_export engine "$(or $(OUT),bundle)" --run "$(RUN)")

calibrate: $(STAMP)  ## DATA=folder [BUNDLE=bundle] [PRECISION=int8]: a lower precision, gated in AUC
	$(call need,DATA,the folder of normal videos that the model was trained on)
	$(PY) -m sfn_calib "$(or $(BUNDLE),bundle)" --data "$(DATA)" \
	  --precision "$(or $(PRECISION),int8)" $(if $(OUT),--out "$(OUT)") $(ARGS)

eval: $(STAMP)  ## DATA=folder [BUNDLE=bundle] [OUT=folder]: AUC and the rest
	$(call need,DATA,a folder with test videos and labels)
	$(SFN_RT) eval "$(DATA)" $(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(OUT),--out "$(OUT)") $(ARGS)

ablate: $(STAMP)  ## DATA=folder [TABLE=branches|filters|memory|losses|windows|all]: tables of ablations
	$(call need,DATA,a folder with normal videos and labelled test videos)
	$(PY) -m sfn_train ablate "$(DATA)" --table "$(or $(TABLE),all)" --config "$(CONFIG)" \
	  --out "$(or $(OUT),runs/ablation)" $(ARGS)

test: $(STAMP)  ## the tests; SFN_DATA=folder adds those on real video; ARGS="-m slow" the long ones
	$(PY) -m pytest -m "not slow and not gpu" $(ARGS)

check: $(STAMP)  ## lint, format, types, import directions, installed versions
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m pip check

bench: $(STAMP)  ## VIDEO=file [BUNDLE=bundle]: frames/s, end to end and by stage
	$(call need,VIDEO,a video file or a folder of frames)
	$(SFN_RT) bench "$(VIDEO)" $(if $(BUNDLE),--bundle "$(BUNDLE)") $(ARGS)

wheelhouse: $(STAMP)  ## [SPLIT=60M] [PYTHON_VERSION=3.12] [EXTRAS=gpu,cuda,rtx,trt]: what a GPU machine needs
	$(PY) scripts/wheelhouse.py $(if $(OUT),--out "$(OUT)") $(if $(SPLIT),--split "$(SPLIT)") \
	  $(if $(PYTHON_VERSION),--python-version "$(PYTHON_VERSION)") \
	  $(if $(EXTRAS),--extras "$(EXTRAS)") $(if $(BUNDLE),--bundle "$(BUNDLE)") $(ARGS)

gpu-check:  ## [WHEELHOUSE=folder]: build, test and measure on this machine's GPU
	$(PYTHON) scripts/gpu_check.py $(if $(WHEELHOUSE),--wheelhouse "$(WHEELHOUSE)") $(ARGS)

clean:  ## remove the environment, the demo and the tools' caches; runs and bundles stay
	rm -rf .venv demo dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp: an interrupted setup leaves it untouched, and the next `make` repairs the rest.
$(STAMP): pyproject.toml scripts/bootstrap.py
	$(PYTHON) scripts/bootstrap.py
	@touch $@

need = @test -n "$($(1))" || { echo "error: say $(1)=..., $(2); see make help" >&2; exit 2; }
