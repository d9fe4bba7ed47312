"""Build the tokenizers and the model of a `Config`, new or from another run. Options that cannot work are refused."""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, Tokenizer, accepted, construct, load_class, open_corpora
from pipelines.columns import ColumnsTokenizer
from pipelines.options import choose_class, extra, nearest, one_line, separates, tokenizer_names
from pipelines.tokenizers import TOKENIZERS, SeparatorTokenizer
from seq2seq.config import (
    TRANSLATION_FIGURES,
    Config,
    model_options,
    own_classes,
    reading_options,
    shaping_options,
)
from seq2seq.layers import Decoder, Encoder
from seq2seq.model import Seq2Seq
from seq2seq.optimizers import takes
from seq2seq.presets import choose_preset, usual_options
from seq2seq.records import check_finished, read_record
from seq2seq.runs import compile_model, load_run
from seq2seq.transformer import TransformerDecoder, TransformerEncoder

ENCODERS = {"recurrent": Encoder, "transformer": TransformerEncoder}
DECODERS = {"recurrent": Decoder, "transformer": TransformerDecoder}


def prepare(config: Config) -> tuple[Seq2Seq | None, list[Tokenizer]]:
    """Build what training needs before the corpus is read, so that options that cannot work are refused at once.

    Returns:
        The model to start from, or None, and the two tokenizers, which have a vocabulary only if there is a model.

    Raises:
        OptionError: if options contradict each other, or a name in them is unknown.
        CorpusError: if there is no such corpus.
    """
    columns = open_corpora(config.corpus, **reading_options(config)).sources
    if config.shared_vocabulary and len(columns) > 1:
        raise OptionError(f"shared_vocabulary=True: the source has several columns ({', '.join(columns)})")
    old = _warm_start(config, columns) if config.warm_start else None
    if old:
        tokenizers = [old.source_tokenizer, old.target_tokenizer]
    else:
        sides = {"source_tokenizer": columns, "target_tokenizer": ("target",)}
        tokenizers = [_build_tokenizer(config, side, names) for side, names in sides.items()]
    check_taken(config, _changed_options(config))
    compile_model(build_model(config, tokenizers, steps=1), config, steps=1)
    if config.monitor in TRANSLATION_FIGURES:
        importlib.import_module("seq2seq.evaluation")  # whose packages may be missing
    return old, tokenizers


def check_taken(config: Config, names: Iterable[str]) -> None:
    """Check that the encoder or the decoder takes each of these options, and that some custom class takes those of
    `config.own`.

    Raises:
        OptionError: if an option has no effect, or the class of a model is not a `Seq2Seq`.
    """
    taken = _taken(config)
    for name in names:
        if name in model_options() and name not in taken and getattr(config, name) is not None:
            kinds = " nor ".join(part.__name__ for part in _parts(config))
            raise OptionError(f"{name}: neither {kinds} has this option")
    own = [(option, load_class(option, name)) for name, option in own_classes(config).items()]
    for option, kind in own:
        if option == "model" and not issubclass(kind, Seq2Seq):
            raise OptionError(f"model={config.model!r}: expected a class that is derived from seq2seq.Seq2Seq")
        if option == "loss" and config.label_smoothing and "label_smoothing" not in accepted(kind):
            raise OptionError(f"label_smoothing: {kind.__name__} has no such option; set it to 0, or leave it out")
    possible = set().union(*(accepted(kind) for _, kind in own))
    possible -= {*vars(config), "name", "dtype", "trainable", "vocabulary", "normal_form"}
    for name in (config.own or {}).keys() - possible:
        hint = nearest(name, possible | set(vars(config)))
        raise OptionError(f"option={name!r}: neither Config nor a class that is named here has this option{hint}")


def configure(preset: str | None = None, **options: Any) -> Config:
    """The configuration of `seq2seq train`, with or without `--preset`.

    ```python
    train(configure("inflection", corpus="words.tsv", seed=1), "runs/words")
    ```

    Args:
        preset: "default", "subword", "grapheme-to-phoneme", "inflection" or "tutorial". Default: one of the first two,
            as the corpus suggests; see `presets.choose_preset`.
        **options: fields of `Config`, which replace options of the preset. "transformer" as `architecture` has other
            defaults. A `warm_start` needs the options of that run.

    Raises:
        OptionError: for an unknown preset, and as `Config`.
        CorpusError: if the corpus that should suggest one cannot be read.
    """
    preset = preset or choose_preset(configure("default", **options), options)
    return applicable(Config(**usual_options(preset, options) | options), options)


def _changed_options(config: Config) -> list[str]:
    """The options of encoder and decoder that do not have their defaults, except for those that are switched off."""
    return [name for name in model_options() if getattr(config, name) not in (getattr(Config, name), None, False)]


def applicable(config: Config, given: Collection[str]) -> Config:
    """Reset to their defaults the options of a preset that the encoder, the decoder or the optimizer does not have.

    Options that were `given` are not changed, so that `check_taken` finds them.
    """
    without_effect = set(_changed_options(config)) - _taken(config)
    if not takes(config.optimizer, "beta_2"):
        without_effect.add("beta_2")
    return dataclasses.replace(config, **{name: getattr(Config, name) for name in without_effect - set(given)})


