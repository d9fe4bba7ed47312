"""`seq2seq translate` and `score`: text, line for line."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from pipelines import CorpusError, OptionError, open_corpora
from pipelines.formats import wrong_columns
from pipelines.lines import as_line, line_waits, read_lines
from pipelines.options import extra
from seq2seq.commands.loading import (
    is_blank,
    is_run,
    oddities,
    oddities_for_export,
    open_runs,
    reading_as_trained,
    say_oddities,
    split_runs,
)
from seq2seq.commands.options import (
    ENSEMBLE_HELP,
    BatchSize,
    BeamWidth,
    Import,
    LengthPenalty,
    MaxLength,
    MinLength,
    Run,
    ScoredCorpus,
    Search,
    Settings,
    option_flag,
    search_strategy,
    with_config_options,
)
from seq2seq.commands.terminal import json_line, reporting, say_speed, show
from seq2seq.records import RunError
from seq2seq.startup import start_tensorflow, without_stderr


def translate(  # longer than 60 lines: its signature declares the options
    run: Run,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="RUN|TEXT", help=f"{ENSEMBLE_HELP} Then the texts to translate.")
    ] = None,
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    n_best: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write this many translations of each text, one per line: samples with --sample, otherwise the best "
            "of a beam of 5 or more.",
        ),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw each token at random, according to its probability.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of sampling: below 1 more conservative, above 1 more varied.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample only from this many most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample only from the most likely tokens with this total probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling. Default: 0.")] = None,
    search: Search = None,
    options: Settings = None,
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix",
            help="Each TEXT or line has one more column, after a tab: how its translation begins, or nothing.",
        ),
    ] = False,
    min_length: MinLength = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = 256,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Before each translation, write its log-likelihood, the number that ranks it (log-likelihood over "
            "length penalty), and why it stopped: end, limit, repetition.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a line of JSON for each text, with its translations and their tokens."),
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="As --json, with the attention of each token of a translation.")
    ] = False,
    imports: Import = None,
) -> None:
    """Translate the TEXTs, or stdin line by line, to stdout. Lines are translated as soon as no more input is waiting.

    If the model was trained on several source columns, each TEXT or line must have them, with tabs between them. With
    --prefix, one more column follows: how the translation begins, which may be empty.

    Each TEXT or line gets one line of output, or N with --n-best N. Without --scores, --n-best and --json, a blank line
    gets an empty line; with several columns or --prefix, it is refused. A tab or a line break inside a translation is
    written as a space. Run folders come first; an argument that is not a run folder is a TEXT. Instead of run folders,
    RUN may be a folder made by `export --format onnx` or `litert`, which starts at once, without TensorFlow.

    With --scores or --n-best above 1, the output has tab-separated columns. --n-best adds the number of the text.
    --scores adds the log-likelihood, the number that ranks the translations, and why each stopped. The translation is
    the last column.

    With --json, each text gets one object: its "source" and "translations", the best first. Each of these has "text",
    "log_likelihood", "ranked_by", "stopped", "tokens" and their "log_probabilities", in nats. --attention adds the
    "source_tokens" and, for each translation, "attention": for each of its tokens, a row of weights of the source
    tokens. A number that is not finite is null.

    Example: seq2seq translate runs/phrasebook < questions.txt > answers.txt
    """
    beam = {"beam_width": beam_width, "length_penalty": length_penalty, "n_best": n_best}
    sampling = {"sample": sample or None, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    if os.path.isfile(run / "vocabulary.json"):  # not by `Path`, which raises an error for a text too long to be a path
        refused = {"search": search, "set": options, "prefix": prefix, "json": as_json, "attention": attention}
        _refuse_for_export(run, {**sampling, "seed": seed, **refused, "import": imports})
        if others := list(filter(is_run, texts or ())):
            raise OptionError(f"translate: {others[0]} is a run folder; the export {run} cannot be part of an ensemble")
        _say_paths(texts or ())
        lengths = {"min_length": min_length, "max_length": max_length, "batch_size": batch_size}
        _translate_with_export(run, texts or [], beam, lengths, scores)
        return
    start_tensorflow()
    from pipelines.tokens import prefix_ids
    from seq2seq.strategies import Sampling

    strategy = search_strategy(search, options, **beam, **sampling)
    if seed is not None and not (search or isinstance(strategy, Sampling)):
        raise OptionError("--seed: applies to sampling; add --sample")
    runs, texts = split_runs("translate", [str(run), *(texts or ())], "TEXT")
    _say_paths(texts)
    started = time.monotonic()
    model = open_runs(runs, imports)
    loading = time.monotonic() - started
    unit = "TEXT" if texts else "standard input, line"

    said = set[str]()

    def write(lines, done):
        how: dict = {
            "seed": (seed or 0, done),
            "min_length": min_length,
            "max_length": max_length,
            "batch_size": batch_size,
        }
        sources = lines
        if prefix:
            sources, how["prefixes"] = zip(*(line.rpartition(b"\t")[::2] for line in lines), strict=True)
            unknown = model.target_tokenizer.unknown(list(how["prefixes"])).row_lengths().numpy()
            if unknown.any():  # answer the lines before the first bad prefix, then raise the error about it
                bad = int((unknown > 0).argmax())
                if bad:
                    write(lines[:bad], done)
                prefix_ids(model.target_tokenizer, how["prefixes"][bad:], unit, done + bad + 1)
        say_oddities(oddities(model.source_tokenizer, sources), unit, done, said)
        if as_json or attention or scores or strategy.n_best > 1:
            found = model.translate(sources, strategy, details=True, **how)
            as_objects = as_json or attention
            rows = _objects(model, sources, found, attention) if as_objects else _columns(found, done, scores)
        else:
            found = map(as_line, model.translate(sources, strategy, **how).numpy())
            rows = (b"" if is_blank(line) else row for line, row in zip(lines, found, strict=True))
        sys.stdout.buffer.writelines(row + b"\n" for row in rows)
        sys.stdout.buffer.flush()

    _answer(texts, unit, (*model.source_tokenizer.column_names, *["prefix"] * prefix), write, loading)


def _say_paths(texts):
    """Name the texts that look like paths."""
    for text in map(os.fsencode, texts):
        what = b""
        if os.path.isfile(text):
            what = b" is a file, but is translated as a text; to translate its lines, put < before it"
        elif os.path.isdir(os.path.dirname(text)):  # perhaps a run whose name is mistyped
            what = b" is not a run folder, so it is translated as a text"
        if what:
            typer.echo(as_line(text) + what, err=True)


def _answer(texts, unit, names, write, loading):
    """Call `write` with the TEXTs, or with the lines of standard input and how many came before them."""
    numbered = enumerate(map(os.fsencode, texts), start=1) if texts else read_lines(None)
    lines = _with_columns(unit, numbered, names)
    if texts:
        write(list(lines), 0)
        return
    done, seconds = 0, 0.0
    for block in _blocks(lines):
        started = time.monotonic()
        write(block, done)
        seconds += time.monotonic() - started
        done += len(block)
        if not sys.stdin.isatty():
            show(f"{done:,} lines")
    say_speed(done, seconds, loading)


def _refuse_for_export(folder, options):
    for name, value in options.items():
        if value is not None and value is not False:  # a temperature of 0 is given too
            raise OptionError(
                f"{option_flag(name)}: {folder} is an export, which supports only greedy search and beam "
                "search; name the run folder instead"
            )


def _translate_with_export(folder, texts, beam, lengths, scores):
    """Translate with a folder of `export --format onnx` or `litert`, without TensorFlow."""
    from seq2seq.onnx_runtime import Translator

    how: dict[str, Any] = lengths | {name: value for name, value in beam.items() if value is not None}
    if how.keys() & beam.keys():
        how.setdefault("beam_width", max(5, how.get("n_best", 1)))
    elif scores:
        how |= {"beam_width": 1, "length_penalty": 0.0}  # which is greedy search, with scores
    started = time.monotonic()
    try:
        engine = "litert" if any(folder.glob("*.tflite")) else "onnx"
        with extra(engine), without_stderr():  # LiteRT says there what it is made of
            translator = Translator(folder)
        translator.search([], **how)  # for errors in the options
        # For oddities, and then for the search.
        translator.source.look_up = functools.lru_cache(4096)(translator.source.look_up)  # type: ignore[method-assign]
    except ValueError as error:
        raise RunError(str(error)) from None
    loading = time.monotonic() - started
    unit = "TEXT" if texts else "standard input, line"
    said = set[str]()

    def write(lines, done):
        say_oddities(oddities_for_export(translator, lines), unit, done, said)
        # LiteRT says once what it computes with.
        with without_stderr() if engine == "litert" and not done else contextlib.nullcontext():
            found_each = zip(lines, translator.search(lines, **how), strict=True)
        for number, (line, hypotheses) in enumerate(found_each, start=done + 1):
            for found in hypotheses:
                columns = [b"%d" % number] if len(hypotheses) > 1 else []
                if scores:
                    columns += [b"%.4f" % found.score, b"%.4f" % found.ranked_by, found.stopped.encode()]
                text = as_line(found.text.encode()) if columns or not is_blank(line) else b""  # as `translate` does
                sys.stdout.buffer.write(b"\t".join([*columns, text]) + b"\n")
        sys.stdout.buffer.flush()

    _answer(texts, unit, translator.source.names, write, loading)


def _with_columns(unit, numbered, names):
    """Yield the texts of (number, text) pairs, each of which must have the columns that a model expects. If there are
    several, the first must not be empty, unless all are."""
    for number, text in numbered:
        if len(names) > 1:
            problem = wrong_columns(text, names)
            if not problem and is_blank(text.partition(b"\t")[0]) and not is_blank(text):
                problem = f"the {names[0]} is empty"
            if problem:
                raise CorpusError(f"{unit} {number}: {problem}")
        yield text


def _blocks(lines: Iterable) -> Iterator[list]:
    """Yield lines in blocks, which are fast to work on.

    A block ends when it is full, when no line is waiting, as somebody at a terminal or the other end of a pipe may want
    an answer first, or before a bad line, whose error follows.
    """
    block = []
    try:
        for line in lines:
            block.append(line)
            if len(block) == 2048 or not line_waits():
                yield block
                block = []
    except CorpusError:
        if block:
            yield block
        raise
    if block:
        yield block


def _columns(found, done, scores):
    """Yield a line for each hypothesis, of what is known of it, with tabs between."""
    for number, row in enumerate(zip(*(part.numpy() for part in found[:4]), strict=True), start=done + 1):
        for text, score, rank, stopped in zip(*row, strict=True):
            columns = [b"%d" % number] if len(row[0]) > 1 else []
            if scores:
                columns += [b"%.4f" % score, b"%.4f" % rank, stopped]
            yield b"\t".join([*columns, as_line(text)])


def _objects(model, texts, found, attention):
    """Yield a line of JSON for each text: all that is known of its hypotheses."""
    import numpy as np

    rows, count, length = found.ids.shape
    ids = found.ids.numpy().reshape(rows * count, length)
    real = np.flatnonzero(ids.any(axis=1))  # a beam that finds too few hypotheses leaves empty slots
    ids, sources = ids[real], [texts[number] for number in real // count]
    columns = [part.numpy().reshape(-1)[real] for part in found[:4]]
    alignments = model.attention(sources, ids) if attention else [None] * len(real)
    objects = [{"source": text.decode(errors="replace"), "translations": []} for text in texts]
    for number, text, score, rank, stopped, (tokens, nats), alignment in zip(
        real // count, *columns, _scored_tokens(model, sources, ids), alignments, strict=True
    ):
        known = {"text": text.decode(), "log_likelihood": float(score), "ranked_by": float(rank)}
        known |= {"stopped": stopped.decode(), "tokens": tokens, "log_probabilities": nats}
        if alignment:
            known["attention"] = alignment.weights.tolist()
            objects[number]["source_tokens"] = alignment.source
        objects[number]["translations"].append(known)
    return (json_line(known).encode() for known in objects)


def _scored_tokens(model, sources, ids):
    """For each row of target ids `[N, T]` its tokens and their log-probabilities, two lists."""
    from pipelines.tokens import spelled

    scores = model.score(sources, ids, per_token=True).to_list()
    return zip(spelled(model.target_tokenizer, ids), scores, strict=True)


@with_config_options("columns", "reverse", "on_bad_line")
def score(
    run: Run,
    corpus: ScoredCorpus = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write a line of JSON for each pair: its texts, tokens and all figures.")
    ] = False,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Write the log-likelihood of each pair of texts, in nats: how well the target translates the source.

    Standard input has source TAB target, or all source columns and then the target. A CORPUS is read with the --columns
    and --reverse that the run was trained with, unless you give others.

    Each line of a CORPUS gets one line of output: a number, or nan if it holds no pair to score. On stderr, the lines
    without a pair are counted by reason, such as "wrong columns", or "no pair" for an empty line or the names of the
    columns. Here --on-bad-line is skip by default; with error, the command ends at the first bad line.

    With --json, each line is an object with "source", "target", "log_likelihood", "loss" (nats per token, END
    included), "tokens" and their "log_probabilities", or null if there is no pair to score.

    Example: paste source.txt target.txt | seq2seq score runs/phrasebook
    """
    runs, corpus = split_runs("score", [str(run), *(corpus or ())], "CORPUS")
    corpus = corpus or ["-"]
    with reporting(given) as report:
        model = open_runs(runs, imports)
        columns = model.source_tokenizer.column_names
        reading = {"on_bad_line": "skip", "source_columns": columns, **reading_as_trained(runs[0], corpus, given)}
        lines = open_corpora(corpus, **reading).lines(report)
        unit = "standard input, line" if corpus == ["-"] else "line"  # of all corpora together
        done, said = 0, set[str]()
        for block in _blocks(lines):
            pairs = [pair for pair in block if pair]
            sources = [pair[0] if pair else b"\t" * (len(columns) - 1) for pair in block]  # blank: lines keep numbers
            say_oddities(oddities(model.source_tokenizer, sources), unit, done, said)
            done += len(block)
            found = _score_objects(model, pairs) if as_json else _score_numbers(model, pairs)
            typer.echo("\n".join(next(found) if pair else "null" if as_json else "nan" for pair in block))
    if report.dropped and not report.pairs:
        raise CorpusError(f"{'standard input' if corpus == ['-'] else ' '.join(corpus)}: no pairs to score")


def _score_numbers(model, pairs):
    for score in model.score([source for source, _ in pairs], [target for _, target in pairs]).numpy():
        yield f"{score:.4f}"


def _score_objects(model, pairs):
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    ids = model.target_ids(targets, sources)[:, 1:]
    for source, target, (tokens, nats) in zip(sources, targets, _scored_tokens(model, sources, ids), strict=True):
        figures = {"log_likelihood": sum(nats), "loss": -sum(nats) / len(nats)}
        figures |= {"tokens": tokens, "log_probabilities": nats}
        yield json_line({"source": source.decode(), "target": target.decode(), **figures})
