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
    "trivet init instructions.jsonl rankings.jsonl --base ./my-base",
    "trivet rollout-server recipe.yaml --print --tensor-parallel-size 2",
)

SLOW = (
    "trivet init instructions.jsonl rankings.jsonl --prompts prompts.jsonl --base ./my-base",
    "trivet init instructions.jsonl --prompts lines.txt --base ./my-base --for 24gb",
    "trivet init instructions.jsonl rankings.jsonl --base ./my-base --for 24gb --out card.yaml",
    'trivet init "{path: table.tsv, header: false}" instructions.jsonl --base ./my-base --out table.yaml',
    "trivet init lines.txt --base scratch --out base.yaml",
    "accelerate launch --no_python trivet run RECIPE",
    "trivet run mine.yaml --set ppo.kl_coef=0.1",
    "trivet sft mine.yaml",
    "trivet evaluate runs/demo",
    "trivet evaluate runs/demo --systems sft,best-of-16,best-of-16:ppo.reward,ppo",
    "trivet evaluate runs/mine --prompts other_prompts.jsonl --systems sft,ppo",
    "trivet evaluate runs/mine --rankings reward-bench-2.parquet",
    "trivet evaluate runs/mine --prompts labelled.jsonl --metrics labels --set \"evaluation.labels=['yes', 'no']\"",
    "trivet report runs/demo runs/less-kl --out less-kl.html",
    "trivet report RUN",
    "trivet chat runs/demo",
    "trivet chat runs/demo --stage ppo --compare-with sft",
    "trivet chat runs/demo --compare-with runs/other",
    "trivet chat runs/mine --stage ppo --compare-with sft",
    "trivet export runs/mine --stage reward --to rewarder",
    "trivet export runs/mine --stage reward --to whole --merge",
    "trivet export runs/mine --stage ppo --to for-ollama --gguf q8_0",
    "trivet export runs/mine --stage ppo --to small --merge --dtype bf16",
    "trivet export runs/demo --stage ppo --to small --merge --dtype bf16",
    "trivet export runs/demo --stage ppo --to for-ollama --gguf q8_0",
    "trivet import SmolLM2-135M-Instruct.Q8_0.gguf --to smollm2",
    "trivet import model.gguf --to small --dtype bf16",
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
    "trivet run my.yaml --set ppo.kl_coef=0.1 sft.epochs=2 --run-dir runs/less-kl",
    "trivet run my.yaml --from reward --until ppo",
    "trivet pretrain my.yaml --set base.pretrain.steps=2000",
    "trivet sft my.yaml",
    "trivet sft my.yaml --set sft.learning_rate=1e-4 --run-dir runs/slower",
    "trivet rankings my.yaml --set rankings.annotator=my.py:kindness",
    "trivet reward my.yaml",
    "trivet reward my.yaml --input sft=runs/other/sft",
    "trivet ppo my.yaml --set ppo.kl_coef=0.1",
    "trivet ppo my.yaml --input sft=adapters/sft reward=runs/other/reward",
    "trivet evaluate runs/demo --prompts new.jsonl --systems sft,ppo,best-of-8",
    "trivet evaluate runs/demo --systems sft,best-of-8,best-of-8:ppo.reward",
    "trivet plan examples/demo.yaml",
    "trivet plan my.yaml --set sft.epochs=2",
    "trivet plan my.yaml --settings",
    "trivet plan my.yaml --fit 24GB --write small.yaml",
    "trivet models qwen2.5-0.5b",
    "trivet models ./my-base",
    "trivet score runs/demo answers.jsonl --out scored.jsonl",
    "trivet score runs/demo answers.csv --columns completion=reply",
    "trivet chat runs/demo --stage ppo --compare-with sft --preferences mine.jsonl",
    "trivet export runs/demo --stage ppo --to aligned --merge",
    "trivet report runs/demo",
    "trivet verify ~/trivet-store",
    "trivet ls ~/trivet-store",
    "trivet gc runs/demo --unfinished --yes",
    "trivet gc ~/trivet-store --days 7 --yes",
    "trivet data check train.jsonl held_out.jsonl",
    "trivet data check train.jsonl --columns prompt=question --ignore 'meta_*'",
    "trivet data check my.yaml --all",
    "trivet data fix chats.parquet",
    "trivet data fix chats.jsonl --out clean.jsonl",
    "trivet data fix chats.jsonl --out clean.jsonl --clean mask=[email,phone]",
    "trivet chat my-adapter --compare-with base",
    "trivet score ./classifier answers.jsonl --label kind",
    "trivet score ./some-reward-model answers.jsonl",
    "trivet score rewarder answers.jsonl",
    "trivet ppo mine.yaml --input sft=... reward=runs/other/reward",
    "trivet ppo mine.yaml --input sft=my_peft_adapter reward=runs/other/reward",
    "trivet reward mine.yaml --input sft=path/to/peft_folder",
    "trivet evaluate ./my-model --prompts new.jsonl --systems base",
    "trivet evaluate ./my-model --prompts new.jsonl --systems base,prompted:chain-of-thought",
    "trivet evaluate runs/demo --systems sft,ppo@20,path:exports/mine",
    "trivet evaluate runs/demo --systems sft,ppo@20,ppo,best-of-16",
    "trivet evaluate runs/mine --prompts other_prompts.jsonl --systems sft,ppo,path:other_model,prompted:few-shot",
    "trivet evaluate runs/mine --systems sft,ppo,path:exports/other,prompted:few-shot --prompts new.jsonl",
)

