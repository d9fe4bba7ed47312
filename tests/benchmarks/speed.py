"""How fast this library is: beside plain PyTorch and the Keras tutorial's procedure, on one machine in one run.

    pip install -e '.[test,bench]'
    python tests/benchmarks/speed.py figures                   # everything, 20 to 30 minutes on two cores
    python tests/benchmarks/speed.py figures --only training --rounds 1
    python tests/benchmarks/speed.py figures --only decoding --cases "greedy, 256 short" "beam 5, 256 short"

All run on a GPU if there is one. There, training has cases of 24,000 random pairs of `spa-eng`, which are longer, and
2,048 sentences are decoded in one batch. Each case of a subject is measured in a process of its own, with the threads
that its users get, and they take turns: as many `--rounds` of each, of which the median counts; start-up and latency
are minima of one process. All tables print ratios; FOLDER receives speed.json and speed.png.

Training: the first 8,000 pairs of `spa-eng`, one LSTM layer a side, dot attention after the recurrence, an embedding of
128, Adam, gradients clipped, batches sorted by length; counted are real target characters, END included. Useful GFLOP
are those of the products that real tokens need, forward and backward, without input projections and softmax; they are
held against the products of two large matrices. The tutorial has no attention and no embedding.

Decoding: models as they are before training, each sentence decoded for as many steps, so that nothing depends on what
was learned. The library's sentences go in and come out as strings, PyTorch's as ids. In the cases "compiled", the
library decodes with `compiles_decoding`, as it does by default on a GPU; PyTorch is eager in all cases.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipelines import open_corpora

PAIRS, RANDOM_PAIRS, EMBEDDING = 8000, 24_000, 128
TRAININGS = {  # name: what is trained
    "batch 64": {"batch": 64},
    "batch 64, no attention": {"batch": 64, "attention": False},
    "batch 128": {"batch": 128},
    "batch 256": {"batch": 256},
    "batch 128, 512 units": {"batch": 128, "units": 512},
}
ON_A_GPU = {
    "random pairs, batch 64": {"batch": 64, "random": True},
    "random pairs, batch 256, 2 x 1024 units": {"batch": 256, "units": 1024, "layers": 2, "random": True},
}
SHORT, LONG = 30, 120  # characters a sentence
DECODINGS = {  # name: what is decoded
    "greedy, 256 short": {"rows": 256, "length": SHORT},
    "greedy, 256 long": {"rows": 256, "length": LONG},
    "greedy, 2048 short": {"rows": 2048, "length": SHORT},
    "greedy, 1 short": {"rows": 1, "length": SHORT},
    "beam 5, 256 short": {"rows": 256, "length": SHORT, "width": 5},
    "beam 5, 1 short": {"rows": 1, "length": SHORT, "width": 5},
    "greedy, 1 short, compiled": {"rows": 1, "length": SHORT, "compiled": True},
    "beam 5, 1 short, compiled": {"rows": 1, "length": SHORT, "width": 5, "compiled": True},
}
SIZES = {"units": 256, "attention": True, "layers": 1}


# To find it by its name would import TensorFlow, beside which PyTorch 2.14 crashes.
SPA_ENG = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "datasets", "spa-eng.zip", "spa-eng", "spa.txt")


@functools.cache
def pairs(at_random=False):
    every = open_corpora(str(SPA_ENG)).pairs()
    chosen = Random(0).sample(list(every), RANDOM_PAIRS) if at_random else itertools.islice(every, PAIRS)
    return [(source.decode(), target.decode()) for source, target in chosen]


def characters(at_random=False):
    return sum(len(target) + 1 for _, target in pairs(at_random))


def best_of(run, seconds=3.0):
    """The least time that a call took, of as many as fit in so many seconds, after one that may compile."""
    run()
    times = []
    while sum(times) < seconds or len(times) < 3:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


# The subjects: each makes figures of one task in a process of its own.


def library_model(units, attention, layers, random=False):
    import keras

    from pipelines import CharTokenizer
    from seq2seq import Seq2Seq

    keras.utils.set_random_seed(0)  # the same weights each time, and so the same lengths of what they translate
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt([source for source, _ in pairs(random)])
    target.adapt([target for _, target in pairs(random)])
    options = {"units": units, "layers": layers, "embedding": EMBEDDING, "attention": "dot" if attention else None}
    return Seq2Seq(source, target, **options)


def library_training(batch, random=False, **sizes):
    from seq2seq.startup import start_tensorflow

    start_tensorflow(trains=True)
    import keras
    import tensorflow as tf

    from pipelines import batch_pairs

    model = library_model(**sizes, random=random)
    model.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0))
    texts = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*pairs(random), strict=True))))
    batches = batch_pairs(texts, model.source_tokenizer, model.target_tokenizer, batch, encoding="ids", seed=0)
    batches = batches.apply(tf.data.experimental.assert_cardinality(-(-len(pairs(random)) // batch)))
    return characters(random) / best_of(lambda: model.fit(batches, verbose=0, shuffle=False), seconds=8)


def library_decoding(rows, length, width=1, compiled=False):
    from seq2seq.startup import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    from seq2seq import BeamSearch, Greedy

    model = library_model(**SIZES)
    model.compiles_decoding = model.compiles_decoding or compiled
    texts = sentences(rows, length)
    strategy = BeamSearch(width) if width > 1 else Greedy()
    options = {"min_length": length, "max_length": length}
    options["batch_size"] = rows if tf.config.list_logical_devices("GPU") else 256
    return rows / best_of(lambda: model.translate(texts, strategy, **options))


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_model(units, attention, layers, random=False):
    from torch_baseline import Translator

    sides = [sorted(set("".join(texts))) for texts in zip(*pairs(random), strict=True)]
    indices = [{character: number for number, character in enumerate(side, start=4)} for side in sides]
    model = Translator(*(len(side) + 4 for side in sides), units, EMBEDDING, attention, layers)
    return model.to(torch_device()), *indices


def torch_ids(texts, index, marks=False):
    import torch
    from torch_baseline import END, START

    rows = [[index[character] for character in text] for text in texts]
    rows = [torch.tensor([START, *row, END] if marks else row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(torch_device())


def torch_training(batch, random=False, **sizes):
    import torch
    from torch_baseline import lengths, trainer

    torch.manual_seed(0)
    model, *indices = torch_model(**sizes, random=random)
    ordered = sorted(pairs(random), key=lambda pair: (len(pair[1]), len(pair[0])))
    batches = []
    for start in range(0, len(ordered), batch):
        sources, targets = zip(*ordered[start : start + batch], strict=True)
        source, target = torch_ids(sources, indices[0]), torch_ids(targets, indices[1], marks=True)
        batches.append((source, target, lengths(source), lengths(target[:, :-1])))
    Random(0).shuffle(batches)
    step = trainer(model)
    return characters(random) / best_of(lambda: float(sum(step(*each) for each in batches)), seconds=8)


def torch_decoding(rows, length, width=1, compiled=False):
    if width > 1:
        return None
    model, source, _ = torch_model(**SIZES)
    ids = torch_ids(sentences(rows, length), source)
    together = rows if ids.is_cuda else 256
    return rows / best_of(lambda: [model.greedy(part, length).cpu() for part in ids.split(together)])


def tutorial_training(batch, **sizes):
    if (batch, sizes) != (64, SIZES | {"attention": False}):
        return None
    import keras
    from tutorial import Tutorial

    keras.utils.set_random_seed(0)
    tutorial = Tutorial(pairs(), [])
    inputs, labels = tutorial.arrays(pairs())
    return characters() / best_of(lambda: tutorial.model.fit(inputs, labels, batch, verbose=0), seconds=8)


def tutorial_decoding(rows, length, width=1, compiled=False):
    if (rows, width, compiled) != (1, 1, False):
        return None
    from tutorial import Tutorial

    tutorial, texts = Tutorial(pairs(), []), sentences(rows, length)
    tutorial.source_length = length
    return rows / best_of(lambda: tutorial.translate(texts, steps=length))


def sentences(rows, length):
    """Texts of so many characters, none like another."""
    text = " ".join(source for source, _ in pairs())
    return [text[start : start + length] for start in range(rows)]


def matrices():
    """GFLOP/s of large products on all cores."""
    import tensorflow as tf

    one = tf.random.normal([2048, 2048])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(one, one)))
    return 2 * 2048**3 / best_of(lambda: product().numpy()) / 1e9


SUBJECTS = {
    "training": {"library": library_training, "pytorch": torch_training, "tutorial": tutorial_training},
    "decoding": {"library": library_decoding, "pytorch": torch_decoding, "tutorial": tutorial_decoding},
}


def useful(units, attention, layers, rate):
    """Useful GFLOP/s at so many target characters a second: see above."""
    source, target = sum(len(source) for source, _ in pairs()), characters()
    lookups = sum(2 * len(s) * (len(t) + 1) for s, t in pairs()) if attention else 0
    size = len(set("".join(t for _, t in pairs()))) + 4
    recurrent = (source + target) * 4 * units**2 * (2 * layers - 1)  # an upper layer also reads the one below
    products = recurrent + lookups * units + target * units * (size + (2 * units if attention else 0))
    return 3 * 2 * products / target * rate / 1e9


# Start-up: whole commands.


def startup(folder):
    """Seconds that commands take, the least of several: {what: seconds}."""
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs()[:300]))
    seq2seq, run = Path(sys.executable).with_name("seq2seq"), folder / "run"
    subprocess.run(
        [seq2seq, "train", folder / "pairs.tsv", "--out", run, "--epochs", "1"], capture_output=True, check=True
    )
    python = [sys.executable, "-c"]
    commands = {
        "seq2seq --help": [seq2seq, "--help"],
        "seq2seq translate RUN 'Go.'": [seq2seq, "translate", run, "Go."],
        "seq2seq translate RUN 'Go.', beam 5": [seq2seq, "translate", run, "Go.", "--beam-width", "5"],
        "import tensorflow, tensorflow_text, keras": [*python, "import tensorflow, tensorflow_text, keras"],
        "import seq2seq": [*python, "import seq2seq"],
        "import torch": [*python, "import torch"],
    }
    return {
        what: best_of(functools.partial(subprocess.run, command, capture_output=True, check=True), 6)
        for what, command in commands.items()
    }


# Latency of one short sentence, in this process and as a program without the library sees it.


def latency(folder):
    """Milliseconds for one sentence of a model that was just made: {what: milliseconds}."""
    from seq2seq.startup import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    model, text = library_model(**SIZES), "Where is the station?"
    model.length_ratios.assign([1.0, 1.2, 1.44])
    model.export(folder / "exported")
    loaded, texts = tf.saved_model.load(str(folder / "exported")), tf.constant([text])
    runs = {
        "translate, greedy": lambda: model.translate([text]),
        "SavedModel, greedy": lambda: loaded.greedy(texts),
        "translate, beam 5": lambda: model.translate([text], "beam"),
        "SavedModel, beam 5": lambda: loaded.beam(texts),
    }
    return {what: 1000 * best_of(run) for what, run in runs.items()}


# Taking turns.


def measured(*arguments):
    """What this file prints, given these arguments, in a process of its own: [(figure, peak memory in MB), ...]."""
    command, figures = [sys.executable, __file__, "--measure", json.dumps(arguments)], []
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in filter(lambda line: line.startswith("["), process.stdout):
                figures.append(json.loads(line))
                print(*arguments[:2], figures[-1][0], file=sys.stderr, flush=True)  # in case that time runs out
        if process.returncode:
            errors.seek(0)
            sys.exit(errors.read().decode(errors="replace"))
    return figures


def measure(task, subject=None, *cases):
    """Measure a task, each case of a subject, and print the figures as JSON with the peak of this process's memory."""
    for options in cases:
        print(json.dumps([SUBJECTS[task][subject](**options), peak_memory()]), flush=True)
    if task == "matrices":
        print(json.dumps([matrices(), peak_memory()]))
    elif not subject:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps([{"startup": startup, "latency": latency}[task](Path(folder)), peak_memory()]))


