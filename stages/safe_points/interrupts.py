"""Asking a running stage to stop at its next safe point, where nothing is lost. Light: imports no torch.

A signal handler asks; a stage that has said that it has safe points checks at each of them.
"""

from __future__ import annotations


class Interrupts:
    """One for the process: signals belong to it."""

    def __init__(self) -> None:
        self.listening = self.asked = False

    def listen(self) -> None:
        """From here on safe points come, so that a signal may wait for the next one."""
        self.listening = True

    def clear(self) -> None:
        """No safe points come, and no stop is asked for."""
        self.listening = self.asked = False

    def ask(self) -> bool:
        """Ask for a stop at the next safe point; False where none is to come."""
        self.asked = self.listening
        return self.asked


INTERRUPTS = Interrupts()
