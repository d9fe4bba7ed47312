"""The presets, and choosing among them. Imports no TensorFlow."""

import dataclasses
import itertools

from pipelines import choose, open_corpora
from seq2seq.config import ARCHITECTURES, CORPUS, Config, reading_options

PRESETS = {
    # Characters: for everything, and best for little text.
    "default": {},
    # Pieces of words: a quarter as many steps as characters, for sentences where there are enough to learn pieces from.
    "subword": {
        "source_tokenizer": "subword",
        "target_tokenizer": "subword",
        "max_vocabulary": 1500,
        "units": 384,
        "embedding": 128,
        "attention": "dot",
        "tied": True,
        "dropout": 0.15,
        "learning_rate": 2e-3,
    },
    # From letters to phones, "cat TAB K AE T", which are in the same order.
    "grapheme-to-phoneme": {
        "source_tokenizer": "letter",
        "target_tokenizer": "whitespace",
        "attention": "monotonic",
        "copy": True,
    },
    # Of words and features, in the columns that UniMorph has: lemma, form, features with ";" between them.
    "inflection": {
        "columns": (1, 3, 2),
        "source_tokenizer": "char,;",
        "architecture": "transformer",
        "copy": True,
        "updates": 3200,
    },
    # Of blog.keras.io/a-ten-minute-introduction-to-sequence-to-sequence-learning-in-keras.html
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


SUBWORD_PAIRS = 20_000  # from how many pairs of sentences on `choose_preset` takes subwords


def choose_preset(config: Config) -> str:
    """The preset for a corpus: "subword" where it holds 20,000 pairs of sentences or more, else "default".

    Sentences are texts of three words or more, on average: where words are written without spaces or stand alone,
    characters are the better choice. Whoever has said what tokens to take, or has several source columns, gets
    "default" too. Reads no more than those first pairs.
    """
    if (config.source_tokenizer, config.target_tokenizer) != (Config.source_tokenizer, Config.target_tokenizer):
        return "default"
    reader = open_corpora(config.corpus, **reading_options(config))
    if len(reader.sources) > 1:
        return "default"
    pairs = itertools.islice(reader.pairs(), min(SUBWORD_PAIRS, config.limit or SUBWORD_PAIRS))
    words = [len(source.split()) for source, _ in pairs]
    return "subword" if len(words) == SUBWORD_PAIRS and sum(words) >= 3 * len(words) else "default"


def usual_options(preset: str, given: dict) -> dict:
    """The options of a preset and of the architecture, which is given or the preset's, to go with those that are given.

    Raises:
        OptionError: if there is no such preset or architecture.
    """
    options = choose("preset", preset, PRESETS)
    architecture = given.get("architecture", options.get("architecture", Config.architecture))
    return without_excluded(options | choose("architecture", architecture, ARCHITECTURES), given)


def without_excluded(options: dict, given: dict) -> dict:
    """The options of a preset or a run without those that exclude one that is given beside them."""
    excluded = {other for name, value in given.items() if value is not None for other in _EXCLUDES.get(name, ())}
    return {name: value for name, value in options.items() if name not in excluded}


_EXCLUDES = {
    "epochs": ("updates",),
    "updates": ("epochs",),
    "validation": ("validation_fraction", "split"),
    "validation_fraction": ("validation",),
    "split": ("validation",),
}


def warm_options(options: dict) -> dict:
    """Those options of a run that are also for one that starts from it, on another corpus."""
    names = [field.name for field in dataclasses.fields(Config) if field.metadata.get("rich_help_panel") != CORPUS]
    return {name: options[name] for name in names if name in options and name not in ("corpus", "epochs", "updates")}
