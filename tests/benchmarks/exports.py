"""What an exported model costs and gives: ONNX, a SavedModel and `translate`, on one machine in one run.

    pip install -e '.[evaluation,litert,onnx,test]'
    python tests/benchmarks/exports.py RUN pairs.tsv

It exports RUN as a SavedModel, as ONNX, and for LiteRT (greedy search only, sources of up to 128 tokens). Then it
translates the sources of the first 500 lines of pairs.tsv (source columns TAB reference), which the model should not
have seen, with each and with the model. For each it prints:

- how many translations are the model's, by greedy search and by beam search, and their chrF and exact matches;
- the size of the files;
- sentences per second, by the median of three calls with all sources;
- milliseconds for one sentence, the median of 50 calls;
- what a process that translates one sentence takes from start to end: seconds, the median of five, and the most memory.

The last lines have the ratios of ONNX and LiteRT to the model. The model and the SavedModel use the threads that the
command line gives them, the others one.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from seq2seq.records import find_run
from seq2seq.startup import start_tensorflow

SAVED_MODEL = """
import sys, tensorflow as tf, tensorflow_text
saved = tf.saved_model.load(sys.argv[1])
print(saved.greedy(tf.constant(sys.argv[2:]))["texts"].numpy()[0].decode())
"""
COLUMNS = [
    *(f"{what} {search}" for what in ("same", "chrF", "exact") for search in ("greedy", "beam 5")),
    "kB",
    *(f"{what} {search}" for what in ("sentences/s", "ms") for search in ("greedy", "beam 5")),
    "cold s",
    "cold MB",
]
# A process starts with the memory of the one that made it, so a small one makes those that are measured.
MEASURE = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pairs", type=Path)
    given = parser.parse_args()
    pairs = [line.rpartition("\t")[::2] for line in given.pairs.read_text().rstrip("\n").split("\n")[:500]]
    start_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        compare(find_run(given.run), *map(list, zip(*pairs, strict=True)), Path(folder))


def compare(run: Path, texts: list[str], references: list[str], folder: Path) -> None:
    """Print a row for each way to translate."""
    import numpy as np
    import tensorflow as tf

    from seq2seq import BeamSearch, load_run
    from seq2seq.onnx_runtime import Translator
    from seq2seq.scores import corpus_scores

    model = load_run(run)
    model.export(folder / "savedmodel")
    for name in ("onnx", "litert"):
        model.export(folder / name, format=name)
    saved = tf.saved_model.load(str(folder / "savedmodel"))
    ways = {
        "model": (
            lambda texts: decoded(model.translate(texts)),
            lambda texts: decoded(model.translate(texts, BeamSearch())),
        ),
        "savedmodel": (
            lambda texts: decoded(saved.greedy(tf.constant(texts))["texts"]),
            lambda texts: decoded(saved.beam(tf.constant(texts))["texts"][:, 0]),
        ),
        "onnx": of_onnx(Translator(folder / "onnx")),
        "litert": (Translator(folder / "litert").translate, None),
    }
    print(f"{run}: {len(texts)} texts, {len(os.sched_getaffinity(0))} cores")
    print("way | " + " | ".join(COLUMNS))
    rows, right, one = {}, [], texts[len(texts) // 2]
    for name, each in ways.items():
        found = [translate(texts) if translate else [] for translate in each]
        right = found if name == "model" else right
        same = [sum(map(str.__eq__, *both)) if both[0] else np.nan for both in zip(found, right, strict=True)]
        scores = [corpus_scores(texts, [[text] for text in references]) if texts else {} for texts in found]
        quality = [score.get(measure, np.nan) for measure in ("chrF", "exact match") for score in scores]
        whole = [len(texts) / seconds(translate, texts, 3) for translate in each]
        single = [1000 * seconds(translate, [one], 50) for translate in each]
        path = run if name == "model" else folder / name
        size = sum(file.stat().st_size for file in files(path / "model.keras" if name == "model" else path))
        rows[name] = [*same, *quality, size / 1000, *whole, *single, *cold_start(name, path, one)]
        show(name, rows[name])
    for name in ("onnx", "litert"):
        show(f"{name} / model", np.divide(rows[name], rows["model"]))


def show(name, figures):
    print(name, *(f"{figure:.4g}" for figure in figures), sep=" | ", flush=True)


def decoded(tensor):
    return [text.decode() for text in tensor.numpy()]


def of_onnx(translator):
    return translator.translate, lambda texts: translator.translate(texts, beam_width=5)


def files(path):
    """The files of which an export consists; without the copy of the runtime and the probe."""
    every = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return [file for file in every if file.name not in ("translator.py", "probe.json")]


def seconds(translate, texts, times):
    """The median time of a call, after one that is not counted; nan if there is no such search."""
    if not translate:
        return math.nan
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        translate(texts)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def cold_start(name, path, text):
    """Seconds and megabytes of a process that translates one text."""
    if name == "savedmodel":
        command = [sys.executable, "-c", SAVED_MODEL, path, text]
    else:
        command = [sys.executable, "-m", "seq2seq", "translate", path, text]
    measure = [sys.executable, "-I", "-c", MEASURE, *command]
    done = [subprocess.run(measure, capture_output=True, text=True, check=True) for _ in range(6)]
    taken, memory = zip(*(map(float, each.stdout.split()) for each in done[1:]), strict=True)
    return statistics.median(taken), max(memory)


if __name__ == "__main__":
    main()
