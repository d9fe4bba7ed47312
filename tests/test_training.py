import csv
import dataclasses
import json

import keras
import pytest

from pipelines import CorpusError
from seq2seq import cli
from seq2seq.training import PRESETS, Config, RunError, load_run, train


@pytest.fixture
def config(tsv):
    lines = "".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abcde" for b in "abcde")
    return Config(corpus=str(tsv(lines)), units=8, epochs=2, batch_size=8, validation_fraction=0.2)


def test_a_run_folder_holds_the_model_what_made_it_and_how_it_went(config, tmp_path):
    model = train(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "history.csv",
        "model.keras",
        "survey.json",
    ]
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved.pop("versions")["keras"] == keras.__version__
    assert saved == dataclasses.asdict(config)
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "accuracy", "perplexity", "val_loss", "val_accuracy", "val_perplexity"} < set(rows[0])
    assert int(model.optimizer.iterations) == 2 * 3  # 19 to 24 of the 25 pairs, in batches of 8
    again = load_run(tmp_path / "run")
    assert again.translate("ab", max_length=9) == model.translate("ab", max_length=9)


def test_the_vocabulary_is_of_the_training_side_only(tsv, tmp_path):
    corpus = tsv("".join(f"{c}\tx\n" for c in "abcdefghij"))
    model = train(Config(str(corpus), split="last", validation_fraction=0.2, units=4, epochs=1), tmp_path / "run")
    assert sorted(model.source_tokenizer.characters) == list("abcdefgh")


def test_a_corpus_too_small_to_hold_anything_out_is_trained_on_whole(tsv, tmp_path):
    train(Config(str(tsv("Go.\tVe.\n")), units=4, epochs=1), tmp_path / "run")
    assert "val_loss" not in (tmp_path / "run" / "history.csv").read_text()


def test_a_run_is_not_overwritten_unasked(config, tmp_path):
    run = tmp_path / "run"
    train(config, run)
    model = (run / "model.keras").read_bytes()
    with pytest.raises(RunError, match=r"run is not empty; choose another folder .* or say --overwrite"):
        train(config, run)
    with pytest.raises(CorpusError):
        train(dataclasses.replace(config, corpus="nowhere.tsv"), run, overwrite=True)
    assert (run / "model.keras").read_bytes() == model
    train(dataclasses.replace(config, epochs=1), run, overwrite=True)
    assert (run / "model.keras").read_bytes() != model


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_is_refused(tsv, tmp_path, content):
    with pytest.raises(CorpusError, match="no pairs to train on"):
        train(Config(str(tsv(content))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_the_tutorial_preset_is_the_tutorial():
    config = Config(corpus="spa-eng", **PRESETS["tutorial"])
    assert (config.units, config.batch_size, config.epochs, config.limit) == (256, 70, 40, 10_000)
    assert (config.optimizer, config.attention, config.split, config.validation_fraction) == (
        "rmsprop",
        None,
        "last",
        0.2,
    )


def test_the_help_of_the_command_line_tells_the_presets_as_they_are():
    default, tutorial = Config("x"), Config("x", **PRESETS["tutorial"])
    for text, config in zip(cli._PRESETS.split("tutorial:"), (default, tutorial), strict=True):
        for told in (f"{config.units} units", f"batches of {config.batch_size}", f"{config.epochs} epochs"):
            assert told in text
        assert config.optimizer in text.lower() and f"{config.validation_fraction:.0%}" in text


def test_the_same_seed_gives_the_same_start_and_order(config, tmp_path):
    models = [train(dataclasses.replace(config, seed=seed), tmp_path / f"{n}") for n, seed in enumerate((4, 4, 5))]
    sums = [sum(float(abs(weight.numpy()).sum()) for weight in model.weights) for model in models]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5) and sums[0] != pytest.approx(sums[2], rel=1e-5)


def test_what_was_read_is_reported_and_kept(tsv, tmp_path):
    corpus = tsv("".join(f"{c}{c}\txy\n" for c in "abcdefghij") + "no tab\n" + "a" * 30 + "\tx\n")
    options = {"on_bad_line": "skip", "max_length": 20, "min_frequency": 2, "max_vocabulary": 5}
    config = Config(str(corpus), validation_fraction=0, units=4, epochs=1, **options)
    counted, reports = [], []
    model = train(config, tmp_path / "run", progress=counted.append, report=reports.append)
    assert counted == [10]
    assert reports[0].dropped == {"wrong columns": 1, "too long": 1}
    assert model.source_tokenizer.characters == list("abcde")
    kept = json.loads((tmp_path / "run" / "survey.json").read_text())
    assert kept["pairs"] == 10 and kept["target"]["tokens"] == {"x": 10, "y": 10}


def test_weights_draw_from_the_training_side_only(tsv, tmp_path):
    large = tsv("".join(f"large {n}\tx\n" for n in range(200)), "large.tsv")
    small = tsv("".join(f"small {n}\ty\n" for n in range(20)), "small.tsv")
    config = Config((str(large), str(small)), weights=(1, 1), validation_fraction=0.2, units=4, epochs=1, batch_size=50)
    train(config, tmp_path / "run")
    tokens = json.loads((tmp_path / "run" / "survey.json").read_text())["target"]["tokens"]
    assert tokens["x"] == pytest.approx(160, abs=20) and tokens["y"] == pytest.approx(tokens["x"], rel=0.3)
    for other in ({"limit": 100}, {"split": "last"}):
        with pytest.raises(CorpusError, match="weights cannot be used"):
            train(dataclasses.replace(config, **other), tmp_path / "other")


def test_a_token_budget_and_ids_train_too(config, tmp_path):
    model = train(dataclasses.replace(config, batch_tokens=30, encoding="ids"), tmp_path / "run")
    with (tmp_path / "run" / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[1] < losses[0]
    assert 2 * 2 <= int(model.optimizer.iterations) <= 2 * 3  # 3 tokens to each of about 20 pairs, in batches of 30
