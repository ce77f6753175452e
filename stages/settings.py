"""The settings of every stage, frozen and typed; the reasons of the defaults are in ``docs/how-to/recipe.md``.

Light on purpose: reading a recipe, planning a run and printing help import no torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from data.common.config import COOLEST, Config, greedy_or_warm
from data.common.tables import in_table
from reward.settings import GateConfig, RewardPart
from reward.tables import LOSSES, POOLINGS

SMALLEST_UNIGRAM = 300  # tokens, most of which are bytes
KEPT = "policies"  # folder of the ppo stage: policies kept on the way, for evaluation


WarmUp = Annotated[float, Field(ge=0, lt=1, description="share of steps of linear warm-up")]
AfterWarmUp = Annotated[Literal["linear", "cosine", "constant"], Field(description="learning rate after warm-up")]
ClipNorm = Annotated[float, Field(gt=0, description="gradient norm clip")]
WeightDecay = Annotated[float, Field(ge=0, description="AdamW weight decay")]
KeptWeights = Annotated[
    Literal["last", "best"],
    Field(description="the weights after the last step, or those of the evaluation with the lowest held-out loss"),
]
Patience = Annotated[
    int | None,
    Field(ge=1, description="stop after so many evaluations in a row without a lower held-out loss; null: never"),
]
SkippedSteps = Annotated[
    int | None,
    Field(ge=1, description="stop after so many steps in a row without finite loss and gradient; null: never"),
]
"""Settings that several stages have, with what they say of themselves."""


class CheckpointConfig(Config):
    """How often a running stage is saved, so that the same command resumes after a kill. Changes no result."""

    every_minutes: float | None = Field(10.0, ge=0, description="minutes between checkpoints; 0: at every safe point")
    every_steps: int | None = Field(None, ge=1, description="also after so many steps (PPO: updates)")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")


class PretrainModel(Config):
    """Shape of a base trained from scratch (a Llama, or a ModernBERT, with tied embeddings)."""

    layers: int = Field(2, ge=1, description="transformer layers")
    width: int = Field(96, ge=8, description="hidden size; a multiple of heads")
    feed_forward: int = Field(256, ge=8, description="width of the gated feed-forward layer")
    heads: int = Field(4, ge=1, description="attention heads")
    context: int = Field(256, ge=8, description="longest sequence in tokens")
    init_std: float = Field(0.1, gt=0, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _divides(self) -> PretrainModel:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        return self


class PretrainConfig(Config):
    """A base model from scratch, for the demo and for data in languages without a small base."""

    objective: Literal["causal", "masked"] = Field(
        "causal",
        description="causal: a Llama predicts next tokens; masked: an encoder predicts hidden ones, for reward.base",
    )
    tokenizer: Literal["words", "bpe", "wordpiece", "unigram", "characters"] = Field(
        "bpe",
        description="words, byte-level BPE, WordPiece, SentencePiece's unigram model (trivet[unigram]), or characters",
    )
    vocabulary: int = Field(2048, ge=16, description="largest vocabulary, special tokens included")
    given_tokenizer: str | None = Field(
        None, description="a folder, a name or a hub id whose tokenizer is taken as it is; null: one is trained"
    )
    model: PretrainModel = PretrainModel()
    steps: int = Field(450, ge=1, description="optimizer steps")
    batch: int = Field(24, ge=1, description="documents a step")
    shuffle: bool = Field(True, description="a new order each pass; false: as given, so that a lesson can come first")
    learning_rate: float = Field(1e-2, gt=0, description="Adam, for embeddings, norms and biases")
    matrix_learning_rate: float = Field(0.03, gt=0, description="Muon, for weight matrices")
    max_skipped_steps: SkippedSteps = 20

    @model_validator(mode="after")
    def _has_room(self) -> PretrainConfig:
        if self.tokenizer == "unigram" and self.vocabulary < SMALLEST_UNIGRAM:
            raise ValueError(
                "tokenizer 'unigram' has 260 tokens before it learns any (256 bytes and 4 special ones), and "
                f"vocabulary is {self.vocabulary}: raise it to {SMALLEST_UNIGRAM} or more"
            )
        return self


class ContinuedConfig(Config):
    """Continued pretraining: the whole base is trained on ``data.documents``, and later stages stand on the result.

    A causal base learns next tokens; an encoder learns hidden ones, and reward models of other recipes stand on it.
    """

    steps: int = Field(300, ge=1, description="optimizer steps")
    batch: int = Field(16, ge=1, description="chunks of documents a step, over all processes")
    context: int | None = Field(
        None, ge=8, description="tokens of a chunk; null: as many as the base has positions, at most 1,024"
    )
    shuffle: bool = Field(True, description="a new order each pass; false: as given")
    learning_rate: float = Field(1e-4, gt=0, description="peak, of AdamW, for all weights")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of steps in which the rate rises again")
    schedule: AfterWarmUp = "cosine"
    final_learning_rate: float = Field(0.1, ge=0, le=1, description="share of the learning rate left at the end")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, of matrices")
    max_grad_norm: ClipNorm = 1.0
    added_vocabulary: int = Field(
        0, ge=0, description="tokens that are learnt from the documents and added to the base's, each with a new row"
    )
    max_skipped_steps: SkippedSteps = 20


class SFTConfig(Config):
    """Instruction tuning on demonstrations, run by TRL's SFTTrainer."""

    RATE_DIVISOR: ClassVar[int] = 1  # of the learning rate by width (``pipelines.recipe.rates``)
    ROWS_LIMIT: ClassVar[str] = "max_tokens"  # the setting by which long rows are cut or left out

    epochs: float = Field(1.0, gt=0, description="passes over the demonstrations; left out, or auto: by their number")
    learning_rate: float = Field(
        2e-4, ge=0, description="peak learning rate; left out, or auto: by the base's width and the method"
    )
    batch: int = Field(
        16, ge=1, description="conversations an optimizer step, over all processes; left out, or auto: by their number"
    )
    micro_batch: int = Field(16, ge=1, description="conversations a forward pass, at most")
    batch_tokens: int | None = Field(
        None, ge=8, description="padded tokens a forward pass, instead of micro_batch; changes memory, not results"
    )
    warmup: WarmUp = 0.03
    schedule: AfterWarmUp = "cosine"
    max_tokens: int = Field(1024, ge=8, description="longest conversation; longer ones are cut")
    supervise: Literal["all", "last"] = Field("all", description="which assistant turns are trained on")
    max_grad_norm: ClipNorm = 1.0
    weight_decay: WeightDecay = 0.0
    held_out_every: int | None = Field(
        None,
        ge=0,
        description="steps between evaluations of held-out demonstrations; null: a tenth of all steps; 0: none",
    )
    held_out_rows: int | None = Field(
        None,
        ge=1,
        description="held-out demonstrations of such an evaluation, evenly spaced; null: as many as take about a tenth "
        "of the time, 32 to 512",
    )
    keep: KeptWeights = "last"
    patience: Patience = None
    max_skipped_steps: SkippedSteps = 20


