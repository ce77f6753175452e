"""Conformance holds by the fast path and, among the slow tests, by the models' own modules."""

from tests.support.engines import engine, pytest_generate_tests  # noqa: F401 - a fixture and a hook
