"""The runs that a command names: separated from its other arguments, and loaded."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines import OptionError
from pipelines.files import parallel_names
from pipelines.formats import numbered
from pipelines.options import load_classes
from pipelines.readers import INVISIBLE
from seq2seq.commands.options import option_flag
from seq2seq.commands.terminal import say
from seq2seq.records import find_run, finished, read_record, unfinished

# What is odd in a source.
NOT_KNOWN = " is not in the vocabulary"
NO_FEATURE = "the feature {!r}" + NOT_KNOWN
NOT_SEPARATED = "tabs do not separate columns, because this model has only one source column"
CUT = "only the first {:,} tokens are read"
UNKNOWN_TEXT = "at least half of the tokens are not in the vocabulary"
MORE_UNKNOWN = "more tokens are not in the vocabulary; they are not named"
MOST_NAMED = 20  # of the unknown tokens of one command's texts


def split_runs(command: str, arguments: list[str], other: str, least: int = 1) -> tuple[list[Path], list[str]]:
    """Separate the run folders from the arguments after them, whose name in messages is `other`.

    The first `least` arguments are meant to be runs; another one is a run if it is a folder with a run in it.
    """
    expected = f"expected {'RUN ' * least}[RUN]... [{other}]..."
    arguments = [*(str(find_run(name)) for name in arguments[:least]), *arguments[least:]]
    are_runs = [True, *map(is_run, arguments[1:])]
    count = next((n for n, is_run in enumerate(are_runs) if not is_run), len(are_runs))
    if count < least:
        raise OptionError(f"{command}: {arguments[count]} is not a run folder; {expected}")
    if any(are_runs[count:]):
        run, before = arguments[are_runs.index(True, count)], f"the {other.lower()} {arguments[count]}"
        raise OptionError(f"{command}: {run} is a run folder, but comes after {before}; {expected}")
    return [Path(name) for name in arguments[:count]], arguments[count:]


def is_run(name: str) -> bool:
    """Whether a path is a run folder, finished or not."""
    return os.path.isfile(os.path.join(name, "config.json"))  # `Path` raises an error for a text too long to be a path


def open_runs(runs: Sequence[Path], imports: Iterable[str] | None) -> Any:
    """Import classes of your own, then load a run, or the ensemble of several.

    Each run whose training has not ended is named on stderr.
    """
    from seq2seq.runs import load_runs

    load_classes("import", imports)
    model = load_runs(runs)
    for run in runs:
        if finished(run) is False:
            say(unfinished(run))
    return model


def oddities(tokenizer: Any, sources: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (place, message) for each source that the model may not read as the user meant it."""
    import numpy as np

    from pipelines.tokens import PADDING
    from seq2seq.decoding import LONGEST_SOURCE

    single = len(tokenizer.of_columns) == 1
    for column, part in enumerate(tokenizer.of_columns):
        if not part.ordered:
            texts = sources if single else [source.split(b"\t")[column] for source in sources]
            for place, features in enumerate(part.unknown(texts).to_list()):
                for feature in features:
                    yield place, NO_FEATURE.format(feature.decode())
    if single:
        for place, source in enumerate(sources):
            if b"\t" in source:
                yield place, NOT_SEPARATED
    in_order, unknown_ids = tokenizer.in_order, tokenizer.unknown_ids
    for first in range(0, len(sources), 256):  # few, as each batch is as long as its longest text
        ids = tokenizer.tokenize(sources[first : first + 256]).numpy()
        for place in np.flatnonzero(np.count_nonzero(ids != PADDING, axis=1) > LONGEST_SOURCE).tolist():
            yield first + place, CUT.format(LONGEST_SOURCE)
        read = ids[:, :LONGEST_SOURCE]
        counted = in_order[read] & (read != PADDING)  # without features
        unknown = np.count_nonzero(counted & np.isin(read, unknown_ids), axis=1)
        places = [place + first for place in np.flatnonzero(unknown).tolist() if not is_blank(sources[place + first])]
        if places:
            tokens = tokenizer.unknown([sources[place] for place in places], LONGEST_SOURCE).to_list()
            half = 2 * unknown >= np.count_nonzero(counted, axis=1)
            for place, those in zip(places, tokens, strict=True):
                yield from _unknown(place, [token.decode() for token in those], half[place - first])


def oddities_for_export(translator: Any, sources: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """The same as `oddities`, for an export, whose tokenizers look up one text at a time."""
    parts = [part for part, _ in translator.source.parts] or [translator.source]
    for place, source in enumerate(sources):
        if len(parts) == 1 and b"\t" in source:
            yield place, NOT_SEPARATED
        columns = zip(parts, source.split(b"\t") if len(parts) > 1 else [source], strict=True)
        # `look_up` gives (id, None) for a known token, and (id, token) for an unknown one.
        read = [(part.kind, token) for part, column in columns for _, token in part.look_up(column)]
        for kind, token in read:
            if kind == "separator" and token is not None:
                yield place, NO_FEATURE.format(token)
        if len(read) > translator.longest_source:
            yield place, CUT.format(translator.longest_source)
        counted = [token for kind, token in read[: translator.longest_source] if kind != "separator"]
        unknown = [token for token in counted if token is not None]
        if unknown and not is_blank(source):
            yield from _unknown(place, unknown, 2 * len(unknown) >= len(counted))


def _unknown(place, tokens, half):
    """Yield the messages about the unknown tokens of a text, which may be half of it or more."""
    if half:
        yield place, UNKNOWN_TEXT
        return
    for token in tokens:
        if token != "\t":  # which has a message of its own
            what = "a part of the text" if token == "\ufffd" else repr(token)  # subwords do not tell which part
            yield place, what + NOT_KNOWN


def say_oddities(found: Iterable[tuple[int, str]], unit: str, done: int, said: set[str]) -> None:
    """Report oddities of sources, numbered after `done` others, each only once: `said` holds those reported."""
    for place, odd in sorted(found):
        if odd not in said and odd.endswith(NOT_KNOWN):
            named = sum(message.endswith(NOT_KNOWN) for message in said)
            odd = odd if named < MOST_NAMED else MORE_UNKNOWN
        if odd not in said:
            said.add(odd)
            say(f"{unit} {done + place + 1}: {odd}")


def is_blank(text: bytes) -> bool:
    """Whether a text has no visible character, as a line between paragraphs. Training has no such source."""
    return not text.decode(errors="replace").lstrip(INVISIBLE)


def reading_as_trained(run: Path, corpus: Sequence[str], given: dict) -> dict:
    """How to read a corpus for a run: with the run's own --columns and --reverse, unless others are given.

    Standard input, which is made for the command, has source and target in their order. If the run was trained with
    columns or reversed, a message says that this is not applied. Another says if the run's columns choose parallel
    files.
    """
    if "columns" in given:
        return given
    options = read_record(run).options
    own = {name: options[name] for name in ("columns", "reverse") if options.get(name) and name not in given}
    if own and "-" in corpus:
        flags = " and ".join(map(option_flag, own))
        say(f"standard input is read as all source columns, then the target, without {flags} of {run}")
        return given
    if numbered(own.get("columns")) and any(len(parallel_names(name)) > 1 for name in corpus):
        numbers = ",".join(map(str, own["columns"]))
        say(f"parallel files are chosen by the --columns of {run}, {numbers}; give --columns for another order")
    return own | given
