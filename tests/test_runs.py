import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import notices, read_history, save_run

from pipelines import CharTokenizer, CorpusError, OptionError, batch_pairs, read_pairs
from pipelines.tokenizers import TOKENIZERS
from pipelines.tokens import NORMAL_FORMS
from seq2seq import Seq2Seq, pictures
from seq2seq.building import build_model, prepare
from seq2seq.config import Config
from seq2seq.evaluation import evaluate
from seq2seq.layers import ATTENTIONS
from seq2seq.optimizers import make_optimizer, optimizers
from seq2seq.progress import best_epoch
from seq2seq.records import Record, RunError, read_record
from seq2seq.recurrence import CELLS
from seq2seq.runs import (
    average,
    draw_run,
    held_out_pairs,
    kept_epochs,
    load_run,
    probe,
    sample,
    trained_on,
)
from seq2seq.surveying import survey_corpus, take_vocabularies
from seq2seq.training import train


def test_a_run_is_loaded_and_tells_what_it_is(trained):
    again = load_run(trained.folder)
    assert again.translate("ab") == trained.model.translate("ab")
    assert repr(again) == repr(trained.model)
    assert repr(again).startswith("Seq2Seq(CharTokenizer(9 tokens: ") and ", Encoder, Decoder, " in repr(again)


def test_a_loaded_run_is_trained_on_by_fit_alone_and_at_another_rate(copied):
    folder, change = copied
    change(optimizer="sgd", clip_norm=0.5)
    config = read_record(folder).config
    model = load_run(folder)
    assert type(model.optimizer).__name__ == "SGD" and model.optimizer.global_clipnorm == 0.5
    assert float(model.optimizer.learning_rate) == np.float32(config.learning_rate)
    model.optimizer.learning_rate = 1.0
    batches = batch_pairs(read_pairs(config.corpus), model.source_tokenizer, model.target_tokenizer, 5, seed=0)
    losses = model.fit(batches, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):
        keras.models.load_model(folder / "model.keras").fit(batches)


def answers(model):
    """What a model's tokenizers make of texts, and how likely it finds these as translations."""
    source, target = model.source_tokenizer, model.target_tokenizer
    ids = source.tokenize(["ab", "ced"]), target.tokenize(["AB", "CE"], start_end=True)
    texts = [side.detokenize(each).numpy() for side, each in zip((source, target), ids, strict=True)]
    return [[text.decode() for text in each] for each in texts], model.log_likelihood(*ids).numpy().tolist()


