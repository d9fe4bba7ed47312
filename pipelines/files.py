"""Files: which ones the name of a corpus stands for, how they are packed, and their checksums."""

import bz2
import contextlib
import glob
import gzip
import hashlib
import json
import lzma
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

# Of the files in a folder, in small or capital letters. A `.json` there may be a manifest: it is read if it is named.
_ENDINGS = (".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".tfrecord", ".tfrecords")
COMPRESSED: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# What is not read, and the command that makes files of it that are.
PACKED = {".zst": "zstd -d", ".lz4": "lz4 -d", ".7z": "7z x", ".rar": "unrar x"}
PACKED |= dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz"), "tar -xf")


class CorpusError(ValueError):
    """A corpus that cannot be read. The message names the file, the line where there is one, and what is wrong."""


def as_seen_from(directory: str | os.PathLike[str], corpus: str) -> str:
    """A corpus as written for a process in that directory, so written that this process finds it."""
    if corpus in NAMED_CORPORA:
        return corpus
    return "+".join(os.path.join(directory, side) for side in sides_of(corpus, directory))


def sides_of(text, directory=""):
    """The paths or globs in `A+B`. Where something is there whose name has a `+` in it, that is no such sign."""
    parts, sides = text.split("+"), []
    while parts:
        starts = (count for count in range(len(parts), 1, -1) if _is_there(directory, "+".join(parts[:count])))
        count = next(starts, 1)
        sides.append("+".join(parts[:count]))
        del parts[:count]
    return sides


def _is_there(directory, name):
    path = Path(directory, name)
    if archive := archive_of(path):
        return path == archive or path.relative_to(archive).as_posix() in _members(archive)
    return os.path.exists(path) or bool(glob.glob(str(path), recursive=True))


def files_of(text, corpus):
    """The files that a path, a glob or a folder stands for, in the order of their names."""
    if not text:
        raise CorpusError(f"corpus={corpus!r}: an empty name; the current folder is .")
    path = Path(text)
    if os.path.isdir(path):
        paths = sorted(p for p in path.iterdir() if plain_name(p).endswith(_ENDINGS) and not p.name.startswith("."))
        if not paths:
            packed = ", ".join(COMPRESSED)
            raise CorpusError(f"{path}: no file in this folder ends in {', '.join(_ENDINGS)} (or these with {packed})")
        for name in read_manifest(path).get("shards", ()):
            if path / name not in paths:
                raise CorpusError(f"{path / name}: missing, though {path / 'manifest.json'} lists it")
        return paths
    if os.path.exists(path) or archive_of(path):
        return [_member(path)]
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if not os.path.isdir(name))
    if not found:
        named = "" if os.sep in text else f"; the built-in corpora are {', '.join(NAMED_CORPORA)}"
        part = "" if text == corpus else f" (of {corpus})"
        raise CorpusError(f"{path}: No such file or folder{part}{named}")
    return [_member(path) for path in found]


def read_manifest(folder: Path | str) -> dict:
    """What `shuffle_corpus` has written of a folder; nothing for folders that it has not made."""
    path = Path(folder) / "manifest.json"
    if not os.path.isfile(path):
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from None
    ours = isinstance(found, dict) and isinstance(found.get("shards"), dict) and "lengths" in found
    return found if ours else {}


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain_name(path):
    """The name of a file without the ending that says how it is compressed, in small letters."""
    name, ending = os.path.splitext(path.name.lower())
    return name if ending in COMPRESSED or ending in PACKED else name + ending


def archive_of(path):
    """The zip file that a path leads into, or None."""
    return next((p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p)), None)


def _members(archive):
    """The names of the files in a zip, but for what macOS adds."""
    try:
        with zipfile.ZipFile(archive) as file:
            return [name for name in file.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    except (OSError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{archive}: {error}") from None


def _member(path):
    """Completes the path of a zip with its only member; other paths stay as they are."""
    archive = archive_of(path)
    if archive is None:
        return path
    names = _members(archive)
    if path == archive and len(names) == 1:
        return archive / names[0]
    if path == archive or path.relative_to(archive).as_posix() not in names:
        raise CorpusError(f"{path}: which of its files? {', '.join(f'{archive}/{name}' for name in names)}")
    return path


def _phrasebook():
    return Path(__file__).with_name("phrasebook.tsv")


def _spa_eng():
    url = "https://storage.googleapis.com/download.tensorflow.org/data/spa-eng.zip"
    import keras

    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras announces the download; stdout is for results
            archive = keras.utils.get_file(
                "spa-eng.zip", url, file_hash="f80e581ae291aa34dd3aba7bd98b5e9505234da4318e2f3295df70a1520c7f61"
            )
    except Exception as error:  # get_file raises no narrower one
        cache = Path(os.environ.get("KERAS_HOME", "~/.keras"), "datasets").expanduser()
        raise CorpusError(f"spa-eng: {error}; {url} can also be put into {cache} by hand") from None
    return Path(archive) / "spa-eng" / "spa.txt"


NAMED_CORPORA = {"phrasebook": _phrasebook, "spa-eng": _spa_eng}
