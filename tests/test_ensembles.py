import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from command_line import in_process as seq2seq
from command_line import load_runs
from conftest import QUICK, WORDS, ids_of, save_run

from pipelines import CharTokenizer, LetterTokenizer, OptionError
from pipelines.tokens import END, START
from seq2seq import BeamSearch, Seq2Seq, TransformerDecoder, TransformerEncoder, ensemble, load_run
from seq2seq.ensembles import EnsembleDecoder
from seq2seq.records import RunError


def decided(model):
    """The model with larger weights, so that it prefers some tokens to others, as a trained one does."""
    for weight in model.trainable_variables:
        weight.assign(4 * weight)
    return model


@pytest.fixture
def members(tokenizers):
    """Two models with nothing in common but their tokenizers."""
    one = Seq2Seq(*tokenizers, units=8, attention="general")
    other = Seq2Seq(*tokenizers, units=12, cell="gru", layers=2, embedding=6, attention="dot", copy=True, tied=True)
    return decided(one), decided(other)


def mean_probabilities(models, source, target):
    """By hand, of float64: `[B, T, V]`."""
    logits = [model((source, target)).numpy().astype("float64") for model in models]
    powers = [np.exp(each - each.max(axis=-1, keepdims=True)) for each in logits]
    return np.mean([each / each.sum(axis=-1, keepdims=True) for each in powers], axis=0)


def test_each_member_has_a_name(members):
    with pytest.raises(OptionError, match="names: expected 2, one for each model, not 1"):
        ensemble(members, ["one"])


def test_it_predicts_scores_and_decodes_by_the_mean_of_the_members_probabilities(members):
    model = ensemble(members)
    source = model.source_tokenizer.tokenize(["sol", "árbol"])
    target = model.target_tokenizer.tokenize(["SOL", "MAR"], start_end=True)
    mean = mean_probabilities(members, source, target[:, :-1])
    np.testing.assert_allclose(tf.exp(model((source, target[:, :-1]))), mean, rtol=1e-4, atol=1e-7)

    nats = np.log(np.take_along_axis(mean, target.numpy()[:, 1:, None], axis=2)).sum(axis=(1, 2))
    np.testing.assert_allclose(model.score(["sol", "árbol"], ["SOL", "MAR"]), nats, rtol=1e-4)

    def greedy(models):
        ids = np.full([2, 1], START, np.int32)
        for _ in range(6):
            best = END + mean_probabilities(models, source, ids)[:, -1, END:].argmax(axis=1)
            ids = np.concatenate([ids, best[:, None].astype(np.int32)], axis=1)
        return model.target_tokenizer.detokenize(ids).numpy().tolist()

    assert model.translate(["sol", "árbol"], max_length=6).numpy().tolist() == greedy(members)
    assert any(greedy([member]) != greedy(members) for member in members)


def test_one_model_is_itself_and_several_equal_ones_decode_as_one(model):
    assert ensemble([decided(model)]) is model
    again = Seq2Seq.from_config(model.get_config())
    again.set_weights(model.get_weights())
    both = ensemble([model, again])
    found, right = (
        each.translate(WORDS, BeamSearch(2, n_best=2), details=True, max_length=8) for each in (both, model)
    )
    np.testing.assert_array_equal(found.texts, right.texts)
    np.testing.assert_allclose(found.scores, right.scores, rtol=1e-3)


def test_it_looks_where_its_members_look_on_average(members, tokenizers):
    of_each = [model.attention(["sol"], ["SOL"])[0].weights for model in members]
    (found,) = ensemble(members).attention(["sol"], ["SOL"])
    np.testing.assert_allclose(found.weights, np.mean(of_each, axis=0), atol=1e-5)
    blind = ensemble([members[0], Seq2Seq(*tokenizers, units=8)])
    assert not blind.has_attention
    with pytest.raises(OptionError, match="EnsembleDecoder has no attention weights"):
        blind.attention(["sol"])


def test_it_is_saved_and_loaded_with_the_lengths_that_its_members_have_seen(members, tmp_path):
    members[0].length_ratios.assign([2, 4, 10])
    members[1].length_ratios.assign([3, 3, 4])
    model = ensemble(members)
    save_run(model, tmp_path)
    again = load_run(tmp_path)
    np.testing.assert_array_equal(again.length_ratios.numpy(), [5, 7, 14])
    np.testing.assert_allclose(again.score(WORDS, WORDS[::-1]), model.score(WORDS, WORDS[::-1]), rtol=1e-5)


def test_a_member_may_be_of_mixed_precision(members, tokenizers):
    half = decided(Seq2Seq(*tokenizers, units=8, attention="dot", dtype="mixed_bfloat16"))
    model = ensemble([members[1], half])
    assert model.decoder.dtype_policy.name == "mixed_bfloat16"
    source, target = model.source_tokenizer.tokenize(WORDS), model.target_tokenizer.tokenize(WORDS, start_end=True)
    mean = mean_probabilities([members[1], half], source, target)
    np.testing.assert_allclose(tf.exp(model((source, target))), mean, atol=0.02)
    with pytest.raises(RunError, match="a model of mixed_bfloat16 cannot be exported to ONNX"):
        model.export("onnx", format="onnx")


