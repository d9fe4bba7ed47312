"""From text on disk to batches of tensors: `read_pairs`, `CharTokenizer`, `batch_pairs`."""

from pipelines.batches import batch_pairs
from pipelines.corpora import CorpusError, corpus_errors, count_pairs, read_pairs, split_by_hash, split_last
from pipelines.tokenizers import CharTokenizer

__all__ = [
    "CharTokenizer",
    "CorpusError",
    "batch_pairs",
    "corpus_errors",
    "count_pairs",
    "read_pairs",
    "split_by_hash",
    "split_last",
]