class DistilConfig(SFTConfig):
    """Distillation: the run's base learns from a larger model, on that one's responses or by its distributions."""

    teacher: str = Field(
        description="the stage of another run (its folder), an adapter's or a model's folder, a name or a hub id"
    )
    loss: Literal["sequence", "logits"] = Field(
        "sequence",
        description="sequence: -log p of the teacher's tokens; logits: forward KL to its distribution, which needs the "
        "same tokenizer",
    )
    temperature: float = Field(1.0, ge=COOLEST, description="of both distributions, with loss logits")
    responses: Literal["teacher", "demonstrations"] = Field(
        "teacher", description="what is learnt on: the teacher's responses to prompts, or the demonstrations (logits)"
    )
    init: Literal["sft", "base"] = Field("sft", description="adapter to start from, where the run has one")
    prompts: int | None = Field(None, ge=1, description="training prompts that the teacher responds to; null: all")
    held_out_prompts: int = Field(256, ge=0, description="held-out prompts likewise, for the held-out loss")
    sampling_temperature: Annotated[float, AfterValidator(greedy_or_warm)] = Field(
        0.0, ge=0, description="of the teacher's responses; 0: its highest token each time"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest response of the teacher")
    sampling_batch: int = Field(64, ge=1, description="responses of the teacher that are sampled at once")

    @model_validator(mode="after")
    def _learns_from_the_teacher(self) -> DistilConfig:
        if self.loss == "sequence" and self.responses == "demonstrations":
            raise ValueError(
                "loss 'sequence' on responses 'demonstrations' takes nothing from the teacher: use loss 'logits', "
                "responses 'teacher', or the sft stage"
            )
        return self


class RankingsConfig(Config):
    """Ranked responses made by sampling from the SFT model and asking an annotator (a Python function)."""

    annotator: str = Field(description="'file.py:function' or 'package.module:function' that scores responses")
    prompts: int = Field(1000, ge=1, description="training prompts to respond to")
    held_out_prompts: int = Field(256, ge=0, description="held-out prompts likewise, for the reward model's accuracy")
    answers: int = Field(4, ge=2, description="responses sampled for each prompt")
    noise: float = Field(0.0, ge=0, description="scale of Gumbel noise on the annotator's scores (Plackett-Luce)")
    temperature: float = Field(1.0, ge=COOLEST, description="sampling temperature")
    max_new_tokens: int = Field(
        64, ge=1, description="longest response; left out, or auto: by those of the demonstrations"
    )
    batch: int = Field(128, ge=1, description="responses generated at once")


Damage = Literal["empty response", "cut short", "end token missing", "sentences repeated", "answer to another prompt"]
"""Names of ``reward.card.probes.PROBES``."""


class RewardConfig(Config):
    """The reward model, trained on rankings."""

    RATE_DIVISOR: ClassVar[int] = 3
    ROWS_LIMIT: ClassVar[str] = "max_tokens"

    base: str = Field(
        "same",
        description="'same' for the shared base, or another base's name, folder or hub id: a smaller one, or an "
        "encoder (BERT, ModernBERT)",
    )
    loss: Annotated[str, AfterValidator(in_table(LOSSES))] = Field(
        "pairs", description="pairs (all-pairs logistic), plackett_luce, or another name in reward.tables.LOSSES"
    )
    margin: float = Field(0.0, ge=0, description="weight of score differences as margins (needs scores)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels assumed wrong (pairs only)")
    pooling: Annotated[str, AfterValidator(in_table(POOLINGS))] = Field(
        "last", description="score at the last token, the mean over the response, or a mean with learned weights"
    )
    ensemble: int = Field(1, ge=1, le=16, description="reward adapters on the shared base, with other seeds and orders")
    combine: Literal["mean", "min", "mean_minus_std"] = Field(
        "mean",
        description="an ensemble's score: the mean, the minimum, or the mean minus the members' standard deviation",
    )
    uncertainty_penalty: float = Field(
        1.0, ge=0, description="standard deviations that are subtracted by mean_minus_std"
    )
    negatives: tuple[Damage, ...] = Field(
        (),
        description="each training ranking gets one response more, below all of its own: its worst one, damaged in one "
        "of these ways, which its prompt decides",
    )
    negatives_share: float = Field(
        1.0, gt=0, le=1, description="share of the training rankings that get one; prompts decide which"
    )
    holdout: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the training rankings for a held-out reward model, which PPO never optimises",
    )
    init: Literal["sft", "base"] = Field("sft", description="adapter to start from")
    epochs: float = Field(1.0, gt=0, description="passes over the rankings; left out, or auto: by their number")
    learning_rate: float = Field(
        1e-4,
        ge=0,
        description="peak, of the adapter; left out, or auto: by the base's width and the method",
    )
    head_learning_rate: float | None = Field(None, ge=0, description="of the scalar head; default: learning_rate")
    batch: int = Field(
        16, ge=1, description="rankings an optimizer step, over all processes; left out, or auto: by their number"
    )
    micro_batch: int = Field(16, ge=1, description="rankings a forward pass, at most")
    warmup: WarmUp = 0.03
    schedule: AfterWarmUp = "cosine"
    max_tokens: int = Field(1024, ge=8, description="longest prompt and response")
    max_grad_norm: ClipNorm = 1.0
    weight_decay: WeightDecay = 0.0
    held_out_every: int | None = Field(
        None,
        ge=0,
        description="steps between evaluations of held-out rankings; null: a tenth of all steps; 0: none",
    )
    held_out_rows: int | None = Field(
        None,
        ge=1,
        description="held-out rankings of such an evaluation, evenly spaced; null: as many as take about a tenth "
        "of the time, 32 to 512",
    )
    keep: KeptWeights = "last"
    patience: Patience = None
    max_skipped_steps: SkippedSteps = 20
    calibration_samples: int = Field(256, ge=1, description="SFT responses whose mean score becomes 0")
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _of_pairs(self) -> RewardConfig:
        for key in ("margin", "label_smoothing"):
            if not LOSSES[self.loss].pairwise and getattr(self, key):
                owners = " or ".join(f"'{name}'" for name, loss in LOSSES.items() if loss.pairwise)
                raise ValueError(f"{key} belongs to loss {owners}, not to '{self.loss}': remove it")
        if len(set(self.negatives)) < len(self.negatives):
            raise ValueError("negatives names one twice: each is taken as often as the others")
        return self


