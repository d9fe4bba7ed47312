"""Files: which ones a corpus consists of, how they are compressed, and their checksums; atomic folders."""

import bz2
import contextlib
import functools
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import posixpath
import secrets
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Endings of the files read from a folder, in any case. Not `.json`, which may be a manifest.
_ENDINGS = (".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".tfrecord", ".tfrecords")
_BLOCK = 1 << 16  # bytes of a compressed file that are read at once


class _Streams(io.RawIOBase):
    """The content of a file of compressed streams, perhaps with zeros between them.

    `bz2.open` and `lzma.open` silently stop at a later stream whose beginning is damaged, and the latter also at zeros
    between streams, which the format xz allows.
    """

    def __init__(self, decompressor: Callable, file: Any) -> None:
        super().__init__()
        self._decompressor, self._file = decompressor, file
        self._stream = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = b""
        while not found:
            block = b""
            if self._stream.eof:
                if not (block := self._after_zeros()):
                    return 0
                self._stream = self._decompressor()
            elif self._stream.needs_input and not (block := self._file.read(_BLOCK)):
                raise EOFError("the file ends within a compressed stream")
            found = self._stream.decompress(block, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _after_zeros(self):
        """The beginning of the next stream, as many bytes as have been read; none at the end of the file."""
        rest = self._stream.unused_data.lstrip(b"\0")
        while not rest and (block := self._file.read(_BLOCK)):
            rest = block.lstrip(b"\0")
        return rest


COMPRESSED: dict[str, Callable] = {
    ".gz": gzip.open,
    ".bz2": functools.partial(_Streams, bz2.BZ2Decompressor),
    ".xz": functools.partial(_Streams, functools.partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)),
}
# Endings that are not read, and the commands that unpack them.
PACKED = {".zst": "zstd -d", ".lz4": "lz4 -d", ".7z": "7z x", ".rar": "unrar x"}
PACKED |= dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz"), "tar -xf")


class CorpusError(ValueError):
    """A corpus that cannot be read. The message names the file, the line if there is one, and the fault."""


def files_of(corpus: str | os.PathLike[str]) -> list[tuple[Path, ...]]:
    """Find the files of a corpus, which is the name of a corpus, a file, a glob, a folder, a member of a zip, or
    several of these joined by `+`, parallel files. A `Path` is never the name of a corpus.

    Returns:
        For each file a tuple with its path; for each set of parallel files a tuple with all their paths.

    Raises:
        CorpusError: if there is no such file, if parallel names match different numbers of files, or if a zip holds
            several files and none is chosen.
    """
    text = os.fspath(corpus)
    if isinstance(corpus, str) and corpus in NAMED_CORPORA:
        text = os.fspath(NAMED_CORPORA[corpus]())
    sides = [_expand(side, text) for side in parallel_names(text)]
    if len(set(map(len, sides))) != 1:
        raise CorpusError(
            f"{text}: {' and '.join(str(len(side)) for side in sides)} files; expected the same number of each"
        )
    return list(zip(*sides, strict=True))


def as_seen_from(directory: str | os.PathLike[str], corpus: str) -> str:
    """Rewrite a corpus that is relative to a directory so that the current process finds it."""
    if corpus in NAMED_CORPORA:
        return corpus
    return "+".join(os.path.join(directory, side) for side in parallel_names(corpus, directory))


def parallel_names(text: str, directory: str | os.PathLike[str] = "") -> list[str]:
    """Split `A+B` into its paths or globs. A `+` within the name of something that exists does not separate."""
    parts, names = text.split("+"), []
    while parts:
        candidates = (count for count in range(len(parts), 1, -1) if _exists(directory, "+".join(parts[:count])))
        count = next(candidates, 1)
        names.append("+".join(parts[:count]))
        del parts[:count]
    return names


def _exists(directory, name):
    path = Path(directory, name)
    if archive := archive_of(path):
        return path == archive or path.relative_to(archive).as_posix() in _members(archive)
    return os.path.exists(path) or bool(glob.glob(str(path), recursive=True))


def _expand(text, corpus):
    """Find the files of one path, glob or folder, in the order of their names."""
    if not text:
        raise CorpusError(f"corpus={corpus!r}: a file name is empty; write . for the current folder")
    path = Path(text)
    if os.path.isdir(path):
        return _files_in(path)
    if os.path.exists(path) or archive_of(path):
        return [_member(path)]
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if not os.path.isdir(name))
    if "://" in text and not found:
        raise CorpusError(f"{text}: is an address; download the file first")
    if not found:
        named = "" if os.sep in text else f"; the built-in corpora are {', '.join(NAMED_CORPORA)}"
        part = "" if text == corpus else f" (of {corpus})"
        raise CorpusError(f"{path}: No such file or folder{part}{named}")
    return [_member(path) for path in found]


