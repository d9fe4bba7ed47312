"""What keeps a run safe: files that are whole or not there, checkpoints to go on from, a lock. No TensorFlow in it."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class RunError(ValueError):
    """A run folder that cannot be read, or that may not be written. The message names it and says what to do."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to. What is written there takes its place, at once, when it is on the disk.

    After an error everything is as it was before.
    """
    aside = path.with_name(f"aside-{path.name}")  # with its ending, which Keras looks at
    try:
        yield aside
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Writes a whole file of JSON."""
    with whole_file(path) as aside:
        text = json.dumps(content, ensure_ascii=False, indent=indent) + "\n"
        aside.write_bytes(text.encode(errors="backslashreplace"))  # as JSON writes what a file's name may hold, too


def _flush(path):
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder, if it is not there, and keeps other processes out of it. An empty one is removed in the end.

    The operating system lets go of the lock when the process ends in whatever way, and so none is ever left behind.

    Raises:
        RunError: if another process holds the lock, with its number, or the folder is a file.
    """
    path = folder / "lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileExistsError, FileNotFoundError):  # or its holder has just removed it
            if folder.is_file():
                raise RunError(f"{folder} is a file; a run needs a folder") from None
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode()
            os.close(file)
            raise RunError(f"{folder} is in use by {holder or 'another process'}") from None
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)  # what its holder has removed in the meantime locks nothing
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        with contextlib.suppress(OSError):
            folder.rmdir()


class Checkpoints:
    """The last two states of a training, in a folder, each a file of arrays and facts.

    They are written by a thread of their own, while the training goes on.

    Args:
        folder: where to keep them.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.thread: threading.Thread | None = None
        self.error: OSError | None = None

    def save(self, number: int, arrays: list[np.ndarray], facts: dict) -> None:
        """Begins to write a state, when the one before is written.

        Args:
            number: how far the training has come; states are ordered by it.
            arrays: a list of NumPy arrays, which nobody changes any more.
            facts: what else to know, as JSON can hold it.
        """
        self.wait()
        self.thread = threading.Thread(target=self._write, args=(number, arrays, facts))
        self.thread.start()

    def wait(self) -> OSError | None:
        """Waits until nothing is being written. Returns the error that writing ended with, if it did, only once."""
        if self.thread:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def _write(self, number, arrays, facts):
        try:
            with whole_file(self.folder / f"{number:012}.npz") as path, path.open("wb") as file:
                np.savez(file, json.dumps(facts), *arrays)
            for old in self._paths()[2:]:
                old.unlink()
        except OSError as error:
            self.error = error

    def load(self) -> tuple[list[np.ndarray], dict]:
        """The newest state that is whole: its arrays and facts.

        Raises:
            RunError: if there is none.
        """
        for path in self._paths():
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip():
                        continue
                with np.load(path) as found:
                    facts, *arrays = (found[f"arr_{number}"] for number in range(len(found)))
                    return arrays, json.loads(facts.item())
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                continue
        raise RunError(f"{self.folder}: no checkpoint that is whole")

    def _paths(self):
        """The newest first."""
        return sorted(self.folder.glob("[0-9]*.npz"), reverse=True)

    def clear(self) -> None:
        """Makes the folder empty, and makes it where it is not there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
