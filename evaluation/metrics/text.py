"""Metrics of responses against references, as ``evaluate`` modules without a network; well-kept libraries underneath.

Each gives aggregates and, where it is one number a response, ``scores`` with one a response, in order. ROUGE, BLEU,
chrF and METEOR come from rouge-score, sacrebleu and nltk (``pip install trivet[metrics]``). Chinese, Japanese and
Korean are cut into characters, since none of the libraries' default tokenizers finds words there.
"""

from __future__ import annotations

import importlib
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import datasets
import numpy as np

from data.common.errors import UserError
from evaluation.metrics.base import LocalMetric

_TEXTS = {
    "predictions": datasets.Value("string"),
    "references": datasets.Sequence(datasets.Value("string")),
}
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_OTHERS = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uac00-\ud7af\u1100-\u11ff]")  # kana and hangul
_CHARACTER = re.compile(f"({_HAN.pattern}|{_OTHERS.pattern})")
SELF_BLEU = 100  # responses that self-BLEU takes; its cost grows with their square


def library(name: str) -> Any:
    """Import a package of the extra ``metrics``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0].replace("_", "-")
        raise UserError(f"evaluation.metrics needs {package}, which is not installed: pip install {package}") from error


def words(text: str) -> list[str]:
    """Lower-case words and single CJK characters, without punctuation: what ROUGE and METEOR count here.

    On text without CJK these are rouge-score's own words, letters of other scripts kept.
    """
    spaced = _CHARACTER.sub(r" \1 ", unicodedata.normalize("NFKC", text).lower())
    return re.findall(r"[^\W_]+", spaced)


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """sacrebleu's tokenizer for a set of texts: ``zh`` with Chinese, ``char`` with kana or hangul, else ``13a``."""
    joined = "".join(texts)
    return "char" if _OTHERS.search(joined) else "zh" if _HAN.search(joined) else "13a"


class _Words:
    """A tokenizer as rouge-score takes it."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class Rouge(LocalMetric):
    """ROUGE-1, -2 and -L, F-measure (Lin 2004), by rouge-score without stemming; the best of several references."""

    about = "Overlap of words, word pairs and longest common subsequences with a reference, F-measure in [0, 1]."
    inputs = "predictions: texts; references: for each, a list of texts."
    columns: ClassVar = {"default": _TEXTS}
    kinds = ("rouge1", "rouge2", "rougeL")

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the means of ``rouge1``, ``rouge2`` and ``rougeL``, and ``scores`` of each."""
        scorer = library("rouge_score.rouge_scorer").RougeScorer(list(self.kinds), tokenizer=_Words())
        found = [scorer.score_multi(list(r), p) for p, r in zip(predictions, references, strict=True)]
        scores = {k: [float(f[k].fmeasure) for f in found] for k in self.kinds}
        return {k: math.fsum(v) / len(v) for k, v in scores.items()} | {"scores": scores}


class Bleu(LocalMetric):
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), 0 to 100, with the signature that repeats it."""

    about = "n-gram precision of all responses against their references, with a brevity penalty; 0 to 100."
    inputs = "predictions: texts; references: for each, a list of texts (lists may differ in length)."
    columns: ClassVar = {"default": _TEXTS}

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return ``bleu`` and ``bleu_signature``."""
        tokenizer = bleu_tokenizer([r for group in references for r in group])
        metric = library("sacrebleu").BLEU(tokenize=tokenizer)
        found = metric.corpus_score(list(predictions), _streams(references))
        return {"bleu": float(found.score), "bleu_signature": str(metric.get_signature())}


def bleu_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> Any:
    """What corpus BLEU adds up over responses, (n, 10): matches and n-grams of each order, lengths of both sides."""
    metric = library("sacrebleu").BLEU(tokenize=tokenizer, effective_order=True)  # counts do not depend on it
    found = [metric.sentence_score(p, list(r)) for p, r in zip(predictions, references, strict=True)]
    return np.array([[*f.counts, *f.totals, f.sys_len, f.ref_len] for f in found], dtype=np.float64)


