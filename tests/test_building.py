import dataclasses
import json

import keras
import numpy as np
import pytest
from conftest import QUICK, make_run
from test_runs import made

from pipelines import CharTokenizer, OptionError, checksums
from seq2seq.building import build_model, prepare
from seq2seq.config import Config
from seq2seq.records import RunError
from seq2seq.runs import load_run
from seq2seq.training import train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstmm"}, "cell='lstmm'.*did you mean 'lstm'"),
        ({"target_tokenizer": "words"}, "target_tokenizer='words': expected 'char'"),
        ({"target_tokenizer": "x"}, "target_tokenizer='x': expected 'char'"),  # only a mark separates
        ({"optimizer": "adamm"}, "optimizer='adamm'.*did you mean 'adam'"),
        ({"tied": True}, "tied=True"),
        ({"decoder": "nowhere:Decoder"}, "no module 'nowhere'"),
        ({"decoder": "/there/my.py:Decoder"}, "expected module:Class, the module without .py"),
        ({"encoder": "json:Encoder"}, "json has no class 'Encoder'"),
        ({"units": 7, "bidirectional": True}, "units=7"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_read(config, options, message):
    with pytest.raises(OptionError, match=message):
        prepare(dataclasses.replace(config, **options))


def test_tokenizers_and_their_options_come_back_with_the_model(config, tmp_path):
    options = {"source_tokenizer": "byte", "target_tokenizer": "subword", "lowercase": True, "normal_form": "NFKC"}
    options |= {"epochs": 1, "validation_fraction": 0}
    model = train(dataclasses.replace(config, **options), tmp_path / "run")
    again = load_run(tmp_path / "run")
    assert again.source_tokenizer.get_config() == model.source_tokenizer.get_config()
    assert again.target_tokenizer.get_config() == model.target_tokenizer.get_config()
    assert again.source_tokenizer.lowercase and again.source_tokenizer.normal_form == "NFKC"
    assert again.translate("AB") == model.translate("ab")


def halves(model):
    return [type(half).__name__ for half in (model.encoder, model.decoder)]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (
            {"architecture": "transformer", "cell": "lstm", "attention": None, "warmup": 9},
            ["TransformerEncoder", "TransformerDecoder"],
        ),
        (
            {"encoder": "transformer", "cell": "lstm", "shared_vocabulary": True},
            ["TransformerEncoder", "Decoder"],
        ),
    ],
    ids=str,
)
def test_both_halves_may_be_of_either_architecture(config, tmp_path, options, kinds):
    said = []
    corpus = tmp_path / "same.tsv"
    corpus.write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcde" for b in "abcde"))
    usual = {"corpus": str(corpus), "heads": 2, "epochs": 1, "copy": True, "validation_fraction": 0}
    train(dataclasses.replace(config, **usual | options), tmp_path / "run", say=said.append)
    model = load_run(tmp_path / "run")
    assert halves(model) == kinds
    assert "copying: 5 source tokens can be copied; there are 5 target tokens" in said
    assert any("are warm-up: lower --warmup (9)" in text for text in said) == ("warmup" in options)
    if options.get("shared_vocabulary"):
        assert model.source_tokenizer.vocabulary == model.target_tokenizer.vocabulary


def test_a_transformer_may_decode_what_a_recurrent_encoder_reads(config):
    _, tokenizers = prepare(config)
    model = build_model(dataclasses.replace(config, decoder="transformer", heads=2), tokenizers, steps=1)
    assert halves(model) == ["Encoder", "TransformerDecoder"]


def test_a_model_is_made_with_the_options_of_its_training(config):
    options = {"label_smoothing": 0.1, "teacher_forcing": (1.0, 0.5), "precision": "bfloat16"}
    options |= {"source_tokenizer": ";", "lowercase": True, "normal_form": "NFKC"}
    config = dataclasses.replace(config, **options)
    _, tokenizers = prepare(config)
    model = build_model(config, tokenizers, steps=10)
    assert (model.label_smoothing, model.dtype_policy.name) == (0.1, "mixed_bfloat16")
    assert [float(model.teacher_forcing(step)) for step in (0, 5, 10)] == [1.0, 0.75, 0.5]
    for tokenizer in tokenizers:
        assert tokenizer.lowercase and tokenizer.normal_form == "NFKC"


def test_what_cannot_be_started_from_is_refused(config, tmp_path):
    options = {**QUICK, "units": 4, "attention": "dot", "embedding": None, "input_feeding": True}
    make_run(tmp_path / "old", config.corpus, **options)
    warm = Config(config.corpus, warm_start=str(tmp_path / "old"), **options)
    with pytest.raises(OptionError, match="input_feeding=True: a warm start then needs an embedding"):
        prepare(warm)
    record = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(record | {"plan": {}}))
    with pytest.raises(RunError, match="old holds part of a run"):
        prepare(warm)


