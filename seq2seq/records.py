"""What a run folder tells without its model: `config.json` as a `Record`, and `history.csv`.

This module imports no TensorFlow.
"""

import csv
import dataclasses
import errno
import functools
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines import CorpusError, as_seen_from, checksums, choose
from pipelines.options import OptionError, one_line
from seq2seq.config import Config

SHIPPED = {"phrasebook": Path(__file__).parent / "phrasebook"}  # runs that come with the library


def find_run(name: Path | str) -> Path:
    """The folder of a run. If no such folder exists, the name `phrasebook` means the run that comes with the library.

    Raises:
        RunError: if the name is too long for a path, which happens if it is a text.
    """
    try:
        os.stat(name)
    except (OSError, ValueError) as error:  # ValueError: no path holds NUL
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise RunError(f"{str(name)[:50]}...: not a run folder: the name is too long") from None
        return SHIPPED.get(str(name), Path(name))
    return Path(name)


class RunError(ValueError):
    """A run folder that cannot be read or may not be written. The message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What the `config.json` of a run says: how it was trained, on what, and from which run's weights it started.

    Attributes:
        content: the whole file. Besides "options" there may be "command", "versions", "directory", "checksums" and
            "validation_checksums" of the corpora, "from", "averaged"; "plan", the pairs in the training set, the steps
            in an epoch, the epochs and the random seeds; and "training", the resources used, once training has ended.
    """

    content: dict

    @property
    def options(self) -> dict:
        """The options, as arguments of `Config`."""
        return self.content["options"]

    @functools.cached_property
    def config(self) -> Config:
        """The `Config` of the run."""
        return Config(**self.options)

    def lineage(self) -> Iterator["Record"]:
        """Yield this record, that of the run from whose weights it started, and so on."""
        yield self
        if "from" in self.content:
            yield from Record(self.content["from"]).lineage()

    @property
    def may_have_learned(self) -> bool:
        """Whether the run may have been trained on sources of its held-out set. Only a hash split prevents this."""
        return self.config.split != "hash" or bool(self.config.validation) or "from" in self.content

    def checksums(self, name: str = "corpus") -> list[str]:
        """The checksums of the files of the corpus, or of the "validation" side; empty if they are unknown."""
        return list(self.content.get("checksums" if name == "corpus" else "validation_checksums", {}).values())

    def find_corpus(self, name: str = "corpus") -> str | tuple[str, ...]:
        """Find the corpus again, by the checksums of its files.

        A relative path is looked up in the current directory, then in the one in which the run was trained.

        Args:
            name: "corpus", or "validation" for the corpus that was held out.

        Returns:
            The corpus as `read_pairs` takes it.

        Raises:
            CorpusError: if it does not exist, or its files have changed.
        """
        corpus = getattr(self.config, name)
        names = [corpus] if isinstance(corpus, str) else corpus
        here, then = os.getcwd(), self.content.get("directory", os.getcwd())
        relative = [as_seen_from(here, name) for name in names] != list(names)
        places = [list(names)]
        if relative and then != here:
            places.append([as_seen_from(then, name) for name in names])
        what_for = "trained on" if name == "corpus" else "validated on"
        failures = []
        for place in places:
            try:
                changed = self.changed_files(place, name)
            except (CorpusError, OSError) as error:
                failures.append(str(error))
                continue
            if not changed:
                return place[0] if isinstance(corpus, str) else tuple(place)
            failures.append(f"{', '.join(changed)}: changed since the run was {what_for} this corpus")
        where = f" (looked up from {here}" + (f", then from {then}, where it was trained)" if len(places) > 1 else ")")
        raise CorpusError("; ".join(dict.fromkeys(failures)) + (where if relative else ""))

    def changed_files(self, corpus: str | Sequence[str], name: str = "corpus") -> list[str]:
        """The files of a corpus that are not those of the run; the corpus itself if only their number or order differs.

        Paths do not count: the files may have moved, and those of a named corpus differ between machines.

        Args:
            corpus: as `read_pairs` takes it.
            name: as in `find_corpus`.
        """
        held, expected = checksums(corpus), self.checksums(name)
        if list(held.values()) == expected:
            return []
        changed = [path for path, digest in held.items() if digest not in expected]
        return changed or ([corpus] if isinstance(corpus, str) else list(corpus))


def read_record(run: Path | str) -> Record:
    """Read the `config.json` of a run.

    Args:
        run: the run folder, or the file itself.

    Raises:
        OptionError: if the file cannot be read, or an option in it is unknown or not allowed.
    """
    path = find_run(run)
    if path.is_dir():
        path = path / "config.json"
        if not path.exists():
            raise OptionError(f"{path.parent}: has no config.json")
    elif not path.exists():
        raise OptionError(f"{path}: no such run folder or configuration")
    try:
        record = Record(json.loads(path.read_bytes()))
        for each in record.lineage():
            for name, kind in _KINDS.items():
                if not isinstance(each.content.get(name, kind()), kind):
                    raise TypeError(f"{name!r} is not a {kind.__name__}")
            for name in each.options:
                choose("option", name, Config.__dataclass_fields__)
            each.config  # noqa: B018  (checks the options)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"{path}: not the configuration of a run ({type(error).__name__}: {error})") from None
    return record


_KINDS: dict[str, type] = {"directory": str}
_KINDS |= dict.fromkeys(("options", "checksums", "validation_checksums", "from", "averaged", "training", "plan"), dict)


def finished(folder: Path | str) -> bool | None:
    """Whether the training of a run has ended; None if the folder holds no run.

    This is read from `config.json` alone: it has "plan" from the beginning of training on, and "training" at the end.
    """
    try:
        content = json.loads(Path(folder, "config.json").read_bytes())
        return "training" in content if {"options", "plan"} <= set(content) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def resumable(folder: Path | str) -> bool:
    """Whether a folder holds an unfinished run of which nothing is missing."""
    return finished(folder) is False and Path(folder, "unfinished", "begun.keras").is_file()


def unfinished(folder: Path | str) -> str:
    """Say that the training of a run has not ended, and what to do."""
    if not resumable(folder):
        return f"{folder} holds part of a run, which cannot be resumed; --overwrite starts from the beginning"
    return (
        f"{folder}: its training is unfinished; resume it with seq2seq train --resume --out {shlex.quote(str(folder))}"
    )


def check_finished(folder: Path | str) -> None:
    """Check that a run has ended, before something is made of its model.

    Raises:
        RunError: if the run is unfinished.
    """
    if finished(find_run(folder)) is False:
        raise RunError(unfinished(folder))


def read_history(folder: Path | str) -> list[dict[str, float]]:
    """Read the figures of each epoch of a run, {name: number}, from its `history.csv`. Epochs that were not measured
    lack those of the held-out pairs.

    Raises:
        RunError: if the file is missing, damaged or has no epochs.
    """
    path = find_run(folder) / "history.csv"
    if not path.exists():
        raise RunError(f"{path.parent}: has no history.csv")
    try:
        with path.open(newline="") as file:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)) or not rows:
            raise ValueError("its epochs are not 1, 2 and so on")
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise RunError(f"{path}: damaged, or not the history of a run ({one_line(error)})") from None
    return rows
