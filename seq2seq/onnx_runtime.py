"""Translate with an exported model, without the rest of this library: needs numpy and onnxruntime, or ai-edge-litert.

`seq2seq export RUN DIR --format onnx` puts a copy of this file into DIR, as `translator.py`. So does
`--format litert`, whose graphs support greedy search only.

    translator = Translator("DIR")
    translator.translate(["Go."])                           # greedy search
    translator.translate(["Go."], beam_width=5)
    translator.search(["Go."], beam_width=5, n_best=3)      # with log-likelihoods

or `python DIR/translator.py "Go."`. The graphs use only ids: `encoder.onnx` reads a source, `decoder.onnx` takes one
step. Text and search are implemented here, as in `pipelines/tokenizers.py` and `seq2seq/strategies.py`.

Shapes: B sources, b of them still being decoded, K hypotheses of each in parallel, V vocabulary size.
"""

import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PADDING, UNKNOWN, START, END = range(4)
REPLACEMENT = "\ufffd"  # in text, an unknown token; in a vocabulary, the token that all unknown ones become
STOPPED = ("end", "limit", "repetition")
RUNNING, ENDED, LIMITED, REPEATED = range(-1, 3)
NEG_INF = np.float32("-inf")
PHRASE = 8  # the longest phrase whose repetition is noticed, in tokens
LEAST_REPETITION = 16  # tokens of repetition that are allowed, or half the limit if that is more
WHITESPACE = "\t-\r\x85 \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


class Hypothesis(NamedTuple):
    """One translation of one text."""

    text: str
    score: float  # log-likelihood in nats; nan from greedy search
    ranked_by: float  # the score over the length penalty
    stopped: str  # "end", "limit" or "repetition"
    ids: list[int]  # target ids, with END if there is one


