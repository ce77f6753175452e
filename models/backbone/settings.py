"""Settings of adapters, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from data.common.config import Config

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's file: a folder with it holds an adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to tune a role: what it trains, and which settings of ``adapter`` act with it."""

    trains: str
    source: str
    settings: tuple[str, ...]
    copies: bool = False  # a role has weights of its own, where the others stand on the base
    plain: bool = False  # what it writes is an ordinary LoRA adapter, which the fast path and servers know
    residual: bool = False  # such an adapter has twice the rank: what is trained, and what it began with
    divided: bool = False  # goes with a base in parts
    four_bits: bool = False  # goes with a base in four bits
    virtual: bool = False  # virtual tokens before every row, which take positions; nothing can be merged
    past: bool = False  # they are keys and values of every layer, which layers that are computed again lose
    rate: Literal["lora", "full", "highest", "virtual"] = "lora"  # which law chooses its learning rate


_WHOLE = ("modules_to_save", "new_tokens")
_LORA = ("rank", "alpha", "dropout", "targets", "layers", "rslora", *_WHOLE)
METHODS: dict[str, Method] = {
    "lora": Method(
        trains="A and B of each adapted matrix; B begins at zero",
        source="Hu et al. 2021",
        settings=(*_LORA, "init"),
        plain=True,
        divided=True,
        four_bits=True,
    ),
    "dora": Method(
        trains="A and B, and the length of each row of the adapted matrix",
        source="Liu et al. 2024, arXiv:2402.09353",
        settings=(*_LORA, "init"),
    ),
    "pissa": Method(
        trains="A and B, which begin as the matrix's largest singular vectors; what they begin with is subtracted by a "
        "frozen half, so that the base stays as it is",
        source="Meng et al. 2024, arXiv:2404.02948",
        settings=_LORA,
        plain=True,
        residual=True,
    ),
    "olora": Method(
        trains="A and B, which begin as the matrix's QR decomposition; what they begin with is subtracted by a frozen "
        "half, so that the base stays as it is",
        source="Buyukakyuz 2024, arXiv:2406.01775",
        settings=_LORA,
        plain=True,
        residual=True,
    ),
    "adalora": Method(
        trains="P, the diagonal Lambda and Q of each adapted matrix, Lambda from zero; where they matter least, its "
        "entries become zero",
        source="Zhang et al. 2023, arXiv:2303.10512",
        settings=("rank", "alpha", "dropout", "targets", "layers", "init_rank", "orthogonality", "budget", *_WHOLE),
    ),
    "ia3": Method(
        trains="a factor for each output of the attention's matrices that PEFT's table names for the family (keys or "
        "queries, and values), and for each input of the feed-forward's last",
        source="Liu et al. 2022, arXiv:2205.05638",
        settings=("targets", "layers", "modules_to_save"),
        rate="highest",
    ),
    "prompt_tuning": Method(
        trains="the embeddings of virtual tokens before every row, which begin as those of tokens of the vocabulary",
        source="Lester et al. 2021, arXiv:2104.08691",
        settings=("virtual_tokens",),
        virtual=True,
        rate="virtual",
    ),
    "p_tuning": Method(
        trains="vectors and an encoder (`mlp` or `lstm`) that makes the embeddings of virtual tokens of them; what is "
        "written are the embeddings, which a later stage trains as they are",
        source="Liu et al. 2021, arXiv:2103.10385",
        settings=("virtual_tokens", "encoder", "encoder_width"),
        virtual=True,
    ),
    "prefix_tuning": Method(
        trains="keys and values of virtual tokens in every layer (P-tuning v2), which begin as those of tokens of the "
        "vocabulary",
        source="Li and Liang 2021, arXiv:2101.00190; Liu et al. 2022, arXiv:2110.07602",
        settings=("virtual_tokens",),
        virtual=True,
        past=True,
        rate="virtual",
    ),
    "freeze": Method(
        trains="the matrices themselves where adapters would stand; all others are the base's own, in memory once",
        source="Lee et al. 2019, arXiv:1911.03090",
        settings=("targets", "layers"),
        copies=True,
        rate="full",
    ),
    "full": Method(
        trains="every tensor of a copy of the base",
        source="",
        settings=("new_tokens",),
        copies=True,
        divided=True,
        rate="full",
    ),
}
"""Every method by its name in a recipe."""
DIVIDED, RESIDUAL = ([n for n, m in METHODS.items() if getattr(m, kind)] for kind in ("divided", "residual"))


