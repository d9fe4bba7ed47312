"""Commands for many runs: `seq2seq sweep`, `table`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines import OptionError
from pipelines.options import load_classes
from seq2seq.commands.options import (
    BeamWidth,
    Corpus,
    Import,
    LengthPenalty,
    Preset,
    Search,
    Settings,
    option_flag,
    search_strategy,
    with_config_options,
)
from seq2seq.commands.terminal import check_picture, command_line, is_terminal, say, show
from seq2seq.commands.train import preset_for_corpus
from seq2seq.records import RunError


@with_config_options(without="seed")
def sweep(  # longer than 60 lines: its signature declares the options
    out: Annotated[Path, typer.Option(help="The folder to make, with a run folder for each setting and seed.")],
    corpus: Corpus = ["phrasebook"],  # noqa: B006 (typer copies it)
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="An option and its values, separated by commas, or by ';' if there is one: teacher_forcing='1;1,0.5'. "
            "With --trials also a range, 1e-4..1e-2. Repeatable.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting, with the seeds 0, 1, ...")] = 1,
    preset: Preset = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Search with Optuna: try this many settings instead of all. Needs the extra `sweep`."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs to train at a time; they share the cores or the GPUs.")] = 1,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Train all settings of a grid with several seeds each, and print a table of the results.

    The options of `train` apply to all runs. In --grid, use the names in config.json: learning_rate, not
    --learning-rate.

    After an interruption, the same command continues the sweep. You may add seeds and values of a grid, or
    trials of a search.

    A search (--trials) optimizes the mean of --monitor, by default val_loss, over seeds.

    Example: seq2seq sweep pairs.tsv --grid units=128,256 --grid layers=1,2 --seeds 3 --out runs/sizes
    """
    from seq2seq.sweeps import read_grid
    from seq2seq.sweeps import sweep as train_all
    from seq2seq.tables import table as tabulate

    own = given.pop("own", {})
    values = list(map(read_grid, grid or ()))
    if len(dict(values)) < len(values):
        raise OptionError("grid: an option is named twice; separate its values by commas")
    try:
        results = train_all(
            tuple(corpus),
            out,
            dict(values),
            seeds,
            options=given | own,
            preset=preset or preset_for_corpus,
            trials=trials,
            jobs=jobs,
            imports=imports or (),
            say=say,
            show=show if is_terminal() else None,
        )
    except (KeyboardInterrupt, SystemExit):
        say("Run the same command again to continue")
        raise
    if any(error is None for error in results.values()):
        try:
            typer.echo(tabulate(out, say=say).text())
        except RunError as error:  # such as runs with different held-out sets
            say(f"No table: {error}. {command_line('table', out, '--test')} CORPUS")
    say(str(out))
    if any(results.values()):
        raise typer.Exit(1)


def table(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="A run, a sweep, or a folder of runs.")],
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS",
            help="Translate this corpus and measure the translations. Default: metrics of the held-out sets. "
            "Repeatable.",
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric: loss, accuracy, perplexity, bleu, chrf, exact_match, ter, cer, wer. Default: loss, "
            "accuracy, chrf and exact_match, if all runs have them. Repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="ROW", help="The row to test the others against: its number, or settings that only it has."
        ),
    ] = "1",
    format: Annotated[Literal["text", "md", "csv", "latex"], typer.Option(help="Format of the table.")] = "text",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the table into a .png, .svg or .pdf file.")
    ] = None,
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    imports: Import = None,
) -> None:
    """Print a table of runs: means and standard deviations over seeds, and whether rows differ from a baseline.

    Runs that differ only in their seed form one row. Unfinished runs are left out and named on stderr.

    p is from Welch's t-test over seeds if both rows have two seeds or more. If both have one seed and --test is given,
    it is from approximate randomization over the sources.

    Example: seq2seq table runs/sizes --test test.tsv --format md
    """
    from seq2seq.tables import table as tabulate

    load_classes("import", imports)
    if picture:
        from seq2seq.pictures import draw_table

        check_picture("picture", picture)
    searching: dict[str, Any] = {"beam_width": beam_width, "length_penalty": length_penalty}
    for name, value in (searching | {"search": search, "set": options}).items():
        if value is not None and not test:
            raise OptionError(f"{option_flag(name)} applies to a test corpus; name one with --test")
    strategy = search_strategy(search, options, **searching)
    found = tabulate(folders, test, measure or (), baseline, strategy, say=say)
    typer.echo(found.text(format))
    if picture:
        draw_table(found, picture)
