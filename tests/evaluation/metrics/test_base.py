"""The evaluate modules: values by hand, arrays as input, no network and no files left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.base import Distinct, Truncation

REPO = Path(__file__).parents[3]


def test_distinct_by_hand():
    found = Distinct().compute(predictions=[[1, 2, 1, 2], [1, 2], [7]])
    assert found["distinct_1"] == pytest.approx(3 / 7)
    assert found["distinct_2"] == pytest.approx(2 / 4)  # (1,2) (2,1) of (1,2) (2,1) (1,2) (1,2)
    assert found["distinct_1_mean"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["distinct_2_mean"] == pytest.approx((2 / 3 + 1) / 2)  # the answer of one token has no pair


def test_distinct_over_words_equals_token_ids():
    words = Distinct("words").compute(predictions=["a b  a b", "a b", "z"], orders=(1, 2, 3))
    ids = Distinct().compute(predictions=[[1, 2, 1, 2], [1, 2], [7]], orders=(1, 2, 3))
    assert words == ids and "distinct_3" in words


def test_empty_answers_count():
    assert Distinct().compute(predictions=[[], []])["distinct_1"] == 0


def test_numpy_rows_and_add_batch():
    metric = Distinct()
    metric.add_batch(predictions=[np.array([1, 2, 3])])
    metric.add_batch(predictions=[np.array([1])])
    assert metric.compute()["distinct_1"] == 3 / 4
    assert metric.compute(predictions=[[1] * 5])["distinct_1"] == 1 / 5  # the first batches are gone


def test_truncation():
    assert Truncation().compute(predictions=[True, False, True, True])["truncated"] == 0.25


@pytest.mark.parametrize("metric", [Distinct, Truncation])
def test_nothing_to_measure_is_an_error(metric: type):
    with pytest.raises(ValueError, match="nothing to compute"):
        metric().compute(predictions=[])


def test_unknown_configuration_names_the_known_ones():
    with pytest.raises(ValueError, match="tokens"):
        Distinct("syllables")


def test_no_network_and_no_files(tmp_path: Path):
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from evaluation.metrics.base import Distinct, Truncation\n"
        "Distinct().compute(predictions=[[1, 2]])\n"
        "print(Truncation().compute(predictions=[True])['truncated'])\n"
    )
    env = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.0"
    left = [p for p in tmp_path.rglob("*") if "metric" in str(p)]
    assert left == []
