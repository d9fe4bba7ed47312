"""All that decides how a run comes out: `Config`, a line for each option, and the presets. Imports no TensorFlow.

The command line is made of these lines: what is added here is an option of `seq2seq train` and stands in `config.json`.
"""

import dataclasses
import json
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from pipelines import OptionError, check_number, choose
from pipelines.readers import NAMED_CORPORA, check_columns


def _option(default, panel, help, range=None, **how):
    """A field of `Config` with what the command line says of it, as `typer.Option` takes it, and the range of its
    numbers, as `check_number` takes it."""
    metadata = {"rich_help_panel": panel, "help": help, "range": range or {}, **how}
    return dataclasses.field(default=default, metadata=metadata)


_COUNT = {"least": 1}
_SHARE = {"least": 0, "below": 1}


def _or_none(convert):
    """A parser for what may also be "none"."""

    def parse(text):
        return None if str(text).lower() == "none" else convert(text)

    parse.__name__ = convert.__name__
    return parse


def _plain(value):
    """A value as it comes back from JSON, but that lists are tuples: so a `Config` is equal to what was saved of it."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, os.PathLike):
        path = os.fspath(value)  # of a file always, where a string may be a corpus's name
        return os.path.join(os.curdir, path) if path == "-" or path in NAMED_CORPORA else path
    return value.item() if hasattr(value, "item") else value  # of NumPy


def _columns(text):
    """Columns: names, or numbers if all are."""
    columns = tuple(text.split(","))
    return tuple(map(int, columns)) if all(column.isdigit() for column in columns) else columns


def _numbers(text):
    return tuple(float(number) for number in text.split(","))


# What is usual with an architecture and not with the other, for little text; it overrules a preset.
ARCHITECTURES: dict[str, dict] = {
    "recurrent": {},
    "transformer": {
        "units": 128,
        "layers": 2,
        "dropout": 0.3,
        "learning_rate": 1e-3,
        "warmup": 300,
        "beta_2": 0.98,
    },
}

CORPUS, TOKENS, MODEL, TRAINING = "Corpus", "Tokens", "Model", "Training"


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. What each option means is said once, in its `help`, which the command line shows."""

    corpus: str | tuple[str, ...] = "phrasebook"  # as `read_pairs` takes it; the argument of the command line

    limit: int | None = _option(None, CORPUS, "Use only the first pairs of the corpus.", _COUNT, parser=_or_none(int))
    columns: tuple | None = _option(
        None,
        CORPUS,
        "The columns or JSON keys to read: names (which tab-separated text has in its first line) or numbers from 1. "
        "The last is the target, all before it are the source. Default: 1,2, or source,target.",
        parser=_columns,
        metavar="SOURCE,...,TARGET",
    )
    reverse: bool = _option(False, CORPUS, "Swap source and target.")
    weights: tuple[float, ...] | None = _option(
        None,
        CORPUS,
        "How often to draw from each CORPUS, relative to the others; validation reads each pair once.",
        {"above": 0},
        parser=_numbers,
        metavar="W,W,...",
    )
    on_bad_line: str = _option(
        "error", CORPUS, "What to do with a line of too few columns, an empty side or invalid UTF-8: error, skip."
    )
    # A batch is padded to its longest pair: of 64 with one of 2,000 characters it took 7.5 GB (2026-11-27, a CPU).
    max_length: int | None = _option(
        1000,
        CORPUS,
        "Leave out pairs with a side of more characters; none for pairs of any length.",
        _COUNT,
        parser=_or_none(int),
    )
    max_ratio: float | None = _option(
        None,
        CORPUS,
        "Leave out pairs with one side so many times longer; of several source columns the first counts.",
        {"least": 1},
        parser=_or_none(float),
    )
    drop_duplicates: bool = _option(False, CORPUS, "Leave out pairs that came shortly before.")
    split: str = _option("hash", CORPUS, "How pairs are held out: by a hash of the source, or the last ones.")
    validation_fraction: float = _option(
        None,
        CORPUS,
        "Share of the sources to hold out. Default: 0.05, or none with --validation.",
        _SHARE,
    )
    validation: str | tuple[str, ...] | None = _option(
        None,
        CORPUS,
        "Another CORPUS to hold out, such as the development side of a task, read with the same columns; all of the "
        "first is then trained on. Say it again for several.",
        several=True,
        metavar="CORPUS",
    )

    source_tokenizer: str = _option(
        "char",
        TOKENS,
        "What source texts are cut into: char, letter (characters, and the letters of Hangul), byte, whitespace, "
        "subword, module:Class, or at a single character such as ';' into a set of features. For several source "
        "columns a name for each, 'char,;', or one for all.",
    )
    target_tokenizer: str = _option("char", TOKENS, "What target texts are cut into: one of those names.")
    normal_form: str | None = _option(
        "NFC", TOKENS, "Unicode normal form of all text: NFC, NFD, NFKC, NFKD, none.", parser=_or_none(str)
    )
    lowercase: bool = _option(False, TOKENS, "Fold capitals into small letters, in source and target.")
    min_frequency: int = _option(1, TOKENS, "Leave rarer tokens out of the vocabulary.", _COUNT)
    max_vocabulary: int | None = _option(None, TOKENS, "Tokens in a vocabulary, at most.", _COUNT, parser=_or_none(int))
    shared_vocabulary: bool = _option(False, TOKENS, "Make one vocabulary of the tokens of both sides.")

    architecture: str = _option(
        "recurrent",
        MODEL,
        "Kind of encoder and decoder: recurrent, transformer. The latter has other defaults, which overrule a preset: "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in ARCHITECTURES["transformer"].items())
        + ".",
    )
    units: int = _option(256, MODEL, "Size of the memory and of each layer.", _COUNT)
    cell: str = _option("lstm", MODEL, "Recurrent cell: lstm, gru.")
    layers: int = _option(1, MODEL, "Layers on each side.", _COUNT)
    heads: int = _option(4, MODEL, "Attention heads of a Transformer.", _COUNT)
    feed_forward: int | None = _option(
        None,
        MODEL,
        "Hidden units of a Transformer's feed-forward networks. Default: 4 times the units.",
        _COUNT,
        parser=_or_none(int),
    )
    bidirectional: bool = _option(True, MODEL, "Half of the units read the source backwards.")
    embedding: int | None = _option(
        64, MODEL, "Size of the vectors that stand for tokens; none for one-hot rows.", _COUNT, parser=_or_none(int)
    )
    attention: str | None = _option(
        "general",
        MODEL,
        "How a recurrent decoder looks back at the source: dot, general, additive; for short texts of letters hard, or "
        "monotonic where source and target are in the same order; none.",
        parser=_or_none(str),
    )
    input_feeding: bool = _option(False, MODEL, "Give each step what attention found before. Several times slower.")
    tied: bool = _option(False, MODEL, "Use the target's embedding as the output's matrix.")
    copy: bool = _option(False, MODEL, "Let the decoder also copy source tokens, for targets that share much text.")
    dropout: float = _option(0.3, MODEL, "Share of numbers left out in training.", _SHARE)
    encoder: str | None = _option(
        None, MODEL, "An encoder of another kind than --architecture, or of your own, module:Class.", metavar="KIND"
    )
    decoder: str | None = _option(
        None, MODEL, "A decoder of another kind than --architecture, or of your own, module:Class.", metavar="KIND"
    )

    model: str | None = _option(
        None,
        MODEL,
        "A model of your own, module:Class, a subclass of Seq2Seq, in its place.",
        parser=_or_none(str),
        metavar="CLASS",
    )
    own: Mapping | None = _option(
        None,
        MODEL,
        "An option by its name; say it again for more. It is how classes of your own get the options that their "
        "constructors name: --set kernel=5.",
        several=True,
        flag="--set",
        metavar="NAME=VALUE",
    )

    warm_start: str | None = _option(
        None,
        TRAINING,
        "Start from the weights of this run, with its options; new tokens extend its vocabularies.",
        flag="--from",
        metavar="RUN",
    )
    batch_size: int = _option(64, TRAINING, "Pairs in a batch.", _COUNT)
    batch_tokens: int | None = _option(
        None, TRAINING, "Tokens in a batch, padding included, in place of --batch-size.", _COUNT, parser=_or_none(int)
    )
    encoding: str = _option(
        "ids", TRAINING, "What batches hold: ids, one_hot. It trains the same, ids a little faster."
    )
    epochs: int | None = _option(
        None,
        TRAINING,
        "Passes over the corpus. Default: as many as make 2000 updates, but at least 8 and at most 100.",
        _COUNT,
        parser=_or_none(int),
    )
    updates: int | None = _option(
        None,
        TRAINING,
        "Length of the training in updates, rounded to whole epochs, in place of --epochs.",
        _COUNT,
        parser=_or_none(int),
    )
    optimizer: str = _option("adam", TRAINING, "The optimizer, by its Keras name.")
    beta_2: float | None = _option(
        None,
        TRAINING,
        "Decay rate of the optimizer's mean of squared gradients, for adam and its like. Default: the optimizer's own.",
        _SHARE,
        parser=_or_none(float),
    )
    weight_decay: float | None = _option(
        None,
        TRAINING,
        "Decoupled weight decay: each step shrinks weights by this times the learning rate, but no biases, "
        "normalization scales or embeddings. Default: the optimizer's own, of which most have none.",
        {"least": 0},
        parser=_or_none(float),
    )
    learning_rate: float = _option(3e-3, TRAINING, "Learning rate, at the start.", {"least": 0})
    schedule: str = _option(
        "cosine",
        TRAINING,
        "How the learning rate changes: cosine (falls to zero along half a cosine), constant, inverse_sqrt (falls with "
        "the root of the steps after --warmup), plateau (halved when --monitor is no better for two measured epochs).",
    )
    warmup: int = _option(0, TRAINING, "Steps in which the learning rate rises from zero, before that.", {"least": 0})
    clip_norm: float | None = _option(
        1.0, TRAINING, "Length to which longer gradients are cut.", {"above": 0}, parser=_or_none(float)
    )
    loss: str | None = _option(
        None,
        TRAINING,
        "A loss of your own, module:Class, in place of the crossentropy; none for that.",
        parser=_or_none(str),
        metavar="CLASS",
    )
    metrics: tuple[str, ...] | None = _option(
        None,
        TRAINING,
        "A metric of your own, module:Class, beside accuracy and perplexity. Say it again for several.",
        several=True,
        flag="--metric",
        metavar="CLASS",
    )
    label_smoothing: float = _option(0.1, TRAINING, "Share of each label spread over all tokens.", _SHARE)
    teacher_forcing: tuple[float, ...] = _option(
        (1.0,),
        TRAINING,
        "How often the decoder is given the right token and not its own guess: a number, or two, the first falling or "
        "rising to the second in the course of training.",
        {"least": 0, "most": 1},
        parser=_numbers,
        metavar="P[,P]",
    )
    monitor: str | None = _option(
        None,
        TRAINING,
        "Keep the epoch that is best by this figure of what is held out: val_loss, val_accuracy, val_perplexity, or, "
        "of translations, val_bleu, val_chrf, val_exact_match, val_ter, val_cer, val_wer. Default: keep the last.",
        parser=_or_none(str),
    )
    patience: int | None = _option(
        None,
        TRAINING,
        "Stop when --monitor has not become better for so many measured epochs.",
        _COUNT,
        parser=_or_none(int),
    )
    average: int = _option(
        1, TRAINING, "Keep the average of the weights after each of the last so many epochs.", _COUNT
    )
    keep_epochs: int = _option(
        0, TRAINING, "Keep the models of the last so many measured epochs, for `seq2seq average`.", {"least": 0}
    )
    on_divergence: str = _option(
        "stop", TRAINING, "What to do when a batch has no finite gradient: stop, or skip that batch."
    )
    checkpoint_minutes: float = _option(
        1.0, TRAINING, "How often to save what it takes to resume, in the middle of an epoch too.", {"least": 0}
    )
    compile: bool = _option(
        False,
        TRAINING,
        "Compile training steps with XLA: for long trainings of small models on a GPU. Each size of batch takes a "
        "while to compile once.",
    )
    precision: str = _option(
        "float32",
        TRAINING,
        "What layers compute in: float32, bfloat16, float16. Weights, logits and loss stay float32. The latter two "
        "need less memory and are faster on GPUs that support them; on a CPU they work, but bfloat16 is not faster and "
        "float16 several times slower.",
    )
    deterministic: bool | None = _option(
        None,
        TRAINING,
        "Compute so that the same seed gives the same weights, to the bit. Default: on a CPU yes; on a GPU, where it "
        "costs speed, and with --compile no.",
    )
    seed: int = _option(
        0, TRAINING, "Decides first weights, order, dropout and sampling.", {"least": 0, "below": 2**32}
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name in ("corpus", "validation"):
            if isinstance(value := getattr(self, name), tuple) and len(value) == 1:
                object.__setattr__(self, name, value[0])
        if vars(self)["validation_fraction"] is None:
            object.__setattr__(self, "validation_fraction", 0.0 if self.validation else 0.05)
        for name, kind in (("weights", (int, float)), ("teacher_forcing", (int, float)), ("metrics", str)):
            if isinstance(value := getattr(self, name), kind):
                object.__setattr__(self, name, (value,))
        for field in dataclasses.fields(self):
            check_option(field.name, getattr(self, field.name))
        for name in self.own or ():
            if name in vars(self):
                raise OptionError(f"own={self.own!r}: {name} is an option of Config itself; give it there")
        for name, option in own_classes(self).items():
            if not all(name.partition(":")):
                raise OptionError(f"{option}={name!r}: expected a class, module:Class")
        if self.epochs is not None and self.updates is not None:
            raise OptionError(f"epochs={self.epochs} and updates={self.updates} exclude each other")
        if self.validation and (self.validation_fraction or self.split == "last"):
            option = "validation_fraction" if self.validation_fraction else "split"
            raise OptionError(
                f"{option}={getattr(self, option)!r}: nothing of the corpus is held out where validation is given"
            )
        for name in ("source_tokenizer", "target_tokenizer"):
            tokenizer_names(name, getattr(self, name))
        if self.weights and (self.limit or self.split == "last"):
            raise OptionError("weights cannot be used with a limit or with the last pairs held out")
        if self.shared_vocabulary and self.source_tokenizer != self.target_tokenizer:
            raise OptionError(
                f"shared_vocabulary=True: source_tokenizer={self.source_tokenizer!r} and "
                f"target_tokenizer={self.target_tokenizer!r} make different tokens"
            )
        if self.monitor is not None:
            choose("monitor", self.monitor, MONITORS)
        elif self.patience is not None or self.schedule == "plateau":
            option = "patience" if self.patience is not None else "schedule"
            raise OptionError(f"{option}={getattr(self, option)!r}: there is no monitor to tell better from worse")
        if (self.schedule, self.warmup > 0) in (("inverse_sqrt", False), ("plateau", True)):
            raise OptionError(f"schedule={self.schedule!r} and warmup={self.warmup} do not go together")
        if len(self.teacher_forcing) > 2:
            raise OptionError(f"teacher_forcing={self.teacher_forcing}: expected one number or two")
        if self.compile and self.deterministic:
            raise OptionError("compile=True: XLA does not promise the same bits again, as deterministic=True does")


_CHOICES = {
    "architecture": ("recurrent", "transformer"),
    "on_bad_line": ("error", "skip"),
    "split": ("hash", "last"),
    "encoding": ("one_hot", "ids"),
    "on_divergence": ("stop", "skip"),
    "precision": ("float32", "bfloat16", "float16"),
    "schedule": ("cosine", "constant", "inverse_sqrt", "plateau"),
}


def check_option(name: str, value: typing.Any) -> None:
    """Checks the value of an option by itself: its kind, the range of a number, the choices of a name.

    Raises:
        OptionError: if it cannot be.
    """
    field = Config.__dataclass_fields__[name]
    kinds = _kinds(field.type)
    optional = types.NoneType in kinds
    if optional and value is None:
        return
    values = value if isinstance(value, tuple) and Ellipsis in kinds else (value,)
    if not values:
        raise OptionError(f"{name}=(): expected one or more")
    if kinds & {int, float}:
        for number in values:
            check_number(name, number, int if int in kinds else float, **field.metadata["range"], optional=optional)
    elif bool in kinds and not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: expected True or False{', or None' * optional}")
    elif Mapping in kinds and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise OptionError(f"{name}={value!r}: expected a dict of options by their names, or None")
    elif str in kinds and not all(isinstance(text, str) and text for text in values):
        raise OptionError(f"{name}={value!r}: expected text{', or None' * optional}")
    if name == "columns":
        check_columns(value)
    if name in _CHOICES:
        choose(name, value, _CHOICES[name])


def _kinds(annotation):
    """The types that an annotation is made of: those of `tuple[float, ...] | None` are float, Ellipsis, NoneType."""
    parts = typing.get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}