def test_members_leave_numbers_out_in_training_only(tokenizers):
    model = ensemble([Seq2Seq(*tokenizers, units=8, **QUICK, dropout=0.5) for _ in range(2)])
    source, target = ids_of(model)
    dropped, whole = (model.encoder(source, training=training) for training in (True, False))
    assert all((each.memory.numpy() == 0).mean() > 0.2 for each in dropped.extra)
    assert not any((each.memory.numpy() == 0).any() for each in whole.extra)
    given = model.decoder.start(whole)
    dropped, whole, same = (model.decoder(target, *given, training=training)[0] for training in (True, False, False))
    np.testing.assert_array_equal(whole, same)
    assert np.abs(whole - dropped).max() > 1e-5


def test_members_without_recurrence_each_have_a_cache(tokenizers):
    kinds = {"encoder": TransformerEncoder, "decoder": TransformerDecoder}
    model = ensemble([Seq2Seq(*tokenizers, **kinds, units=8, heads=2, layers=1) for _ in range(2)])
    source, _ = ids_of(model)
    _, state = model.decoder.start(model.encoder(source), 5)
    assert [caches[0][0].shape for _, caches in state] == [(3, 2, 5, 4)] * 2


def test_on_a_gpu_the_members_are_checked_at_full_precision(members, monkeypatch, rounds):
    found, call = [], EnsembleDecoder.call
    monkeypatch.setattr(EnsembleDecoder, "call", lambda *given, **how: found.append(rounds()) or call(*given, **how))
    model = ensemble(members[:2])  # whose decoder gives the same logits for a whole target as step by step
    assert found and not any(found) and rounds()
    found.clear()
    model.score(WORDS[:1], WORDS[:1])
    assert found and all(found)


def test_models_that_are_no_ensemble_are_refused(model, tokenizers):
    def of_text(text, **options):
        tokenizer = CharTokenizer(**options)
        tokenizer.adapt([text])
        return tokenizer

    def made(source, target):
        return Seq2Seq(of_text(source), target, units=2)

    target = tokenizers[1]
    for models, said in (
        ([], "models: an ensemble needs at least one"),
        (model, "models: expected a list of models, not a single one"),
        ((each for each in [model, 3]), r"models\[1\]=3: expected a Seq2Seq"),
        ([model, "runs/mine"], r"models\[1\]='runs/mine': expected a Seq2Seq"),
        ([model, model], "two of them share an encoder or decoder"),
        ([model, Seq2Seq(*tokenizers, decoder=model.decoder, units=16, **QUICK)], "share an encoder or decoder"),
        (
            [made("aab", target), made("acde", target)],
            r"models\[1\]: its source_tokenizer differs from that of models\[0\]: "
            r"only models\[0\] has 1 tokens, such as 'b'; only models\[1\] has 3 tokens, such as 'c', 'd', 'e'",
        ),
        ([made("aab", target), made("abb", target)], "in a different order: id 4 is 'a' in one and 'b' in the other"),
        ([made("aab", target), made("aab", of_text("x"))], "its target_tokenizer differs"),
        (
            [made("aab", target), Seq2Seq(of_text("aab", normal_form=None), target, units=2)],
            "the same tokens, but a different normal_form",
        ),
        (
            [made("aab", target), Seq2Seq(LetterTokenizer("ab"), target, units=2)],
            "the same tokens, but CharTokenizer and LetterTokenizer",
        ),
    ):
        with pytest.raises(OptionError, match=said):
            ensemble(models)


@pytest.mark.slow
def test_the_command_line_takes_several_runs_for_one(swept, tmp_path):
    for name, run in (("one", "units=8/seed-0"), ("two", "units=4/seed-1")):
        shutil.copytree(swept[0] / run, tmp_path / name)
    model = load_runs([tmp_path / "one", tmp_path / "two"])
    texts = ["./tow", "ab", "a/b"]
    found = model.translate(texts, details=True)
    done = seq2seq("translate", "one", "two", *texts, "--scores", cwd=tmp_path)
    lines = [line.split("\t") for line in done.stdout.decode().split("\n")[:-1]]
    assert [float(score) for score, *_ in lines] == pytest.approx(found.scores.numpy()[:, 0].tolist(), abs=1e-3)
    assert [text for *_, text in lines] == [text.decode() for (text,) in found.texts.numpy()]
    # The first text may be meant for a run.
    odd = ["TEXT 1: at least half of the tokens are not in the vocabulary", "TEXT 3: '/' is not in the vocabulary"]
    said = ["./tow is not a run folder, so it is translated as a text", *odd]
    assert done.returncode == 0 and done.stderr.decode().splitlines() == said

    done = seq2seq("score", "one", "two", stdin=b"ab\tAB\n", cwd=tmp_path)
    assert float(done.stdout) == pytest.approx(model.score(["ab"], ["AB"]).numpy()[0], abs=1e-3)

    done = seq2seq("export", "one", "two", "exported", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"exported\n"), done.stderr
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_array_equal(exported.greedy(tf.constant(texts))["texts"], found.texts[:, 0])

    evaluated = json.loads(seq2seq("evaluate", "one", "two", "--json", cwd=tmp_path).stdout)
    assert evaluated["sources"] and evaluated["perplexity"] > 1
    # As if "three" had been trained on all pairs.
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    record = json.loads((tmp_path / "three" / "config.json").read_text())
    record["options"]["validation_fraction"] = 0
    (tmp_path / "three" / "config.json").write_text(json.dumps(record))
    for arguments, said in (
        (
            ["evaluate", "one", "three"],
            r"three was trained on .* held out; name a test corpus: seq2seq evaluate one three",
        ),
        (["translate", "one", "ab", "two"], "translate: two is a run folder, but comes after the text ab"),
    ):
        done = seq2seq(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
        assert re.search(said, done.stderr.decode())
