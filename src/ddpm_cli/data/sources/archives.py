"""Images in a zip or tar archive. Members are never extracted: their names are names, not places.

A zip has a directory and random access, so each process reads its own members. A tar, mostly compressed, has neither:
it is streamed once from start to end, and the content of its images travels to the processes.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from ...errors import InputError
from ..tally import Tally
from .folder import check_size
from .source import (
    CHUNK_BYTES,
    CHUNK_IMAGES,
    Chunk,
    Format,
    Opener,
    Source,
    ends_with,
    is_image_name,
    naming,
    no_images,
    state_of_file,
)

# Extended headers hold long names and the like. One that claims more is not read into memory.
_MAX_HEADER = 2**18
_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
_TAR_ERRORS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RecursionError)


@dataclass(frozen=True, eq=False)
class Zip(Source):
    """A zip archive; ``members`` are the positions of its images in the archive's directory."""

    members: array[int]

    @property
    def kind(self) -> str:
        return "zip"

    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        with naming(self.label), open_zip(self.path) as archive:
            infos = archive.infolist()
            first = weight = 0
            for index, member in enumerate(self.members):
                weight += infos[member].file_size
                if weight >= CHUNK_BYTES or index + 1 - first == CHUNK_IMAGES or index + 1 == len(self.members):
                    members = tuple(self.members[first : index + 1])
                    names = tuple(infos[i].filename for i in members)
                    yield Chunk(first, names, members, amount=len(members))
                    first, weight = index + 1, 0


def find_zip(path: Path, label: str) -> Zip:
    """List a zip archive's images, in the order of its directory.

    Raises:
        InputError: it is no zip archive, or has no images, or they are encrypted.
    """
    state = state_of_file(path)  # first, so that a change meanwhile makes it another state
    tally, members = Tally(), array("Q")
    with naming(label), open_zip(path) as archive:
        for position, info in enumerate(archive.infolist()):
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                continue
            if not is_image_name(info.filename):
                tally.ignore(info.filename)
            elif kind not in (0, stat.S_IFREG):
                tally.skip(info.filename, "not a regular file")
            elif info.flag_bits & 1:
                tally.skip(info.filename, "encrypted; unpack the archive first")
            else:
                members.append(position)
    if not members:
        raise no_images(label, tally)
    return Zip(path, label, len(members), *state, tally, members)


@contextlib.contextmanager
def open_zip(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive, or an `InputError` that says what is wrong with it."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))  # noqa: PTH123
            archive = stack.enter_context(zipfile.ZipFile(file))
        except PermissionError as error:
            raise InputError(f"it cannot be opened: {error.strerror}") from error
        except (*_ZIP_ERRORS, NotImplementedError) as error:
            raise InputError(f"not a zip archive, or a damaged one ({error})") from error
        yield archive


@contextlib.contextmanager
def open_member(archive: zipfile.ZipFile, member: int) -> Iterator[IO[bytes]]:
    """One member, by position. It gives no more bytes than the directory says, whatever the compressed data holds.

    Raises:
        InputError: it is damaged, empty, too large, or compressed in a way that is not known.
    """
    info = archive.infolist()[member]
    check_size(info.file_size)
    with member_errors(), archive.open(info) as file:
        yield file


@contextlib.contextmanager
def member_errors() -> Iterator[None]:
    """Turn what zipfile raises on a member, when opened or read, into an `InputError`."""
    try:
        yield
    except NotImplementedError as error:
        raise InputError(f"compressed in an unknown way ({error})") from error
    except RuntimeError as error:
        raise InputError(f"encrypted ({error})") from error
    except _ZIP_ERRORS as error:
        raise InputError(f"damaged in the archive ({error})") from error


@dataclass(frozen=True, eq=False)
class Tar(Source):
    """A tar archive, compressed or not."""

    @property
    def kind(self) -> str:
        return "tar"

    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        first = done = 0
        images: list[tuple[str, bytes]] = []
        for name, content, position in self._images(tally):
            images.append((name, content))
            if len(images) == CHUNK_IMAGES or sum(len(content) for _, content in images) >= CHUNK_BYTES:
                yield _carry(first, images, position - done)
                first, done, images = first + len(images), position, []
        yield _carry(first, images, self.nbytes - done)

    def _images(self, tally: Tally) -> Iterator[tuple[str, bytes, int]]:
        """Name and content of each image, and how many bytes of the archive were read by then."""
        images = 0
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self.path.open("rb"))
                archive = stack.enter_context(tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member))
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or it would grow with the archive
                    if (content := _content(archive, member, tally)) is not None:
                        images += 1
                        yield member.name, content, min(file.tell(), self.nbytes)
            except _TAR_ERRORS as error:
                problem = f"not a tar archive, or a damaged one, after {images} images"
                raise InputError(f"{self.label}: {problem} ({error})") from error


def _carry(first: int, images: list[tuple[str, bytes]], amount: int) -> Chunk:
    names, contents = tuple(name for name, _ in images), [content for _, content in images]
    return Chunk(first, names, tuple(map(len, contents)), blob=b"".join(contents), amount=amount)


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADER_TYPES and member.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, tally: Tally) -> bytes | None:
    if member.isdir():
        return None
    if not is_image_name(member.name):
        tally.ignore(member.name)
        return None
    if not member.isreg() or member.issparse():
        tally.skip(member.name, "not a regular file")
        return None
    try:
        check_size(member.size)
    except InputError as error:
        tally.skip(member.name, str(error))
        return None
    file = archive.extractfile(member)
    return file.read() if file else None


def open_bytes(chunk: Chunk, index: int) -> IO[bytes]:
    """One of the images that travel with the chunk, whose sizes are its keys."""
    start = sum(chunk.keys[:index])
    return io.BytesIO(chunk.blob[start : start + chunk.keys[index]])


def find_tar(path: Path, label: str) -> Tar:
    """A tar archive, of which nothing is known before it is read."""
    return Tar(path, label, None, *state_of_file(path), Tally())


@contextlib.contextmanager
def _open_zip(path: str) -> Iterator[Opener]:
    with open_zip(path) as archive:
        yield lambda chunk, index: open_member(archive, chunk.keys[index])


@contextlib.contextmanager
def _open_tar(path: str) -> Iterator[Opener]:
    yield open_bytes


_TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
ZIP = Format("zip", ends_with(".zip"), find_zip, _open_zip)
TAR = Format("tar", ends_with(*_TAR_NAMES), find_tar, _open_tar)
