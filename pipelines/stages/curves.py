"""The curves of each stage in the report: key of ``metrics.jsonl``, title, what to expect.

Keys that a run does not have are left out.
"""

from __future__ import annotations

Curves = tuple[tuple[str, str, str], ...]

PRETRAIN: Curves = (("loss", "Loss", "Nats a token; falls, then flattens."),)
CONTINUED: Curves = (("loss", "Loss", "Nats a token; falls slowly, since the base knows most of it."),)
SFT: Curves = (
    ("loss", "Loss", "Nats a token of the demonstrations; falls, then flattens."),
    (
        "held_out/loss",
        "Held-out loss",
        "Nats a token of held-out demonstrations; falls below its start.",
    ),
    ("mean_token_accuracy", "Token accuracy", "Share of tokens predicted; rises."),
)
DISTIL: Curves = (
    ("loss", "Loss", "Nats a token: -log p of the teacher's tokens, or the KL to its distribution; falls."),
    ("held_out/loss", "Held-out loss", "Of held-out prompts; falls below its start."),
    ("mean_token_accuracy", "Agreement", "Share of tokens that both models find the likeliest; rises."),
)
REWARD: Curves = (
    ("loss", "Loss", "0.69 is a coin's; falls below it."),
    ("held_out/loss", "Held-out loss", "Of rankings that are not trained on; where it rises again, stop."),
    ("held_out/accuracy", "Accuracy on held-out pairs", "0.5 is a coin's; what counts for PPO."),
    ("pair_accuracy", "Accuracy on training pairs", "0.5 is a coin's; near 1 is learning by heart."),
    ("accuracy", "Accuracy on training pairs", "0.5 is a coin's; near 1 is learning by heart."),
)
PPO: Curves = (
    ("objective/scores", "Reward", "The reward model's score; rises."),
    ("holdout/held_out", "Held-out reward model", "In spreads of SFT's scores. PPO never sees it; rises as well."),
    ("objective/kl", "KL to the reference", "Nats a response; grows slowly. A sudden rise is a warning."),
    ("holdout/held_out", "Held-out reward model", "A score that PPO does not see; where it falls, stop."),
    (
        "holdout/proxy",
        "Reward model, at the same evaluations",
        "In standard deviations over SFT samples.",
    ),
    ("objective/entropy", "Entropy", "Nats a token; falls a little. Near 0 all responses are alike."),
    ("rollout/length", "Response length", "Tokens; should not run away."),
    ("rollout/truncated_fraction", "Cut off", "Share of responses at the length limit; stays low."),
    ("rollout/scored_cut_fraction", "Scored in part", "Share of responses beyond the reward model's limit; stays 0."),
    ("rollout/scored_unknown_fraction", "Unread by the reward model", "Share of its tokens that it has none for; low."),
    ("ppo/value/explained_variance", "Value: explained variance", "1 is perfect, 0 is useless; rises."),
    ("ppo/policy/clipfrac", "Clipped steps", "Share of tokens at the clip; below 0.3 is usual."),
    ("ppo/loss/ptx", "Pretraining loss (PTX)", "Nats a token of documents or demonstrations; stays low."),
    ("ppo/policy/approxkl", "Policy change an update", "Nats a token; small and steady."),
)