LOADED = f"""
import json, sys, numpy, seq2seq
from pathlib import Path
{inspect.getsource(answers)}
for folder in map(Path, sys.argv[1:]):
    texts, likelihoods = json.loads((folder / "answers.json").read_text())
    found, likely = answers(seq2seq.load_run(folder))
    assert found == texts, folder
    numpy.testing.assert_allclose(likely, likelihoods, rtol=1e-5, err_msg=folder)
    optimizer = seq2seq.model.keras.models.load_model(folder / "compiled.keras").optimizer
    kind = json.loads((folder / "config.json").read_text())["options"]["optimizer"]
    assert type(getattr(optimizer, "inner_optimizer", optimizer)).__name__.lower() == kind
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
    "input_feeding": [False, False, True, False, False, False],
    "dropout": [0.0, 0.2],
    "label_smoothing": [0.0, 0.1],
    "encoding": ["ids", "one_hot"],
    "teacher_forcing": [(1.0,), (0.5,), (1.0, 0.5)],
    "schedule": ["cosine", "constant", "inverse_sqrt", "plateau"],
    "warmup": [3, 0, 3, 0],
    "average": [1, 2],
    "clip_norm": [1.0, None],
    "precision": ["float32", "bfloat16", "float16"],
}


def made(config):
    """The model of a configuration, which has learned nothing."""
    _, tokenizers = prepare(config)
    found = survey_corpus(config, tokenizers, None, print)
    take_vocabularies(config, tokenizers, found, print)
    return build_model(config, tokenizers, steps=10)


@pytest.mark.slow
def test_whatever_a_run_was_trained_with_it_loads_where_only_this_library_was_imported(config, tmp_path):
    for field in dataclasses.fields(Config):
        if values := field.metadata.get("choices"):
            assert set(VALUES.get(field.name, values)) == set(values)
    kinds = list(optimizers())
    folders = [tmp_path / f"{number}" for number in range(max(map(len, VALUES.values())))]
    for number, folder in enumerate(folders):
        options = {name: values[number % len(values)] for name, values in VALUES.items()}
        options["optimizer"] = kinds[number % len(kinds)]
        saved = dataclasses.replace(config, monitor="val_loss", **options)
        model = made(saved)
        assert model.dtype_policy.name.removeprefix("mixed_") == options["precision"]
        folder.mkdir()
        model.save(folder / "model.keras")
        (folder / "config.json").write_text(json.dumps({"options": dataclasses.asdict(saved)}))
        (folder / "answers.json").write_text(json.dumps(answers(model)))
        model.compile(make_optimizer(saved, steps=10))
        tokenizers = model.source_tokenizer, model.target_tokenizer
        batches = batch_pairs(read_pairs(config.corpus), *tokenizers, 5, encoding=options["encoding"], seed=0)
        assert np.isfinite(model.train_step(next(iter(batches)))["loss"])
        model.save(folder / "compiled.keras")
    done = subprocess.run([sys.executable, "-c", LOADED, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kept_epochs_are_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "epochs").mkdir()
    for number in (9999, 10_000, 3):
        (tmp_path / "epochs" / f"epoch-{number:04}.keras").touch()
    assert list(kept_epochs(tmp_path)) == [3, 9999, 10_000]


def test_the_mean_of_a_runs_last_epochs_is_a_run(config, tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "mean"
    train(dataclasses.replace(config, epochs=4, keep_epochs=3, learning_rate=0.05, monitor="val_loss"), run)
    model = average(run, out, last=2)
    each = [keras.models.load_model(path) for path in list(kept_epochs(run).values())[1:]]
    for weight, *those in zip(*(one.trainable_variables for one in (model, *each)), strict=True):
        np.testing.assert_allclose(weight, np.mean([np.array(one) for one in those], axis=0), atol=1e-7)
    weights = zip(model.get_weights(), each[1].get_weights(), strict=True)
    assert any(np.abs(one - other).max() > 1e-3 for one, other in weights)
    np.testing.assert_array_equal(model.length_ratios, each[1].length_ratios)
    record = read_record(out).content
    assert record.pop("averaged") == {"run": str(run), "epochs": [3, 4]} and record == read_record(run).content
    assert list(held_out_pairs(out, model).as_numpy_iterator()) == list(held_out_pairs(run, model).as_numpy_iterator())
    texts = [text.decode() for text in model.translate(list(probe(out))).numpy()]
    assert texts == list(probe(out).values())  # the mean's own, which an export must repeat
    with monkeypatch.context() as patched:
        marked = []
        patched.setattr(pictures, "draw_curves", lambda history, path, best: marked.append(best) or path.touch())
        draw_run(run, model)
        draw_run(out, model)
        assert marked == [4, None]  # no epoch of a mean's history is the one that was kept
    assert draw_run(out, model)[0].is_file()
    assert list(average(run, tmp_path / "all").source_tokenizer.tokens) == list(model.source_tokenizer.tokens)
    assert read_record(tmp_path / "all").content["averaged"]["epochs"] == [2, 3, 4]
    with pytest.raises(OptionError, match=r"last=4: .*run has kept the models of 3 epochs; train with --keep-epochs 4"):
        average(run, tmp_path / "other", last=4)
    with pytest.raises(OptionError, match="has kept the models of 0 epochs; train with --keep-epochs 5"):
        average(out, tmp_path / "other")
    with pytest.raises(RunError, match="mean already exists; choose another folder"):
        average(run, out)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Seq2Seq, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        average(run, tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["all", "mean", "pairs.tsv", "run"]


def test_what_is_no_run_is_refused_by_name(config, tmp_path):
    with pytest.raises(RunError, match="none: no such run folder"):
        load_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"holds no model\.keras"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"options": {}, "plan": {}}')
    with pytest.raises(RunError, match=r"holds no model\.keras; its training has not finished an epoch"):
        load_run(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(RunError, match=r"it is a SavedModel, which tf\.saved_model\.load reads"):
        load_run(tmp_path)
    (tmp_path / "vocabulary.json").touch()
    with pytest.raises(RunError, match="it is an export, which only `seq2seq translate` can read"):
        load_run(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted" / "disk")
    for name in ("file", "link"):
        with pytest.raises(RunError, match=f"{name} is a file or a broken link"):
            train(config, tmp_path / name / "run")


def test_a_damaged_model_file_is_refused_by_name(copied):
    folder, _ = copied
    path = folder / "model.keras"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model\.keras: damaged"):
        load_run(folder)


def test_a_model_of_another_kind_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    save_run(model, tmp_path)
    with pytest.raises(RunError, match="a Sequential, not a Seq2Seq"):
        load_run(tmp_path)


def test_what_a_run_held_out_is_read_again(trained, copied):
    model, (folder, change) = trained.model, copied
    held = held_out(folder, model)
    assert 1 <= len(set(held)) <= 6
    counted = json.loads((folder / "survey.json").read_text())["pairs"]
    assert counted + len(held) == 25
    change(validation_fraction=0)
    with pytest.raises(RunError, match="nothing was held out"):
        held_out_pairs(folder, model)
    (folder / "config.json").unlink()
    with pytest.raises(OptionError, match=r"no config\.json"):
        held_out_pairs(folder, model)


def held_out(folder, model):
    return [source.decode() for source, _ in held_out_pairs(folder, model).as_numpy_iterator()]


def test_what_was_held_out_of_a_corpus_that_has_changed_is_not_known(trained, copied):
    model, (folder, change) = trained.model, copied
    change(split="last")
    corpus = folder.parent / "pairs.tsv"
    lines = corpus.read_text().splitlines(keepends=True)
    assert held_out(folder, model) == [line.split("\t")[0] for line in lines[20:]]
    corpus.write_text("".join(reversed(lines)))
    changed = re.escape(f"{corpus}: changed since the run was trained on")
    with pytest.raises(CorpusError, match=changed):
        held_out_pairs(folder, model)
    said = []
    assert [path.name for path in draw_run(folder, model, said.append)] == ["curves.png"]
    assert len(said) == 1 and re.search(changed + ".*; only the curves are drawn", said[0])
    corpus.unlink()
    with pytest.raises(CorpusError, match=re.escape(f"{corpus}: No such file") + "[^;]*$"):
        held_out_pairs(folder, model)


def test_a_relative_corpus_is_found_from_another_directory_and_after_a_move_if_it_is_the_same(
    trained, tmp_path, monkeypatch
):
    old, new, elsewhere = (tmp_path / name for name in ("old", "new", "elsewhere"))
    elsewhere.mkdir()
    shutil.copytree(trained.folder.parent, old)
    (old / "pairs.tsv").rename(old / "toy.tsv")
    record = json.loads((old / "run" / "config.json").read_text()) | {"directory": str(old)}
    record["options"]["corpus"] = "toy.tsv"
    (old / "run" / "config.json").write_text(json.dumps(record))
    monkeypatch.chdir(old)
    model, expected = trained.model, held_out("run", trained.model)
    (elsewhere / "toy.tsv").write_text("a\tb\n")
    monkeypatch.chdir(elsewhere)
    assert held_out(old / "run", model) == expected
    assert read_record(old / "run").find_corpus() == str(old / "toy.tsv")
    old.rename(new)
    where = re.escape(f"(looked up from {elsewhere}, then from {old}, where it was trained)")
    with pytest.raises(CorpusError, match=rf"toy.tsv: changed since .*; .*old/toy.tsv: No such file or folder {where}"):
        held_out_pairs(new / "run", model)
    monkeypatch.chdir(new)
    assert held_out("run", model) == expected


def test_what_was_held_out_apart_is_measured_whole_and_found_again(config, tmp_path, tsv, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    Path("dev.tsv").write_text("x\tab\tAB\nx\tfghijk\tFGHIJK\nx\tno column\nx\tab\tAB\n")
    lines = Path(config.corpus).read_text().splitlines()
    corpus = str(tsv("".join(f"x\t{line}\n" for line in lines), "three.tsv"))
    options = {"corpus": corpus, "columns": (2, 3), "on_bad_line": "skip", "limit": 20, "drop_duplicates": True}
    options |= {"validation": "dev.tsv", "validation_fraction": 0.0, "max_length": 5, "monitor": "val_exact_match"}
    config, said = dataclasses.replace(config, **options), []
    model = train(config, "run", say=said.append)
    *left_out, leaks = notices(said)
    assert [text.partition("\n")[0] for text in left_out] == ["1 of 4 pairs left out"]
    assert leaks == "2 of 3 held-out pairs have a source that is also in the training set"
    assert json.loads(Path("run/survey.json").read_text())["pairs"] == 20
    held = [("ab", "AB"), ("fghijk", "FGHIJK"), ("ab", "AB")]
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "old" / "run"
    pairs = [tuple(side.decode() for side in pair) for pair in held_out_pairs(run, model).as_numpy_iterator()]
    record = read_record(run)
    assert pairs == held and record.may_have_learned
    assert set(probe(run)) == {"ab", "fghijk"}
    rows = read_history(run)
    kept = rows[best_epoch(rows, "val_exact_match") - 1]
    found = evaluate(load_run(run), held_out_pairs(run, model))
    assert float(kept["val_perplexity"]) == pytest.approx(found.perplexity, rel=1e-4)
    assert trained_on(record, held_out_pairs(run, model), model.source_tokenizer).tolist() == [True, False, True]
    os.unlink(corpus)
    assert len(draw_run(run, model)) > 2  # of what was held out, for which nobody needs the other corpus
    (tmp_path / "old" / "dev.tsv").write_text("x\tab\tAC\n")
    with pytest.raises(CorpusError, match=r"dev\.tsv: changed since the run was validated on"):
        held_out_pairs(run, model)


def test_500_sources_are_a_sample_the_same_each_time_with_all_their_references():
    sources = [f"{number % 600}" for number in range(1200)]
    sources += [f"{number}" for number in range(600)]
    # In small letters, the third reference of each source is the first again.
    pairs = tf.data.Dataset.from_tensor_slices((sources, ["A"] * 600 + ["B"] * 600 + ["a"] * 600))
    one, again = (sample(pairs, CharTokenizer(lowercase=True)) for _ in range(2))
    assert one == again and len(one) == 500 and all(references == ["a", "b"] for references in one.values())


def test_what_a_run_and_those_it_started_from_were_trained_on_is_known(copied, tsv):
    folder, change = copied
    change(validation_fraction=0.0)
    old, said = read_record(folder).config, []
    options = {"split": "last", "validation_fraction": 0.5, "warm_start": str(folder), "epochs": 1}
    config = dataclasses.replace(old, corpus=str(tsv("eb\tEB\nee\tEE\nab\tAB\n", "new.tsv")), **options)
    with pytest.raises(OptionError, match=r"warm_start=.*: the new run would replace it; choose another --out"):
        train(config, folder, overwrite=True)
    train(config, folder.parent / "further", say=said.append)
    record = read_record(folder.parent / "further")
    assert [each.config for each in record.lineage()] == [record.config, old] and record.may_have_learned
    tokenizer, asked = CharTokenizer(lowercase=True), read_pairs(tsv("AB\tx\nzz\tx\nEB\tx\n", "asked.tsv"))
    alone = Record({name: value for name, value in record.content.items() if name != "from"})
    assert trained_on(alone, asked, tokenizer).tolist() == [False, False, True]
    assert trained_on(record, asked, tokenizer).tolist() == [True, False, True]
    assert said[0] == f"1 of 1 held-out pairs have a source that {folder} was trained on"
    os.unlink(old.corpus)
    with pytest.raises(CorpusError, match="No such file"):
        trained_on(record, asked, tokenizer)


def test_to_know_what_a_run_was_trained_on_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.utils.get_file", pytest.fail)
    record, asked = Record({"options": {"corpus": "spa-eng"}}), tf.data.Dataset.from_tensors(("Go.", "Ve."))
    with pytest.raises(CorpusError, match="spa-eng is not on this machine; `seq2seq inspect spa-eng` downloads it"):
        trained_on(record, asked, CharTokenizer())


def test_a_runs_pictures_are_drawn_into_its_folder(trained, copied, monkeypatch):
    model, (folder, change) = trained.model, copied
    said = []
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "without_font", lambda alignment: ["क"])
        drawn = draw_run(folder, model, said.append)
    assert said == ["no installed font has क, so attention pictures show boxes; Noto Sans has most scripts"]
    names = ["curves.png", "error-rates.png", *(f"attention-{n}.png" for n in range(1, len(drawn) - 1))]
    assert [path.name for path in drawn] == names and len(drawn) > 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # as if the extra `evaluation` were missing
    assert [path.name for path in draw_run(folder, model)] == [name for name in names if name != "error-rates.png"]
    change(validation_fraction=0)
    assert [path.name for path in draw_run(folder, model)] == ["curves.png"]
