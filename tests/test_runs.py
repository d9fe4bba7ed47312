import dataclasses
import json

import keras
import pytest

from seq2seq import Seq2Seq
from seq2seq.runs import RunError, check_same_corpus, draw_run, held_out_pairs, load_run
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
