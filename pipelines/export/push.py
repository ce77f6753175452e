"""An export on a hub: a repository of its own, private unless asked otherwise, in one commit by the hub's own client.

What cannot be is found before anything is exported: the name, the token, the network, and what is there already.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError
from data.common.redaction import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ALLOWED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md", ".gguf", "Modelfile")
"""How files end that go to a hub: what can be opened without running anything."""
OWN = ".gitattributes"  # what the hub itself puts into a repository
ENDPOINT = "HF_ENDPOINT"
LOGIN = "log in by `hf auth login`, or put a token that may write into HF_TOKEN"


class Repository:
    """A repository of a hub that an export may go to, checked."""

    def __init__(self, name: str, *, public: bool = False, overwrite: bool = False) -> None:
        """Ask the hub whether the export may go there; nothing is written.

        Args:
            name: ``owner/name``.
            public: for everybody to read; otherwise it is private.
            overwrite: take the place of the files that a repository of this name holds.

        Raises:
            UserError: it is no name, there is no token or no network, the hub refuses, or something is there.
        """
        self.name, self.public, self.overwrite = name, public, overwrite
        self.api = _client(name)
        with _in_one_sentence(name):
            self.api.whoami()
        self.exists = self._check_there()

    def _check_there(self) -> bool:
        """Whether the repository is there already."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with _in_one_sentence(self.name):
            try:
                found = self.api.model_info(self.name)
            except RepositoryNotFoundError:
                return False
        held = [s.rfilename for s in found.siblings or [] if s.rfilename != OWN]
        if held and not self.overwrite:
            raise UserError(
                f"--push {self.name}: is there already and holds {len(held):,} file(s), such as {held[0]}; choose "
                "another name, or give --overwrite to put the export in their place (the hub keeps them in its history)"
            )
        if not found.private and not self.public:
            raise UserError(
                f"--push {self.name}: is there already and everybody can read it; choose another name, or give --public"
            )
        return True

    def upload(self, folder: Path) -> str:
        """Upload a folder in one commit, in place of what was there, and return the repository's address.

        Raises:
            UserError: a file that is none of an export, or the hub or the network fails; the folder stays.
        """
        strange = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if not _is_plain(f))
        if strange:
            raise UserError(f"--push {self.name}: {folder / strange[0]} is no file of an export and is not uploaded")
        rest = f"; the export is whole in {folder}: `hf upload {self.name} {folder}` uploads it"
        with _in_one_sentence(self.name, rest):
            if not self.exists:
                self.api.create_repo(self.name, private=not self.public)
            self.api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message="Exported by trivet",
                delete_patterns="*" if self.overwrite else None,
            )
        return f"{self.api.endpoint}/{self.name}"


def _is_plain(file: Path) -> bool:
    """Whether a path is a folder, or a regular file of a kind that exports hold."""
    return file.is_dir() or (file.is_file() and not file.is_symlink() and file.name.endswith(ALLOWED))


def _client(name: str) -> HfApi:
    """The hub's client, where a name can be one of the hub's, a token is there, and the client may use the network.

    Raises:
        UserError: one of them is not so.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--push {name}: is no name of a repository ({why}); write it as owner/name") from error
    if name.count("/") != 1:
        raise UserError(f"--push {name}: is no name of a repository; write it as owner/name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {name}: HF_HUB_OFFLINE keeps the hub's client from the network; unset it")
    if get_token() is None:
        raise UserError(f"--push {name}: there is no token for the hub; {LOGIN}")
    return HfApi(endpoint=os.environ.get(ENDPOINT) or None)


@contextlib.contextmanager
def _in_one_sentence(name: str, rest: str = "") -> Iterator[None]:
    """The hub's errors, each as one sentence with ``rest`` behind it.

    Raises:
        UserError: the token or the name is refused, or the hub cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise UserError(f"--push {name}: {_refusal(error)}{rest}") from error
    except ValueError as error:  # what the client itself finds in files or replies
        raise UserError(f"--push {name}: the hub's client refuses it ({_short(error)}){rest}") from error
    except Exception as error:  # the client's network errors have no common class
        why = f"{type(error).__name__}: {_short(error)}"
        raise UserError(
            f"--push {name}: the hub cannot be reached ({why}); check the network and {ENDPOINT}{rest}"
        ) from error


def _short(said: object) -> str:
    """A message of the client or the hub on one line, without secrets."""
    return redact(" ".join(str(said or "").split()))[:200]


def _refusal(error: Any) -> str:
    """What a status of the hub means here."""
    status = error.response.status_code if error.response is not None else 0
    said = f" ({_short(error.server_message)})" if error.server_message else ""
    if status == 401:
        return f"the hub does not accept the token{said}; {LOGIN}"
    if status == 403:
        return f"the token may not write there{said}; name a repository of yours, and {LOGIN}"
    if status == 409:
        return f"the hub has such a repository already{said}; choose another name"
    if status in (400, 422):
        return f"the hub refuses the name or the files{said}"
    return f"the hub replied with status {status}{said}; try again later"