# What can be watched, and whether more of it is better or less: figures of teacher forcing, and of translations.
_FIGURES = {"val_loss": "min", "val_accuracy": "max", "val_perplexity": "min"}
TRANSLATION_FIGURES = {
    "val_bleu": "max",
    "val_chrf": "max",
    "val_exact_match": "max",
    "val_ter": "min",
    "val_cer": "min",
    "val_wer": "min",
}
MONITORS = _FIGURES | TRANSLATION_FIGURES


def reading_options(config: Config) -> dict:
    """Those options that `read_pairs` takes as they are."""
    names = ("columns", "reverse", "on_bad_line", "max_length", "max_ratio", "drop_duplicates")
    return {name: getattr(config, name) for name in names}


def model_options() -> list[str]:
    """The names of those options that encoders and decoders are given, if they name them."""
    return [field.name for field in dataclasses.fields(Config) if field.metadata.get("rich_help_panel") == MODEL]


def shaping_options() -> list[str]:
    """The names of those options that decide what tokens are and what weights there are; but for `model` and `own`,
    with which another class may train the same weights in another way."""
    names = ("source_tokenizer", "target_tokenizer", "normal_form", "lowercase", "shared_vocabulary")
    return [*names, *(name for name in model_options() if name not in ("dropout", "model", "own"))]


