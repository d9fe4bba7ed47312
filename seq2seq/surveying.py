"""What is read of a corpus before training: its survey, the vocabularies, and notices of what looks wrong."""

import warnings
from collections.abc import Callable

import numpy as np

from pipelines import (
    CorpusError,
    OptionError,
    Report,
    SeparatorTokenizer,
    SubwordTokenizer,
    Survey,
    Tokenizer,
    count_pairs,
    sources_in,
    survey,
)
from pipelines.readers import LENGTH, corpus_names
from pipelines.tokens import END, PADDING, REPLACEMENT, RESERVED_TOKENS
from seq2seq.attention import copied_ids
from seq2seq.config import Config
from seq2seq.decoding import LONGEST_SOURCE
from seq2seq.epochs import training_pairs, validation_pairs
from seq2seq.presets import PRESETS
from seq2seq.records import Record
from seq2seq.runs import trained_on


def survey_corpus(
    config: Config,
    tokenizers: list[Tokenizer],
    progress: Callable[[int], None] | None,
    say: Callable[[str], None],
    warns: bool = False,
) -> Survey:
    """Count pairs, tokens and lengths of the training side, and check that the validation side can serve.

    Say which pairs were left out. If the default of `max_length`, which the user may not know of, left out some, a
    hint follows, as a warning if `warns`.

    Raises:
        CorpusError: if a side cannot be read, is empty, or has a text to validate on that is too long.
        OptionError: if nothing is held out for `config.monitor`.
    """
    # A preset's columns were not chosen for this corpus, so it is said if they leave one out.
    chosen = config.columns not in [options.get("columns") for options in PRESETS.values()]

    def say_report(report):
        for notice in report.notices(columns_given=chosen):
            say(notice)

    cleaning = Report()
    found = survey(
        training_pairs(config, tokenizers[0], epoch=0, report=cleaning), tokenizers[0], tokenizers[1], progress
    )
    say_report(cleaning)
    if config.max_length == Config.max_length and (count := cleaning.dropped[LENGTH]):
        (warnings.warn if warns else say)(
            f"{count:,} left out, with a side of more than {config.max_length:,} characters; the first is "
            f"{cleaning.first[LENGTH][0]}. To use them, set a higher --max-length, or none; long texts need much memory"
        )
    if found.pairs == 0:
        raise CorpusError(f"{corpus_names(config.corpus)}: no pairs to train on")
    if config.validation:
        cleaning = Report()
        longest = config.max_length and max(config.max_length, Config.max_length or 0)
        count = count_pairs(validation_pairs(config, tokenizers[0], report=cleaning, max_length=longest))
        if cleaning.dropped[LENGTH]:
            raise CorpusError(f"{cleaning.first[LENGTH][0]}, too long to validate on; remove it, or raise --max-length")
        if not count:
            raise CorpusError(f"{corpus_names(config.validation)}: no pairs to validate on")
        say_report(cleaning)
    if count := sum(count for length, count in found.lengths[0].items() if length > LONGEST_SOURCE):
        pieces = any(isinstance(part, SubwordTokenizer) for part in tokenizers[0].of_columns)
        what = "words" if pieces and not config.warm_start else "tokens"  # subwords have not been made yet
        more = f"{count:,} sources have more than {LONGEST_SOURCE:,} {what}"
        say(f"{more}; translation reads only the first {LONGEST_SOURCE:,} tokens")
    if (config.monitor or config.validation_fraction) and not list(validation_pairs(config, tokenizers[0]).take(1)):
        if config.monitor:
            raise OptionError(f"monitor={config.monitor!r}: there is no held-out set to measure it on")
        say("The held-out set is empty, because there are too few sources; name one with --validation")
    return found


