import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from command_line import seq2seq

from pipelines import batch_pairs, read_pairs
from pipelines.tokenizers import NORMAL_FORMS, TOKENIZERS
from seq2seq import Seq2Seq
from seq2seq.config import _CHOICES
from seq2seq.layers import ATTENTIONS
from seq2seq.optimizers import make_optimizer, optimizers
from seq2seq.recurrence import CELLS
from seq2seq.runs import RunError, check_same_corpus, draw_run, held_out_pairs, load_run
from seq2seq.training import train


def test_a_run_is_loaded_and_tells_what_it_is(config, tmp_path):
    model = train(config, tmp_path / "run")
    again = Seq2Seq.from_run(tmp_path / "run")
    assert again.translate("ab") == model.translate("ab")
    assert repr(again) == repr(model)
    assert repr(again).startswith("Seq2Seq(CharTokenizer(9 tokens: ") and ", Encoder, Decoder, " in repr(again)


def test_a_loaded_run_is_trained_on_by_fit_alone_and_at_another_rate(config, tmp_path):
    returned = train(dataclasses.replace(config, epochs=4, optimizer="sgd", clip_norm=0.5), tmp_path / "run")
    for model in (returned, Seq2Seq.from_run(tmp_path / "run")):
        assert type(model.optimizer).__name__ == "SGD" and model.optimizer.global_clipnorm == 0.5
        assert float(model.optimizer.learning_rate) == np.float32(config.learning_rate)
        model.optimizer.learning_rate = 1.0
    batches = batch_pairs(read_pairs(config.corpus), model.source_tokenizer, model.target_tokenizer, 5, seed=0)
    losses = model.fit(batches, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):
        model.fit(batches)
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.5))
    losses = model.fit(batches, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert losses[2] < losses[1] < losses[0]


LOADED = """
import json, sys, seq2seq
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    model, probe = seq2seq.Seq2Seq.from_run(folder), json.loads((folder / "probe.json").read_text())
    assert [text.decode() for text in model.translate(list(probe)).numpy()] == list(probe.values()), folder
    for path in (folder / "compiled").iterdir():
        optimizer = seq2seq.model.keras.models.load_model(path).optimizer
        assert type(getattr(optimizer, "inner_optimizer", optimizer)).__name__.lower() == path.stem
"""

VALUES = {
    "source_tokenizer": list(TOKENIZERS),
    "target_tokenizer": list(TOKENIZERS)[::-1],
    "normal_form": NORMAL_FORMS,
    "lowercase": [False, True],
    "cell": list(CELLS),
    "layers": [1, 1, 2, 2],
    "bidirectional": [True, True, False],
    "attention": ATTENTIONS,
    "embedding": [6, 4, None],
    "tied": [False, True, False],
    "input_feeding": [False, False, True],
    "dropout": [0.0, 0.2],
    "label_smoothing": [0.0, 0.1],
    "encoding": ["ids", "one_hot"],
    "teacher_forcing": [(1.0,), (0.5,), (1.0, 0.5)],
    "schedule": ["cosine", "constant", "inverse_sqrt", "plateau"],
    "warmup": [3, 0, 3, 0],
    "average": [1, 2],
    "clip_norm": [1.0, None],
}
DTYPES = ["float32", "mixed_bfloat16", "mixed_float16"]


@pytest.mark.slow
def test_whatever_a_run_was_trained_with_it_loads_where_only_this_library_was_imported(config, tmp_path):
    for option, values in _CHOICES.items():
        assert set(VALUES.get(option, values)) == set(values)
    kinds = list(optimizers())
    folders = [tmp_path / f"{number}" for number in range(max(map(len, [*VALUES.values(), DTYPES])))]
    for number, folder in enumerate(folders):
        options = {name: values[number % len(values)] for name, values in VALUES.items()}
        options["optimizer"] = kinds[number % len(kinds)]
        keras.config.set_dtype_policy(DTYPES[number % len(DTYPES)])
        try:
            model = train(dataclasses.replace(config, epochs=1, monitor="val_loss", **options), folder)
        finally:
            keras.config.set_dtype_policy("float32")
        assert model.dtype_policy.name == DTYPES[number % len(DTYPES)]
        (folder / "compiled").mkdir()
        for kind in kinds[number :: len(folders)]:
            made = {**options, "optimizer": kind, "monitor": "val_loss"}
            model.compile(make_optimizer(dataclasses.replace(config, **made), steps=10))
            model.optimizer.build(model.trainable_variables)
            model.save(folder / "compiled" / f"{kind}.keras")
    done = subprocess.run([sys.executable, "-c", LOADED, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = seq2seq("translate", folders[VALUES["schedule"].index("inverse_sqrt")], stdin=b"ab\ncd\n")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 2), done.stderr


def test_what_is_no_run_is_refused_by_name(config, tmp_path):
    with pytest.raises(RunError, match="none: no such run folder"):
        load_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"holds no model\.keras"):
        load_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        train(config, tmp_path / "file")


def test_a_damaged_model_file_is_refused_by_name(config, tmp_path):
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "model.keras"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model\.keras: damaged"):
        load_run(tmp_path / "run")


def test_a_model_of_another_kind_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(RunError, match="a Sequential, not a Seq2Seq"):
        load_run(tmp_path)


def test_what_a_run_held_out_is_read_again(config, tmp_path, tsv):
    train(dataclasses.replace(config, epochs=1), tmp_path / "run")
    held = {source for source, _ in held_out_pairs(tmp_path / "run").as_numpy_iterator()}
    assert 1 <= len(held) <= 6
    counted = json.loads((tmp_path / "run" / "survey.json").read_text())["pairs"]
    assert counted + len(held) == 25
    other = dataclasses.replace(config, epochs=1, corpus=str(tsv("a\tb\nc\td\n", "other.tsv")), validation_fraction=0)
    train(other, tmp_path / "other")
    with pytest.raises(RunError, match="nothing was held out"):
        held_out_pairs(tmp_path / "other")
    with pytest.raises(RunError, match="not trained on the same corpus"):
        check_same_corpus(tmp_path / "run", tmp_path / "other")
    (tmp_path / "other" / "config.json").unlink()
    with pytest.raises(RunError, match=r"no config\.json"):
        held_out_pairs(tmp_path / "other")


def test_a_runs_pictures_are_drawn_into_its_folder(config, tmp_path):
    model = train(config, tmp_path / "run")
    drawn = draw_run(tmp_path / "run", model)
    names = ["curves.png", "error-rates.png", *(f"attention-{n}.png" for n in range(1, len(drawn) - 1))]
    assert [path.name for path in drawn] == names and len(drawn) > 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    model = train(dataclasses.replace(config, attention=None, validation_fraction=0), tmp_path / "other")
    assert [path.name for path in draw_run(tmp_path / "other", model)] == ["curves.png"]
