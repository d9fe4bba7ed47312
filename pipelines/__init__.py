"""From text on disk to batches of tensors: `read_pairs`, `CharTokenizer`, `batch_pairs`."""

import importlib
from typing import Any

_MODULES = {
    "batches": ["batch_pairs"],
    "columns": ["ColumnsTokenizer"],
    "corpora": [
        "Survey",
        "corpus_errors",
        "count_pairs",
        "group_by_source",
        "read_pairs",
        "sources_in",
        "split_by_hash",
        "split_last",
        "survey",
    ],
    "files": ["CorpusError", "as_seen_from"],
    "options": ["OptionError", "accepted", "check_number", "choose", "construct", "load_class"],
    "readers": ["Report", "checksums", "open_corpora"],
    "shuffling": ["damaged_shards", "shuffle_corpus"],
    "subwords": ["SubwordTokenizer"],
    "tokenizers": ["ByteTokenizer", "CharTokenizer", "LetterTokenizer", "SeparatorTokenizer", "WhitespaceTokenizer"],
    "tokens": ["Tokenizer"],
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that code that does not need TensorFlow does not wait for it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"pipelines.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
