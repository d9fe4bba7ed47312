"""Crash safety: atomic file writes, checkpoints, a lock on a run folder. This module imports no TensorFlow."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from seq2seq.records import RunError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to. That file replaces `path` atomically, once it is on the disk.

    After an error, `path` is unchanged. Symbolic links are replaced, not followed: an untrusted run may contain some.
    """
    aside = path.with_name(f"aside-{path.name}")  # with the suffix, which Keras checks
    aside.unlink(missing_ok=True)
    try:
        yield aside
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Write a file of JSON atomically."""
    with whole_file(path) as aside:
        text = json.dumps(content, ensure_ascii=False, indent=indent) + "\n"
        aside.write_bytes(text.encode(errors="backslashreplace"))  # names of files may not be UTF-8


def _flush(path):
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


_TRIES = 1000  # to lock a folder that other processes make and remove all the time


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, unless it exists, and lock it against other processes. At the end, an empty folder is removed.

    The operating system releases the lock however the process ends, so no stale lock remains. (The package `filelock`
    neither names the holder nor removes its file together with an empty folder, which is most of this function.)

    Raises:
        RunError: if another process holds the lock (the message has its number), the path cannot be a folder, or the
            folder contains a file `lock` that no run has written.
    """
    path = folder / "lock"
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            for above in (folder, *folder.parents):
                if os.path.lexists(above) and not above.is_dir():
                    raise RunError(f"{above} is a file or a broken link; a run needs a folder") from None
            continue  # the holder of the lock has just removed the folder
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):  # ENOENT: the working directory was removed
                raise
            raise RunError(f"{str(folder)[:99]}: cannot be made: {error.strerror}") from None
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            continue  # the folder was removed, as above
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR):
                raise
            raise RunError(f"{path} was not written by a run; choose another folder") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode()
            os.close(file)
            raise RunError(f"{folder} is in use by {holder or 'another process'}") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # its holder has removed the file in the meantime, so it locks nothing
    else:
        raise RunError(f"{path}: cannot be made")
    if not re.fullmatch(rb"(process \d+ on .*)?", os.pread(file, 1000, 0)):
        os.close(file)
        raise RunError(f"{path} was not written by a run, but a run would overwrite it; choose another folder")
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        with contextlib.suppress(OSError):
            folder.rmdir()


_STATES = 12 * "[0-9]" + ".npz"  # files with the number of updates as their name


class Checkpoints:
    """The last two states of a training run, in a folder, each in a file of arrays and other data.

    A thread writes them while training continues.

    Args:
        folder: where to keep them.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future | None = None

    def save(self, number: int, arrays: list[np.ndarray], facts: dict) -> None:
        """Start to write a state, after the previous one has been written.

        Args:
            number: the progress of training, by which states are ordered.
            arrays: a list of NumPy arrays, which must no longer change.
            facts: other data to record, serializable as JSON.
        """
        self._writing = self._writer.submit(self._write, number, arrays, facts)

    def wait(self) -> OSError | None:
        """Wait until nothing is being written. Return the error of the last write, if there was one, only once."""
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None
        if isinstance(error, OSError | None):
            return error
        raise error

    def _write(self, number, arrays, facts):
        with whole_file(self.folder / f"{number:012}.npz") as path, path.open("wb") as file:
            np.savez(file, json.dumps({"arrays": len(arrays), "facts": facts}), *arrays)
        for old in self._paths()[2:]:
            old.unlink()

    def load(self) -> tuple[list[np.ndarray] | None, dict]:
        """The arrays and other data of the newest undamaged state; None and {} if none has been saved.

        Raises:
            RunError: if all are damaged.
        """
        for path in (paths := self._paths()):
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip():
                        continue
                with np.load(path) as found:
                    first, *arrays = (found[f"arr_{number}"] for number in range(len(found)))
                content = json.loads(first.item())
                if content["arrays"] == len(arrays):  # if not, the directory of the archive is damaged
                    return arrays, content["facts"]
            except Exception:  # `zipfile` raises many kinds
                continue
        if paths:
            raise RunError(f"{self.folder}: no undamaged checkpoint; --overwrite starts from the beginning")
        return None, {}

    def _paths(self):
        """The newest first."""
        return sorted(self.folder.glob(_STATES), reverse=True)

    def remove(self) -> None:
        """Remove what training began with, then the states; then the folder, if nothing else is in it."""
        for name in ("begun.keras", "aside-begun.keras", _STATES, f"aside-{_STATES}"):
            for path in self.folder.glob(name):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