class AdapterConfig(Config):
    """How a role differs from the base: an adapter on it, or weights of its own."""

    method: Literal[
        "lora",
        "dora",
        "pissa",
        "olora",
        "adalora",
        "ia3",
        "prompt_tuning",
        "p_tuning",
        "prefix_tuning",
        "freeze",
        "full",
    ] = Field("lora", description="how roles are tuned: see docs/reference/methods.md for what each trains")
    rank: int = Field(16, ge=1, description="LoRA rank; with adalora the mean that is left at the end")
    alpha: float = Field(32, gt=0, description="LoRA scaling numerator: the update is alpha / rank times B A")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout in SFT, distillation, reward model; none in PPO")
    targets: str | tuple[str, ...] = Field(
        "all-linear",
        description="module names, or all linear layers of the blocks (with ia3: those of its paper)",
    )
    layers: Literal["all", "upper_half"] | tuple[int, ...] = Field(
        "all", description="which layers carry adapters (with freeze: which are trained)"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023)")
    init: Literal["kaiming", "gaussian"] = Field("kaiming", description="how LoRA's A begins")

    init_rank: int | None = Field(
        None,
        ge=2,
        description="AdaLoRA's first rank of every matrix, larger than `rank`; null: one and a half times it",
    )
    orthogonality: float = Field(0.5, ge=0, description="weight of the term that keeps AdaLoRA's factors orthogonal")
    budget: tuple[float, ...] = Field(
        (0.1, 0.7),
        description="shares of a stage's steps between which AdaLoRA's ranks fall from `init_rank` to `rank`",
    )
    virtual_tokens: int = Field(
        20, ge=1, le=1024, description="virtual tokens before every row; they take as many of the base's positions"
    )
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="what makes P-tuning's virtual tokens")
    encoder_width: int | None = Field(None, ge=1, description="of P-tuning's encoder; null: the base's width")
    modules_to_save: tuple[str, ...] = Field(
        (),
        description="trained whole next to the adapter, each role its own: the embeddings, the output layer, or both, "
        "as the base names them (`embed_tokens`, `lm_head`); one tensor where the base ties them",
    )
    new_tokens: tuple[str, ...] = Field(
        (),
        description="tokens that the vocabulary does not have: their rows of the embeddings and of the output layer "
        "are trained, each role its own",
    )

    @field_validator("budget")
    @classmethod
    def _falls(cls, budget: tuple[float, ...]) -> tuple[float, ...]:
        if len(budget) != 2 or not 0 <= budget[0] < budget[1] <= 1:
            raise ValueError("two shares of the steps, from 0 to 1, the first one smaller")
        return budget

    @property
    def first_rank(self) -> int:
        """The rank that AdaLoRA begins with."""
        return self.init_rank or self.rank + max(1, self.rank // 2)

    @property
    def embeddings_setting(self) -> str:
        """The first setting that trains embeddings or an output layer next to the adapter; empty where none does."""
        return next((key for key in _WHOLE if getattr(self, key) and self.method != "full"), "")

    @property
    def positions(self) -> int:
        """Positions of the base that a role's virtual tokens take."""
        return self.virtual_tokens if self.tuning.virtual else 0

    @property
    def tuning(self) -> Method:
        """What the method trains, and how."""
        return METHODS[self.method]

    @property
    def written_rank(self) -> int:
        """The rank of the adapter that is written."""
        return 2 * self.rank if self.tuning.residual else self.rank