class ValueConfig(Config):
    """Where the value role starts."""

    init: Literal["reward", "sft", "policy_trunk"] = Field(
        "reward", description="reward model's adapter, SFT's adapter, or only a head on the policy's own trunk"
    )
    head: Literal["copy", "zero"] = Field("copy", description="the reward head's weights, or zeros")

    @model_validator(mode="after")
    def _head_fits(self) -> ValueConfig:
        if self.init != "reward" and self.head == "copy" and "head" in self.model_fields_set:
            raise ValueError(f"value.head 'copy' needs value.init 'reward', not '{self.init}': set head to 'zero'")
        return self


class PPOConfig(Config):
    """PPO against the reward; defaults are those of Huang et al. 2024 ("The N+ Implementation Details")."""

    RATE_DIVISOR: ClassVar[int] = 10
    ROWS_LIMIT: ClassVar[str] = "max_prompt_tokens"
    ROOM_BEHIND: ClassVar[str] = "max_new_tokens"  # of a row; one that leaves less before the base's end is left out

    updates: int = Field(100, ge=1, description="rollout-and-update cycles")
    rollouts: int = Field(64, ge=1, description="responses a cycle, over all processes")
    epochs: int = Field(4, ge=1, description="passes over each rollout")
    minibatches: int = Field(1, ge=1, description="optimizer steps a pass")
    micro_batch: int = Field(16, ge=1, description="rows a forward pass and process; changes memory, not results")
    micro_tokens: int | None = Field(
        None, ge=8, description="padded tokens, queries included, a forward pass, instead of micro_batch"
    )
    sampling_batch: int | None = Field(
        None, ge=1, description="responses sampled at once by a process; null: all of its rollouts"
    )
    learning_rate: float = Field(
        3e-5, ge=0, description="of the policy adapter; left out, or auto: by the base's width and the method"
    )
    value_learning_rate: float | None = Field(None, ge=0, description="of the value adapter; default: learning_rate")
    value_head_learning_rate: float | None = Field(None, ge=0, description="of the value head; default: the adapter's")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate over the updates")
    final_learning_rate: float = Field(0.0, ge=0, le=1, description="share of the learning rate left at the end")
    adam_epsilon: float = Field(1e-5, gt=0, le=1, description="Adam's epsilon")
    weight_decay: WeightDecay = 0.0
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip, for policy and value separately")
    max_skipped_steps: SkippedSteps = 20
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL penalty in the reward")
    kl: Literal["fixed", "adaptive"] = Field("fixed", description="KL coefficient: fixed or Ziegler's controller")
    kl_target: float = Field(6.0, gt=0, description="target KL per response of the adaptive controller, in nats")
    kl_horizon: float = Field(10_000.0, gt=0, description="samples over which the controller reacts")
    clip: float = Field(0.2, gt=0, description="policy ratio clip")
    value_clip: float | None = Field(0.2, gt=0, description="value clip around the old value; null switches it off")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda")
    whiten_advantages: bool = Field(True, description="advantages to mean 0 and variance 1 over each rollout")
    whiten_rewards: bool = Field(False, description="token rewards to variance 1 (mean kept)")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    temperature: float = Field(
        1.0, ge=COOLEST, description="sampling temperature, used in every log-probability as well"
    )
    max_new_tokens: int = Field(
        64, ge=1, description="longest response; left out, or auto: by those of the demonstrations"
    )
    max_prompt_tokens: int = Field(512, ge=1, description="longest query; longer prompts are left out and counted")
    old_logprobs: Literal["auto", "recompute", "sampler"] = Field(
        "auto",
        description="old log-probabilities by a pass of the training forward, or as the sampler found them; auto: the "
        "sampler's where both run the fast path in fp32, which is compared",
    )
    importance_cap: float | None = Field(
        None,
        ge=1,
        description="with runtime.rollouts of servers: weigh each token by policy / sampler, at most this (truncated "
        "importance sampling, 2 is usual); null: 1",
    )
    share_prefix_layers: bool = Field(
        True, description="layers below all adapters are computed once a rollout for all roles and epochs, and kept"
    )
    missing_eos_penalty: float = Field(1.0, ge=0, description="subtracted from the score of an unfinished response")
    reward: tuple[RewardPart, ...] = Field((RewardPart(source="model"),), description="terms of the reward")
    standardise_scores: bool = Field(False, description="divide scores by their standard deviation on SFT samples")
    score_clip: float | None = Field(None, gt=0, description="clip the score (never the KL) to plus or minus this")
    value: ValueConfig = ValueConfig()
    value_coef: float = Field(0.1, ge=0, description="weight of the value loss where it shares the policy's trunk")
    ptx_coef: float = Field(
        0.0,
        ge=0,
        description="weight of a pretraining loss that is added to PPO's (InstructGPT's gamma, 27.8 there); 0: none",
    )
    ptx_data: Literal["documents", "demonstrations"] = Field(
        "documents", description="what that loss is of: data.documents, or the responses of data.demonstrations"
    )
    ptx_batch: int | None = Field(None, ge=1, description="rows of it a step; null: as many as a minibatch has")
    ptx_max_tokens: int = Field(
        512, ge=8, description="tokens of such a row: documents come in chunks, demonstrations are cut"
    )
    critic_warmup: int = Field(0, ge=0, description="first updates that train the value role only")
    holdout_every: int = Field(
        5, ge=1, description="updates between evaluations by the held-out reward model (reward.holdout)"
    )
    holdout_prompts: int = Field(64, ge=2, description="prompts of each such evaluation")
    keep: Literal["last", "best"] = Field(
        "last", description="the policy after the last update, or the one with the best held-out score (reward.holdout)"
    )
    keep_every: int | None = Field(None, ge=1, description="keep the policy every so many updates, to evaluate ppo@N")
    self_check: bool = Field(True, description="check for silent mistakes before the first update; takes seconds")

    @model_validator(mode="after")
    def _divides(self) -> PPOConfig:
        if self.rollouts % self.minibatches:
            raise ValueError(
                f"rollouts {self.rollouts} is not divisible by minibatches {self.minibatches}: choose a divisor"
            )
        return self
