"""Options and arguments that several commands share, and those that `Config` declares."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import OptionError
from seq2seq.config import Config, as_saved, check_option, kinds_of, read_option
from seq2seq.presets import parse_setting
from seq2seq.records import find_run

PRESET_HELP = (
    "The options to start from: default (characters, for single words and little text), subword (pieces of words, for "
    "2000 pairs of sentences or more), grapheme-to-phoneme (letters to phones), inflection (lemma TAB form TAB "
    "features), tutorial (those of the Keras tutorial). Default: one of the first two, depending on the corpus."
)
_CORPUS = (
    "a file of tab-separated text (source TAB target), JSON Lines or TFRecord, plain, .gz, .bz2 or .xz; a file in a "
    "zip (a.zip/b.tsv); parallel files (a.en+a.es); a folder or a quoted glob of these; or a built-in corpus: "
    "phrasebook, spa-eng (for a file of that name: ./phrasebook). Several are read together."
)
CORPUS_HELP = f"What to read: {_CORPUS}"
ENSEMBLE_HELP = (
    "More run folders make an ensemble: the probability of each token is the mean over all runs, which must have the "
    "same tokenizers."
)

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        parser=find_run,
        help="The run folder that `seq2seq train` made; or phrasebook, a small English-Spanish model that comes with "
        "the library.",
    ),
]
Corpus = Annotated[list[str], typer.Argument(metavar="CORPUS", help=CORPUS_HELP)]
ScoredCorpus = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN|CORPUS", help=f"{ENSEMBLE_HELP} Then a corpus: {_CORPUS} Default: -, standard input."),
]
EvaluatedCorpus = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|CORPUS",
        help=f"{ENSEMBLE_HELP} Then a corpus: {_CORPUS} Default: the held-out set of the first run.",
    ),
]
Preset = Annotated[str | None, typer.Option(help=PRESET_HELP)]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE:CLASS", help="Import this class of your own, which the run uses. Repeatable."
    ),
]
BeamWidth = Annotated[int | None, typer.Option(min=1, help="Use beam search with this many hypotheses.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Length penalty of beam search, as in GNMT: 0 favours short translations, larger ones long. Default: 0.6.",
    ),
]
Search = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|MODULE:CLASS",
        help="Search with this strategy: greedy, beam, sampling or a class of your own; --set gives its settings.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the strategy that --search names. Repeatable."),
]
MinLength = Annotated[int, typer.Option(min=0, help="Shortest translation, in tokens.")]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Longest translation, in tokens, END included; a longer one is cut. Default: depends on the length of the "
        "text.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Texts to translate together. It changes speed and memory, not the translations.")
]
BleuTokenizer = Annotated[
    str, typer.Option(metavar="NAME", help="How BLEU splits words: 13a; zh or char for text without spaces; intl.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def with_config_options(*names: str, without: str | None = None) -> Callable[[Callable], Callable]:
    """Give a command the options of these names, or all `without` one, as `Config` declares them; `given` gets those
    in use."""
    fields = [field for field in dataclasses.fields(Config) if field.metadata and field.name != without]
    fields = [field for field in fields if not names or field.name in names]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = _given({field.name: arguments.pop(field.name) for field in fields})
            command(**arguments, given=given)

        own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "given"]
        parameters = [*own, *(_parameter(field, panel=not names) for field in fields)]
        signature = inspect.Signature([each.replace(kind=each.KEYWORD_ONLY) for each in parameters])
        run.__signature__ = signature  # type: ignore[attr-defined]  # `inspect` looks there
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(field, panel):
    """The parameter of a command for a field of `Config`; `panel`: in its section of the help, with its default."""
    declared = {name: value for name, value in field.metadata.items() if name not in _NOT_FOR_TYPER}
    kinds = kinds_of(field.name)
    numeric = bool(kinds & {int, float})
    if not panel:
        del declared["rich_help_panel"]
    elif "Default:" not in declared["help"] and field.default is not False and (numeric or field.default is not None):
        declared["help"] += f" Default: {_default_text(field.default)}."
    if numeric:
        declared.setdefault("metavar", "<int>" if int in kinds else "<float>")  # as Typer writes them
    # Others than booleans are text here, for `read_option`. None stands for what is not given: a preset decides.
    kind = list[str] if "several" in field.metadata else bool if bool in kinds else str
    flags = [field.metadata["flag"]] if "flag" in field.metadata else []
    annotation = Annotated[kind | None, typer.Option(*flags, **declared)]  # type: ignore[valid-type]  # known only here
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_NOT_FOR_TYPER = ("flag", "several", "range", "choices")


def _default_text(value):
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value)
    return "yes" if value is True else "none" if value is None else value


def _given(values):
    """The options that were given, of all as Typer returns them, and their values."""
    own = values.pop("own", None)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str):
            given[name] = read_option(name, value)
        elif value not in (None, []):
            given[name] = as_saved(value)
            check_option(name, given[name])
    if settings := read_settings(own):
        given["own"] = settings
    for name in settings.keys() & Config.__dataclass_fields__.keys():
        raise OptionError(f"--set {name}={settings[name]}: not an option of a custom class; write {option_flag(name)}")
    return given


def read_settings(texts: Iterable[str] | None) -> dict[str, Any]:
    """Read options of custom classes, or settings of a strategy, that `--set` names: {name: value}."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, value = parse_setting(text, of_config=False)
        if found.setdefault(name, value) != value:
            raise OptionError(f"{name}: given twice, as {found[name]!r} and as {value!r}")
    return found


def option_flag(name: str) -> str:
    """The option of the command line for an argument in Python: "--beam-width" for "beam_width"."""
    declared = Config.__dataclass_fields__[name].metadata if name in Config.__dataclass_fields__ else {}
    return declared.get("flag", f"--{name.replace('_', '-')}")


def search_strategy(search: str | None, settings: list[str] | None, **options: Any) -> Any:
    """Make the strategy that the options of a command ask for; those that are not given are None."""
    from seq2seq.contract import make_strategy
    from seq2seq.strategies import BeamSearch, Greedy, Sampling

    given = {name: value for name, value in options.items() if value is not None}
    of_beam = [option_flag(name) for name in given if name in ("beam_width", "length_penalty")]
    of_sampling = [option_flag(name) for name in given if name in ("sample", "temperature", "top_k", "top_p")]
    if search and given:
        flag = option_flag(next(iter(given)))
        raise OptionError(f"--search and {flag} cannot be combined; write --set NAME=VALUE for settings of {search}")
    if search:
        return make_strategy(search, read_settings(settings))
    if settings:
        raise OptionError(
            f"--set {settings[0]}: applies to the strategy that --search names, but --search is not given"
        )
    if of_beam and of_sampling:
        raise OptionError(f"{of_beam[0]} is for beam search, {of_sampling[0]} for sampling; they cannot be combined")
    if of_sampling:
        given.pop("sample", None)
        return Sampling(**given)
    if given:
        return BeamSearch(given.pop("beam_width", max(5, given.get("n_best", 1))), **given)
    return Greedy()
