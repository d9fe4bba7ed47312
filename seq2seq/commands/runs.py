"""Commands that make something of a run: `seq2seq plot`, `average`, `export`, `demo`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import OptionError, choose
from pipelines.options import load_classes
from seq2seq.commands.loading import open_runs
from seq2seq.commands.options import (
    ENSEMBLE_HELP,
    Import,
    LengthPenalty,
    Run,
    Search,
    Settings,
    option_flag,
    search_strategy,
)
from seq2seq.commands.terminal import say
from seq2seq.records import SHIPPED, find_run


def plot(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw into this folder. Default: the run folder, or phrasebook-pictures."),
    ] = None,
    imports: Import = None,
) -> None:
    """Draw a run's pictures again: curves, error rates by length, attention. Print their paths.

    Example: seq2seq plot runs/phrasebook
    """
    if run in SHIPPED.values():  # in the folder where the library is installed
        out = out or Path(f"{run.name}-pictures")
    for path in draw(run, open_runs([run], imports), out):
        typer.echo(path)


def draw(folder: Path, model: Any, out: Path | None = None) -> list[Path]:
    """Draw a run's pictures, for TensorBoard too if the run logs to it; return their paths."""
    from seq2seq.runs import draw_run

    drawn = draw_run(folder, model, say=lambda text: say(f"seq2seq: {text}"), out=out)
    if (folder / "tensorboard").is_dir():
        import tensorflow as tf

        with tf.summary.create_file_writer(str(folder / "tensorboard" / "pictures")).as_default(step=0):
            for path in drawn:
                tf.summary.image(path.stem, tf.io.decode_png(path.read_bytes(), channels=3)[None])
    return drawn


def average(
    run: Run,
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    last: Annotated[
        int | None, typer.Option(min=1, help="How many of the last kept epochs to average. Default: all that are kept.")
    ] = None,
    imports: Import = None,
) -> None:
    """Average the weights of a run's last epochs into a new run, and print the new run's folder.

    The run must have been trained with --keep-epochs, which keeps the models of its last measured epochs.

    Example: seq2seq average runs/mine --last 5 --out runs/mean
    """
    from seq2seq.runs import average as average_epochs

    load_classes("import", imports)
    average_epochs(run, out, last)
    typer.echo(out)


def export(
    run: Run,
    folder: Annotated[
        list[Path], typer.Argument(metavar="RUN|DIR", help=f"{ENSEMBLE_HELP} The last argument is the folder to make.")
    ],
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="savedmodel, onnx, litert or web (extras `onnx`, `litert`).")
    ] = "savedmodel",
    source_length: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="TOKENS", help="Longest source of a LiteRT model, whose sizes are fixed. Default: 128."
        ),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="The npm package onnxruntime-web, .tgz or folder. Default: download it once."
        ),
    ] = None,
    beam_width: Annotated[
        int | None,
        typer.Option(min=1, help="Hypotheses of the signature `beam`, which returns all of them. Default: 5."),
    ] = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    imports: Import = None,
) -> None:
    """Write a model for programs without this library, tokenizers included: a SavedModel, ONNX, LiteRT, or a web page.

    A SavedModel, for example for TensorFlow Serving, has the signatures `greedy` and `beam`, which take and return
    strings. --search NAME adds a third, `search`, which uses the strategy NAME.

    With --format onnx, the folder holds two ONNX graphs, the vocabularies, and translator.py, which translates with
    only onnxruntime and numpy. `seq2seq translate DIR` translates with this folder, without TensorFlow.

    With --format litert, it holds the same files for LiteRT, which runs on phones. They translate one text at a time,
    by greedy search.

    With --format web, it holds a page that translates as you type, in the browser, from any web server. To see it:
    `python -m http.server --directory DIR`.

    As a check, the saved and the exported model translate a few texts. The export fails if the saved model no longer
    translates as it did after training (on another device, a few texts may differ), or if the exported model translates
    differently. The command prints the folder's path.

    Example: seq2seq export runs/phrasebook exported/1
    """
    from seq2seq.runs import export_runs

    *more, out = folder
    formats = {"savedmodel": "tf_saved_model", "onnx": "onnx", "litert": "litert", "web": "web"}
    kind = choose("format", format, formats)
    theirs: dict[str, dict[str, Any]] = {
        "savedmodel": {"beam_width": beam_width, "length_penalty": length_penalty, "search": search, "set": options},
        "litert": {"source_length": source_length},
        "web": {"onnxruntime_web": onnxruntime_web},
    }
    for other, values in theirs.items():
        for name, value in values.items():
            if value is not None and other != format:
                raise OptionError(f"{option_flag(name)}: applies only to --format {other}")
    if format != "savedmodel":
        how = {name: value for name, value in theirs.get(format, {}).items() if value is not None}
    else:
        how = {"search": search_strategy(search, options) if search or options else None}
        if beam_width or length_penalty is not None:
            width = beam_width or 5
            how["beam"] = search_strategy(None, None, beam_width=width, n_best=width, length_penalty=length_penalty)
    load_classes("import", imports)
    export_runs([run, *map(find_run, more)], out, kind, **how)
    typer.echo(out)


def demo(
    run: Run,
    more: Annotated[list[Path] | None, typer.Argument(metavar="RUN", parser=find_run, help=ENSEMBLE_HELP)] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any free port.")] = 7860,
    search: Search = None,
    options: Settings = None,
    imports: Import = None,
) -> None:
    """Serve a page that translates as you type, and print its address. Only this machine can open it.

    The page shows the n best translations with their log-likelihoods, and the attention. It offers the strategy that
    --search names in addition to greedy search and beam search. Ctrl-C ends the command.

    Example: seq2seq demo runs/phrasebook
    """
    from seq2seq.demo import demo_page, listen, serve
    from seq2seq.runs import probe

    strategy = search_strategy(search, options) if search or options else None
    with listen(port) as listener:
        examples = list(probe(run))[:5] if (run / "probe.json").is_file() else []
        page = demo_page(open_runs([run, *(more or ())], imports), examples, strategy)
        typer.echo(f"http://{':'.join(map(str, listener.getsockname()))}/")
        serve(page, listener)