def say_leaks(record: Record, config: Config, source_tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
    """Say how many of the held-out pairs have a source that is, or was before a warm start, trained on too."""

    def tell(learned, by_whom):
        if learned.any():
            say(f"{learned.sum():,} of {len(learned):,} held-out pairs have a source that {by_whom}")

    if config.validation or config.split == "last":
        training, validation = training_pairs(config, source_tokenizer), validation_pairs(config, source_tokenizer)
        hint = "" if config.validation else "; --split hash keeps them apart"
        tell(sources_in(validation, training, source_tokenizer), f"is also in the training set{hint}")
    if config.warm_start:
        validation = validation_pairs(config, source_tokenizer)
        try:
            learned = trained_on(Record(record.content["from"]), validation, source_tokenizer)
        except CorpusError as error:
            say(f"{config.warm_start}: cannot tell whether it was trained on the held-out pairs: {error}")
        else:
            tell(learned, f"{config.warm_start} was trained on")


def take_vocabularies(
    config: Config, tokenizers: list[Tokenizer], found: Survey, say: Callable[[str], None]
) -> set[tuple[int, int]]:
    """Give the tokenizers vocabularies of the surveyed tokens, or with a warm start add new tokens to theirs.

    Say which tokens stay unknown if they are more than 5% of a side, as accuracy then counts unknown tokens, or with a
    warm start; and how many tokens can be copied. For copying, a vocabulary may become larger than `max_vocabulary`.

    Returns:
        The sizes of each vocabulary before and after.

    Raises:
        OptionError: if a vocabulary is empty, or cannot have the size that is asked for.
    """
    counted = [found.tokens[0] + found.tokens[1]] * 2 if config.shared_vocabulary else found.tokens
    before = [tokenizer.vocabulary_size if config.warm_start else 0 for tokenizer in tokenizers]
    for side, tokenizer, counts in zip(("source", "target"), tokenizers, counted, strict=True):
        take = tokenizer.extend_vocabulary if config.warm_start else tokenizer.take_vocabulary
        try:
            take(counts, config.min_frequency, config.max_vocabulary)
        except OptionError as error:
            raise OptionError(f"{side}: {str(error).replace('max_size=', 'max_vocabulary=')}") from None
        if tokenizer.vocabulary_size <= len(RESERVED_TOKENS):
            raise OptionError(f"min_frequency={config.min_frequency}: no {side} token occurs that often")
    if config.copy:
        _take_copied(config, tokenizers[0], tokenizers[1], counted[0])
    for side, tokenizer, size, own in zip(("source", "target"), tokenizers, before, found.tokens, strict=True):
        tokens = [token if isinstance(token, bytes) else token.encode() for token in tokenizer.tokens]
        known = set(tokens) - {REPLACEMENT.encode()}
        if own and (tokenizer.counts_tokens or config.warm_start):
            # The counts of a new subword vocabulary are of words, not of its tokens.
            unknown = 1 - sum(own[token] for token in known) / own.total()
            if unknown > 0.05:
                say(f"{side}: {unknown:.0%} of the tokens are not in the vocabulary of {len(known):,}")
        if config.warm_start:
            missing = [token.decode() for token, _ in own.most_common() if token not in known]
            some = f"; {len(missing):,} remain unknown, such as {' '.join(missing[:20])}" if missing else ""
            say(f"{side}: {tokenizer.vocabulary_size - size:,} new tokens{some}")
    for column in tokenizers[0].of_columns[1:]:
        if isinstance(column, SeparatorTokenizer) and found.tokens[1][column.separator.encode()] > found.pairs / 2:
            say(f"{column.separator!r} separates source features, but is often in targets: are the columns in order?")
    if config.copy:
        say(_copied(*tokenizers))
    return {(size, tokenizer.vocabulary_size) for size, tokenizer in zip(before, tokenizers, strict=True)}


def _take_copied(config, source_tokenizer, target_tokenizer, counts):
    """Add the tokens that copying needs.

    The source's vocabulary gets each source token that the target's has, however rare it is, so that it is copied as
    itself. The target's gets U+FFFD, as which unknown tokens are copied, if the source's tokenizer can name them.
    """
    targets, columns = set(target_tokenizer.vocabulary), source_tokenizer.of_columns
    wanted = {
        "\t" * number + token
        for number, column in enumerate(columns)
        for token in targets - set(column.vocabulary)
        if column.ordered
    }
    counts = {token: count for token, count in counts.items() if token.decode(errors="replace") in wanted}
    if counts:
        source_tokenizer.extend_vocabulary(counts)
    if all(column.counts_tokens for column in columns if column.ordered):
        target_tokenizer.add_unknown_token()
        if config.shared_vocabulary:
            source_tokenizer.add_unknown_token()


def _copied(source_tokenizer, target_tokenizer):
    """How many tokens can be copied, in words, without unknown ones."""
    unknown = target_tokenizer.unknown_ids[0]
    count = np.count_nonzero(~np.isin(copied_ids(source_tokenizer, target_tokenizer), [PADDING, unknown]))
    targets = target_tokenizer.vocabulary_size - END - 1 - (unknown > END)
    if count:
        return f"copying: {count:,} source tokens can be copied; there are {targets:,} target tokens"
    rest = "unknown source tokens will be copied as they are" if unknown > END else "nothing will be copied"
    return f"copying: source and target have no token in common, so {rest} (--no-copy switches it off)"