class Translator:
    """An exported model.

    Args:
        folder: the folder made by `seq2seq export --format onnx` or `litert`.
        threads: the number of threads of each operation; 0 for one per core, which helps only large models.

    Raises:
        ValueError: if a file of the folder is missing or damaged.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        folder = Path(folder)
        try:
            saved = json.loads((folder / "vocabulary.json").read_bytes())
            self.source, self.target = Tokenizer(saved["source"]), Tokenizer(saved["target"])
            self.limit, self.longest_source = saved["limit"], saved["longest_source"]
            self.steps = saved.get("steps", math.inf)
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = folder / "vocabulary.json"
            raise ValueError(f"{path}: not the vocabulary of an exported model ({error!r})") from None
        self.one_by_one = "steps" in saved  # LiteRT: all sizes are fixed, for one source and one hypothesis
        files = ("encoder.tflite", "decoder.tflite") if self.one_by_one else ("encoder.onnx", "decoder.onnx")
        self.encoder, self.decoder = (Graph(folder / name, threads) for name in files)

    def translate(self, texts: Sequence[str | bytes], **options: Any) -> list[str]:
        """The best translation of each text; the options are those of `search`."""
        return [hypotheses[0].text for hypotheses in self.search(texts, **options)]

    def search(
        self,
        texts: Sequence[str | bytes],
        beam_width: int | None = None,
        n_best: int = 1,
        length_penalty: float = 0.6,
        min_length: int = 0,
        max_length: int | None = None,
        batch_size: int = 64,
    ) -> list[list[Hypothesis]]:
        """Translate texts.

        Args:
            texts: strings, or UTF-8 bytes, in which invalid bytes become U+FFFD. Characters that the model does not
                know become the unknown token, which a model may copy.
            beam_width: the number of hypotheses of beam search; None for greedy search.
            n_best: how many hypotheses to return of each text, at most the beam's width.
            length_penalty: 0 compares log-likelihoods as they are, 1 nearly those per token.
            min_length, max_length: limits in tokens; max_length includes END and by default depends on the source.
            batch_size: how many texts are translated together.

        Returns:
            For each text its hypotheses, the best first. If a beam finds fewer different ones, empty ones follow.

        Raises:
            ValueError: if the options contradict each other or are out of range.
        """
        if isinstance(texts, str | bytes):
            raise ValueError("texts: expected a list of texts; for a single one, [text]")
        most = 1 if beam_width is None else beam_width
        if not 1 <= n_best <= most:
            raise ValueError(f"n_best={n_best}: expected 1 or more, and at most the beam's width, {most}")
        longest = 100_000 if max_length is None else max_length
        if not max(1, min_length) <= longest <= 100_000:
            raise ValueError(f"max_length={longest}: expected {max(1, min_length)} or more, and at most 100,000")
        if most > (tokens := self.target.size - END) or not 0 <= length_penalty <= 10:
            raise ValueError(f"beam_width={most}, length_penalty={length_penalty}: expected 1 to {tokens}, 0 to 10")
        if self.one_by_one and beam_width:
            asked = f"beam_width={beam_width}" if beam_width > 1 else "scores (beam_width=1)"
            raise ValueError(f"{asked}: a LiteRT model supports greedy search only, without scores")
        batch_size = 1 if self.one_by_one else batch_size
        read = [self.source.look_up(text)[: self.longest_source] for text in texts]
        sources = [[number for number, _ in each] for each in read]
        unknown = [[token for _, token in each if token] for each in read]
        found: list[list[Hypothesis]] = [[]] * len(sources)
        order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
        while order:
            rows = max(1, min(batch_size, 65_536 // max(1, len(sources[order[-1]]))))  # few of long texts, for memory
            batch, order = order[-rows:], order[:-rows]
            lengths = np.array([len(sources[number]) for number in batch])
            limits = 16 + np.ceil(2 * self.limit * lengths).astype(np.int32)
            limits = np.maximum(limits, min_length + 1) if max_length is None else np.full_like(limits, max_length)
            limits = np.minimum(limits, self.steps).astype(np.int32)
            model = self._start([sources[number] for number in batch], limits.max())
            if beam_width is None:
                each = greedy(model, limits, min_length)
            else:
                each = beam(model, limits, min_length, beam_width, n_best, length_penalty)
            for number, hypotheses in zip(batch, each, strict=True):
                found[number] = self._different(unknown[number], hypotheses, n_best)
        return found

    def attention(self, text: str | bytes, ids: list[int]) -> np.ndarray | None:
        """The attention of the decoder while it writes a translation of T ids: weights `[T, S]`; None without
        attention."""
        source = self.source.encode(text)[: self.longest_source] or [PADDING]
        model = self._start([source], max(1, len(ids)))
        weights = np.zeros([len(ids), len(source)], np.float32)
        for t, token in enumerate([START, *ids[:-1]][: len(ids)]):
            model.take(np.array([token]))
            if model.attention is None:
                return None
            weights[t] = model.attention[0, : len(source)]
        return weights

    def _start(self, sources, steps):
        """The model on sources, lists of ids, before its first step."""
        longest = self.longest_source if self.one_by_one else max(1, *map(len, sources))
        ids = np.full([len(sources), longest], PADDING, np.int32)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        return Steps(self.encoder, self.decoder, ids, steps)

    def _different(self, unknown, hypotheses, count):
        """The first hypotheses with different texts, of a source with these unknown tokens."""
        found: dict[str, Hypothesis] = {}
        for score, ranked_by, stopped, ids in hypotheses:
            text = self.target.decode(ids, unknown)
            found.setdefault(text, Hypothesis(text, score, ranked_by, STOPPED[stopped], ids))
        nothing = Hypothesis("", -math.inf, -math.inf, STOPPED[LIMITED], [])
        return (list(found.values()) + [nothing] * count)[:count]


class Graph:
    """A graph of the folder, as a function: it takes tensors by name, ignores those it does not need, and returns
    tensors by name."""

    def __init__(self, path: Path, threads: int) -> None:
        engine = {".onnx": "onnxruntime", ".tflite": "LiteRT"}[path.suffix]
        try:
            self.inputs, self.run = (_onnx if path.suffix == ".onnx" else _litert)(path, threads)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each engine has its own classes, without a common one
            raise ValueError(f"{path}: {engine} cannot load it ({' '.join(str(error).split())})") from None

    def __call__(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.run({name: tensors[name] for name in self.inputs})


def _onnx(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    inputs = [node.name for node in session.get_inputs()]
    return inputs, lambda tensors: dict(zip(names, session.run(names, tensors), strict=True))


def _litert(path, threads):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
    return list(runner.get_input_details()), lambda tensors: runner(**tensors)


class Steps:
    """The model on one batch of sources: the encoder's result, and the decoder's state after the last step."""

    def __init__(self, encoder: Graph, decoder: Graph, source: np.ndarray, steps: int) -> None:
        self.decoder = decoder
        found = encoder({"source": source, "steps": np.array(steps, np.int32)})
        self.encoded = {name: found[name] for name in decoder.inputs if name.startswith("encoded")}
        self.state = {name: found[name] for name in found if name.startswith("state")}

    def take(self, tokens: np.ndarray) -> np.ndarray:
        """Take a step with tokens `[R]`: the scores of the next ones `[R, V]`."""
        found = self.decoder({"token": tokens.astype(np.int32), **self.encoded, **self.state})
        logits, self.attention = found.pop("logits"), found.pop("attention", None)
        self.state = {name.removeprefix("next_"): tensor for name, tensor in found.items()}
        return logits

    def keep(self, sources: np.ndarray | None, rows: np.ndarray) -> None:
        """Keep these sources and these rows of the state. There are K rows for each source, one after another."""
        if sources is not None:
            self.encoded = {name: tensor[sources] for name, tensor in self.encoded.items()}
        self.state = {name: tensor[rows] for name, tensor in self.state.items()}


def greedy(model: Steps, limits: np.ndarray, min_length: int) -> list[list[tuple]]:
    """Take the most likely token at every step. Return for each source a list of one (nan, nan, stopped, ids)."""
    ids: list[list[int]] = [[] for _ in limits]
    why = np.full(len(limits), RUNNING)
    sources, tokens, repetition = np.arange(len(limits)), np.full(len(limits), START), Repetition(len(limits))
    for t in range(limits.max()):
        tokens = END + mask_logits(model.take(tokens), t, min_length).argmax(axis=1)
        repetition.add(tokens)
        running = why[sources] == RUNNING
        for source, token in zip(sources[running], tokens[running].tolist(), strict=True):
            ids[source].append(token)
        why[sources[running]] = why_stopped(tokens, t + 1, limits[sources], repetition.runs, min_length)[running]
        left = np.flatnonzero(why[sources] == RUNNING)
        if not len(left):
            break
        if 2 * len(left) <= len(sources):  # finished rows are removed from the batch
            sources, tokens = sources[left], tokens[left]
            model.keep(left, left)
            repetition.keep(left)
    return [[(math.nan, math.nan, stopped, row)] for stopped, row in zip(why, ids, strict=True)]


def beam(
    model: Steps, limits: np.ndarray, min_length: int, width: int, n_best: int, length_penalty: float
) -> list[list[tuple]]:
    """Monotonic beam search, as `seq2seq.BeamSearch`. It returns for each source its hypotheses, the best first."""
    batch, kept = len(limits), 1 if n_best == 1 else 2 * n_best
    sources, history = np.arange(batch), []
    tokens, scores = np.full([batch, width], START), np.where(np.arange(width) == 0, np.float32(0), NEG_INF)
    scores = np.repeat(scores[None], batch, axis=0)
    last = Finished.none(batch, kept)  # of all sources
    finished, repetition = last, Repetition(batch * width)
    model.keep(None, np.repeat(sources, width))

    def penalty(lengths):
        return ((5 + np.float32(lengths)) / 6) ** np.float32(length_penalty)

    for t in range(limits.max()):
        count, limit = len(sources), limits[sources][:, None]
        logits = model.take(tokens.reshape(-1))
        offsets = scores.reshape(-1) - log_sum_exp(logits)
        totals = mask_logits(logits, t, min_length) + offsets[:, None]
        scores, tokens, parents = fill_slots(totals, count, width)
        rows = (np.arange(count)[:, None] * width + parents).reshape(-1)
        model.keep(None, rows)
        repetition.keep(rows)
        repetition.add(tokens.reshape(-1))
        history.append((sources, tokens, parents))

        stopped = why_stopped(tokens, t + 1, limit, repetition.runs.reshape(count, width, PHRASE), min_length)
        alive = np.where(stopped == RUNNING, scores, NEG_INF)
        ended = np.where(stopped == RUNNING, NEG_INF, scores)
        stopped = np.where((stopped == RUNNING) | (scores == NEG_INF), LIMITED, stopped)
        new = Finished(ended, np.full_like(tokens, t + 1), tokens, parents, stopped)
        finished = finished.best(new, kept, penalty)
        # A log-likelihood can only fall, so none will rank above the highest one now with the penalty of the limit.
        best_possible = alive.max(axis=1) / penalty(limit[:, 0])
        worst_kept = np.where(finished.stopped == ENDED, finished.scores / penalty(finished.lengths), NEG_INF)[:, -1]
        scores = np.where((best_possible <= worst_kept)[:, None], NEG_INF, alive)

        left = np.flatnonzero((scores > NEG_INF).any(axis=1))
        if not len(left) or 2 * len(left) <= count:
            for of_all, of_these in zip(last, finished, strict=True):
                of_all[sources] = of_these
            rows = (left[:, None] * width + np.arange(width)).reshape(-1)
            sources, tokens, scores = sources[left], tokens[left], scores[left]
            finished = Finished(*(part[left] for part in finished))
            model.keep(left, rows)
            repetition.keep(rows)
        if not len(sources):
            break
    ranked_by = last.scores / penalty(last.lengths)
    figures = np.stack([last.scores, ranked_by], axis=2).tolist()
    return [
        [(*figures[row][n], last.stopped[row, n], back_track(last, history, row, n)) for n in range(kept)]
        for row in range(batch)
    ]


def fill_slots(totals: np.ndarray, count: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each of the K slots the likeliest extension that is left among those of the slots up to it.

    From log-likelihoods `[R, V - END]`, return log-likelihoods, tokens and the slots extended, `[b, K]` each.
    """
    most = min(totals.shape[1], width)
    best = totals.argmax(axis=1)[:, None] if most == 1 else np.argpartition(-totals, most - 1, axis=1)[:, :most]
    best.sort(axis=1)  # of equal ones the first comes first, though any may be missing
    offered = np.take_along_axis(totals, best, axis=1)
    order = np.argsort(-offered, axis=1, kind="stable")
    offered, best = (np.take_along_axis(x, order, axis=1).reshape(count, -1) for x in (offered, best))
    scores, chosen = np.empty([count, width], np.float32), np.empty([count, width], np.int64)
    every = np.arange(count)
    for slot in range(width):
        chosen[:, slot] = at = offered[:, : (slot + 1) * most].argmax(axis=1)
        scores[:, slot] = offered[every, at]
        offered[every, at] = NEG_INF
    return scores, END + np.take_along_axis(best, chosen, axis=1), chosen // most


