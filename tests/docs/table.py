"""What becomes of each command of README and docs: run, run among the slow tests, or not run here and why."""

from __future__ import annotations

FIRST = "trivet run mine.yaml"
"""Makes the run that the others look at."""

QUICK = (
    "torchrun --nproc_per_node 2 --no-python trivet run RECIPE",
    "trivet --help",
    "trivet data check instructions.jsonl rankings.jsonl prompts.jsonl",
    "trivet data fix chats.jsonl --out clean.jsonl --clean mask=[email,phone] markup=true duplicates=near",
    "trivet plan mine.yaml",
    "trivet plan RECIPE --settings",
    "trivet verify runs/mine",
    "trivet ls",
    "trivet gc",
    "trivet gc --unfinished",
    "trivet gc --cache",
    "trivet score runs/mine answers.jsonl",
    "trivet report runs/mine runs/other",
    "trivet export runs/mine --stage ppo --to aligned --merge",
    "trivet models",
)

SLOW = (
    "accelerate launch --no_python trivet run RECIPE",
    "trivet run mine.yaml --set ppo.kl_coef=0.1",
    "trivet sft mine.yaml",
    "trivet evaluate runs/demo",
    "trivet evaluate runs/demo --systems sft,best-of-16,best-of-16:ppo.reward,ppo",
    "trivet evaluate runs/mine --prompts other_prompts.jsonl --systems sft,ppo",
    'trivet evaluate runs/mine --prompts labelled.jsonl --metrics labels --set "evaluation.labels=[yes, no]"',
    "trivet report runs/demo runs/less-kl --out less-kl.html",
    "trivet report RUN",
    "trivet chat runs/demo",
    "trivet chat runs/demo --stage ppo --compare-with sft",
    "trivet chat runs/demo --compare-with runs/other",
    "trivet chat runs/mine --stage ppo --compare-with sft",
    "trivet export runs/mine --stage reward --to rewarder",
    "trivet run my.yaml --store ~/trivet-store",
    "trivet run my.yaml --store ~/trivet-store --set ppo.kl_coef=0.1 --run-dir runs/less-kl",
    "trivet run my.yaml --profile",
    "trivet plan my.yaml",
    "trivet plan my.yaml --fit 24GB",
    "trivet plan my.yaml --fit auto --write small.yaml",
    "trivet plan RECIPE",
    "trivet plan my.yaml --store DIR",
    "trivet ls runs/demo",
    "trivet verify runs/demo",
    "trivet gc runs/demo --yes",
    "trivet gc --cache --days 0 --yes",
    "trivet data check FILE...",
    "trivet data check RECIPE",
    "trivet COMMAND --help",
)

MAKE = "builds an environment and runs for minutes to hours: the targets' own tests are the suite and the benchmarks"
SERVES = "serves until it is stopped: tests/pipelines/cli/test_serve_reward.py and test_watch.py ask its server"
NEEDS = "needs a model, data or tokens that only its reader has; its parts are tested in tests/pipelines"
NOT_RUN = {
    "make": MAKE,
    "pip": "installs packages from a registry",
    "python benchmarks/": "a benchmark of hours, against installations of other releases",
    "torchrun --nnodes 2": "needs two machines and servers: test_launch_files.py runs the files that start it",
    "trivet serve-reward": SERVES,
    "trivet watch": SERVES,
    "trivet rollout-server": "serves until it is stopped, by a package of its own: `make test-vllm` starts it",
    "python3 -m venv vllm-env": "installs packages from a registry: `make vllm-env` does the same",
    "trivet score http://127.0.0.1:8791/ answers.jsonl": "needs the server of the line before: test_serving.py asks it",
    "trivet run mine.yaml --set ppo.reward=http://127.0.0.1:8791/": "needs that server: test_serving.py trains by it",
    "trivet run examples/remote_reward.yaml": "needs that server: test_serving.py trains this recipe",
    "trivet chat qwen2.5-0.5b-instruct": "downloads a model",
    "trivet chat my-adapter --compare-with base": NEEDS,
    "trivet score ./classifier": NEEDS,
    "trivet score rewarder": NEEDS,
    "trivet ppo mine.yaml --input": NEEDS,
    "trivet reward mine.yaml --input": NEEDS,
    "trivet evaluate ./my-model": NEEDS,
    "trivet evaluate runs/demo --systems sft,ppo@20": "needs a kept checkpoint of update 20; test_runner.py keeps one",
    "trivet evaluate runs/mine --systems sft,ppo,path:exports/other": NEEDS,
    "trivet evaluate runs/mine --prompts other_prompts.jsonl --systems sft,ppo,path:other_model": NEEDS,
    "trivet evaluate runs/mine --prompts answered.jsonl --metrics rouge": "needs packages beside trivet's own",
    "trivet evaluate runs/mine --metrics self_bleu": NEEDS,
    "trivet evaluate runs/mine --lm-eval": "downloads the harness's tasks",
}
"""Beginning of a command -> why it is not run here."""


def reason_of(command: str) -> str:
    """Why a command is not run, '' where nothing says so."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")
