"""All options of a run: `Config`, one declaration for each. This module imports no TensorFlow.

The command line is generated from these declarations: an option that is added here is an option of `seq2seq train` and
is recorded in `config.json`.
"""

import contextlib
import dataclasses
import os
import reprlib
import types
import typing
from collections.abc import Mapping

from pipelines import OptionError, check_number, choose
from pipelines.files import NAMED_CORPORA
from pipelines.formats import check_columns
from pipelines.options import separates, tokenizer_names

CORPUS, TOKENS, MODEL, TRAINING = "Corpus", "Tokens", "Model", "Training"  # the panels of the help


def _option(default, panel, help, range=None, **how):
    """A field of `Config` with the arguments of `typer.Option`; for `check_option`, the range of its numbers, or its
    choices."""
    metadata = {"rich_help_panel": panel, "help": help, "range": range or {}, **how}
    return dataclasses.field(default=default, metadata=metadata)


_COUNT = {"least": 1}
_FRACTION = {"least": 0, "below": 1}


# Defaults of an architecture for small corpora, if they differ from those of `Config`; they override a preset.
ARCHITECTURES: dict[str, dict] = {
    "recurrent": {},
    "transformer": {"units": 128, "layers": 2, "dropout": 0.3, "learning_rate": 1e-3, "warmup": 300, "beta_2": 0.98},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. The meaning of each option is its `help`, which the command line shows.

    The defaults are those of the preset `default`; `configure` makes a `Config` of another one.

    Raises:
        OptionError: if a value is not allowed, or two options contradict each other.
    """

    corpus: str | tuple[str, ...] = "phrasebook"  # as `read_pairs` takes it; the argument of the command line

    limit: int | None = _option(None, CORPUS, "Use only this many pairs, from the start of the corpus.", _COUNT)
    columns: tuple | None = _option(
        None,
        CORPUS,
        "The columns or JSON keys to read: names, found in the first line of tab-separated text, or numbers from 1. "
        "The last is the target, the others are the source. Default: 1,2, or source,target.",
        metavar="SOURCE,...,TARGET",
    )
    reverse: bool = _option(False, CORPUS, "Swap source and target.")
    weights: tuple[float, ...] | None = _option(
        None,
        CORPUS,
        "Sampling weight of each CORPUS. Held-out pairs are read once each. Default: one CORPUS after the other.",
        {"above": 0},
        metavar="W,W,...",
    )
    on_bad_line: str = _option(
        "error",
        CORPUS,
        "What to do with a line with too few or too many columns, an empty side or invalid UTF-8: error, skip.",
        choices=("error", "skip"),
    )
    # A batch is padded to its longest pair: of 64 with one of 2,000 characters it took 7.5 GB (2026-11-27, a CPU).
    max_length: int | None = _option(
        1000,
        CORPUS,
        "Leave out pairs with a side of more characters than this; none for no limit.",
        _COUNT,
    )
    max_ratio: float | None = _option(
        None,
        CORPUS,
        "Leave out pairs with one side more than this many times as long as the other; of several source columns, only "
        "the first counts.",
        {"least": 1},
    )
    drop_duplicates: bool = _option(False, CORPUS, "Drop pairs that repeat a recently read pair.")
    split: str = _option(
        "hash", CORPUS, "Which pairs are held out: hash (by a hash of the source), last.", choices=("hash", "last")
    )
    validation_fraction: float = _option(
        None, CORPUS, "Fraction of the sources to hold out. Default: 0.05, or none with --validation.", _FRACTION
    )
    validation: str | tuple[str, ...] | None = _option(
        None,
        CORPUS,
        "A CORPUS to use as the held-out set, such as the development set of a task; it is read with the same columns. "
        "The whole training CORPUS is then trained on. Repeatable.",
        several=True,
        metavar="CORPUS",
    )

    source_tokenizer: str = _option(
        "char",
        TOKENS,
        "How to split source texts into tokens: char, letter (é is split into e and a mark, Hangul syllables into "
        "letters), byte, whitespace, subword, module:Class, or a single character such as ';' that separates a set of "
        "features. For several source columns, one name for each ('char,;') or one for all.",
    )
    target_tokenizer: str = _option("char", TOKENS, "How to split target texts into tokens: one of the same names.")
    normal_form: str | None = _option("NFC", TOKENS, "Unicode normal form of all text: NFC, NFD, NFKC, NFKD, none.")
    lowercase: bool = _option(
        False,
        TOKENS,
        "Fold the case of source and target. Unicode's NFKC_Casefold, which also replaces characters like ½ and ﬁ, and "
        "removes joiners and other invisible characters.",
    )
    min_frequency: int = _option(1, TOKENS, "Leave tokens rarer than this out of the vocabulary.", _COUNT)
    max_vocabulary: int | None = _option(None, TOKENS, "Maximum number of tokens in a vocabulary.", _COUNT)
    shared_vocabulary: bool = _option(
        False, TOKENS, "Use one vocabulary for source and target. Each side has embeddings of its own."
    )

    architecture: str = _option(
        "recurrent",
        MODEL,
        "Kind of encoder and decoder: recurrent, transformer. The latter has other defaults, which override a preset: "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in ARCHITECTURES["transformer"].items())
        + ".",
        choices=tuple(ARCHITECTURES),
    )
    units: int = _option(256, MODEL, "Size of the encoder's outputs and of each layer.", _COUNT)
    cell: str = _option("lstm", MODEL, "Recurrent cell: lstm, gru.")
    layers: int = _option(1, MODEL, "Layers on each side.", _COUNT)
    heads: int = _option(4, MODEL, "Attention heads of a Transformer.", _COUNT)
    feed_forward: int | None = _option(
        None, MODEL, "Units of a Transformer's feed-forward layers. Default: 4 times --units.", _COUNT
    )
    bidirectional: bool = _option(True, MODEL, "Let half of the encoder's units read the source backwards.")
    embedding: int | None = _option(64, MODEL, "Size of the token embeddings; none for one-hot vectors.", _COUNT)
    attention: str | None = _option(
        "general",
        MODEL,
        "Attention of a recurrent decoder: dot, general, additive, none; for short texts of letters hard, or monotonic "
        "if source and target are in the same order.",
    )
    input_feeding: bool = _option(
        False, MODEL, "Feed the attention result of each decoder step into the next step. Several times slower."
    )
    tied: bool = _option(False, MODEL, "Tie the output layer to the target embedding.")
    copy: bool = _option(
        False,
        MODEL,
        "Let the decoder also copy source tokens, even unknown ones; useful if targets repeat parts of their sources.",
    )
    dropout: float = _option(0.3, MODEL, "Dropout rate of embeddings and of the output of each layer.", _FRACTION)
    encoder: str | None = _option(
        None, MODEL, "Encoder, if not that of --architecture: recurrent, transformer, or module:Class.", metavar="KIND"
    )
    decoder: str | None = _option(
        None, MODEL, "Decoder, if not that of --architecture: recurrent, transformer, or module:Class.", metavar="KIND"
    )

    model: str | None = _option(None, MODEL, "Your own model, module:Class, a subclass of Seq2Seq.", metavar="CLASS")
    own: Mapping | None = _option(
        None,
        MODEL,
        "Set a constructor argument of your own class: --set kernel=5. Repeatable.",
        several=True,
        flag="--set",
        metavar="NAME=VALUE",
    )

    warm_start: str | None = _option(
        None,
        TRAINING,
        "Start from the weights of this run, with its options (--columns and --reverse too), but not those of the "
        "corpus and the training length; new tokens extend its vocabularies.",
        flag="--from",
        metavar="RUN",
    )
    batch_size: int = _option(64, TRAINING, "Pairs in a batch.", _COUNT)
    batch_tokens: int | None = _option(
        None, TRAINING, "Tokens in a batch, padding included, instead of --batch-size.", _COUNT
    )
    encoding: str = _option(
        "ids",
        TRAINING,
        "Encoding of batches: ids or one_hot. The results are the same; ids are a little faster.",
        choices=("one_hot", "ids"),
    )
    epochs: int | None = _option(None, TRAINING, "Number of epochs. Default: see --usual-updates.", _COUNT)
    steps_per_epoch: int | None = _option(
        None,
        TRAINING,
        "Number of updates in an epoch; useful for a large corpus, as the model is measured and saved after epochs. "
        "Default: one pass over the corpus, or --updates if that is less.",
        _COUNT,
    )
    updates: int | None = _option(
        None, TRAINING, "Number of updates, rounded to whole epochs, instead of --epochs.", _COUNT
    )
    usual_updates: int = _option(
        1400,
        TRAINING,
        "Without --epochs and --updates: this many updates for up to 1,000 pairs, and twice as many for ten times as "
        "many pairs; in whole epochs.",
        _COUNT,
    )
    usual_epochs: tuple[int, ...] = _option(
        (8, 100),
        TRAINING,
        "The smallest and the largest number of passes over the corpus for --usual-updates.",
        _COUNT,
        metavar="N,N",
    )
    optimizer: str = _option("adam", TRAINING, "The optimizer, by its Keras name.")
    beta_2: float | None = _option(
        None, TRAINING, "The beta_2 of adam and similar optimizers. Default: the optimizer's.", _FRACTION
    )
    weight_decay: float | None = _option(
        None,
        TRAINING,
        "Decoupled weight decay: each step shrinks weights by this factor times the learning rate. Biases, "
        "normalization scales and embeddings are not decayed. Default: the optimizer's, usually none.",
        {"least": 0},
    )
    learning_rate: float = _option(3e-3, TRAINING, "Initial learning rate, after --warmup.", {"least": 0})
    schedule: str = _option(
        "cosine",
        TRAINING,
        "How the learning rate changes: cosine (falls to zero along half a cosine), constant, inverse_sqrt (after "
        "--warmup, falls with the inverse square root of the step number), plateau (halved when --monitor has not "
        "improved for two measured epochs).",
        choices=("cosine", "constant", "inverse_sqrt", "plateau"),
    )
    warmup: int = _option(
        0, TRAINING, "Number of initial steps during which the learning rate rises from zero.", {"least": 0}
    )
    clip_norm: float | None = _option(1.0, TRAINING, "Clip the gradient to this norm; none for no limit.", {"above": 0})
    loss: str | None = _option(
        None, TRAINING, "Your own loss, module:Class; none for the crossentropy.", metavar="CLASS"
    )
    metrics: tuple[str, ...] | None = _option(
        None,
        TRAINING,
        "Your own metric, module:Class, besides accuracy and perplexity. Repeatable.",
        several=True,
        flag="--metric",
        metavar="CLASS",
    )
    label_smoothing: float = _option(
        None, TRAINING, "Share of each label that is spread over all tokens. Default: 0.1, or 0 with --loss.", _FRACTION
    )
    teacher_forcing: tuple[float, ...] = _option(
        (1.0,),
        TRAINING,
        "Probability that the decoder is given the correct token instead of its own prediction; or two numbers, to "
        "change from the first to the second during training.",
        {"least": 0, "most": 1},
        metavar="P[,P]",
    )
    monitor: str | None = _option(
        None,
        TRAINING,
        "Keep the best epoch by this held-out metric: val_loss, val_perplexity, val_accuracy (of single tokens, given "
        "the correct ones before them), or, measured on translations, val_bleu, val_chrf, val_exact_match, val_ter, "
        "val_cer, val_wer. Default: keep the last.",
    )
    patience: int | None = _option(
        None, TRAINING, "Stop when --monitor has not improved for this many measured epochs.", _COUNT
    )
    average: int = _option(
        1, TRAINING, "Measure and keep the average of the weights over this many of the last epochs.", _COUNT
    )
    keep_epochs: int = _option(
        0, TRAINING, "Keep the models of this many of the last measured epochs, for `seq2seq average`.", {"least": 0}
    )
    on_divergence: str = _option(
        "stop",
        TRAINING,
        "What to do when a batch has no finite gradient: stop, or skip that batch (unless weights are not finite).",
        choices=("stop", "skip"),
    )
    checkpoint_minutes: float = _option(
        1.0, TRAINING, "Minutes between checkpoints; one more follows each measured epoch.", {"least": 0}
    )
    precision: str = _option(
        "float32",
        TRAINING,
        "Precision in which layers compute: float32, bfloat16, float16. Weights, logits and loss stay float32. The "
        "latter two need less memory. On an H200, bfloat16 was not faster; on a CPU, neither is, and float16 is "
        "several times slower.",
        choices=("float32", "bfloat16", "float16"),
    )
    deterministic: bool | None = _option(
        None,
        TRAINING,
        "Use deterministic operations, so that the same seed gives bit-identical weights. Default: yes on a CPU; no on "
        "a GPU, where they are slower.",
    )
    seed: int = _option(
        0, TRAINING, "Seed of initial weights, order, dropout and scheduled sampling.", {"least": 0, "below": 2**32}
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_saved(getattr(self, field.name)))
        for name in ("corpus", "validation"):
            if isinstance(value := getattr(self, name), tuple) and len(value) == 1 and isinstance(value[0], str):
                object.__setattr__(self, name, value[0])
        if vars(self)["validation_fraction"] is None:
            object.__setattr__(self, "validation_fraction", 0.0 if self.validation else 0.05)
        if vars(self)["label_smoothing"] is None:
            object.__setattr__(self, "label_smoothing", 0.0 if self.loss else 0.1)
        single: dict[str, typing.Any] = {
            "weights": (int, float),
            "teacher_forcing": (int, float),
            "usual_epochs": int,
            "metrics": str,
        }
        for name, kind in single.items():
            if isinstance(value := getattr(self, name), kind):
                object.__setattr__(self, name, (value,))
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), kinds_of(field.name)
            check_option(field.name, value)
            if float in kinds and value is not None:  # 0 is saved as 0.0, or the options of two runs would differ
                value = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
                object.__setattr__(self, field.name, value)
        for name in self.own or ():
            if name in vars(self):
                raise OptionError(f"own={self.own!r}: {name} is an option of Config itself; give it there")
        for name, option in own_classes(self).items():
            if not all(name.partition(":")):
                raise OptionError(f"{option}={name!r}: expected a class, module:Class")
        if self.epochs is not None and self.updates is not None:
            raise OptionError(f"epochs={self.epochs} and updates={self.updates} cannot be combined")
        if self.validation and (self.validation_fraction or self.split == "last"):
            option = "validation_fraction" if self.validation_fraction else "split"
            raise OptionError(
                f"{option}={getattr(self, option)!r}: cannot be combined with validation, the held-out set"
                + "; leave validation_fraction out, or set it to None" * (option == "validation_fraction")
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
            if not (self.validation or self.validation_fraction):
                raise OptionError(
                    f"monitor={self.monitor!r}: there is no held-out set; give a validation_fraction or validation"
                )
        elif self.patience is not None or self.schedule == "plateau":
            option = "patience" if self.patience is not None else "schedule"
            raise OptionError(
                f"{option}={getattr(self, option)!r}: needs a monitor, the metric by which epochs are compared"
            )
        if (self.schedule, self.warmup > 0) in (("inverse_sqrt", False), ("plateau", True)):
            wanted = "give a warmup" if self.schedule == "inverse_sqrt" else "set warmup to 0"
            raise OptionError(f"schedule={self.schedule!r} and warmup={self.warmup} cannot be combined; {wanted}")
        if len(self.usual_epochs) != 2 or self.usual_epochs[0] > self.usual_epochs[1]:
            raise OptionError(f"usual_epochs={self.usual_epochs}: expected two numbers of passes, the smaller first")
        if len(self.teacher_forcing) > 2:
            raise OptionError(f"teacher_forcing={self.teacher_forcing}: expected one number or two")


def as_saved(value: typing.Any) -> typing.Any:
    """A value as read back from JSON, but with tuples for lists: so a `Config` is equal to its saved copy."""
    if isinstance(value, (list, tuple)):
        return tuple(map(as_saved, value))
    if isinstance(value, dict):
        return {name: as_saved(part) for name, part in value.items()}
    if isinstance(value, os.PathLike):
        path = os.fspath(value)  # always of a file, while a string may be the name of a corpus
        return os.path.join(os.curdir, path) if path == "-" or path in NAMED_CORPORA else path
    return as_saved(value.tolist()) if hasattr(value, "tolist") else value  # of NumPy


_OF_CLASSES = ("source_tokenizer", "target_tokenizer", "encoder", "decoder", "model", "loss", "metrics")


def check_option(name: str, value: typing.Any) -> None:
    """Check the value of one option: its type, the range of a number, the choices of a name.

    Raises:
        OptionError: if it is not allowed.
    """
    field = Config.__dataclass_fields__[name]
    kinds = kinds_of(name)
    optional = types.NoneType in kinds
    if optional and value is None:
        return
    values = value if isinstance(value, tuple) and Ellipsis in kinds else (value,)
    if not values:
        raise OptionError(f"{name}=(): expected one or more")
    if kinds & {int, float}:
        if Ellipsis in kinds and isinstance(value, str):
            raise OptionError(f"{name}={value!r}: expected numbers with commas between them{', or None' * optional}")
        for number in values:
            check_number(name, number, int if int in kinds else float, **field.metadata["range"], optional=optional)
    elif bool in kinds and not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: expected True or False{', or None' * optional}")
    elif Mapping in kinds and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise OptionError(f"{name}={value!r}: expected a dict of options by their names, or None")
    elif name in _OF_CLASSES and any(isinstance(each, type) for each in values):
        (one, *_) = (each for each in values if isinstance(each, type))
        raise OptionError(f"{name}: expected the name of a class, such as '{one.__module__}:{one.__qualname__}'")
    elif str in kinds and not all(isinstance(text, str) and text for text in values):
        found = f"{name}={reprlib.repr(value)}: expected text{', or None' * optional}"
        if name in ("corpus", "validation") and not isinstance(value, str):
            found += "; train reads only files: write the pairs to a file, or use fit"
        raise OptionError(found)
    if name == "columns":
        check_columns(value)
    if "choices" in field.metadata:
        choose(name, value, field.metadata["choices"])


def read_option(name: str, text: str) -> typing.Any:
    """Read the value of an option from text, as on the command line: `none` if it may be None, `1,0.5` for numbers.

    Raises:
        OptionError: if it is not allowed.
    """
    kinds = kinds_of(name)
    number = next((kind for kind in (int, float) if kind in kinds), None)
    value: typing.Any = text
    with contextlib.suppress(ValueError):  # of text where a number is expected, as `check_option` says then
        if types.NoneType in kinds and text.lower() in ("none", "null"):
            value = None
        elif bool in kinds:
            value = {"true": True, "false": False}.get(text.lower(), text)
        elif name == "columns":
            names = tuple(map(str.strip, text.split(",")))
            value = tuple(map(int, names)) if all(map(str.isdigit, names)) else names
        elif number:
            value = tuple(map(number, text.split(","))) if Ellipsis in kinds else number(text)
    check_option(name, value)
    return value


def kinds_of(name: str) -> set:
    """The types in the annotation of an option: in `tuple[float, ...] | None` these are float, Ellipsis, NoneType."""
    return _kinds(Config.__dataclass_fields__[name].type)


def _kinds(annotation):
    parts = typing.get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}


# The figures that `monitor` can name, and whether the best is the lowest or the highest.
TRANSLATION_FIGURES = {"val_bleu": "max", "val_chrf": "max", "val_exact_match": "max"}
TRANSLATION_FIGURES |= {"val_ter": "min", "val_cer": "min", "val_wer": "min"}
MONITORS = {"val_loss": "min", "val_accuracy": "max", "val_perplexity": "min", **TRANSLATION_FIGURES}


def reading_options(config: Config) -> dict:
    """The options that are passed to `read_pairs` unchanged."""
    names = ("columns", "reverse", "on_bad_line", "max_length", "max_ratio", "drop_duplicates")
    return {name: getattr(config, name) for name in names}


def model_options() -> list[str]:
    """The names of the options that encoders and decoders are given, if their constructors name them."""
    return [field.name for field in dataclasses.fields(Config) if field.metadata.get("rich_help_panel") == MODEL]


def shaping_options() -> list[str]:
    """The names of the options that determine tokens and weights, without `model` and `own`: with these, another class
    may train the same weights in another way."""
    names = ("source_tokenizer", "target_tokenizer", "normal_form", "lowercase", "shared_vocabulary")
    return [*names, *(name for name in model_options() if name not in ("dropout", "model", "own"))]


def own_classes(config: Config, training: bool = True) -> dict[str, str]:
    """The custom classes that a configuration names, {`module:Class`: its option}, with or without loss and metrics,
    which only training needs."""
    named = {side: tokenizer_names(side, getattr(config, side)) for side in ("source_tokenizer", "target_tokenizer")}
    named |= {part: [getattr(config, part) or ""] for part in ("encoder", "decoder", "model")}
    if training:
        named |= {"loss": [config.loss or ""], "metrics": list(config.metrics or ())}
    own = ("model", "loss", "metrics")  # the library has none of these to choose by name
    return {
        name: option
        for option, names in named.items()
        for name in names
        if name and (option in own or (":" in name and not separates(name)))
    }
