"""What is found out about a corpus before training, and what one should know of it."""

from pipelines import CorpusError, OptionError, Tokenizer, sources_in
from pipelines.readers import LENGTH
from pipelines.tokenizers import END, RESERVED_TOKENS
from seq2seq.config import Config
from seq2seq.epochs import both_sides
from seq2seq.layers import Pointer
from seq2seq.runs import trained_on


def say_long(config, report, say):
    """Says what the default `max_length` has left out, since it was perhaps not asked for."""
    if config.max_length == Config.max_length and (count := report.dropped[LENGTH]):
        say(
            f"{count:,} with a side of more than {config.max_length:,} characters left out, the first of them "
            f"{report.first[LENGTH][0]}. Another --max-length, or none, takes them; long texts need much memory"
        )


def say_unknown(config, tokenizers, counted, say):
    """Says if more than 5% of a side's tokens are unknown to its vocabulary; accuracy then counts unknown tokens.

    Raises:
        OptionError: if a vocabulary is empty.
    """
    for side, tokenizer, counts in zip(("source", "target"), tokenizers, counted, strict=True):
        if tokenizer.vocabulary_size <= len(RESERVED_TOKENS):
            raise OptionError(f"min_frequency={config.min_frequency}: no {side} token comes so often")
        if type(tokenizer).take_vocabulary is Tokenizer.take_vocabulary:  # others make tokens of what is counted
            unknown = 1 - sum(counts[token.encode()] for token in tokenizer.tokens) / counts.total()
            if unknown > 0.05:
                say(f"{side}: {unknown:.0%} of the tokens are none of the vocabulary's {len(tokenizer.tokens):,}")


def say_copied(tokenizers, say):
    """Says how many tokens can be copied."""
    pointer = Pointer(tokenizers[1].vocabulary_size)
    pointer.take_tokenizers(*tokenizers)
    known = tokenizers[1].vocabulary_size - END - 1
    copied = f"{pointer.copied:,} source tokens" if pointer.copied else "no source token"
    say(f"copying: {copied} can be copied, of {known:,} target tokens")


def say_leaks(record, config, source_tokenizer, say):
    """Says how many of the held-out pairs have a source that is trained on, too, where that can be."""
    training, validation = both_sides(config, source_tokenizer)

    def tell(learned, by_whom):
        if learned.any():
            say(f"{learned.sum():,} of {len(learned):,} held-out pairs have a source that {by_whom}")

    if config.validation or config.split == "last":
        hint = "" if config.validation else "; --split hash keeps them apart"
        tell(sources_in(validation, training, source_tokenizer), f"is trained on too{hint}")
    if config.warm_start:
        try:
            learned = trained_on(record["from"], validation, source_tokenizer)
        except CorpusError as error:
            say(f"{config.warm_start}: cannot tell whether it was trained on what is held out here: {error}")
        else:
            tell(learned, f"{config.warm_start} was trained on")