def tokenizer_names(side: str, text: str) -> list[str]:
    """The names of the tokenizers in an option: one for each column, with commas between them.

    A name may be a comma itself, as in "char,,": characters, and in the second column what commas separate.

    Args:
        side: the option.
        text: its value.

    Raises:
        OptionError: if it is no such list.
    """
    names = re.findall("(,|[^,]+)(?:,|$)", text)
    if ",".join(names) != text or not names:
        raise OptionError(f"{side}={text!r}: expected a name, or a name for each column with commas between them")
    return names


def separates(name: str) -> bool:
    """Whether the name of a tokenizer is the character that it cuts texts at."""
    return len(name) == 1 and not name.isalnum()


def own_classes(config: Config, training: bool = True) -> dict[str, str]:
    """The classes that a configuration takes from outside this library: their names, `module:Class`, and the option of
    each; on request without those that only training needs, loss and metrics."""
    named = {side: tokenizer_names(side, getattr(config, side)) for side in ("source_tokenizer", "target_tokenizer")}
    named |= {part: [getattr(config, part) or ""] for part in ("encoder", "decoder", "model")}
    if training:
        named |= {"loss": [config.loss or ""], "metrics": list(config.metrics or ())}
    own = ("model", "loss", "metrics")  # of which the library has no others by name
    return {
        name: option
        for option, names in named.items()
        for name in names
        if name and (option in own or (":" in name and not separates(name)))
    }


