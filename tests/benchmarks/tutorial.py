"""The Keras tutorial's procedure and `seq2seq train spa-eng --preset tutorial`, side by side on the same pairs.

    python tests/benchmarks/tutorial.py                    # 40 epochs of each, about ten minutes on two cores
    python tests/benchmarks/tutorial.py --epochs 2 --sentences 5

Both train on the first 8,000 pairs of `spa-eng` and are measured on the next 2,000. Loss and accuracy are teacher-
forced and over real characters (the end mark included, padding not), computed for both by the same NumPy code. The
tutorial decodes one sentence at a time with one `predict` call per character; that is timed on the first
`--sentences` of the 2,000. Its translations of all 2,000 come from the same two inference models with all rows in one
`predict` call per character: the same arithmetic, in minutes instead of hours.

Each runs in a process of its own: the tutorial with TensorFlow's threads as they come, the library with those that its
command line sets. `--threads` gives the tutorial the library's.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import sacrebleu
import tensorflow as tf

from pipelines import CharTokenizer, batch_pairs, read_pairs
from seq2seq import Seq2Seq
from seq2seq.startup import start_tensorflow

UNITS, BATCH = 256, 70


class Tutorial:
    """The tutorial's way, written anew: dense arrays padded with spaces, one functional model, two more to infer."""

    def __init__(self, training, held_out):
        pairs = [(source, f"\t{target}\n") for source, target in training + held_out]
        self.source_characters = sorted({c for source, _ in pairs for c in source} | {" "})
        self.target_characters = sorted({c for _, target in pairs for c in target} | {" "})
        self.source_length = max(len(source) for source, _ in pairs)
        self.target_length = max(len(target) for _, target in pairs)

        encoder_inputs = keras.Input((None, len(self.source_characters)))
        _, *encoder_states = keras.layers.LSTM(UNITS, return_state=True)(encoder_inputs)
        decoder_inputs = keras.Input((None, len(self.target_characters)))
        lstm = keras.layers.LSTM(UNITS, return_sequences=True, return_state=True)
        dense = keras.layers.Dense(len(self.target_characters), activation="softmax")
        outputs, *_ = lstm(decoder_inputs, initial_state=encoder_states)
        self.model = keras.Model([encoder_inputs, decoder_inputs], dense(outputs))
        self.model.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])
        self.encoder = keras.Model(encoder_inputs, encoder_states)
        state_inputs = [keras.Input((UNITS,)), keras.Input((UNITS,))]
        outputs, *states = lstm(decoder_inputs, initial_state=state_inputs)
        self.decoder = keras.Model([decoder_inputs, *state_inputs], [dense(outputs), *states])

    def arrays(self, pairs):
        sources = self.one_hot([source for source, _ in pairs], self.source_characters, self.source_length)
        targets = self.one_hot([f"\t{target}\n" for _, target in pairs], self.target_characters, self.target_length)
        labels = np.zeros_like(targets)
        labels[:, :-1] = targets[:, 1:]
        labels[:, -1, self.target_characters.index(" ")] = 1.0
        return [sources, targets], labels

    @staticmethod
    def one_hot(texts, characters, length):
        index = {character: number for number, character in enumerate(characters)}
        array = np.zeros((len(texts), length, len(characters)), "float32")
        for row, text in enumerate(texts):
            for column, character in enumerate(text.ljust(length)):
                array[row, column, index[character]] = 1.0
        return array

    def fit(self, pairs, epochs):
        inputs, labels = self.arrays(pairs)
        clock = EpochTimes()
        self.model.fit(inputs, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[clock])
        return clock.seconds

    def measure(self, pairs):
        inputs, labels = self.arrays(pairs)
        probabilities = self.model.predict(inputs, batch_size=256, verbose=0)
        real = np.arange(self.target_length) < np.array([[len(target) + 1] for _, target in pairs])
        return loss_and_accuracy(np.log(probabilities + 1e-12), labels, real)

    def translate(self, sources, steps=None):
        """Decode all rows together, one character of each per `predict`; the tutorial passes a single row.

        With `steps`, decode that many characters of each row, even after its end.
        """
        states = self.encoder.predict(self.one_hot(sources, self.source_characters, self.source_length), verbose=0)
        texts, finished = [""] * len(sources), [False] * len(sources)
        token = self.one_hot(["\t"] * len(sources), self.target_characters, 1)
        for step in itertools.count():
            if step == steps or (steps is None and all(finished)):
                break
            probabilities, *states = self.decoder.predict([token, *states], verbose=0)
            best = probabilities[:, -1].argmax(-1)
            for row, number in enumerate(best):
                finished[row] = finished[row] or self.target_characters[number] == "\n" or len(texts[row]) > 100
                texts[row] += "" if finished[row] else self.target_characters[number]
            token = np.eye(len(self.target_characters), dtype="float32")[best][:, None]
        return texts


