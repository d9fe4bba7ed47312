import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import keras
import pytest

from pipelines import CorpusError, read_pairs
from seq2seq import Seq2Seq
from seq2seq.runs import RunError, configuration, draw_run, find_corpus, held_out_pairs, load_run, trained_on
from seq2seq.training import train


def test_a_run_is_loaded_and_tells_what_it_is(config, tmp_path):
    model = train(config, tmp_path / "run")
    again = Seq2Seq.from_run(tmp_path / "run")
    assert again.translate("ab") == model.translate("ab")
    assert repr(again) == repr(model)
    assert repr(again).startswith("Seq2Seq(CharTokenizer(9 tokens: ") and ", Encoder, Decoder, " in repr(again)


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
    model = train(dataclasses.replace(config, epochs=1), tmp_path / "run")
    held = {source for source, _ in held_out_pairs(tmp_path / "run", model).as_numpy_iterator()}
    assert 1 <= len(held) <= 6
    counted = json.loads((tmp_path / "run" / "survey.json").read_text())["pairs"]
    assert counted + len(held) == 25
    other = dataclasses.replace(config, epochs=1, corpus=str(tsv("a\tb\nc\td\n", "other.tsv")), validation_fraction=0)
    train(other, tmp_path / "other")
    with pytest.raises(RunError, match="nothing was held out"):
        held_out_pairs(tmp_path / "other", model)
    (tmp_path / "other" / "config.json").unlink()
    with pytest.raises(RunError, match=r"no config\.json"):
        held_out_pairs(tmp_path / "other", model)


def held_out(folder, model):
    return [source.decode() for source, _ in held_out_pairs(folder, model).as_numpy_iterator()]


def test_what_was_held_out_of_a_corpus_that_has_changed_is_not_known(config, tmp_path):
    config = dataclasses.replace(config, epochs=1, split="last")
    model = train(config, tmp_path / "run")
    corpus = Path(config.corpus)
    lines = corpus.read_text().splitlines(keepends=True)
    assert held_out(tmp_path / "run", model) == [line.split("\t")[0] for line in lines[20:]]
    corpus.write_text("".join(reversed(lines)))
    changed = re.escape(f"{corpus}: no longer what that run was trained on")
    with pytest.raises(CorpusError, match=changed):
        held_out_pairs(tmp_path / "run", model)
    said = []
    assert [path.name for path in draw_run(tmp_path / "run", model, said.append)] == ["curves.png"]
    assert len(said) == 1 and re.search(changed + ".*; only the curves are drawn", said[0])
    corpus.unlink()
    with pytest.raises(CorpusError, match=re.escape(f"{corpus}: No such file") + "[^;]*$"):
        held_out_pairs(tmp_path / "run", model)


def test_a_relative_corpus_is_found_from_another_directory_and_after_a_move_if_it_is_the_same(
    config, tmp_path, monkeypatch
):
    old, new, elsewhere = (tmp_path / name for name in ("old", "new", "elsewhere"))
    old.mkdir(), elsewhere.mkdir()
    shutil.copy(config.corpus, old / "toy.tsv")
    monkeypatch.chdir(old)
    model = train(dataclasses.replace(config, epochs=1, corpus="toy.tsv"), "run")
    expected = held_out("run", model)
    (elsewhere / "toy.tsv").write_text("a\tb\n")
    monkeypatch.chdir(elsewhere)
    assert held_out(old / "run", model) == expected
    assert find_corpus(configuration(old / "run")[1]) == str(old / "toy.tsv")
    old.rename(new)
    where = re.escape(f"(looked up from {elsewhere}, then from {old}, where it was trained)")
    with pytest.raises(
        CorpusError, match=rf"toy.tsv: no longer what .*; .*old/toy.tsv: No such file or folder {where}"
    ):
        held_out_pairs(new / "run", model)
    monkeypatch.chdir(new)
    assert held_out("run", model) == expected


def test_parts_of_a_corpus_are_found_by_what_they_hold(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    for side in (0, 1):
        texts = [line.split("\t")[side] for line in Path(config.corpus).read_text().splitlines()]
        Path(f"toy.{'ab'[side]}").write_text("".join(f"{text}\n" for text in texts))
    shutil.copy(config.corpus, "parts/1.tsv")
    corpus = ("toy.a+toy.b", "parts", "phrasebook", config.corpus)
    train(dataclasses.replace(config, epochs=1, limit=20, corpus=corpus), "run")
    record = configuration("run")[1]
    assert find_corpus(record) == corpus
    monkeypatch.chdir("parts")
    found = (f"{tmp_path}/toy.a+{tmp_path}/toy.b", f"{tmp_path}/parts", "phrasebook", config.corpus)
    assert find_corpus(record) == found
    record["checksums"] = {f"elsewhere/{path}": digest for path, digest in record["checksums"].items()}
    assert find_corpus(record) == found  # as where the package has been installed anew
    Path("2.tsv").write_text("one\tmore\n")
    with pytest.raises(CorpusError, match=re.escape(f"{tmp_path}/parts/2.tsv: no longer what")):
        find_corpus(record)


def test_what_a_run_and_those_it_started_from_were_trained_on_is_known(config, tmp_path, tsv):
    config = dataclasses.replace(config, epochs=1, lowercase=True, validation_fraction=0)
    model = train(config, tmp_path / "first")
    new = dataclasses.replace(config, corpus=str(tsv("eb\tEB\nee\tEE\nab\tAB\n", "new.tsv")), split="last")
    said = []
    warm = dataclasses.replace(new, warm_start=str(tmp_path / "first"), validation_fraction=0.5)
    train(warm, tmp_path / "second", say=said.append)
    assert said[0] == f"1 of 1 held-out pairs have a source that {tmp_path / 'first'} was trained on"
    # In the place of the one that it starts from: what that was trained on is still known.
    train(dataclasses.replace(warm, corpus=config.corpus), tmp_path / "first", overwrite=True)
    asked = read_pairs(tsv("AB\tx\nzz\tx\nEB\tx\n", "asked.tsv"))
    for run, learned in (("first", [True, False, True]), ("second", [True, False, True])):
        record = configuration(tmp_path / run)[1]
        assert trained_on(record, asked, model.source_tokenizer).tolist() == learned
    without = {name: value for name, value in record.items() if name != "from"}
    assert trained_on(without, asked, model.source_tokenizer).tolist() == [False, False, True]
    os.unlink(config.corpus)
    with pytest.raises(CorpusError, match="No such file"):
        trained_on(record, asked, model.source_tokenizer)
    said.clear()
    train(warm, tmp_path / "third", say=said.append)
    assert re.search("cannot tell whether it was trained on what is held out here: .*No such file", said[0])


def test_a_runs_pictures_are_drawn_into_its_folder(config, tmp_path):
    model = train(config, tmp_path / "run")
    drawn = draw_run(tmp_path / "run", model)
    names = ["curves.png", "error-rates.png", *(f"attention-{n}.png" for n in range(1, len(drawn) - 1))]
    assert [path.name for path in drawn] == names and len(drawn) > 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    model = train(dataclasses.replace(config, attention=None, validation_fraction=0), tmp_path / "other")
    assert [path.name for path in draw_run(tmp_path / "other", model)] == ["curves.png"]