class Finished(NamedTuple):
    """Finished hypotheses `[B, N]`; a score of -inf marks an empty slot."""

    scores: np.ndarray  # log-likelihoods
    lengths: np.ndarray  # END included
    tokens: np.ndarray  # the last ones
    parents: np.ndarray  # the slots that they extended, one token earlier
    stopped: np.ndarray

    @classmethod
    def none(cls, rows: int, count: int) -> "Finished":
        zeros = np.zeros([rows, count], np.int64)
        return cls(np.full([rows, count], NEG_INF), zeros, zeros.copy(), zeros.copy(), zeros + LIMITED)

    def best(self, other: "Finished", count: int, penalty: Callable[[np.ndarray], np.ndarray]) -> "Finished":
        """The best of both, first those that ended. In a tie, the earlier comes first."""
        every = Finished(*(np.concatenate(parts, axis=1) for parts in zip(self, other, strict=True)))
        handicap = np.where(every.stopped == ENDED, 0.0, 1e6)
        order = np.argsort(handicap - (every.scores / penalty(every.lengths)).astype(np.float64), axis=1, kind="stable")
        return Finished(*(np.take_along_axis(part, order[:, :count], axis=1) for part in every))


def back_track(finished: Finished, history: list[tuple], row: int, slot: int) -> list[int]:
    """Read a finished hypothesis from its last token to its first; return its ids."""
    length = finished.lengths[row, slot]
    if finished.scores[row, slot] == NEG_INF or not length:
        return []
    ids, parent = [int(finished.tokens[row, slot])], finished.parents[row, slot]
    for sources, tokens, parents in reversed(history[: length - 1]):
        at = np.searchsorted(sources, row)
        ids.append(int(tokens[at, parent]))
        parent = parents[at, parent]
    return ids[::-1]


