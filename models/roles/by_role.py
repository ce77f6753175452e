"""What the roles of one kind have, by role."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TypeVar

Held = TypeVar("Held")


class ByRole(Mapping[str, Held]):
    """A mapping from the names of roles, read-only from outside."""

    @property
    @abstractmethod
    def held(self) -> Mapping[str, Held]:
        """What is there now."""

    def __getitem__(self, role: str) -> Held:
        return self.held[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)
