"""What pretraining counts of its documents: chunks of the context, those that the steps never reach, and samples."""

from __future__ import annotations

from stages.pretrain import planned
from stages.settings import PretrainConfig
from stages.training.chunks import ChunkCounts


def config(steps: int = 2, batch: int = 3, context: int = 16, tokenizer: str = "words") -> PretrainConfig:
    model = {"layers": 1, "width": 8, "feed_forward": 8, "heads": 2, "context": context}
    return PretrainConfig.model_validate(
        {"steps": steps, "batch": batch, "vocabulary": 50, "tokenizer": tokenizer, "model": model}
    )


def test_chunks_that_the_steps_never_reach_are_counted_and_told() -> None:
    """Nine documents of 3 words are 5 tokens, one of 30 words is 32 tokens: 31 predicted ones, 15 a piece."""
    documents = ["a b c"] * 9 + [" ".join(["d"] * 30)]
    found = planned(documents, ["a b"] * 2, config())
    assert found["counts"].as_dict() == {
        "documents": 10, "documents_in_several_chunks": 1, "chunks": 9 + 3, "tokens": 9 * 4 + 31, "chunks_read": 6,
    }  # fmt: skip
    assert found["counts"].summary() == (
        "of 10 documents 1 longer than the context, in several chunks, 6 of 12 chunks are not read "
        "(base.pretrain.steps x batch is 6)"
    )
    assert found["held_out_counts"].as_dict()["documents"] == 2 and not found["held_out_counts"].summary()
    enough = planned(documents[:9], [], config(steps=3))["counts"]
    assert enough.as_dict()["chunks_read"] == 9 and not enough.summary()


def test_characters_are_counted_as_characters() -> None:
    counts = planned(["abcde", "fg"], [], config(tokenizer="characters"))["counts"].as_dict()
    assert (counts["chunks"], counts["tokens"]) == (2, 6 + 3)


def test_a_sample_and_the_first_documents_are_called_so() -> None:
    some = planned(["a b c"] * 4, [], config(steps=1, batch=1), there=40)["counts"]
    assert some.as_dict()["sample_of"] == 40 and some.sampled() == "a sample of 4 of 40 documents is counted"
    assert "not read" not in some.summary()  # of a sample nobody knows
    first = ChunkCounts(unit="held-out documents", documents=1, several=0, chunks=1, tokens=1, there=7)
    assert first.as_dict()["first_of"] == 7 and first.summary() == "of 7 held-out documents the first 1 are measured"