def mask_logits(logits: np.ndarray, t: int, min_length: int) -> np.ndarray:
    """Logits `[R, V - END]` of the tokens that may come: never PADDING, UNKNOWN or START, and END if long enough."""
    logits = logits[:, END:].copy()
    if t < min_length:
        logits[:, 0] = NEG_INF
    return logits


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    most = logits.max(axis=1)
    return most + np.log(np.exp(logits - most[:, None]).sum(axis=1))


class Repetition:
    """How many tokens in a row have equalled the one p places before them: `runs[:, p - 1]` of each hypothesis."""

    def __init__(self, rows: int) -> None:
        self.recent, self.runs = np.full([rows, PHRASE], PADDING), np.zeros([rows, PHRASE], np.int64)

    def add(self, tokens: np.ndarray) -> None:
        self.runs = np.where(self.recent == tokens[:, None], self.runs + 1, 0)
        self.recent = np.concatenate([tokens[:, None], self.recent[:, :-1]], axis=1)

    def keep(self, rows: np.ndarray) -> None:
        self.recent, self.runs = self.recent[rows], self.runs[rows]


def why_stopped(tokens: np.ndarray, length: int, limits: np.ndarray, runs: np.ndarray, min_length: int) -> np.ndarray:
    """Why hypotheses of this length stop after their newest tokens, as indices in STOPPED; RUNNING if they do not."""
    repeated = (runs.max(axis=-1) >= np.maximum(limits // 2, LEAST_REPETITION)) & (length >= min_length)
    cut = np.where(repeated, REPEATED, np.where(length >= limits, LIMITED, RUNNING))
    return np.where(tokens == END, ENDED, cut)


class Tokenizer:
    """Text to ids and back, as `vocabulary.json` describes it."""

    def __init__(self, saved: dict) -> None:
        self.kind, self.normal_form, self.fold = saved["kind"], saved.get("normal_form"), saved.get("fold")
        self.parts = [(Tokenizer(part), ids) for part, ids in saved.get("columns", ())]
        self.names = saved.get("names", ["source"])
        self.separator = saved.get("separator", "")
        self.tokens = ["", REPLACEMENT, "", "", *saved.get("tokens", ())]
        self.ids = {token: number for number, token in enumerate(self.tokens) if number > END}
        self.scores = dict(zip(self.tokens[END + 1 :], saved.get("scores", ()), strict=False))
        self.longest = max(map(len, self.tokens))
        self.size = END + 257 if self.kind == "bytes" else len(self.tokens)

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text."""
        return [number for number, _ in self.look_up(text)]

    def look_up(self, text: str | bytes) -> list[tuple[int, str | None]]:
        """The ids of a text, each with its token if that is unknown, else None. Of several columns, those of features
        (`separator`) always have None."""
        encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        if self.kind == "columns":
            columns = zip(self.parts, encoded.split(b"\t"), strict=False)  # a missing column is empty
            each = ((part.kind, ids, *pair) for (part, ids), column in columns for pair in part.look_up(column))
            return [(ids[own], None if kind == "separator" else token) for kind, ids, own, token in each]
        if self.kind == "bytes":
            normal = self.normalize(encoded).encode() if self.normal_form or self.fold else encoded
            return [(END + 1 + byte, None) for byte in normal]
        split: Any = getattr(self, f"_split_{self.kind}")
        unknown, tokens = self.ids.get(REPLACEMENT, UNKNOWN), split(self.normalize(encoded))
        return [(number := self.ids.get(token, unknown), token if number == unknown else None) for token in tokens]

    def normalize(self, encoded: bytes) -> str:
        """Convert a text to the normal form, with its case folded before that if the model requires it."""
        text = encoded.decode("utf-8", "replace")
        if self.fold:
            text = unicodedata.normalize("NFC", "".join(self.fold.get(character, character) for character in text))
        return unicodedata.normalize(self.normal_form, text) if self.normal_form else text

    def decode(self, ids: Sequence[int], unknown: Sequence[str] | None = None) -> str:
        """The text of ids, up to END. With `unknown`, the unknown tokens of the source, the n-th U+FFFD that is a token
        is replaced by the n-th of them; if there are more U+FFFD, the rest are left out."""
        ids = ids[: ids.index(END)] if END in ids else ids
        if self.kind == "bytes":
            each = (bytes([number - END - 1]) if number > END else self.tokens[number].encode() for number in ids)
            return b"".join(each).decode("utf-8", "replace")
        copied, replaced = iter(unknown or ()), self.ids.get(REPLACEMENT) if unknown is not None else None
        tokens = [next(copied, "") if number == replaced else self.tokens[number] for number in ids]
        tokens = list(filter(None, tokens))
        if self.kind == "letters":
            return unicodedata.normalize(self.normal_form or "NFC", "".join(tokens))
        if self.kind == "subwords":
            return re.sub("▁+", " ", "".join(tokens)).strip("\t\n\v\f\r ")
        return {"whitespace": " ", "separator": self.separator}.get(self.kind, "").join(tokens)

    def _split_characters(self, text):
        return text

    def _split_letters(self, text):
        return unicodedata.normalize("NFD", text)

    def _split_whitespace(self, text):
        return filter(None, re.split(f"[{WHITESPACE}]", text))

    def _split_separator(self, text):
        return filter(None, text.split(self.normalize(self.separator.encode())))

    def _split_subwords(self, text):
        """The most likely pieces by a unigram model (Kudo 2018), as SentencePiece finds them: the Viterbi algorithm."""
        words = re.split(f"[{WHITESPACE}▁]+", text)
        text = "".join(f"▁{word}" for word in words if word)
        unknown = np.float32(min(self.scores.values())) - np.float32(10)
        # Of each end: the best score, and where the last piece begins.
        best: list[Any] = [(np.float32(0), 0)] + [None] * len(text)
        for start in range(len(text)):
            so_far = best[start][0]
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                score = self.scores.get(text[start:end])
                if score is None and end == start + 1:
                    score = unknown
                if score is not None and (best[end] is None or so_far + np.float32(score) > best[end][0]):
                    best[end] = so_far + np.float32(score), start
        pieces, end = [], len(text)
        while end:
            start = best[end][1]
            pieces.append(text[start:end])
            end = start
        known = None
        for piece in reversed(pieces):
            before, known = known, piece in self.ids
            if known or before is not False:  # unknown pieces in a row are one
                yield piece if known else REPLACEMENT


def main() -> None:
    """Translate the arguments, or standard input line by line, with the model in the folder of this file."""
    texts: list = sys.argv[1:] or [line.rstrip(b"\r\n") for line in sys.stdin.buffer]
    for text in Translator(Path(__file__).parent).translate(texts):
        print(" ".join(text.splitlines()))


if __name__ == "__main__":
    main()
