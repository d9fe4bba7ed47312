"""The pipeline against the plain one of most tutorials: `map` on each pair, then `bucket_by_sequence_length`.

    python tests/benchmarks/pipeline.py                 # speed and padding on spa-eng, about two minutes
    python tests/benchmarks/pipeline.py --memory        # and memory up to 20 million pairs, some minutes more

Both shuffle `spa-eng`, as many pairs at a time, and make batches of 128. The plain one gets its pairs from memory
and does no cleaning; this library's reads the file, --copies times over, and does all of it. Each figure is the best
of three passes, the two kinds taking turns.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from speed import peak_memory

from pipelines import CharTokenizer, batch_pairs, read_pairs, survey
from seq2seq import Seq2Seq

BATCH, BUFFER = 128, 1 << 17
CLEANING = {"on_bad_line": "skip", "max_length": 1000, "max_ratio": 30, "drop_duplicates": True}


def plain_batches(pairs, source, target, encoding):
    def encode(*pair):
        ids = source.tokenize(pair[0][None]), target.tokenize(pair[1][None], start_end=True)
        if encoding == "one_hot":
            ids = source.one_hot(ids[0]), target.one_hot(ids[1])
        return ids[0][0], ids[1][0]

    boundaries = [10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 80, 100]
    return (
        pairs.shuffle(BUFFER)
        .map(encode, num_parallel_calls=tf.data.AUTOTUNE)
        .bucket_by_sequence_length(
            lambda source, target: tf.maximum(tf.shape(source)[0], tf.shape(target)[0]),
            boundaries,
            [BATCH] * (len(boundaries) + 1),
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def seconds(batches):
    started = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - started


def padding(batches):
    """Share of positions in batches of ids, both sides together, that hold no token."""
    real = size = 0
    for batch in batches:
        real += sum(int(tf.math.count_nonzero(ids)) for ids in batch)
        size += sum(int(tf.size(ids)) for ids in batch)
    return 1 - real / size


def compare(copies):
    one = read_pairs("spa-eng").cache()
    source, target = CharTokenizer(), CharTokenizer()
    found = survey(one, source, target)
    source.take_vocabulary(found.tokens[0])
    target.take_vocabulary(found.tokens[1])
    clean = read_pairs(["spa-eng"] * copies, **CLEANING)
    figures = {}
    print("| batches of 128 | plain, pairs/s | this library, pairs/s | ratio |\n|---|---|---|---|")
    for encoding in ("one_hot", "ids"):
        plain = plain_batches(one, source, target, encoding)
        ours = batch_pairs(clean, source, target, BATCH, encoding=encoding, window=BUFFER)
        times = [(seconds(plain), seconds(ours)) for _ in range(3)]
        rates = [found.pairs / min(plain for plain, _ in times), copies * found.pairs / min(ours for _, ours in times)]
        figures[encoding] = rates
        print(f"| {encoding} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[1] / rates[0]:.1f} |", flush=True)
    figures["padding"] = [
        padding(plain_batches(one, source, target, "ids")),
        padding(batch_pairs(one, source, target, BATCH, encoding="ids")),
    ]
    print("| padding | {:.1%} | {:.1%} | |\n".format(*figures["padding"]))
    started = time.perf_counter()
    next(iter(clean.batch(BUFFER)))
    full = time.perf_counter() - started
    started = time.perf_counter()
    next(iter(batch_pairs(clean, source, target, BATCH, window=BUFFER)))
    figures["first batch"] = time.perf_counter() - started - full
    print(f"window full after {full:.2f} s, first batch {figures['first batch']:.2f} s later")
    figures["waiting"] = waiting(
        batch_pairs(clean, source, target, 64, seed=0), Seq2Seq(source, target, units=256, attention="general")
    )
    print(f"share of training (256 units, batches of 64) spent waiting for input: {figures['waiting']:.2%}")
    return figures


def waiting(batches, model):
    model.compile()
    step = tf.function(model.train_step, reduce_retracing=True)
    batches = iter(batches)
    for _ in range(5):
        step(next(batches))
    waited, started = 0.0, time.perf_counter()
    for _ in range(100):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)["loss"].numpy()
    return waited / (time.perf_counter() - started)


def memory():
    """Peak memory of a process that makes all batches of corpora of growing size."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for pairs in (200_000, 2_000_000, 20_000_000):
            path = Path(folder, f"{pairs}.tsv")
            with path.open("w") as file:
                file.writelines(f"The number {n} is large.\tEl número {n} es grande.\n" for n in range(pairs))
            done = subprocess.run([sys.executable, __file__, "--peak", path], capture_output=True, check=True)
            peaks[pairs], taken = json.loads(done.stdout)
            print(f"{pairs:>12,} pairs: peak memory {peaks[pairs]:,.0f} MB, {pairs / taken:,.0f} pairs/s", flush=True)
            path.unlink()
    return peaks


def peak(path):
    characters = sorted(set("The number is large.El número es grande.0123456789"))
    tokenizer = CharTokenizer(characters)
    taken = seconds(batch_pairs(read_pairs(path, **CLEANING), tokenizer, tokenizer, BATCH, encoding="ids"))
    print(json.dumps([peak_memory(), taken]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}")
    print(time.strftime("%Y-%m-%d\n"))
    compare(options.copies)
    if options.memory:
        memory()


if __name__ == "__main__":
    main()
