import collections
import contextlib
import csv
import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Each process of pytest-xdist, with those that it starts, has a core of its own: TensorFlow's threads wait actively,
# and would take the other cores from the other processes.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# A script's background ignores interrupts, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import keras
import searching
import tensorflow as tf
from command_line import SEQ2SEQ, SMALL_MODEL

from pipelines import CharTokenizer, batch_pairs, checksums, read_pairs
from pipelines.formats import find_shards
from pipelines.readers import Reader
from seq2seq import Config, Seq2Seq, sweep
from seq2seq.compilation import on_gpu
from seq2seq.training import train

gc.freeze()  # what the imports made stays, so it need not be searched for garbage

# A GPU rounds the factors of a product to 10 bits by default; tests compare to five digits.
tf.config.experimental.enable_tensor_float_32_execution(False)

# What takes longest to make, and is shared: by `--dist loadgroup`, only one of several processes makes it.
# `exported_onnx` is in the group of `upper_case`, which it is made of.
SHARED = ("any_model", "covered", "exported", "learned", "one_device", "shared_model", "shell", "swept", "toy_run")
SHARED += ("trained", "upper_case", "wild_run")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items):
    for item in items:
        for name in set(SHARED) & set(item.fixturenames):
            which = item.callspec.params.get(name, "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{name}-{which}"))


@pytest.fixture
def rounds():
    """Let a GPU round factors, as is TensorFlow's default. Return a function that says whether one does."""
    tf.config.experimental.enable_tensor_float_32_execution(True)
    yield tf.config.experimental.tensor_float_32_execution_enabled
    tf.config.experimental.enable_tensor_float_32_execution(False)


QUICK = {"cell": "gru", "bidirectional": False}  # of a model whose graphs are made in less time
WORDS = ["sol", "mar", "luz", "pan", "rey", "flor", "tren", "gato", "nube", "año", "niño", "árbol"]


@pytest.fixture
def tsv(tmp_path):
    """A function that writes bytes or text to a file and returns its path."""

    def write(content, name="pairs.tsv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


PAIRS = [("Go.", "Ve."), ("Hi.", "Hola."), ("Run!", "¡Corre!")]
TSV = "".join(f"{source}\t{target}\n" for source, target in PAIRS)


@pytest.fixture(scope="session")
def read():
    """A function that reads one corpus, or a list of them, as pairs of strings."""

    def read(corpus, report=None, seed=0, **options):
        corpora = corpus if isinstance(corpus, list) else [corpus]
        reader = Reader(tuple(map(find_shards, corpora)), **options)
        return [(source.decode(), target.decode()) for source, target in reader.pairs(seed, report)]

    return read


@pytest.fixture
def pairs(tsv):
    """A dataset of real pairs: words and the same words in upper case."""
    return read_pairs(tsv("".join(f"{word}\t{word.upper()}\n" for word in WORDS)))


@pytest.fixture
def tokenizers(pairs):
    """A source and a target tokenizer with the vocabularies of `pairs`, whose file tests find in `tmp_path`."""
    source, target = CharTokenizer(), CharTokenizer()
    source.take_vocabulary(collections.Counter(letter.encode() for letter in "".join(WORDS)))
    target.take_vocabulary(collections.Counter(letter.encode() for letter in "".join(WORDS).upper()))
    return source, target


@pytest.fixture
def model(tokenizers):
    model = Seq2Seq(*tokenizers, units=16, **QUICK, attention="general")
    model.compile()
    return model


@pytest.fixture(scope="session")
def shared_model():
    """A `model` for tests that only read it: it keeps the graphs that `translate` and `score` make."""
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt(WORDS)
    target.adapt([word.upper() for word in WORDS])
    keras.utils.set_random_seed(2)
    return Seq2Seq(source, target, units=16, attention="general")


@pytest.fixture(scope="session")
def upper_case():
    """A model that has learned to write words in upper case, and the words."""
    keras.utils.set_random_seed(3)
    pairs = tf.data.Dataset.from_tensor_slices((WORDS, [word.upper() for word in WORDS]))
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt(WORDS)
    target.adapt([word.upper() for word in WORDS])
    model = Seq2Seq(source, target, units=48, attention="general")
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(batch_pairs(pairs.repeat(20), source, target, batch_size=12), epochs=12, verbose=0, shuffle=False)
    return model, WORDS


@pytest.fixture(scope="session")
def exported_onnx(upper_case, tmp_path_factory):
    """The `upper_case` model, and the folder of its ONNX export."""
    model, words = upper_case
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    model.export(folder, format="onnx", probe=words)
    return model, folder


def decoded(tensor):
    return [text.decode() for text in tensor.numpy()]


def notices(said):
    """What a training has said, without the numbers of pairs, and the figures and translations of its epochs."""
    return [text for text in said if not text.startswith(("Training on ", "Epoch ", "    "))]


def ids_of(model, words=("sol", "mar", "gatonube")):
    source, target = model.source_tokenizer, model.target_tokenizer
    return source.tokenize(words).numpy(), target.tokenize([w.upper() for w in words], start_end=True).numpy()


@pytest.fixture
def batches(pairs, tokenizers):
    return batch_pairs(pairs, *tokenizers, batch_size=5, seed=1)


CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]  # the first one lets root start it
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@contextlib.contextmanager
def open_browser():
    """A real Chromium without a window; CI fails without it."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM.exists():
        if os.environ.get("SEQ2SEQ_CI"):
            pytest.fail(f"CI must install {CHROMIUM}")
        pytest.skip(f"there is no {CHROMIUM}; `apt-get install chromium` brings it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["shrinking", "masking"])
def each_loop(request, monkeypatch):
    """Let a test's searches use one loop, then the other."""
    monkeypatch.setattr("searching.LOOP", getattr(searching, request.param))


