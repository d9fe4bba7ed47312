"""What an exported model costs and gives: ONNX, a SavedModel and `translate`, on one machine in one run.

    pip install -e '.[onnx,test]'
    python tests/benchmarks/exports.py RUN texts.txt

Exports RUN as a SavedModel, as ONNX, and as ONNX with weights of 8 bits. Then it translates the first 500 lines of
texts.txt, which the model should not have seen, with each of them and with the model. It prints how many translations
are the model's, by greedy search and by beam search; the size of the files; seconds for all texts, the median of three
calls; milliseconds for one text, the median of 50; and what a process that translates one text takes from start to end:
seconds, the median of five, and the most memory.

The model and the SavedModel use the threads that the command line gives them, the ONNX runtime one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from seq2seq.startup import start_tensorflow

SAVED_MODEL = """
import sys, tensorflow as tf, tensorflow_text
saved = tf.saved_model.load(sys.argv[1])
print(saved.greedy(tf.constant(sys.argv[2:]))["texts"].numpy()[0].decode())
"""
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
    parser.add_argument("texts", type=Path)
    given = parser.parse_args()
    texts = given.texts.read_text().splitlines()[:500]
    start_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        compare(given.run, texts, Path(folder))


def compare(run: Path, texts: list[str], folder: Path) -> None:
    """Prints a row for each way to translate."""
    import tensorflow as tf

    from seq2seq import BeamSearch, load_run
    from seq2seq.onnx_runtime import Translator

    model = load_run(run)
    model.export(folder / "savedmodel")
    model.export(folder / "onnx", format="onnx")
    model.export(folder / "int8", format="onnx", int8=True)
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
        "int8": of_onnx(Translator(folder / "int8")),
    }
    right = [translate(texts) for translate in ways["model"]]
    print(f"{run}: {len(texts)} texts, {len(os.sched_getaffinity(0))} cores")
    print(
        "way | same greedy | same beam 5 | kB | s greedy | s beam 5 | ms one greedy | ms one beam 5 | cold s | cold MB"
    )
    for name, each in ways.items():
        same = [sum(map(str.__eq__, translate(texts), known)) for translate, known in zip(each, right, strict=True)]
        one = texts[len(texts) // 2]
        whole = [f"{seconds(translate, texts, 3):.2f}" for translate in each]
        single = [f"{1000 * seconds(translate, [one], 50):.1f}" for translate in each]
        size = sum(file.stat().st_size for file in files(run / "model.keras" if name == "model" else folder / name))
        cold, memory = cold_start(name, run if name == "model" else folder / name, one)
        row = [name, *same, f"{size / 1000:.0f}", *whole, *single, f"{cold:.2f}", f"{memory:.0f}"]
        print(" | ".join(map(str, row)), flush=True)


def decoded(tensor):
    return [text.decode() for text in tensor.numpy()]


def of_onnx(translator):
    return translator.translate, lambda texts: translator.translate(texts, beam_width=5)


def files(path):
    """The files of which an export consists; without the copy of the runtime and the probe."""
    every = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return [file for file in every if file.name not in ("translator.py", "probe.json")]


def seconds(translate, texts, times):
    """The median time of a call, after one that is not counted."""
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
