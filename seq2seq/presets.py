"""Options before they are a `Config`: presets, those of another run, `NAME=VALUE`.

This module imports no TensorFlow.
"""

import dataclasses
import itertools
import json
from collections.abc import Collection
from typing import Any

from pipelines import OptionError, choose, open_corpora
from seq2seq.config import ARCHITECTURES, CORPUS, Config, as_saved, read_option, reading_options

PRESETS = {
    # Characters: for all tasks, and needs no extra.
    "default": {},
    # Pieces of words, for sentences: a quarter as many steps as characters, and better translations.
    "subword": {
        "source_tokenizer": "subword",
        "target_tokenizer": "subword",
        "units": 384,
        "embedding": 128,
        "attention": "dot",
        "tied": True,
        "dropout": 0.1,
        "learning_rate": 2e-3,
    },
    # Letters to phones, "cat TAB k æ t", which are in the same order. Phones are spelled, because t͡ʃ and t͡ʃʼ have
    # much in common.
    "grapheme-to-phoneme": {
        "source_tokenizer": "letter",
        "target_tokenizer": "letter",
        "attention": "monotonic",
        "copy": True,
        "usual_updates": 2150,
    },
    # Words and features, in the columns of UniMorph: lemma, form, features separated by ";".
    "inflection": {
        "columns": (1, 3, 2),
        "source_tokenizer": "char,;",
        "architecture": "transformer",
        "copy": True,
        "usual_updates": 3200,
        "usual_epochs": (8, 400),
    },
    # blog.keras.io/a-ten-minute-introduction-to-sequence-to-sequence-learning-in-keras.html
    "tutorial": {
        "limit": 10_000,
        "split": "last",
        "validation_fraction": 0.2,
        "bidirectional": False,
        "embedding": None,
        "attention": None,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "batch_size": 70,
        "epochs": 40,
        "optimizer": "rmsprop",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "clip_norm": None,
    },
}

# From this number of pairs of sentences on, `choose_preset` chooses subwords. In the sources, there are this many
# different words or more; phones, syllables and spelled words, with spaces between them, are fewer.
SUBWORD_PAIRS = 2_000
SUBWORD_WORDS = 500


_EXCLUDES = {
    "epochs": ("updates",),
    "updates": ("epochs",),
    "usual_updates": ("epochs", "updates"),
    "usual_epochs": ("epochs", "updates"),
    "batch_size": ("batch_tokens",),
    "columns": ("reverse",),
    "loss": ("label_smoothing",),
    "validation": ("validation_fraction", "split"),
    "validation_fraction": ("validation",),
    "split": ("validation",),
}


def choose_preset(config: Config, given: Collection[str] = ()) -> str:
    """The preset for a corpus: "subword" if it holds 2,000 pairs of sentences or more, else "default".

    Sentences are texts of three words or more, on average, with 500 different words or more: for single words, and for
    phones or letters with spaces between them, characters are better. With other tokenizers or several source columns,
    or if a tokenizer is among the options that were `given`, it is also "default"; and for the phrasebook, so that its
    model is the same with and without the extra `subword`. Only the first 2,000 pairs are read.
    """
    if config.corpus in ("phrasebook", ("phrasebook",)):
        return "default"
    if {"source_tokenizer", "target_tokenizer"}.intersection(given):
        return "default"
    if (config.source_tokenizer, config.target_tokenizer) != (Config.source_tokenizer, Config.target_tokenizer):
        return "default"
    reader = open_corpora(config.corpus, **reading_options(config))
    if len(reader.sources) > 1 or not all(shard.files for shard in reader.shards):
        return "default"  # what can be read only once is not trained on
    pairs = itertools.islice(reader.pairs(), min(SUBWORD_PAIRS, config.limit or SUBWORD_PAIRS))
    sources = [source.split() for source, _ in pairs]
    words = list(itertools.chain(*sources))
    sentences = len(words) >= 3 * len(sources) and len(set(words)) >= SUBWORD_WORDS
    return "subword" if len(sources) == SUBWORD_PAIRS and sentences else "default"


def usual_options(preset: str, given: dict) -> dict:
    """The options of a preset and of its (or the given) architecture, without those that `given` excludes.

    Raises:
        OptionError: if there is no such preset or architecture.
    """
    options = choose("preset", preset, PRESETS)
    architecture = given.get("architecture", options.get("architecture", Config.architecture))
    return without_excluded(options | choose("architecture", architecture, ARCHITECTURES), given)


def without_excluded(options: dict, given: dict) -> dict:
    """The options of a preset or a run, without those that a given one excludes.

    Raises:
        OptionError: if `batch_size` and `batch_tokens` are both given.
    """
    if given.get("batch_size") and given.get("batch_tokens"):
        raise OptionError("batch_size and batch_tokens cannot be combined")
    # `loss=None` replaces the loss of a preset or a run, and the smoothing that was meant for it.
    names = (name for name, value in given.items() if value is not None or (name == "loss" and options.get("loss")))
    excluded = {other for name in names for other in _EXCLUDES.get(name, ())}
    if "validation" in excluded and options.get("validation"):
        excluded.add("validation_fraction")  # the 0 that `validation` implies
    return {name: value for name, value in options.items() if name not in excluded}


def warm_options(options: dict) -> dict:
    """The options that a run on another corpus takes from the run whose weights it starts from."""
    names = [field.name for field in dataclasses.fields(Config) if field.metadata.get("rich_help_panel") != CORPUS]
    names += "columns", "reverse"  # part of the task, not of the corpus
    dropped = ("corpus", "epochs", "steps_per_epoch", "updates", "usual_updates", "usual_epochs")
    return {name: options[name] for name in names if name in options and name not in dropped}


def parse_setting(text: str, *, of_config: bool) -> tuple[str, Any]:
    """Read an option written `name=value`, as `--set` and `--grid` take it.

    With `of_config`, the value of an option of `Config` is read as on the command line. Any other, for a custom class,
    is JSON (`0.5`, `true`, `[3, 5]`), or else text. None, true and false may be written as in Python or as in JSON.

    Returns:
        The name, with underscores, and the value.

    Raises:
        OptionError: if it is not of this form, or `Config` does not allow the value.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip().lstrip("-").replace("-", "_"), value.strip()
    if not (equals and name.isidentifier()):
        raise OptionError(f"set={text!r}: expected NAME=VALUE, such as {'units=128' if of_config else 'kernel=5'}")
    of_config = of_config and name in Config.__dataclass_fields__
    return name, read_option(name, value) if of_config else _read_json(value)


def _read_json(text):
    if text.lower() in ("none", "true", "false"):
        text = text.lower().replace("none", "null")
    try:
        return as_saved(json.loads(text, parse_constant=int))  # which refuses NaN and Infinity
    except ValueError:
        return text