@pytest.fixture
def spa_eng():
    """The real corpus, where the Keras cache has it; CI fails without it."""
    keras_home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    if not (keras_home / "datasets" / "spa-eng.zip").exists():
        if os.environ.get("SEQ2SEQ_CI"):
            pytest.fail("CI must put spa-eng.zip into the Keras cache")
        pytest.skip("spa-eng is not in the Keras cache; `seq2seq train spa-eng` downloads it")
    return "spa-eng"


LINES = "".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abcde" for b in "abcde")


def small_config(corpus):
    small = {**QUICK, "units": 8, "embedding": None, "attention": "dot"}
    small |= {"dropout": 0.0, "label_smoothing": 0.0, "epochs": 2, "batch_size": 8}
    small |= {"deterministic": True if on_gpu() else None}  # tests compare runs; on a CPU it is the default
    return Config(corpus=str(corpus), validation_fraction=0.2, **small)


@pytest.fixture
def config(tsv):
    return small_config(tsv(LINES))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of `small_config`, logged to TensorBoard. Its tests leave it as it is.

    `model` is the model that training returned, `live` the one that was trained, `steps` what its steps returned, and
    `read` the datasets given to `fit`.
    """
    path = tmp_path_factory.mktemp("trained") / "pairs.tsv"
    path.write_text(LINES)
    config, folder, live = small_config(path), path.parent / "run", keras.callbacks.Callback()
    with pytest.MonkeyPatch.context() as monkeypatch:
        steps, read = spy_on_steps(monkeypatch), []
        monkeypatch.setattr("seq2seq.training.distribute", lambda strategy, batches: read.append(batches) or batches)
        model = train(config, folder, callbacks=[live], track=["tensorboard"])
    return SimpleNamespace(config=config, folder=folder, model=model, live=live.model, steps=steps, read=read)


def spy_on_steps(monkeypatch):
    """A list to which each training step of a model adds what it returns."""
    returned, make = [], Seq2Seq.make_train_function

    def spying(model, force=False):
        make(model, force)
        step = model.train_function
        model.train_function = lambda batches: returned.append(step(batches)) or returned[-1]

    monkeypatch.setattr(Seq2Seq, "make_train_function", spying)
    return returned


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the `trained` run and its corpus for one test: its folder, and a function that changes its options."""
    shutil.copytree(trained.folder.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "config.json"

    def change(**options):
        record = json.loads(path.read_text())
        record["options"] |= options
        path.write_text(json.dumps(record))

    change(corpus=str(tmp_path / "copy" / "pairs.tsv"))
    return path.parent, change


def read_history(run):
    """The rows of a run's `history.csv`."""
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def epochs_seen(model, run):
    """How many epochs a model of a run has been trained for, by the pairs that it has counted."""
    return model.length_ratios.numpy()[0] / json.loads((run / "survey.json").read_text())["pairs"]


SMALL = {**QUICK, "embedding": None, "attention": None, "dropout": 0.0}
SMALL |= {"label_smoothing": 0.0, "epochs": 2, "batch_size": 8, "validation_fraction": 0.2}
GRID = {"units": [8, 4]}


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A sweep of two settings with two seeds each, what it returned and what it said."""
    home = tmp_path_factory.mktemp("sweeps")
    (home / "pairs.tsv").write_text(LINES)
    said = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(home)
        results = sweep("pairs.tsv", home / "swept", GRID, seeds=2, options=SMALL, jobs=2, say=said.append)
    return home / "swept", results, said


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """A run that the console script made of `toy.tsv`, and the finished process. Its tests leave it as it is."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.tsv").write_text(LINES)
    options = "--epochs 2 --seed 1 --track tensorboard"
    command = [SEQ2SEQ, "train", "toy.tsv", *SMALL_MODEL, *options.split(), "--out", "my runs/it's toy"]
    return folder / "my runs/it's toy", subprocess.run(command, cwd=folder, capture_output=True)


def make_run(folder, corpus, characters="abcde", **options):
    """Make a run folder as if its model, which has learned nothing, had been trained here on a corpus."""
    config = Config(corpus, **options)
    record = {"options": dataclasses.asdict(config), "directory": os.getcwd(), "checksums": checksums(corpus)}
    if config.validation:
        record["validation_checksums"] = checksums(config.validation)
    folder.mkdir(parents=True)
    tokenizers = CharTokenizer(characters, lowercase=config.lowercase), CharTokenizer(characters.upper())
    model = Seq2Seq(*tokenizers, units=4, cell="gru", bidirectional=False, attention="dot")
    save_run(model, folder, **record)


def save_run(model, folder, **record):
    """Write a model and a record, without options by default, to a folder as of a run."""
    model.save(folder / "model.keras")
    (folder / "config.json").write_text(json.dumps({"options": {}, **record}))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A run folder with a small model that has learned nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    tokenizers = CharTokenizer("ab"), CharTokenizer("AB")
    save_run(Seq2Seq(*tokenizers, units=4, cell="gru", bidirectional=False, attention="dot"), folder)
    return folder


@pytest.fixture
def training_calls(monkeypatch):
    """What commands call `train` with, in place of training: (config, folder, the other arguments by their names)."""
    calls = []

    def stop(config, folder, *_, **options):
        calls.append((config, folder, options))
        raise SystemExit

    monkeypatch.setattr("seq2seq.training.train", stop)
    return calls


@pytest.fixture
def full_disk(tmp_path):
    """A file system of one megabyte."""
    path = tmp_path / "full"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)