SERVED = {
    "trivet serve runs/mine": "",
    "trivet serve runs/mine --stage ppo": "",
    "trivet serve runs/demo": "",
    "trivet serve runs/demo --stage ppo --port 0": "",
    "trivet serve-reward data.demo.task:gold": "",
    "trivet serve-reward my_rewards.py:kindness --port 0": "",
    "trivet serve-reward runs/mine": "",
    "trivet serve-reward runs/demo": "",
    "trivet watch runs/mine": "mine",
    "trivet watch runs/demo": "mine",
    "trivet watch runs/demo --port 0": "mine",
    "trivet watch RUN": "mine",
}
"""Serves until it is stopped -> what its page says; '' of a scorer, which is asked for a score, and of models."""

ASK = (
    "trivet score http://127.0.0.1:8791/ answers.jsonl",
    "trivet run mine.yaml --set ppo.reward=http://127.0.0.1:8791/",
    "trivet run examples/remote_reward.yaml",
)
"""Run while ``trivet serve-reward data.demo.task:gold`` serves, among the slow tests."""

NEED_PACKAGES = {
    "trivet evaluate runs/mine --prompts answered.jsonl --metrics rouge,bleu,chrf,meteor,exact_match,perplexity": (
        "rouge_score", "sacrebleu", "nltk",
    ),
    "trivet evaluate runs/demo --prompts answered.jsonl --metrics rouge,chrf": ("rouge_score", "sacrebleu"),
    "trivet evaluate runs/mine --metrics self_bleu,refusal_rate,my_metrics.py:rhymes,folder:metrics/mine": (
        "sacrebleu", "evaluate",
    ),
}  # fmt: skip
"""Of the extra `metrics` -> what it imports; run among the slow tests where these are installed."""

HUB = "uploads to a hub: tests/pipelines/export/test_push.py uploads to a double of one"
LM_EVAL = "downloads the harness's tasks: tests/pipelines/evaluate/test_stage.py starts a stand-in for the harness"
ELSEWHERE = "serves until it is stopped: tests/pipelines/cli/test_serve_engines.py starts it"
VLLM = "serves until it is stopped, by a package of its own: `make test-vllm` starts it"
REAL_MODEL = "needs a model and public files, and an hour: tests/real/test_smollm2.py runs the recipes, cut short"
FURTHER = "needs a recipe with `continued`: tests/pipelines/run/test_continued.py runs the stage"
TAUGHT = "needs another run to learn from: tests/pipelines/run/test_distil.py runs the stage and exports it"
NOT_RUN = {
    "trivet serve runs/mine --stage ppo --engine": ELSEWHERE,
    "trivet serve runs/demo --stage ppo --engine": ELSEWHERE,
    "trivet serve runs/demo --engine": ELSEWHERE,
    "trivet continued my.yaml": FURTHER,
    "trivet distil my.yaml": TAUGHT,
    "trivet chat RUN --stage distil": TAUGHT,
    "trivet export runs/NAME --stage distil": TAUGHT,
    "make": "builds an environment, or runs for minutes to hours: tests/docs/test_commands.py makes a dry run",
    "pip": "installs packages from a registry: tests/docs/test_commands.py compares the extras with pyproject.toml",
    "python benchmarks/": (
        "a benchmark of hours, against installations of other releases: tests/docs/test_commands.py compares its "
        "options with its text"
    ),
    "torchrun --nnodes 2": "needs two machines: tests/docs/test_launch_files.py runs the files that start it",
    "trivet rollout-server mine.yaml --python": VLLM,
    "trivet rollout-server recipe.yaml --python": VLLM,
    "python3 -m venv vllm-env": "installs packages from a registry: `make vllm-env` does the same",
    "trivet chat qwen2.5-0.5b-instruct": "downloads a model: tests/pipelines/cli/test_chat.py has folders talk",
    "trivet evaluate runs/mine --lm-eval": LM_EVAL,
    "trivet export runs/mine --stage ppo --to aligned --push": HUB,
    "trivet export runs/demo --stage ppo --to aligned --push": HUB,
    "trivet evaluate runs/demo --lm-eval": LM_EVAL,
    "trivet ui": "serves until stopped: tests/pipelines/cli/test_ui.py, tests/pipelines/ui/test_browser.py start it",
    "trivet run examples/real_model/": REAL_MODEL,
    "trivet data fix alpaca_en_demo.json": REAL_MODEL,
    "trivet data fix dpo_en_demo.json": REAL_MODEL,
    "python constraints.py": REAL_MODEL,
    "trivet run virtual.yaml": "tests/docs/test_virtual_tokens.py runs the page",
    "trivet export runs/virtual --stage sft --to tuned": "tests/docs/test_virtual_tokens.py runs the page",
    "trivet run examples/demo.yaml": "the demo, in minutes: `make demo`; tests/docs/test_commands.py plans its recipe",
}
"""Beginning of a command -> why it is not run here."""


def reason_of(command: str) -> str:
    """Why a command is not run, '' where nothing says so."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")