def _files_in(folder):
    paths = sorted(p for p in folder.iterdir() if plain_name(p).endswith(_ENDINGS) and not p.name.startswith("."))
    if not paths:
        packed = ", ".join(COMPRESSED)
        raise CorpusError(f"{folder}: no file in this folder ends in {', '.join(_ENDINGS)} (or these with {packed})")
    for name in read_manifest(folder).get("shards", ()):
        if folder / name not in paths:
            raise CorpusError(f"{folder / name}: missing, though {folder / 'manifest.json'} lists it")
    return paths


def read_manifest(folder: Path | str) -> dict:
    """Read the manifest that `shuffle_corpus` wrote into a folder; empty for other folders."""
    path = Path(folder) / "manifest.json"
    if not os.path.isfile(path):
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from None
    if not (isinstance(found, dict) and isinstance(found.get("shards"), dict) and "lengths" in found):
        return {}  # of something else
    for name, shard in found["shards"].items():
        if not (isinstance(shard, dict) and isinstance(shard.get("sha256"), str)):
            raise CorpusError(f"{path}: damaged: {name} has no sha256")
    return found


@contextlib.contextmanager
def whole_folder(folder: Path, refused: type[ValueError]) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary path that becomes `folder` at the end. After an error, neither
    exists; parent folders made for it remain.

    Args:
        folder: the folder to make. It may exist if it is empty.
        refused: the exception to raise if it is not empty, or cannot be made or replaced.

    Raises:
        OSError: at the end, if another process has made the folder in the meantime.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise refused(f"{folder} already exists; choose another folder")
    for kind, is_one in (
        ("a symbolic link", folder.is_symlink()),
        ("a mount point", os.path.ismount(folder)),
        ("the current directory", folder.resolve() == Path.cwd()),
    ):
        if is_one:
            raise refused(f"{folder} is {kind}, which cannot be replaced; choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise refused(f"{folder} cannot be made: {error.filename}: {error.strerror}") from None
    # Another process may be making the same folder, so each has a name of its own. The second to end fails.
    aside = folder.with_name(f"aside-{secrets.token_hex(4)}-{folder.name}")
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """Open a file, or a member of a zip, to read its bytes as they are."""
    archive = archive_of(path)
    if archive is None:
        with path.open("rb") as file:
            yield file
    else:
        with zipfile.ZipFile(archive) as members:
            name = _names(members)[path.relative_to(archive).as_posix()]
            with members.open(name) as member:
                yield member


def sha256(path: Path) -> str:
    """Compute the sha256 of a file or of a member of a zip, in hexadecimal.

    Raises:
        CorpusError: if it cannot be read.
    """
    try:
        with open_bytes(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # also of a zip
        raise CorpusError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def plain_name(path: Path) -> str:
    """Return the name of a file in lower case, without the ending of its compression."""
    name, ending = os.path.splitext(path.name.lower())
    return name if ending in COMPRESSED or ending in PACKED else name + ending


def archive_of(path: Path) -> Path | None:
    """Find the zip file that a path leads into."""
    return next((p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p)), None)


def _names(file):
    """Return the files in an open zip as {path in it: member name}, without those that macOS adds. Some zips name
    members `./a.tsv` or `/a.tsv`; as paths, these would not lead into the zip."""
    names = [name for name in file.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    return {posixpath.normpath(name.lstrip("/")): name for name in names}


def _members(archive):
    """List the files in a zip, by their paths in it."""
    try:
        with zipfile.ZipFile(archive) as file:
            return list(_names(file))
    except (OSError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{archive}: {error}") from None


def _member(path):
    """Complete the path of a zip with its only member. Other paths stay as they are."""
    archive = archive_of(path)
    if archive is None:
        return path
    names = _members(archive)
    if path == archive and len(names) == 1:
        return archive.joinpath(*names)
    if path == archive or path.relative_to(archive).as_posix() not in names:
        raise CorpusError(f"{path}: choose one of its files: {', '.join(f'{archive}/{name}' for name in names)}")
    return path


def _phrasebook():
    return Path(__file__).with_name("phrasebook.tsv")


def _spa_eng():
    url = "https://storage.googleapis.com/download.tensorflow.org/data/spa-eng.zip"
    import keras

    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras announces the download; stdout is for results
            archive = keras.utils.get_file(
                "spa-eng.zip", url, file_hash="f80e581ae291aa34dd3aba7bd98b5e9505234da4318e2f3295df70a1520c7f61"
            )
    except Exception as error:  # get_file raises no narrower one
        raise CorpusError(
            f"spa-eng: {error}; you can also download {url} yourself and put it into {_downloads()}"
        ) from None
    return Path(archive) / "spa-eng" / "spa.txt"


def _downloads():
    """The folder in which Keras keeps what `get_file` downloads."""
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    if not os.access(home, os.W_OK):
        home = Path("/tmp/.keras")
    return home / "datasets"


def needs_download(corpus: str | Sequence[str]) -> bool:
    """Whether this is, or holds, the name of a corpus that is not on this machine yet."""
    names = [corpus] if isinstance(corpus, str) else corpus
    return "spa-eng" in names and not (_downloads() / "spa-eng.zip").exists()


NAMED_CORPORA = {"phrasebook": _phrasebook, "spa-eng": _spa_eng}
