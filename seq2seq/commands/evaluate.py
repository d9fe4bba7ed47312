"""`seq2seq evaluate` and `compare`: how well runs translate a corpus."""

import itertools
import operator
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pipelines import CorpusError, OptionError, checksums, choose
from pipelines.formats import find_shards, numbered
from pipelines.readers import corpus_names
from seq2seq.commands.loading import (
    MORE_UNKNOWN,
    MOST_NAMED,
    NOT_KNOWN,
    oddities,
    open_runs,
    reading_as_trained,
    split_runs,
)
from seq2seq.commands.options import (
    AsJson,
    BatchSize,
    BeamWidth,
    BleuTokenizer,
    EvaluatedCorpus,
    Import,
    LengthPenalty,
    MaxLength,
    MinLength,
    Run,
    Search,
    Settings,
    option_flag,
    search_strategy,
    with_config_options,
)
from seq2seq.commands.terminal import check_writable, command_line, counter, json_line, reporting, say, say_speed
from seq2seq.records import RunError, read_record
from seq2seq.reports import comparison_text, evaluation_text


@with_config_options("limit", "columns", "reverse", "on_bad_line")
def evaluate(
    run: Run,
    corpus: EvaluatedCorpus = None,
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    min_length: MinLength = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = 256,
    bleu_tokenizer: BleuTokenizer = "13a",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Also print scores for each value of this source column, for example each feature. A name, or a "
            "number as in --columns.",
        ),
    ] = None,
    confusions: Annotated[
        int, typer.Option(min=0, help="Show this many of the tokens that are most often confused, added or left out.")
    ] = 5,
    worst: Annotated[int, typer.Option(min=0, help="Show this many of the worst translations.")] = 5,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write sources, translations, references and the scores of each text (texts.jsonl) into this folder, "
            "which must be new, empty, or from an earlier evaluation, whose files are replaced.",
        ),
    ] = None,
    as_json: AsJson = False,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Translate a corpus and measure the translations against all references of each source.

    The corpus is read with the --columns and --reverse that the run was trained with, unless you give others. Standard
    input has all source columns and then the target. stderr says how many of the sources the run was trained on, if
    any.

    Several runs are measured as an ensemble; `compare` measures each separately. An ensemble needs a CORPUS if one of
    its runs was trained on the held-out set of the first.

    Example: seq2seq evaluate runs/mine test-pairs.tsv --beam-width 5
    """
    from pipelines import corpus_errors
    from seq2seq.ensembles import ensemble
    from seq2seq.evaluation import evaluate as measure
    from seq2seq.scores import metrics

    metrics(bleu_tokenizer)  # refuses an unknown tokenizer before the corpus is read
    strategy = search_strategy(search, options, beam_width=beam_width, length_penalty=length_penalty)
    runs, corpus = split_runs("evaluate", [str(run), *(corpus or ())], "CORPUS")
    if write:
        _check_write(write, corpus)
    models, seconds = _open("evaluate", runs, corpus, imports, given)
    model = ensemble(models, runs)
    columns = None if "-" in corpus else given.get("columns") or read_record(runs[0]).config.columns
    column = _column(by, columns, model.source_tokenizer)
    with corpus_errors(), reporting(given) as report:
        pairs = _pairs("evaluate", runs, models, corpus, given, report)
        found = measure(
            model,
            pairs,
            strategy,
            min_length=min_length,
            max_length=max_length,
            batch_size=batch_size,
            bleu_tokenizer=bleu_tokenizer,
            progress=counter("translated"),
        )
    _say_oddities(runs, models, found.sources, pairs)
    if len(runs) > 1:
        say(f"An ensemble of {len(runs)} runs; `seq2seq compare` measures each")
    parts = found.by_column(*column) if column else []
    if as_json:
        more = {"by_column": parts} if parts else {}
        typer.echo(json_line(found.as_dict(worst, confusions) | more | {"loading_seconds": seconds}))
    else:
        typer.echo(evaluation_text(found, {f"column {by}": parts} if parts else {}, confusions, worst))
    if write:
        found.write(write)
    say_speed(len(found.sources), found.seconds, seconds)


def _check_write(folder, corpus):
    """Check that files can be written into a folder without replacing the user's own files or the corpus."""
    from seq2seq.evaluation import check_folder

    check_folder(folder)
    for path in (path for name in corpus for shard in find_shards(name) for path in shard.files):
        if path.resolve().parent == folder.resolve():
            raise OptionError(f"write={folder}: holds the corpus, {path}; choose another folder")
    check_writable("write", folder, folder=True)