def parse_setting(text: str) -> tuple[str, typing.Any]:
    """Reads an option written `name=value`, as `--set` takes it.

    The value of an option of `Config` is read as the command line reads it. Any other, for a class of your own, is what
    it is in JSON (`0.5`, `true`, `[3, 5]`), `none`, or else text.

    Returns:
        The name, with underscores, and the value.

    Raises:
        OptionError: if it is not written so, or the option of `Config` cannot be that.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip().lstrip("-").replace("-", "_"), value.strip()
    if not (equals and name.isidentifier()):
        raise OptionError(f"set={text!r}: expected NAME=VALUE, such as units=128")
    field = Config.__dataclass_fields__.get(name)
    try:
        if not field or not field.metadata:
            return name, _read_json(value)
        kind = field.type if field.type in (int, float) else str
        read = _read_json if field.type is bool or "bool" in str(field.type) else field.metadata.get("parser", kind)
        found = read(value)
    except ValueError:
        raise OptionError(f"set={text!r}: {value!r} does not fit") from None
    check_option(name, found)
    return name, found


def _read_json(text):
    if text.lower() in ("none", "true", "false"):
        text = text.lower().replace("none", "null")
    try:
        return _plain(json.loads(text, parse_constant=_no_number))
    except ValueError:
        return text


def _no_number(text):
    raise ValueError(f"{text} is no number of JSON")


def load_config(path: Path | str) -> tuple[dict, dict]:
    """Reads the `config.json` of a run: its options, ready for `Config`, and all of it as it stands there.

    Raises:
        OptionError: if it cannot be read or names an option that there is none of.
    """
    try:
        found = json.loads(Path(path).read_bytes())
        options = dict(found["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OptionError(f"{path}: no configuration of a run ({type(error).__name__}: {error})") from None
    names = [field.name for field in dataclasses.fields(Config)]
    for name in options:
        choose(f"{path}: option", name, names)
    return options, found
