"""The recipe of the smallest whole run; it takes seconds. Not a test file."""

RECIPE = {
    "name": "least",
    "base": {
        "pretrain": {
            "tokenizer": "words",
            "vocabulary": 300,
            "steps": 12,
            "batch": 8,
            "model": {"layers": 2, "width": 32, "feed_forward": 64, "heads": 4, "context": 128},
        }
    },
    "template": "dialogue",
    "data": {
        "documents": "demo-world?rows=200",
        "demonstrations": "demo-world?rows=60",
        "prompts": "demo-world?rows=80",
        "held_out": 0.2,
    },
    "adapter": {"rank": 4, "alpha": 8},
    "sft": {"learning_rate": 3e-3, "batch": 16},
    "rankings": {
        "annotator": "data.demo.task:gold",
        "prompts": 16,
        "held_out_prompts": 8,
        "answers": 3,
        "max_new_tokens": 12,
    },
    "reward": {"learning_rate": 3e-3, "batch": 8, "micro_batch": 8, "centre_samples": 8},
    "ppo": {
        "updates": 2,
        "rollouts": 8,
        "epochs": 1,
        "learning_rate": 1e-3,
        "max_new_tokens": 12,
        "keep_every": 1,
    },
    "evaluation": {"prompts": 6, "gold": "data.demo.task:gold", "bootstrap": 50},
    "runtime": {"device": "cpu", "threads": 1},
}