def _taken(config):
    """The names of the options that the encoder and the decoder of a configuration have."""
    encoder, decoder = _parts(config)
    return {"architecture", "encoder", "decoder", "model", "own"} | accepted(encoder) | accepted(decoder)


@contextlib.contextmanager
def fitting_into_memory() -> Iterator[None]:
    """Raise a `MemoryError` that says what to lower, if a model or its optimizer does not fit into memory."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        lower = "lower --units, --embedding or --max-vocabulary"
        raise MemoryError(f"out of memory for a model of this size; {lower}") from error


def build_model(config: Config, tokenizers: list[Tokenizer], steps: int) -> Seq2Seq:
    """The `Seq2Seq` of a configuration, or a custom class derived from it, to be trained for this many steps.

    Raises:
        MemoryError: if it does not fit into memory.
    """
    encoder, decoder = _parts(config)
    options = {name: getattr(config, name) for name in model_options()} | dict(config.own or {})
    first, *last = config.teacher_forcing
    with fitting_into_memory():
        return construct(
            "model",
            load_class("model", config.model) if config.model else Seq2Seq,
            *tokenizers,
            options=options,
            encoder=encoder,
            decoder=decoder,
            label_smoothing=config.label_smoothing,
            teacher_forcing=keras.optimizers.schedules.PolynomialDecay(first, steps, *last) if last else first,
            dtype="float32" if config.precision == "float32" else f"mixed_{config.precision}",
            **{name: options[name] for name in options if name in accepted(encoder) | accepted(decoder)},
        )


def _parts(config):
    """The classes of the encoder and of the decoder."""
    kinds = {"encoder": ENCODERS, "decoder": DECODERS}
    return [choose_class(name, getattr(config, name) or config.architecture, kinds[name]) for name in kinds]


def _build_tokenizer(config, side, columns):
    """The tokenizer of a side with these columns, without a vocabulary."""
    text = getattr(config, side)
    names = tokenizer_names(side, text)
    if len(names) not in (1, len(columns)):
        raise OptionError(
            f"{side}={text!r}: {len(names)} names, but the columns are {', '.join(columns)}; expected one name for "
            "each, or one for all"
        )
    parts = [_column_tokenizer(config, side, name) for name in names * (len(columns) // len(names))]
    return ColumnsTokenizer(parts, columns) if len(columns) > 1 else parts[0]


def _column_tokenizer(config, side, name):
    """Make the tokenizer of one column from its name, and check that it can split a text."""
    options = {"normal_form": config.normal_form, "lowercase": config.lowercase}
    if separates(name):
        return SeparatorTokenizer(name, **options)
    kind = choose_class(side, name, TOKENIZERS)
    if kind is TOKENIZERS["subword"]:
        with extra("subword"):
            importlib.import_module("sentencepiece")  # used after the survey; checked before it
    tokenizer = construct(side, kind, options=config.own or {}, **options)
    try:
        # In a graph, as in training. TensorFlow warns of traces, which it counts for each function: a `partial` is new.
        tf.function(functools.partial(tokenizer.count), autograph=False)(tf.constant(["a text"]))
    except Exception as error:
        raise OptionError(f"{side}={name!r}: cannot split a text: {one_line(error)}") from error
    return tokenizer


def _warm_start(config, columns):
    """The model of the run to start from, which must have the same tokens, weights and number of source columns."""
    start = f"{config.warm_start}, the run to start from, has"
    old = read_record(config.warm_start).config
    check_finished(config.warm_start)
    for name in shaping_options():
        if (value := getattr(config, name)) != (was := getattr(old, name)):
            raise OptionError(f"{name}={value!r}: {start} {was!r}")
    if config.input_feeding and not config.embedding:
        raise OptionError(
            "input_feeding=True: a warm start then needs an embedding; otherwise, new tokens would shift the input "
            "weights"
        )
    model = load_run(config.warm_start)
    if len(columns) != len(names := model.source_tokenizer.column_names):
        raise OptionError(
            f"columns={config.columns}: {start} {len(names)} of the source ({', '.join(names)}), and this corpus "
            f"{len(columns)}"
        )
    return model


def copy_weights(model: Seq2Seq, old: Seq2Seq, name: str, sizes: set[tuple[int, int]]) -> None:
    """Copy the weights of the old model of a run, `name`, whose tokens have the same ids, rows and columns.

    Raises:
        OptionError: if the models differ in more than vocabulary sizes; `sizes` has the old and new ones.
    """
    start = f"{name}, the run to start from, has"
    if len(model.weights) != len(old.weights):
        raise OptionError(f"{start} {len(old.weights)} weights, and this model {len(model.weights)}")
    for weight, known in zip(model.weights, old.weights, strict=True):
        pairs = list(zip(known.shape, weight.shape, strict=False))
        if len(known.shape) != len(weight.shape) or any(one != other for one, other in set(pairs) - sizes):
            raise OptionError(
                f"{start} {weight.path} of shape {known.shape}, and this model {weight.shape}; only vocabularies may "
                "grow"
            )
        value = np.array(weight)
        value[tuple(map(slice, known.shape))] = known
        weight.assign(value)
