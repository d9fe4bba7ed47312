"""What the presets make of equal training time on `spa-eng`: quality and speed, greedy and with beam search.

    python tests/benchmarks/presets.py runs/presets                    # about 70 minutes on two cores
    python tests/benchmarks/presets.py runs/presets --only-measure --beam-width 10 --length-penalty 1
    python tests/benchmarks/presets.py /tmp/tiny --corpus tiny.tsv --sources 50 --presets default \\
        --epochs default=1 -- --units 16                               # what follows -- goes to `seq2seq train`

Each preset is trained by `seq2seq train` on the same pairs, for as many `--epochs` as fill the time, and writes what it
says to RUN_DIR/PRESET.log. The minutes are those of the whole command: start, survey, epochs, validation, saving.

Measured are 2,000 held-out sources, none of which is in the training side, each against all translations that the
corpus has of it; first as they are, then with both sides normalised as in TensorFlow's tutorial `nmt_with_attention`
(no accents, capitals or digits), to compare with its kind of figures. Each run is loaded in a process of its own, with
the threads that the command line sets. RUN_DIR receives the sources, the translations and presets.json, which holds
all figures with confidence intervals and sacrebleu's signatures, and why translations stopped.
"""

import argparse
import collections
import dataclasses
import json
import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from pipelines import CharTokenizer, group_by_source, read_pairs, split_by_hash
from seq2seq import BeamSearch, Greedy
from seq2seq.presets import PRESETS
from seq2seq.records import read_record
from seq2seq.runs import load_run
from seq2seq.scores import measure as measure_texts
from seq2seq.startup import start_tensorflow

# Whatever a preset says, all learn from these pairs.
PAIRS = {"limit": None, "split": "hash", "validation_fraction": 0.05, "max_length": 100}


def train(corpus, preset, folder, log, epochs, more):
    """Run `seq2seq train`; what it says and how many seconds it took go into the log."""
    given = PAIRS | {"preset": preset, "epochs": epochs, "seed": 0, "out": folder}
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [Path(sys.executable).with_name("seq2seq"), "train", corpus, *options, "--overwrite", *more]
    started = time.perf_counter()
    with log.open("w") as file:
        if subprocess.run(command, stdout=file, stderr=file).returncode:
            raise SystemExit(f"training failed, see {log}")
        file.write(f"Command took {time.perf_counter() - started:.1f} s\n")


def training_times(log):
    """Seconds that the log of `train` tells of: of the command, and of each epoch; a run made by hand has none."""
    text = log.read_text() if log.exists() else ""
    epochs = [float(seconds) for seconds in re.findall(r"^Epoch .* ([\d.]+) s$", text, re.MULTILINE)]
    command = re.search(r"^Command took ([\d.]+) s$", text, re.MULTILINE)
    return {"seconds": float(command[1]) if command else None, "epoch_seconds": epochs}


def check_run(folder, corpus):
    """Check that a run was trained on these pairs; with others it may have been trained on the held-out ones."""
    options = read_record(folder).options
    for name, value in (PAIRS | {"corpus": corpus}).items():
        if options[name] != value:
            raise SystemExit(f"{folder}: trained with {name}={options[name]}, and not {value}")


def held_out(corpus, count):
    """Draw so many sources of the held-out side; return the sources, and all references of each."""
    pairs = read_pairs(corpus, max_length=PAIRS["max_length"])
    training, references = map(group_by_source, split_by_hash(pairs, PAIRS["validation_fraction"], CharTokenizer()))
    assert references.keys().isdisjoint(training)
    sources = sorted(references)
    random.Random(0).shuffle(sources)
    return sources[:count], [references[source] for source in sources[:count]]


def translate(folder, sources, strategies):
    """Translate with each strategy: the texts, how many of them a second, and the shares of reasons to stop."""
    start_tensorflow()
    model = load_run(folder)
    found = {}
    for name, strategy in strategies.items():
        model.translate(sources[:256], strategy)  # warms up
        started = time.perf_counter()
        texts = model.translate(sources, strategy).numpy()
        rate = len(sources) / (time.perf_counter() - started)
        stopped = collections.Counter(model.translate(sources, strategy, details=True).stopped.numpy()[:, 0].tolist())
        shares = {reason: stopped[reason.encode()] / len(sources) for reason in ("end", "limit", "repetition")}
        found[name] = [text.decode() for text in texts], {"sentences_per_second": rate, "stopped": shares}
    return found