class Begun(keras.callbacks.Callback):
    """A callback that ends training before its first step, and keeps the model."""

    def on_train_begin(self, logs=None):
        raise InterruptedError


@pytest.mark.parametrize("options", [{}, {"embedding": 6, "tied": True}])
def test_a_warm_start_keeps_what_was_learned_of_old_tokens_and_knows_new_ones(trained, tmp_path, tsv, options):
    config = dataclasses.replace(trained.config, validation_fraction=0.0, **options)
    folder, old = trained.folder, trained.model
    if options:
        folder, old = tmp_path / "old", made(config)
        folder.mkdir()
        old.save(folder / "model.keras")
        record = {"options": dataclasses.asdict(config), "checksums": checksums(config.corpus)}
        (folder / "config.json").write_text(json.dumps(record))
    new = str(tsv("".join(f"{a}{b}\t{a.upper()}{b}\n" for a in "abxy" for b in "xyz") + "€a\t€A\n", "new.tsv"))
    said, still = [], {"corpus": new, "learning_rate": 0.0, "warm_start": str(folder), "epochs": 1}
    if options:
        begun = Begun()
        with pytest.raises(InterruptedError):
            train(dataclasses.replace(config, **still), tmp_path / "warm", say=said.append, callbacks=[begun])
        warm = begun.model
    else:
        warm = train(dataclasses.replace(config, **still), tmp_path / "warm", say=said.append)
    for side, tokenizer in (("source", warm.source_tokenizer), ("target", warm.target_tokenizer)):
        known = getattr(old, f"{side}_tokenizer").tokens
        assert tokenizer.tokens[: len(known)] == known and set("xyz") < set(tokenizer.tokens)
    assert said[0] == "source: 4 new tokens" and said[1].startswith("target: 6 new tokens")
    texts = ["ab", "ce", "dd"]
    one, other = (model.attention(texts, texts)[1].weights for model in (warm, old))
    np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(OptionError, match=r"units=4: .*, the run to start from, has 8"):
        prepare(dataclasses.replace(config, units=4, **still))


@pytest.mark.slow
def test_a_run_of_several_source_columns_and_one_that_starts_from_it(tsv, tmp_path):
    corpus = tsv("lemma\tform\tfeatures\n" + "".join(f"{a}\t{a.upper()}\tV;UP\n{a}\t{a}\t\n" for a in "abcdef"))
    options = {"columns": ("lemma", "features", "form"), "source_tokenizer": "char,;", "validation_fraction": 0}
    options |= {**QUICK, "units": 4, "epochs": 1}
    model = train(Config(str(corpus), **options), tmp_path / "run")
    source = model.source_tokenizer
    assert source.column_names == ("lemma", "features") and source.vocabulary[-3:] == ["[UNK]", "UP", "V"]
    assert set(json.loads((tmp_path / "run" / "probe.json").read_text())) >= {"a\tV;UP", "a\t"}
    more = tsv("az\tzaz\tV;NEW\n", "more.tsv")
    warm = {"columns": (1, 3, 2), "warm_start": str(tmp_path / "run"), "learning_rate": 0.0}
    warmed = train(Config(str(more), **options | warm), tmp_path / "warm")
    assert warmed.source_tokenizer.vocabulary == [*source.vocabulary, "z", "NEW"]
    ids = source.tokenize(["ax\tV;DOWN;UP"])
    assert warmed.source_tokenizer.tokenize(["ax\tV;DOWN;UP"]).numpy().tolist() == ids.numpy().tolist()
    np.testing.assert_allclose(warmed.encoder(ids).memory, model.encoder(ids).memory, atol=1e-6)
    with pytest.raises(
        OptionError, match=r"columns=\(1, 2\): .*run, the run to start from, has 2 of the source \(lemma, feat"
    ):
        prepare(Config(str(more), **options | warm | {"columns": (1, 2)}))
    with pytest.raises(
        OptionError, match="source_tokenizer='char,;': 2 names, but the columns are source; expected one"
    ):
        prepare(Config(str(more), **options | {"columns": (1, 2)}))


def test_one_vocabulary_cannot_be_of_several_source_columns(tsv):
    config = Config(str(tsv("gehen\tV;PST\tging\n")), columns=(1, 2, 3), shared_vocabulary=True)
    with pytest.raises(OptionError, match="shared_vocabulary=True: the source has several columns"):
        prepare(config)


def test_a_model_too_large_for_memory_is_said_to_be(config):
    config = dataclasses.replace(config, units=2**31 - 2, attention=None)
    with pytest.raises(MemoryError, match="out of memory for a model of this size; lower --units"):
        build_model(config, [CharTokenizer("ab"), CharTokenizer("AB")], steps=1)
