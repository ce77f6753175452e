"""Opens files that are packed: gz, bz2, xz, zst and the members of a zip, each bounded in what it unpacks to."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from data.common.errors import UserError

SMALL_UNPACKED, MAX_UNPACKED = 64 * 2**20, 200
"""A packed file may always hold so many bytes, and otherwise so many times its own size."""

PACKED = (".gz", ".bz2", ".xz", ".zst")
KINDS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard", ".zip": "zip"}


@dataclass(frozen=True, slots=True)
class Content:
    """The unpacked bytes of a file or of a member of a zip; ``name`` is what places call it."""

    path: Path
    name: str
    member: str = ""

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """A stream of the bytes.

        Raises:
            UserError: it cannot be read, is not what its extension says, or unpacks to far more than it should.
        """
        kind = ".zip" if self.member else self.path.suffix.lower()
        try:
            with _opened(self.path, self.member, kind) as stream:
                yield stream
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, zipfile.BadZipFile) as error:
            raise self._not_whole(kind, error) from error
        except OSError as error:
            if kind in KINDS and error.errno is None:  # bz2 and zstandard have no error of their own
                raise self._not_whole(kind, error) from error
            raise UserError(f"{self.name} cannot be read: {error.strerror or error}") from error

    def _not_whole(self, kind: str, error: Exception) -> UserError:
        what = KINDS[kind]
        return UserError(f"{self.name} is not a whole {what} file ({error}); fetch it again or drop the {kind}")

    def bounded(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Yield chunks; a small file that unpacks to a huge one is refused before memory is gone.

        Raises:
            UserError: as ``open``.
        """
        packed = bool(self.member) or self.path.suffix.lower() in PACKED
        limit, size = max(SMALL_UNPACKED, self.path.stat().st_size * MAX_UNPACKED), 0
        while chunk := stream.read(1 << 20):
            size += len(chunk)
            if packed and size > limit:
                raise UserError(
                    f"{self.name} unpacks to more than {limit:,} bytes, {MAX_UNPACKED} times its size: unpack it "
                    "yourself if you trust it, and name the file that comes out"
                )
            yield chunk

    def bytes(self) -> bytes:
        """Everything at once.

        Raises:
            UserError: as ``open``.
        """
        with self.open() as stream:
            return b"".join(self.bounded(stream))


@contextmanager
def _opened(path: Path, member: str, kind: str) -> Iterator[IO[bytes]]:
    openers: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zst}
    if member:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inside:
            yield inside
        return
    with openers.get(kind, _plain)(path) as stream:
        yield cast(IO[bytes], stream)


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _zst(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


def members(path: Path, name: str) -> list[zipfile.ZipInfo]:
    """The files in a zip, in the order of their names.

    Raises:
        UserError: it is no zip, or needs a password.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{name} is not a whole zip file ({error}); fetch it again") from error
    if locked := [info.filename for info in found if info.flag_bits & 1]:
        raise UserError(f"{name}: {locked[0]} needs a password; unpack it yourself")
    return sorted(found, key=lambda info: info.filename)


def in_memory(content: Content) -> io.BytesIO:
    """The bytes as a file that can be searched, for readers that begin at the end."""
    return io.BytesIO(content.bytes())