def bleu_of(sums: Any) -> float:
    """Corpus BLEU of the sums of ``bleu_statistics``, by sacrebleu."""
    counts = [round(x) for x in sums]
    compute = library("sacrebleu").BLEU.compute_bleu
    return float(compute(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score)


class Chrf(LocalMetric):
    """Corpus chrF2 (Popović 2015) by sacrebleu, 0 to 100; characters, so every language alike."""

    about = "F-score of character n-grams against the references; 0 to 100."
    inputs = Bleu.inputs
    columns: ClassVar = {"default": _TEXTS}

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return ``chrf``, ``chrf_signature``, and ``scores``: the same of each response alone."""
        metric = library("sacrebleu").CHRF()
        found = metric.corpus_score(list(predictions), _streams(references))
        alone = [float(metric.sentence_score(p, list(r)).score) for p, r in zip(predictions, references, strict=True)]
        signature = str(metric.get_signature())
        return {"chrf": float(found.score), "chrf_signature": signature, "scores": {"chrf_answer": alone}}


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References the other way round, as sacrebleu has them; None where a response has fewer."""
    count = max(map(len, references))
    return [[r[i] if i < len(r) else None for r in references] for i in range(count)]


class _NoSynonyms:
    """WordNet without a word in it: its data cannot be taken along, so that METEOR matches words and stems alone."""

    def synsets(self, word: str) -> list[Any]:
        return []


class Meteor(LocalMetric):
    """METEOR (Banerjee & Lavie 2005) by nltk with exact and stem matches, **without WordNet's synonyms**.

    Values are therefore at most those of the full metric: compare systems by it, not papers.
    """

    about = "Aligned words and stems (no synonyms) with a penalty for broken order; 0 to 1; best of the references."
    inputs = Bleu.inputs
    columns: ClassVar = {"default": _TEXTS}

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return ``meteor_no_synonyms``, the mean, and ``scores``."""
        meteor = library("nltk.translate.meteor_score").meteor_score
        scores = [
            float(meteor([words(one) for one in r], words(p), wordnet=_NoSynonyms()))
            for p, r in zip(predictions, references, strict=True)
        ]
        return {"meteor_no_synonyms": math.fsum(scores) / len(scores), "scores": {"meteor_no_synonyms": scores}}


ARTICLES = ("a", "an", "the")
_SIGN = re.compile(r"(?<![\w)\]])[-−](?=\.?\d)")  # of a number, and not between two


def normalised(text: str) -> str:
    """NFKC, lower case, without punctuation, articles and runs of white space (Rajpurkar et al. 2016).

    Unlike SQuAD's own, a number keeps its sign, and what is all article or punctuation stays as it is: -5 is not 5, the
    choice A is not an empty response, and + is not -.
    """
    bare = unicodedata.normalize("NFKC", text).lower().strip()
    signed = _SIGN.sub("\0", bare)
    spaced = "".join(" " if unicodedata.category(c)[0] == "P" else c for c in signed).replace("\0", "-")
    words = spaced.split()
    return " ".join([w for w in words if w not in ARTICLES] or words) or bare


class ExactMatch(LocalMetric):
    """Share of responses that equal a reference once case, punctuation, articles and white space are set aside."""

    about = "Share of responses equal to one of their references after normalisation (SQuAD's)."
    inputs = Bleu.inputs
    columns: ClassVar = {"default": _TEXTS}

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return ``exact_match`` and ``scores``."""
        scores = [
            float(normalised(p) in {normalised(one) for one in r}) for p, r in zip(predictions, references, strict=True)
        ]
        return {"exact_match": math.fsum(scores) / len(scores), "scores": {"exact_match": scores}}


class Labels(LocalMetric):
    """Accuracy, precision, recall and F1 for labelled sets (by scikit-learn); a reference is a right label.

    A response's label is the first known label in it, as a whole word; a response without one is wrong, and is counted.
    Where several labels are right, the one that the response names is the right one, else the first.
    """

    about = "Accuracy, and macro-averaged precision, recall and F1 over the labels, also each label's own."
    inputs = "predictions: texts; references: for each, a list of right labels; labels: all labels."
    columns: ClassVar = {"default": _TEXTS}

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return ``accuracy``, ``precision``, ``recall``, ``f1``, ``unlabelled``, ``by_label`` and ``scores``.

        Raises:
            UserError: a reference is none of the labels.
        """
        from sklearn.metrics import precision_recall_fscore_support

        if other := no_labels(references, labels):
            raise UserError(f"evaluation.labels: the reference {other[0]!r} is none of them; add it, or fix the data")
        right = [[normalised(one) for one in r] for r in references]
        known = sorted({normalised(label) for label in labels} or {one for r in right for one in r})
        found = [label_in(text, known) for text in predictions]
        truth = [named if named in r else r[0] for named, r in zip(found, right, strict=True)]
        by_label = precision_recall_fscore_support(truth, found, labels=known, zero_division=0.0)
        scores = [float(a == b) for a, b in zip(truth, found, strict=True)]
        precision, recall, f1 = (float(by_label[i].mean()) for i in range(3))
        return {
            "accuracy": math.fsum(scores) / len(scores),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "unlabelled": found.count("") / len(found),
            "by_label": {
                label: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
                for label, p, r, f, n in zip(known, *by_label, strict=True)
            },
            "scores": {"accuracy": scores},
        }


def no_labels(references: Sequence[Sequence[str]], labels: Sequence[str]) -> list[str]:
    """Those of the references that are none of the labels, where labels are named at all."""
    known = {normalised(label) for label in labels}
    return [one for r in references for one in r if known and normalised(one) not in known]


def label_in(text: str, labels: Sequence[str]) -> str:
    """The known label that a response names first, the longest of those that begin there; '' for none.

    Args:
        text: the response.
        labels: ``normalised`` ones. Words are matched whole, CJK labels anywhere, whatever their case. A label that is
            an article, as the choice A, is found alone, before a closing mark as in ``(a)``, and as a capital letter
            that is not a sentence's first word.
    """
    plain = unicodedata.normalize("NFKC", text)
    places = []
    for label in labels:
        if label and (found := _pattern_of(label).search(plain)):
            places.append((found.start(), -len(label), label))
    return min(places)[2] if places else ""


@lru_cache(maxsize=1024)
def _pattern_of(label: str) -> re.Pattern[str]:
    """What finds a label in a text: its words with punctuation, blanks and articles between them."""
    before, behind = r"(?<![^\W_])", r"(?![^\W_])"
    if label in ARTICLES:
        capital = rf"{label.upper()}{behind}"
        inside = rf"(?<=[^\s.!?]\s){capital}|{before}{capital}(?!\s+[a-z])"
        return re.compile(rf"{inside}|{before}{label}(?=[)\].:])|^\W*{label}\W*$")
    between = rf"[\W_]+(?:(?:{'|'.join(ARTICLES)})[\W_]+)*"
    words = between.join(map(re.escape, label.split()))
    before, behind = ("", "") if _CHARACTER.search(label) else (before, behind)
    return re.compile(before + words + behind, re.IGNORECASE)