def peak_memory():
    """The most memory this process has had, in MB."""
    # Not getrusage, whose maximum a process inherits from the one that started it.
    (high_water,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(high_water) / 1024


def compare(task, cases, rounds, together, subjects):
    """The median of what each subject reaches in each case, and the peaks of memory: {case: {subject: (rate, MB)}}."""
    found = {}
    for group in [list(cases)] if together else [[case] for case in cases]:
        options = [{**SIZES, **cases[case]} if task == "training" else cases[case] for case in group]
        taken = {case: {} for case in group}
        for _, subject in itertools.product(range(rounds), subjects):
            for case, figures in zip(group, measured(task, subject, *options), strict=True):
                if figures[0] is not None:
                    taken[case].setdefault(subject, []).append(figures)
        for case in group:
            found[case] = {
                subject: [statistics.median(part) for part in zip(*each, strict=True)]
                for subject, each in taken[case].items()
            }
            print(row(case, found[case]), flush=True)
    return found


def row(case, subjects):
    """A line of a table: rates, and how many times each of the others the library is."""
    ours = subjects["library"][0]
    cells = [f"{ours:,.0f}"]
    for other in ("pytorch", "tutorial"):
        rate = subjects.get(other, [None])[0]
        cells += (
            [f"{rate:,.{0 if rate >= 10 else 2}f}", f"{ours / rate:,.{2 if ours < 100 * rate else 0}f}"]
            if rate
            else ["", ""]
        )
    return f"| {case} | {' | '.join(cells)} | {subjects['library'][1]:,.0f} |"


HEAD = "| | this library | PyTorch | times | tutorial | times | peak MB |\n|---|---|---|---|---|---|---|"


def draw(figures, path):
    """Bars: how many times as fast as PyTorch."""
    from matplotlib.figure import Figure

    bars = {
        f"{task}: {case}": subjects["library"][0] / subjects["pytorch"][0]
        for task in ("training", "decoding")
        for case, subjects in figures.get(task, {}).items()
        if "pytorch" in subjects
    }
    figure = Figure(figsize=(8, 0.9 + 0.35 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(bars), list(bars.values()), color="#0072B2")
    axes.bar_label(drawn, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel="times as fast as PyTorch", title=figures["machine"])
    figure.savefig(path, dpi=150)


def machine():
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}"
    names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where to write speed.json and speed.png")
    parser.add_argument("--only", nargs="+", choices=["training", "decoding", "startup", "latency"])
    parser.add_argument("--cases", nargs="+", help="the cases of training and decoding to measure; default: all")
    everyone = ["library", "pytorch", "tutorial"]
    parser.add_argument("--subjects", nargs="+", choices=everyone, default=everyone, help="the library must be one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--together",
        action="store_true",
        help="measure all cases of a subject in one process, which saves start-up; peaks of memory are then of all",
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(*json.loads(options.measure))
    if not options.folder:
        parser.error("FOLDER is missing")
    if not SPA_ENG.parents[1].is_file():
        parser.error(f"{SPA_ENG.parents[1]} is missing; `seq2seq inspect spa-eng` downloads it")
    if "library" not in options.subjects:
        parser.error("--subjects: the library must be one of them, as others are compared with it")
    wanted = options.only or ["training", "decoding", "startup", "latency"]
    figures = {"machine": machine(), "packages": {name: version(name) for name in ("tensorflow", "keras", "torch")}}
    print(figures["machine"], ", ".join(f"{name} {number}" for name, number in figures["packages"].items()))
    trainings = TRAININGS | (ON_A_GPU if torch_device() == "cuda" else {})
    trainings, decodings = (
        {case: how for case, how in cases.items() if case in (options.cases or cases)}
        for cases in (trainings, DECODINGS)
    )
    how = options.rounds, options.together, options.subjects
    if "training" in wanted:
        print(f"\nTraining, target characters a second\n\n{HEAD}")
        figures["training"] = compare("training", trainings, *how)
    if "training" in wanted and torch_device() == "cpu":
        figures["matrices"] = statistics.median(measured("matrices")[0][0] for _ in range(options.rounds))
        print(f"\nlarge matrices: {figures['matrices']:.0f} GFLOP/s")
        print("\n| | useful GFLOP/s | of large matrices |\n|---|---|---|")
        for case, subjects in figures["training"].items():
            sizes = {**SIZES, **trainings[case]}
            rate = useful(**{name: sizes[name] for name in SIZES}, rate=subjects["library"][0])
            print(f"| {case} | {rate:.0f} | {rate / figures['matrices']:.0%} |")
    if "decoding" in wanted:
        print(f"\nDecoding, sentences a second\n\n{HEAD}")
        figures["decoding"] = compare("decoding", decodings, *how)
    for task, unit in (("startup", "s"), ("latency", "ms")):
        if task in wanted:
            [(figures[task], _)] = measured(task)
            print(f"\n| {task} | {unit} |\n|---|---|")
            for what, figure in figures[task].items():
                print(f"| {what} | {figure:.2f} |")
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "speed.json").write_text(json.dumps(figures, indent=1))
    draw(figures, options.folder / "speed.png")


if __name__ == "__main__":
    main()
