"""Commands for corpora: `seq2seq inspect`, `shuffle`."""

import textwrap
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines import CorpusError, open_corpora
from seq2seq.commands.options import AsJson, Corpus, with_config_options
from seq2seq.commands.terminal import check_picture, counter, json_line, reporting, say
from seq2seq.startup import start_tensorflow


@with_config_options("columns", "reverse", "max_length", "max_ratio", "drop_duplicates")
def inspect(
    corpus: Corpus = ["phrasebook"],  # noqa: B006 (typer copies it)
    histogram: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw a histogram of lengths into a .png, .svg or .pdf file.")
    ] = None,
    as_json: AsJson = False,
    *,
    given: dict,
) -> None:
    """Show statistics of a corpus: pairs, tokens, lengths, and the lines that cannot be used.

    Example: seq2seq inspect my-pairs.tsv --histogram lengths.png
    """
    from pipelines import CharTokenizer, ColumnsTokenizer, corpus_errors, damaged_shards, read_pairs, survey

    for folder in corpus:
        if damaged := damaged_shards(folder):
            raise CorpusError(f"{folder}: {', '.join(damaged)}: differs from manifest.json; shuffle the corpus again")
    if histogram:
        from seq2seq.pictures import draw_lengths

        check_picture("histogram", histogram)
    with corpus_errors(), reporting(given) as report:
        names = open_corpora(corpus, **given).sources
        pairs = read_pairs(corpus, report=report, on_bad_line="skip", **given)
        columns = ColumnsTokenizer([CharTokenizer() for _ in names], names)
        source_tokenizer = columns if len(names) > 1 else CharTokenizer()
        found = survey(pairs, source_tokenizer, CharTokenizer(), counter("pairs read"))
    if not found.pairs:
        raise CorpusError(f"{' '.join(corpus)}: no pairs")
    if as_json:
        typer.echo(json_line(found.as_dict() | {"dropped": report.dropped}))
    else:
        sources = columns.by_column(found.tokens[0]) if len(names) > 1 else [found.tokens[0]]
        _print_survey(found, dict(zip((*names, "target"), (*sources, found.tokens[1]), strict=True)))
    if histogram:
        draw_lengths(found, histogram)


def _print_survey(found, tokens):
    """Print a `Survey` as tables, and the counted tokens of each column."""
    typer.echo(f"pairs                  {found.pairs:>10,}\n")
    typer.echo(f"{'':<20}{'source':>13}{'target':>13}")
    rows = {"distinct tokens": map(len, found.tokens), "tokens": [counts.total() for counts in found.tokens]}
    rows |= {f"{name} length": [found.length(side, q) for side in (0, 1)] for name, q in _QUANTILES.items()}
    for name, (source, target) in rows.items():
        typer.echo(f"{name:<20}{source:>13,}{target:>13,}")
    for side, counts in tokens.items():
        counted = [f"{_visible(token.decode())}\xa0{count:,}" for token, count in Counter(counts).most_common()]
        typer.echo(f"\n{side} tokens, the most frequent first:")
        typer.echo(textwrap.fill("  ".join(counted), 100).replace("\xa0", " "))


_QUANTILES = {"shortest": 0, "5% up to": 0.05, "median": 0.5, "95% up to": 0.95, "99% up to": 0.99, "longest": 1}


def _visible(token):
    """A token with a space shown as ␣, and other invisible characters as their numbers."""
    return "".join(c if c.isprintable() and c != " " else "␣" if c == " " else f"U+{ord(c):04X}" for c in token)


@with_config_options("columns", "reverse", "on_bad_line", "max_length", "max_ratio", "drop_duplicates")
def shuffle(
    corpus: Corpus,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of shards to make.")],
    shards: Annotated[int, typer.Option(min=1, help="Number of files to write.")] = 16,
    format: Annotated[Literal["gzip", "tfrecord"], typer.Option(help="Tab-separated text or TFRecord.")] = "gzip",
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
    *,
    given: dict,
) -> None:
    """Shuffle a corpus on disk, without reading it into memory, into a folder of shards to train on.

    This needs disk space for the uncompressed corpus and for the shards. The command prints the folder's path. Unlike
    `train`, it has no --max-length by default.

    Example: seq2seq shuffle corpus.en+corpus.es shuffled --shards 64
    """
    from pipelines import shuffle_corpus

    if format == "tfrecord":
        start_tensorflow()
    with reporting(given) as report:
        shuffle_corpus(corpus, folder, shards, format, seed, report, counter("pairs read"), **given)
    if (count := len(open_corpora(corpus, **given).sources)) > 1:
        say(f"Read it with:  --columns {','.join(map(str, range(1, count + 2)))}")
    typer.echo(folder)