def _column(by, columns, tokenizer):
    """The arguments of `Evaluation.by_column` for the source column that --by names, or None without --by."""
    from pipelines import SeparatorTokenizer, WhitespaceTokenizer

    if not by:
        return None
    names = tokenizer.column_names
    if len(names) == 1:
        raise OptionError(f"by={by}: the run reads a single source column")
    numbers = columns[:-1] if numbered(columns) else range(1, len(names) + 1)
    of_file = () if numbered(columns) else (columns or ())[:-1]
    places = {str(name): place for some in (numbers, of_file, names) for place, name in enumerate(some)}
    place = choose("by", by, places)
    of_column = tokenizer.of_columns[place]
    if isinstance(of_column, WhitespaceTokenizer):
        return place + 1, " "
    return place + 1, of_column.separator if isinstance(of_column, SeparatorTokenizer) else None


@with_config_options("limit", "columns", "reverse", "on_bad_line")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|CORPUS",
            help="Two or more run folders, then a corpus to translate (as for `evaluate`). Default: the held-out set "
            "of the first run.",
        ),
    ],
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    bleu_tokenizer: BleuTokenizer = "13a",
    as_json: AsJson = False,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Translate a corpus with several runs and test whether each differs from the first.

    The corpus is read with the --columns and --reverse that the first run was trained with, unless you give others.
    Standard input has all source columns and then the target.

    The test is approximate randomization, not corrected for the number of runs. A difference with p below 0.05 is
    unlikely to be chance.

    stderr says how many of the sources each run was trained on, if any.

    Example: seq2seq compare runs/characters runs/subwords test-pairs.tsv
    """
    from pipelines import corpus_errors
    from seq2seq.evaluation import compare as test
    from seq2seq.evaluation import evaluate as measure
    from seq2seq.scores import metrics

    metrics(bleu_tokenizer)
    expected = "expected RUN RUN [RUN]... [CORPUS]..."
    if len(runs) < 2:
        raise OptionError(f"compare: only one argument, {runs[0]}; {expected}")
    folders, corpus = split_runs("compare", runs, "CORPUS", least=2)
    try:
        for name in corpus:
            find_shards(name)
    except CorpusError as error:  # perhaps a run whose name is mistyped
        raise OptionError(f"compare: {error}; {expected}") from None
    strategy = search_strategy(search, options, beam_width=beam_width, length_penalty=length_penalty)
    models, _ = _open("compare", folders, corpus, imports, given)
    with corpus_errors(), reporting(given) as report:
        pairs = _pairs("compare", folders, models, corpus, given, report)
        shown = counter("translated")
        evaluations = [
            measure(model, pairs, strategy, bleu_tokenizer=bleu_tokenizer, progress=shown) for model in models
        ]
    _say_oddities(folders, models, evaluations[0].sources, pairs)
    found = test(*evaluations)
    if as_json:
        scores = {name: [tested._asdict() for tested in row] for name, row in found.items()}
        counts = {"sources": len(evaluations[0].sources), "runs": [str(run) for run in folders]}
        typer.echo(json_line(counts | {"scores": scores}))
    else:
        typer.echo(comparison_text(folders, evaluations[0], found))


def _open(command, runs, corpus, imports, given):
    """The models of runs, which must read as many columns, and how many seconds it took to load them."""
    if given and not corpus:
        raise OptionError(f"{option_flag(next(iter(given)))} applies to a corpus, but none is named")
    started = time.monotonic()
    models = [open_runs([run], imports) for run in runs]
    seconds = time.monotonic() - started
    first, *counts = (len(model.source_tokenizer.column_names) for model in models)
    for run, count in zip(runs[1:], counts, strict=True):
        if count != first:
            differ = f"{run} was trained on {count}, and {runs[0]} on {first}"
            raise OptionError(f"{command}: number of source columns: {differ}")
    return models, seconds


def _pairs(command, runs, models, corpus, given, report):
    """The pairs to translate, of the corpus or held out by the first run; stderr says what the runs know of them."""
    from pipelines import read_pairs
    from seq2seq.runs import held_out_pairs

    of_first, *others = (reading_as_trained(run, [], given) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other != of_first and "-" not in corpus:
            say(f"{run} was trained with other --columns or --reverse than {runs[0]}; pairs are read as for the latter")
    if corpus:
        how = reading_as_trained(runs[0], corpus, given)
        pairs = read_pairs(corpus, report=report, source_columns=models[0].source_tokenizer.column_names, **how)
    else:
        pairs = held_out_pairs(runs[0], models[0])
        if not list(pairs.take(1)):
            raise RunError(
                f"{runs[0]}: its held-out set is empty, because its corpus has too few sources; name a corpus"
            )
    _say_chosen_on(runs, _digests(corpus) if corpus else None)
    pairs = pairs.cache()  # standard input can be read only once
    if corpus or len(runs) > 1 or read_record(runs[0]).may_have_learned:
        _say_trained_on(command, runs, models, pairs, corpus)
    return pairs


def _say_oddities(runs, models, sources, pairs):
    """Report the oddities of each run: sources that it may misread, and references that it cannot write."""
    from seq2seq.scores import nfc

    sources = [source.encode() for source in sources]
    references = [target.decode() for _, target in pairs.as_numpy_iterator()]
    for run, model in zip(runs, models, strict=True):
        found = Counter(odd for _, odd in set(oddities(model.source_tokenizer, sources))).most_common()
        unknown = [odd for odd, _ in found if odd.endswith(NOT_KNOWN)]
        for odd, count in found:
            if odd not in unknown[MOST_NAMED:]:
                say(f"{run}: {count:,} of {len(sources):,} sources: {odd}")
        if len(unknown) > MOST_NAMED:
            say(f"{run}: {MORE_UNKNOWN}")
        written = _as_written(model.target_tokenizer, references)
        differ = map(operator.ne, nfc(references), nfc(written))
        if other := list(itertools.compress(zip(references, written, strict=True), differ)):
            texts = "{!r} (it writes {!r})".format(*(text[:60] for text in other[0]))
            share = f"{len(other):,} of {len(references):,} targets"
            say(f"{run}: {share} are not what the model can write, such as {texts}; scores count this as errors")


def _as_written(tokenizer, texts):
    """Texts as a model with this target tokenizer can write them at best."""
    found: list[bytes] = []
    for first in range(0, len(texts), 256):  # few, as each batch is as long as its longest text
        some = texts[first : first + 256]
        found += tokenizer.detokenize(tokenizer.tokenize(some), tokenizer.unknown(some)).numpy().tolist()
    return [text.decode() for text in found]


def _say_chosen_on(runs, digests):
    """Name each run whose epoch was chosen on a file with one of these checksums; if they are None, on the held-out
    set of the first run."""
    from seq2seq.tables import held_out_by

    records = {run: read_record(run) for run in runs}
    for run, record in records.items():
        if digests is None:
            same = held_out_by(record) == held_out_by(records[runs[0]])
        else:
            same = not digests.isdisjoint(record.checksums("validation"))
        if same and "averaged" not in record.content and (monitor := record.config.monitor):
            say(f"{run}: its epoch was chosen on this set, by {monitor}, so its scores are slightly optimistic")


def _digests(corpus):
    """The checksums of a corpus's files; empty if it can be read only once, or is not named."""
    try:
        return set(checksums(corpus or []).values())
    except CorpusError:
        return set()