def scores(texts, references):
    """What `seq2seq.evaluation` measures of texts, as JSON can hold it."""
    return {name: dataclasses.asdict(found) for name, found in measure_texts(texts, references).items()}


def normalise(text):
    """A text as `nmt_with_attention` leaves it, but for its marks of start and end."""
    text = unicodedata.normalize("NFKD", text).lower()
    text = re.sub(r"[^ a-z.?!,¿]", "", text)
    return re.sub(r"[.?!,¿]", r" \g<0> ", text).strip()


def measure(folder, sources, references, strategies):
    """All that is known of a run's translations, by strategy; the translations go to files beside it."""
    plain = [[normalise(text) for text in those] for those in references]
    found = {}
    for name, (texts, figures) in alone(translate, folder, sources, strategies).items():
        write_lines(folder.with_name(f"{folder.name}.{name}.txt"), texts)
        normalised = [normalise(text) for text in texts]
        found[name] = {"raw": scores(texts, references), "normalised": scores(normalised, plain), **figures}
    return found


def alone(function, *arguments):
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def print_tables(found):
    print(f"{found['machine']}, TensorFlow {found['tensorflow']}; {found['date']}")
    print(f"{found['sources']:,} held-out sources of {found['corpus']}, {found['references']:,} references\n")
    columns = ("BLEU", "chrF", "exact match")
    heads = ["preset", "decoding", "minutes", "epochs", "BLEU", "chrF", "exact match"]
    heads += ["BLEU, normalised", "chrF, normalised", "exact match, normalised", "sentences/s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for preset, run in found["presets"].items():
        minutes = f"{run['seconds'] / 60:.1f}" if run["seconds"] else "?"
        for name, figures in run["decoding"].items():
            decoding = f"beam {found['beam_width']}" if name == "beam" else name
            raw, plain = ([figures[text][column]["score"] for column in columns] for text in ("raw", "normalised"))
            cells = [f"{bleu:.1f} | {chrf:.1f} | {exact:.1f}%" for bleu, chrf, exact in (raw, plain)]
            rate = f"{figures['sentences_per_second']:,.0f}"
            print(f"| {' | '.join([preset, decoding, minutes, str(run['epochs']), *cells, rate])} |")
    print("\n| why translations stop | end | limit | repetition |\n|---|---|---|---|")
    for preset, run in found["presets"].items():
        for name, figures in run["decoding"].items():
            print(f"| {preset}, {name} | {' | '.join(f'{share:.1%}' for share in figures['stopped'].values())} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="RUN_DIR", type=Path)
    parser.add_argument("--presets", default="tutorial,default,subword")
    parser.add_argument("--epochs", default="tutorial=9,default=8,subword=15", help="of each preset")
    parser.add_argument("--only-measure", action="store_true", help="measure the runs that are there")
    parser.add_argument("--corpus", default="spa-eng")
    parser.add_argument("--sources", type=int, default=2000, help="how many to measure on")
    parser.add_argument("--beam-width", type=int, default=5)
    parser.add_argument("--length-penalty", type=float, default=BeamSearch.length_penalty)
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    presets, epochs = options.presets.split(","), dict(part.split("=") for part in options.epochs.split(","))
    for preset in presets:
        if preset not in PRESETS or preset not in epochs:
            parser.error(f"{preset}: no preset, or none with a number of --epochs")
    strategies = {"greedy": Greedy(), "beam": BeamSearch(options.beam_width, options.length_penalty)}

    options.folder.mkdir(parents=True, exist_ok=True)
    sources, references = alone(held_out, options.corpus, options.sources)
    write_lines(options.folder / "sources.txt", sources)
    found = {
        "command": sys.argv,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "tensorflow": tf.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "corpus": options.corpus,
        "sources": len(sources),
        "references": sum(map(len, references)),
        "beam_width": options.beam_width,
        "length_penalty": options.length_penalty,
        "presets": {},
    }
    for preset in presets:
        folder, log = options.folder / preset, options.folder / f"{preset}.log"
        if not options.only_measure:
            print(f"Training {preset}, see {log}", file=sys.stderr)
            train(options.corpus, preset, folder, log, epochs[preset], more)
        check_run(folder, options.corpus)
        found["presets"][preset] = {
            **training_times(log),
            "epochs": len((folder / "history.csv").read_text().splitlines()) - 1,
            "decoding": measure(folder, sources, references, strategies),
        }
        (options.folder / "presets.json").write_text(json.dumps(found, indent=1) + "\n")
    print_tables(found)


if __name__ == "__main__":
    main()
