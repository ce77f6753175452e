"""Documents as chunks of the context: no token is cut, and no chunk holds two documents, so none attends to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data.counting import MANY, NO_TOKEN, unknown_text
from data.storage.token_rows import row_store
from data.tokens import unknown_id

AT_ONCE = 256
"""Documents that the tokenizer is given together."""


def encode(tokenizer: Any, texts: Iterable[str], ends: bool = True) -> Iterator[list[int]]:
    """``<bos>`` text ``<eos>`` of each text, as far as the tokenizer has these two: the start and stop tokens that the
    reward stage and SFT see. Without ``ends`` the text alone."""
    ids_of_ends = (tokenizer.bos_token_id, tokenizer.eos_token_id) if ends else (None, None)
    before, after = ([] if i is None else [i] for i in ids_of_ends)
    texts = iter(texts)
    while some := list(islice(texts, AT_ONCE)):
        for ids in tokenizer(some, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            yield [*before, *ids, *after]


def chunks(ids: Sequence[int], context: int) -> list[list[int]]:
    """A document's ids in chunks of at most ``context``, so that each of them but the first is predicted once.

    A chunk begins with the last id of the one before; no chunk holds two documents, so none attends to another.
    """
    return [list(ids[i : i + context]) for i in range(0, len(ids) - 1, context - 1)]


def document_rows(
    tokenizer: Any, texts: Iterable[str], context: int, encoder: bool = False
) -> Iterator[list[list[int]]]:
    """Each document's rows: its chunks; of an ``encoder`` parts of its text, each between the tokens that its tokenizer
    puts around a text (BERT's ``[CLS]`` and ``[SEP]``)."""
    if not encoder:
        yield from (chunks(ids, context) for ids in encode(tokenizer, texts))
        return
    before, after = ([] if i is None else [i] for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    room = context - len(before) - len(after)
    for ids in encode(tokenizer, texts, ends=False):
        yield [[*before, *ids[i : i + room], *after] for i in range(0, len(ids), room)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCounts:
    """Counts of documents that are packed in chunks of the context: no token is cut.

    ``read`` is how many chunks training asks for, each once before any comes again; None where all are read once.
    ``there`` is the number of documents of which those counted are the first ones, or a sample. ``key`` is what
    messages call the stage's settings. ``unknown`` tokens are the tokenizer's sign for text that it has no tokens for.
    """

    unit: str
    documents: int
    several: int
    chunks: int
    tokens: int
    read: int | None = None
    there: int | None = None
    random: bool = False
    key: str = "base.pretrain"
    unknown: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for manifests, plans and reports."""
        out = {
            "documents": self.documents,
            "documents_in_several_chunks": self.several,
            "chunks": self.chunks,
            "tokens": self.tokens,
        }
        out |= {} if self.read is None else {"chunks_read": min(self.chunks, self.read)}
        out |= {"unknown_tokens": self.unknown} if self.unknown else {}
        return out | ({} if self.there is None else {"sample_of" if self.random else "first_of": self.there})

    def sampled(self) -> str:
        """That a sample was counted; empty where all documents were."""
        return f"a sample of {self.documents:,} of {self.there:,} {self.unit} is counted" if self.random else ""

    def summary(self) -> str:
        """One line for the terminal; empty where every document is one chunk that is read."""
        parts = [f"{self.several:,} longer than the context, in several chunks"] if self.several else []
        if self.read is not None and self.read < self.chunks and not self.random:
            unread = self.chunks - self.read
            parts.append(
                f"{unread:,} of {self.chunks:,} chunks are not read ({self.key}.steps x batch is {self.read:,})"
            )
        if self.unknown:
            parts.append(unknown_text(self.unknown, self.tokens))
        if self.there is not None and not self.random:
            parts.append(f"the first {self.documents:,} are measured")
        many = self.documents if self.there is None else self.there
        return f"of {many:,} {self.unit} " + ", ".join(parts) if parts else ""

    def warning(self) -> str:
        """Where many tokens are unknown; nothing else is lost but by the number of steps, which is the recipe's."""
        if self.unknown <= MANY * self.tokens:
            return ""
        cure = "; raise base.pretrain.vocabulary, or train a tokenizer that spells all text (bpe)"
        return self.summary() + (cure if self.key == "base.pretrain" else NO_TOKEN)


def chunked(
    tokenizer: Any,
    documents: Iterable[str],
    context: int,
    unit: str = "documents",
    *,
    read: int | None = None,
    there: int | None = None,
    random: bool = False,
    key: str = "base.pretrain",
    encoder: bool = False,
) -> tuple[Sequence[list[int]], ChunkCounts]:
    """All documents' rows, and their counts; see ``ChunkCounts`` for what is told of them."""
    rows, count, several, tokens, unknown = row_store(), 0, 0, 0, 0
    sign = unknown_id(tokenizer)
    ends = 1 if not encoder else (tokenizer.cls_token_id is not None) + (tokenizer.sep_token_id is not None)
    for cut in document_rows(tokenizer, documents, context, encoder):
        rows.extend(cut)
        count += 1
        several += len(cut) > 1
        again = 0 if encoder else 1  # a chunk begins with the last token of the one before
        unknown += 0 if sign is None else sum(row[again * (i > 0) :].count(sign) for i, row in enumerate(cut))
        tokens += sum(len(row) - ends for row in cut)
    return rows, ChunkCounts(
        unit=unit,
        documents=count,
        several=several,
        chunks=len(rows),
        tokens=tokens,
        read=read,
        there=there if there is not None and there > count else None,
        random=random,
        key=key,
        unknown=unknown,
    )