def _say_trained_on(command, runs, models, pairs, named):
    """Say on stderr how many sources of these pairs each run was trained on.

    Without a named corpus the pairs are the held-out set of the first run. They are refused if another run was trained
    on one of them. A corpus without pairs is refused too, here, where its sources are first read.
    """
    import numpy as np
    import tensorflow as tf

    from pipelines import group_by_source
    from seq2seq.runs import trained_on

    sources = list(group_by_source(pairs))
    if not sources:
        raise CorpusError(f"{corpus_names(named)}: no pairs to evaluate on")
    dataset = tf.data.Dataset.from_tensor_slices((sources, sources))
    learned = []
    for run, model in zip(runs, models, strict=True):
        try:
            learned.append(trained_on(read_record(run), dataset, model.source_tokenizer))
        except (CorpusError, OptionError) as error:
            unknown = f"{run}: cannot tell which of the sources it was trained on: {error}"
            if learned and not named:
                raise RunError(f"{unknown}; name a test corpus") from None
            say(unknown)
            learned.append(np.zeros(len(sources), bool))
        if not named and (more := (learned[-1] & ~learned[0]).sum()):
            raise RunError(
                f"{run} was trained on {more:,} of the {len(sources):,} sources that {runs[0]} has held out; name a "
                f"test corpus: {command_line(command, *runs)} CORPUS"
            )
        if count := learned[-1].sum():
            say(f"{run}: trained on {count:,} of the {len(sources):,} sources")