class Library:
    """The same settings here: what `seq2seq train spa-eng --preset tutorial` does."""

    def __init__(self, training, held_out):
        self.source, self.target = CharTokenizer(), CharTokenizer()
        self.source.adapt([source for source, _ in training])
        self.target.adapt([target for _, target in training])
        self.model = Seq2Seq(self.source, self.target, units=UNITS, attention=None)
        self.model.compile(optimizer="rmsprop")

    def batches(self, pairs, **options):
        dataset = tf.data.Dataset.from_tensor_slices(([source for source, _ in pairs], [target for _, target in pairs]))
        batches = batch_pairs(dataset, self.source, self.target, **options)
        return batches.apply(tf.data.experimental.assert_cardinality(-(-len(pairs) // options["batch_size"])))

    def fit(self, pairs, epochs):
        clock = EpochTimes()
        batches = self.batches(pairs, batch_size=BATCH, seed=0)
        self.model.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=[clock])
        return clock.seconds

    def measure(self, pairs):
        nats, right, count = 0.0, 0.0, 0
        for source, target in self.batches(pairs, batch_size=256, shuffle=False):
            logits = self.model((source, target[:, :-1])).numpy()
            # A character that training never saw is [UNK] here, and counts like any other that came out wrong.
            labels = target[:, 1:].numpy()
            real = labels.sum(-1) == 1
            loss, accuracy = loss_and_accuracy(tf.nn.log_softmax(logits).numpy(), labels, real)
            nats, right, count = nats + loss * real.sum(), right + accuracy * real.sum(), count + real.sum()
        return nats / count, right / count

    def translate(self, sources):
        return [text.decode() for text in self.model.translate(sources).numpy()]


class EpochTimes(keras.callbacks.Callback):
    """Seconds of each epoch; the first, which compiles, is left out of the median below."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.started)


def loss_and_accuracy(log_probabilities, labels, real):
    """Nats a character and share of right ones, over the real characters `[B, T]`."""
    nats = -(log_probabilities * labels).sum(-1)[real]
    right = (log_probabilities.argmax(-1) == labels.argmax(-1))[real]
    return nats.mean(), right.mean()


def run(kind, pairs, epochs, timed, threads):
    """Train and measure one `kind` of the two, in a process of its own."""
    if threads:
        start_tensorflow()
    keras.utils.set_random_seed(0)
    training, held_out = pairs[:8000], pairs[8000:]
    it = kind(training, held_out)
    seconds = it.fit(training, epochs)
    sources, references = [source for source, _ in held_out], [target for _, target in held_out]
    translations = it.translate(sources)  # also warms up what is timed next
    started = time.perf_counter()
    for batch in timed:
        it.translate([sources[number] for number in batch])
    rate = sum(map(len, timed)) / (time.perf_counter() - started)
    train_loss, train_accuracy = it.measure(training)
    held_loss, held_accuracy = it.measure(held_out)
    return {
        "seconds an epoch": np.median(seconds[1:] or seconds),
        "training loss": train_loss,
        "training accuracy": train_accuracy,
        "held-out loss": held_loss,
        "held-out accuracy": held_accuracy,
        "exact match": np.mean([a == b for a, b in zip(translations, references, strict=True)]),
        "chrF": sacrebleu.corpus_chrf(translations, [references]).score,
        "sentences a second": rate,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--sentences", type=int, default=20, help="how many the tutorial's loop is timed on")
    parser.add_argument("--threads", action="store_true", help="set threads for the tutorial as for the library")
    options = parser.parse_args()
    if not 1 <= options.sentences <= 2000:
        parser.error("--sentences: expected 1 to 2000")
    pairs = [(s.decode(), t.decode()) for s, t in read_pairs("spa-eng", limit=10_000).as_numpy_iterator()]
    step = 2000 // options.sentences
    one_by_one = [[number] for number in range(0, step * options.sentences, step)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as process:
        library = process.apply(run, (Library, pairs, options.epochs, [range(2000)] * 3, True))
        tutorial = process.apply(run, (Tutorial, pairs, options.epochs, one_by_one, options.threads))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}")
    print(f"{options.epochs} epochs, 8,000 pairs; held out: 2,000; {time.strftime('%Y-%m-%d')}\n")
    print("| | tutorial | this library | ratio |\n|---|---|---|---|")
    for name, theirs in tutorial.items():
        ours = library[name]
        ratio = theirs / ours if name == "seconds an epoch" else ours / theirs if theirs else float("nan")
        print(f"| {name} | {theirs:,.3f} | {ours:,.3f} | {ratio:,.2f} |")


if __name__ == "__main__":
    main()
