import dataclasses
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A script's background ignores interrupts, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import tensorflow as tf
from command_line import SEQ2SEQ, SMALL_MODEL

from pipelines import CharTokenizer, batch_pairs, checksums, read_pairs
from seq2seq import Config, Seq2Seq, sweep

# A GPU rounds the factors of a product to 10 bits by default; tests compare to five digits.
tf.config.experimental.enable_tensor_float_32_execution(False)

# What takes longest to make, and is shared: by `--dist loadgroup`, only one of several processes makes it.
SHARED = ("exported", "swept", "toy_run", "trained")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items):
    for item in items:
        for name in set(SHARED) & set(item.fixturenames):
            which = item.callspec.params.get(name, "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{name}-{which}"))


WORDS = ["sol", "mar", "luz", "pan", "rey", "flor", "tren", "gato", "nube", "año", "niño", "árbol"]


@pytest.fixture
def tsv(tmp_path):
    """A function that writes bytes or text to a file and returns its path."""

    def write(content, name="pairs.tsv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def pairs(tsv):
    """A dataset of real pairs: words and the same words in upper case."""
    return read_pairs(tsv("".join(f"{word}\t{word.upper()}\n" for word in WORDS)))


@pytest.fixture
def tokenizers(pairs):
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt(pairs.map(lambda source, _: source))
    target.adapt(pairs.map(lambda _, target: target))
    return source, target


@pytest.fixture
def model(tokenizers):
    model = Seq2Seq(*tokenizers, units=16, attention="general")
    model.compile()
    return model


@pytest.fixture
def batches(pairs, tokenizers):
    return batch_pairs(pairs, *tokenizers, batch_size=5, seed=1)


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
    small = {"units": 8, "cell": "gru", "bidirectional": False, "embedding": None, "attention": "dot"}
    small |= {"dropout": 0.0, "label_smoothing": 0.0, "epochs": 2, "batch_size": 8}
    return Config(corpus=str(corpus), validation_fraction=0.2, **small)


@pytest.fixture
def config(tsv):
    return small_config(tsv(LINES))


# Of a model that is compiled fast.
SMALL = {"cell": "gru", "bidirectional": False, "embedding": None, "attention": None, "dropout": 0.0}
SMALL |= {"label_smoothing": 0.0, "epochs": 2, "batch_size": 8, "validation_fraction": 0.2}
GRID = {"units": [8, 4], "learning_rate": "1e-3,1e-2"}


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A sweep of 2 x 2 settings with two seeds each, what it returned and what it said."""
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
    """Makes a run folder as if its model, which has learned nothing, had been trained here on a corpus."""
    config = Config(corpus, **options)
    record = {"options": dataclasses.asdict(config), "directory": os.getcwd(), "checksums": checksums(corpus)}
    if config.validation:
        record["validation_checksums"] = checksums(config.validation)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))
    tokenizers = CharTokenizer(characters, lowercase=config.lowercase), CharTokenizer(characters.upper())
    model = Seq2Seq(*tokenizers, units=4, cell="gru", bidirectional=False, attention="dot")
    model.save(folder / "model.keras")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A run folder with a small model that has learned nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    tokenizers = CharTokenizer("ab"), CharTokenizer("AB")
    Seq2Seq(*tokenizers, units=4, cell="gru", bidirectional=False, attention="dot").save(folder / "model.keras")
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
