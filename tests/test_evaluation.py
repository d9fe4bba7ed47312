import dataclasses
import json
import math
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import tensorflow as tf
from conftest import WORDS

from pipelines import CharTokenizer, ColumnsTokenizer, CorpusError, OptionError, SeparatorTokenizer, read_pairs
from seq2seq import BeamSearch, Evaluation, Seq2Seq, compare, evaluate
from seq2seq.decoding import LONGEST_SOURCE
from seq2seq.evaluation import _translate, check_folder
from seq2seq.metrics import TokenCrossentropy
from seq2seq.scores import corpus_scores, measure, nfc, scores_by_length

TRANSLATIONS = [
    "the old cat sat on a warm mat.",
    "where is the nearest station, please?",
    "i don't like the coffee here",
    "She reads a  book every evening.",
    "Él no tiene ningún amigo.",
]
REFERENCES = [
    ["The old cat sat on the warm mat.", "The old cat was sitting on a warm mat."],
    ["Where is the nearest station, please?", "Could you tell me where the next station is?"],
    ["I don't like the coffee here.", "The coffee here is not to my taste."],
    ["Every evening she reads a book.", "She reads a book in the evenings."],
    ["Él no tiene amigos.", "No tiene ni un solo amigo."],
]


def evaluation(translations, references, sources=None):
    sources = sources or [f"source {n}" for n in range(len(translations))]
    stopped = ["end"] * len(sources)
    scores = measure(translations, references)
    return Evaluation(sources, references, translations, stopped, scores, 1.0, 0.5, 1.0, "13a")


def tool(name, *arguments):
    command = [Path(sys.executable).with_name(name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_references_of_an_earlier_evaluation_do_not_stay_beside_these(tmp_path):
    evaluation(TRANSLATIONS, REFERENCES).write(tmp_path)
    evaluation(TRANSLATIONS, [references[:1] for references in REFERENCES]).write(tmp_path)
    assert [path.name for path in tmp_path.glob("references.*")] == ["references.0.txt"]
    for name in ("sources.txt", "translations.txt"):  # as if it had been killed
        (tmp_path / name).rename(tmp_path / f"aside-{name}")
        evaluation(TRANSLATIONS, REFERENCES).write(tmp_path)
        (tmp_path / f"aside-{name}").unlink(missing_ok=True)
    assert len(list(tmp_path.glob("references.*"))) > 1 and (tmp_path / "sources.txt").is_file()
    (tmp_path / "references.en.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds references\.en\.txt, which no evaluation has written"):
        evaluation(TRANSLATIONS, REFERENCES).write(tmp_path)
    assert (tmp_path / "references.en.txt").read_text() == "mine"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "sources.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds sources\.txt, which no evaluation has written"):
        evaluation(TRANSLATIONS, REFERENCES).write(tmp_path / "new")


@pytest.mark.slow
def test_the_figures_are_those_of_sacrebleu_and_jiwer_on_the_written_files(tmp_path):
    one = evaluation(TRANSLATIONS, [references[:1] for references in REFERENCES])
    both = evaluation(TRANSLATIONS, REFERENCES)
    for found, folder in ((one, tmp_path / "one"), (both, tmp_path / "both")):
        found.write(folder)
        files = sorted(folder.glob("references.*.txt"))
        assert len(files) == len(found.references[0])
        said = tool(
            "sacrebleu", *files, "-i", folder / "translations.txt", "-m", "bleu", "chrf", "ter", "-w", 6, "--force"
        )
        figures = {figure["name"]: figure for figure in json.loads(said)}
        for name, theirs in (("BLEU", "BLEU"), ("chrF", "chrF2"), ("TER", "TER")):
            assert found.scores[name].score == pytest.approx(figures[theirs]["score"], abs=1e-5)
            assert set(figures[theirs]["signature"].split("|")) <= set(found.scores[name].signature.split("|"))
    files = ["-r", tmp_path / "one" / "references.0.txt", "-h", tmp_path / "one" / "translations.txt"]
    assert one.scores["WER"].score == pytest.approx(100 * float(tool("jiwer", *files)))
    assert one.scores["CER"].score == pytest.approx(100 * float(tool("jiwer", *files, "-c")))


def test_a_text_is_held_against_its_closest_reference():
    one = measure(["K AE T", "D AA G"], [["K AA T"], ["D AO G"]])
    assert one["WER"].score == pytest.approx(100 * 2 / 6)  # the phone error rate, where words are phones
    assert one["exact match"].score == 0
    more = measure(["K AE T", "D AA G"], [["K AA T", "K AE T"], ["D AO G", "T AO G Z"]])
    assert more["WER"].score == pytest.approx(100 * 1 / 6)
    assert more["exact match"].score == 50
    assert "nrefs:2" in more["WER"].signature
    assert measure(["a"], [["b", "a c d"]])["WER"].score == pytest.approx(100 * 2 / 3)  # fewer errors for its length


def test_texts_may_have_different_numbers_of_references(tmp_path):
    references = [REFERENCES[0], *([text] for text in TRANSLATIONS[1:])]
    found = evaluation(TRANSLATIONS, references)
    assert found.scores["BLEU"].score > 90 and found.scores["exact match"].score == 80
    assert "nrefs:var" in found.scores["BLEU"].signature
    found.write(tmp_path)
    second = (tmp_path / "references.1.txt").read_text().splitlines()
    assert second == [REFERENCES[0][1], *(" ".join(text.split(" ")) for text in TRANSLATIONS[1:])]


def test_words_are_split_for_bleu_as_was_asked_for_wherever_it_is_measured():
    found = Evaluation.of_texts(["x"], [["sentence"]], ["sentences"], bleu_tokenizer="char")
    bleu = found.scores["BLEU"].score
    assert bleu > 50  # of characters, since the word is wrong
    again = found.by_length()[0], found.by_text(["BLEU"])[0]
    assert [each["BLEU"] for each in again] == pytest.approx([bleu] * 2)
    assert compare(found, found)["BLEU"][0].score == pytest.approx(bleu)


def test_any_text_is_one_line_of_the_written_files(tmp_path):
    breaks = ["a\tb", "a\nb\n", "\ra\r\nb", "a\x85b\u2028c\v\fd", ""]
    evaluation(breaks, [[text, text + "."] for text in breaks], breaks).write(tmp_path)
    lines = ["a b", "a b ", " a b", "a b c  d", ""]
    assert (tmp_path / "translations.txt").read_text().splitlines() == lines
    assert (tmp_path / "sources.txt").read_bytes().decode().split("\n") == [*lines, ""]
    assert (tmp_path / "references.1.txt").read_text().splitlines() == [f"{line}." for line in lines]


def test_tabs_stay_between_the_columns_of_a_source_only(tmp_path):
    found = dataclasses.replace(evaluation(["a\tb"], [["a\tc"]], ["sol\tV;PST"]), source_columns=2)
    found.write(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert written == {"references.0.txt": "a c\n", "sources.txt": "sol\tV;PST\n", "translations.txt": "a b\n"}
    assert Evaluation.of_texts(found.sources, found.references, found.translations).source_columns == 2


def test_spaces_around_a_text_are_no_error_of_it():
    scores = corpus_scores([" a", "b"], [["a"], ["b "]])
    assert (scores["exact match"], scores["CER"]) == (100, 0)


@pytest.mark.parametrize("names", [[".DS_Store"], ["aside-references.0.txt", "aside-sources.txt", ".DS_Store"]])
def test_hidden_files_and_those_of_a_killed_evaluation_may_be_in_the_folder(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    check_folder(tmp_path)


@pytest.mark.parametrize("count", [5, 39])
def test_few_sources_are_one_part_whatever_their_lengths(count):
    texts = ["a" * length for length in range(1, count + 1)]
    (part,) = scores_by_length(texts, texts, [[text] for text in texts])
    assert (part["from"], part["to"], part["texts"], part["chrF"]) == (1, count, count, 100)


def test_the_lengths_of_sources_are_those_of_their_nfc():
    (part,) = scores_by_length(["n\u0303u"], ["x"], [["x"]])
    assert (part["from"], part["to"]) == (2, 2)


def test_one_interval_belongs_to_each_figure():
    exact = measure(["a"] * 50 + ["b"] * 50, [["a"]] * 100)["exact match"]
    # Half of 95% of a binomial distribution of 100 draws: 1.96 * 5%.
    assert exact.score == 50 and exact.margin == pytest.approx(9.8, abs=1.5)
    assert math.isnan(measure(["a"] * 100, [["a"]] * 100)["exact match"].margin)  # not 0: the next text may be wrong


def test_a_summary_counts_references_and_has_as_many_of_the_worst_texts_as_are_wanted():
    summary = evaluation(TRANSLATIONS, REFERENCES).as_dict(worst=2)
    assert (summary["sources"], summary["references"], len(summary["worst"])) == (5, 10, 2)


def test_what_is_shown_of_an_evaluation_holds_no_texts():
    shown = repr(evaluation(TRANSLATIONS, REFERENCES))
    assert "scores=" in shown and not any(text in shown for text in (TRANSLATIONS[0], REFERENCES[0][0], "source 1"))


def test_by_length_and_worst_tell_where_the_errors_are():
    sources = [letter * length for length in (1, 5, 20) for letter in "abcdefghijklmnopqrst"]
    translations = [text.upper() if len(text) < 20 else "X" * 20 for text in sources]
    found = evaluation(translations, [[text.upper()] for text in sources], sources)
    parts = found.by_length(3)
    assert [(part["from"], part["to"], part["texts"]) for part in parts] == [(1, 1, 20), (5, 5, 20), (20, 20, 20)]
    assert [part["CER"] for part in parts] == [0, 0, 100]
    columns = evaluation(translations, [[text.upper()] for text in sources], [f"{text}\tV;PST" for text in sources])
    assert columns.by_length(3) == columns.by_length() == parts  # of at least 20 sources
    assert [text["source"] for text in found.worst(20)] == sources[40:]
    assert len(found.worst(50)) == 20  # the others are right
    assert found.worst(1)[0] == {
        "source": "a" * 20,
        "translation": "X" * 20,
        "references": ["A" * 20],
        "stopped": "end",
        "CER": 100.0,
    }
    first, *_, last = found.by_text()
    assert [text["source"] for text in found.by_text(["WER"])] == sources
    assert (first["exact match"], first["chrF"], first["TER"], last["exact match"]) == (100, 100, 0, 0)
    assert "BLEU" not in first and found.by_text(["BLEU"])[0].keys() > {"BLEU"}
    with pytest.raises(OptionError, match=r"measures='chrf': .*did you mean 'chrF'"):
        found.by_text(["chrf"])
    assert json.loads(json.dumps(found.as_dict()))["stopped"] == {"end": 60}


def test_confusions_are_edits_to_the_closest_reference_counted_once_for_each_text_too():
    found = Evaluation.of_texts(
        ["1", "2", "3", "4"],
        [["dot", "xyz"], ["cad"], ["go"], [" same"]],
        ["dat", "cada", "aaaa", "same"],
        resamples=1,
    )
    assert found.unit == "characters"
    names = ("translation", "reference", "times", "texts")
    counted = [tuple(pair[name] for name in names) for pair in found.confusions()]
    assert counted[:2] == [("a", "", 3, 2), ("a", "o", 2, 2)] and ("a", "g", 1, 1) in counted and len(counted) == 3
    assert found.confusions(1) == [dict(zip(names, counted[0], strict=True))] and found.confusions(0) == []
    phones = Evaluation.of_texts(["cat", "eye"], [["k æ t"], ["aɪ"]], ["k æ", "ɪ"], resamples=1)
    assert phones.unit == "characters" and phones.confusions(unit="words")[:1] == [
        {"translation": "", "reference": "t", "times": 1, "texts": 1}
    ]
    one_more = Evaluation.of_texts(["cat", "to", "eye"], [["k æ t"], ["t u"], ["aɪ"]], ["k æ", "t u", "ɪ"], resamples=1)
    assert one_more.unit == "words" and one_more.as_dict()["confusions"] == one_more.confusions()
    with pytest.raises(OptionError, match="unit='phones'"):
        found.confusions(unit="phones")


def test_scores_by_column_count_a_text_for_each_of_its_features():
    sources = ["go\tV;PST", "see\tV;V;PRS", "cat\tN", "so\t"]
    found = Evaluation.of_texts(sources, [["went"], ["sees"], ["cats"], ["so"]], ["went", "see", "cats", "so"])
    parts = found.by_column(2, ";")
    assert [(part["value"], part["texts"]) for part in parts] == [("V", 2), ("", 1), ("N", 1), ("PRS", 1), ("PST", 1)]
    assert [part["exact match"] for part in parts] == [50, 100, 100, 0, 100]
    assert [part["value"] for part in found.by_column(2)] == ["", "N", "V;PST", "V;V;PRS"]
    assert [part["value"] for part in found.by_column(1)] == ["cat", "go", "see", "so"]
    for column in (0, 3):
        with pytest.raises(OptionError, match=f"column={column}: "):
            found.by_column(column)


def test_translations_that_are_there_already_are_measured_and_compared():
    found = evaluation(TRANSLATIONS, REFERENCES)
    texts = [references[0] for references in REFERENCES]
    other = Evaluation.of_texts(found.sources, REFERENCES, [unicodedata.normalize("NFD", text) for text in texts])
    assert other.scores["exact match"].score == 100 and other.translations == nfc(texts)
    assert compare(found, other)["exact match"][1].score == 100
    shown = other.as_dict()
    assert all(map(math.isnan, (other.loss, other.accuracy, other.perplexity))) and not shown["stopped"]
    with pytest.raises(OptionError, match="and translations: 2, 2 and 1; expected as many of each"):
        Evaluation.of_texts(["a", "b"], [["A"], ["B"]], ["A"])
    for wrong in ("A", []):
        with pytest.raises(
            OptionError, match=f"references: {re.escape(repr(wrong))}; expected a list of one text or more"
        ):
            Evaluation.of_texts(["a"], [wrong], ["A"])


def test_compare_tells_a_difference_from_chance():
    references = [[f"this is sentence number {n} of many"] for n in range(60)]
    right = [text for (text,) in references]
    wrong = [text.replace("sentence", "something") if n % 2 else text for n, text in enumerate(right)]
    almost = [right[0] + "!", *right[1:]]
    better = compare(evaluation(wrong, references), evaluation(right, references))
    assert all(first.p == 1 and second.p < 0.05 for first, second in better.values())
    assert better["exact match"][1].p == 1 / 1001  # as 30 texts are better and none is worse
    assert [tested.score for tested in better["exact match"]] == [50, 100]
    assert better["WER"][0].score > better["WER"][1].score == 0
    same = compare(evaluation(right, references), evaluation(right, references))
    assert all(tested.p == 1 for row in same.values() for tested in row)
    assert compare(evaluation(right, references), evaluation(almost, references))["exact match"][1].p > 0.05
    found = evaluation(right, references)
    with pytest.raises(OptionError, match="of the same texts"):
        compare(found, evaluation(right[1:], references[1:]))
    with pytest.raises(OptionError, match="of the same texts"):
        compare(found, dataclasses.replace(found, references=[[text, "x"] for text in right]))
    with pytest.raises(OptionError, match="the same BLEU tokenizer, not '13a' and, for number 2, 'char'"):
        compare(found, dataclasses.replace(found, bleu_tokenizer="char"))
    with pytest.raises(OptionError, match="trials=0: expected a whole number, at least 1"):
        compare(found, found, trials=0)


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(1, 0, 1.0), (3, 0, 0.25), (5, 1, 0.219), (6, 0, 0.031), (12, 2, 0.0129)]
)
def test_the_p_of_a_measure_of_right_and_wrong_is_that_of_the_sign_test(better, worse, p):
    references = [[f"text {n}"] for n in range(200)]
    one, other = ([text for (text,) in references] for _ in range(2))
    one[:better], other[better : better + worse] = ["x"] * better, ["x"] * worse
    found = compare(evaluation(one, references), evaluation(other, references), trials=4000)["exact match"]
    assert found[1].p == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5 + 1e-3)
    assert found[1].score - found[0].score == pytest.approx((better - worse) / 2)


def test_of_equally_good_models_few_differ_significantly():
    random, references = Random(0), [[f"this is sentence number {n} of many"] for n in range(50)]

    def translated():  # by a model that makes each of three mistakes in a fifth of the texts
        texts = [text for (text,) in references]
        for right, wrong in (("this", "that"), ("sentence", "sense"), ("many", "a few more")):
            texts = [text.replace(right, wrong) if random.random() < 0.2 else text for text in texts]
        return evaluation(texts, references)

    found = [compare(translated(), translated(), trials=99) for _ in range(60)]
    for name in ("BLEU", "chrF", "TER", "exact match"):
        significant = sum(each[name][1].p <= 0.1 for each in found)
        assert significant <= 13, name  # 6 are expected; more than 13 have a probability of 0.002


def test_any_number_of_evaluations_is_compared_each_with_the_first():
    references = [[f"this is sentence number {n} of many"] for n in range(60)]
    right = [text for (text,) in references]
    wrong = [text.replace("sentence", "something") if n % 2 else text for n, text in enumerate(right)]
    almost = [right[0] + "!", *right[1:]]
    first, *others = (evaluation(texts, references) for texts in (right, wrong, almost, right))
    together = compare(first, *others)
    for number, other in enumerate(others, start=1):
        for name, (one, two) in compare(first, other).items():
            assert (together[name][0], together[name][number]) == (one, two)
    assert [tested.p < 0.05 for tested in together["chrF"]] == [False, True, False, False]
    with pytest.raises(OptionError, match="at least two evaluations"):
        compare(first)
    with pytest.raises(OptionError, match="number 3 has other texts"):
        compare(first, first, evaluation(right[1:], references[1:]))


def test_a_letter_is_right_in_whatever_unicode_form(model):
    nfd = [[unicodedata.normalize("NFD", text) for text in those] for those in REFERENCES]
    found = evaluation(TRANSLATIONS, REFERENCES)
    assert measure(TRANSLATIONS, nfd) == found.scores
    other = dataclasses.replace(found, translations=[unicodedata.normalize("NFD", text) for text in TRANSLATIONS])
    assert all(first == second for first, second in compare(found, other, trials=9).values())
    accents = corpus_scores([unicodedata.normalize("NFD", "ñandú")], [["ñandú"]])
    assert accents["exact match"] == 100 and accents["CER"] == 0
    pairs = tf.data.Dataset.from_tensor_slices((["n\u0303u", "\xf1u", "x"], ["N\u0303", "\xd1", "X\u0301Z"]))
    found = evaluate(model, pairs, max_length=3)
    assert (found.sources, found.references) == (["n\u0303u", "x"], [["\xd1"], ["X\u0301Z"]])


def test_a_model_is_evaluated_on_each_source_once_by_all_its_references(model, tsv):
    for weight in model.trainable_variables:  # so that it prefers some tokens to others, as a trained one does
        weight.assign(4 * weight)
    pairs = read_pairs(tsv("sol\tSOL\nmar\tMAR\nsol\tLUZ\nsol\tSOL\nmar\tM\n"))
    counted = []
    found = evaluate(model, pairs, max_length=5, progress=counted.append)
    assert found.sources == ["sol", "mar"] and counted == [2]
    assert found.references == [["SOL", "LUZ"], ["MAR", "M"]]
    assert found.translations == [text.decode() for text in model.translate(["sol", "mar"], max_length=5).numpy()]
    nats = -model.score(["sol", "mar", "sol", "sol", "mar"], ["SOL", "MAR", "LUZ", "SOL", "M"]).numpy()
    assert found.loss == pytest.approx(nats.sum() / (4 + 4 + 4 + 4 + 2), rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(found.loss)) and found.seconds > 0
    beam = evaluate(model, pairs, BeamSearch(2), max_length=5)
    assert beam.loss == pytest.approx(found.loss) and beam.translations == [
        text.decode() for text in model.translate(["sol", "mar"], BeamSearch(2), max_length=5).numpy()
    ]


def test_texts_are_translated_with_the_options_that_are_given_to_evaluate(monkeypatch):
    calls = []

    def translate(texts, strategy, **how):
        calls.append((strategy, how))
        return SimpleNamespace(texts=tf.constant([["N\u0303"]]), stopped=tf.constant([["end"]]))

    monkeypatch.setattr("seq2seq.evaluation._token_figures", lambda model, batches: [1.0, 0.5])
    model = SimpleNamespace(source_tokenizer=CharTokenizer(), target_tokenizer=CharTokenizer(), translate=translate)
    options = {"seed": (3, 2), "min_length": 4, "max_length": 5, "batch_size": 6}
    found = evaluate(model, [("ñ\tn", "Ñ")], "sampling", resamples=7, **options)
    for strategy, how in calls:  # to trace it, and for the result
        assert (strategy, how) == ("sampling", options | {"details": True, "scores": False})
    assert len(calls) == 2 and found.translations == ["Ñ"] and found.source_columns == 1  # one that has a tab
    assert "bs:7" in found.scores["chrF"].signature.split("|")


def test_a_sample_depends_on_the_place_of_its_source_in_the_whole_corpus():
    calls, seen = [], []

    def translate(texts, strategy, seed, **how):
        calls.append((len(texts), seed))
        return SimpleNamespace(texts=tf.fill([len(texts), 1], "x"), stopped=tf.fill([len(texts), 1], "end"))

    found = _translate(SimpleNamespace(translate=translate), ["a"] * 3000, "sampling", seen.append, (3, 2), {})
    assert calls[1:] == [(2048, (3, 2)), (952, (3, 2050))] and seen == [2048, 3000]
    assert found[:2] == (["x"] * 3000, ["end"] * 3000)


def test_evaluate_cuts_long_sources_like_score(shared_model):
    pairs = [(2 * LONGEST_SOURCE * "o" + "sol", "SOL"), ("mar", "MAR")]
    found = evaluate(shared_model, pairs, max_length=3)
    assert found.loss == pytest.approx(-shared_model.score(*zip(*pairs, strict=True)).numpy().sum() / 8, rel=1e-5)
    tokenizers = CharTokenizer("o"), CharTokenizer("o")
    tokenizers[1].add_unknown_token()
    copying, beyond = Seq2Seq(*tokenizers, units=4, attention="dot", copy=True), LONGEST_SOURCE * "o" + "Q"
    found = evaluate(copying, [(beyond, "Q")], max_length=3)  # which can be copied only from what is read
    assert found.loss == pytest.approx(-copying.score([beyond], ["Q"]).numpy()[0] / 2, rel=1e-5)


def test_what_cannot_be_evaluated_is_refused(model, pairs, monkeypatch):
    with pytest.raises(CorpusError, match="no pairs to evaluate on"):
        evaluate(model, pairs.take(0))
    with pytest.raises(OptionError, match=r"bleu_tokenizer='13b'.*did you mean '13a'"):
        evaluate(model, pairs, bleu_tokenizer="13b")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "MeCab", None)
        with pytest.raises(OptionError, match=r"bleu_tokenizer='ja-mecab': .*pip install"):
            evaluate(model, pairs, bleu_tokenizer="ja-mecab")
    words = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")])
    words.adapt(["sol\tV;PST"])
    with pytest.raises(CorpusError, match="list, pair 1: expected 2 columns: source 1 TAB source 2, found 1"):
        evaluate(Seq2Seq(words, model.target_tokenizer, units=8), [("sol", "SOL")])


def test_a_model_that_was_never_compiled_is_evaluated_too_on_a_list_of_pairs(tokenizers):
    pairs = [("sol", "SOL"), ("sol", "Sol"), ("mar", "MAR")]
    found = evaluate(Seq2Seq(*tokenizers, units=8), pairs, max_length=4)
    assert found.perplexity > 1
    assert found.sources == ["sol", "mar"] and found.references == [["SOL", "Sol"], ["MAR"]]


def test_the_seconds_that_count_are_without_the_time_of_making_graphs(tokenizers):
    traced = []

    class Model(Seq2Seq):
        def decode(self, *arguments, **how):
            traced.append(arguments)
            return super().decode(*arguments, **how)

    pairs = [(a + b, (a + b).upper()) for a in "abcdefghij" for b in "abcdefgh"]
    evaluate(Model(*tokenizers, units=8), pairs, max_length=2)
    assert len(traced) == 1  # before the clock started


def test_what_a_model_was_compiled_with_changes_none_of_its_figures(model, pairs):
    right = evaluate(model, pairs, max_length=3)
    for options in ({"metrics": ["accuracy"], "weighted_metrics": []}, {"loss": TokenCrossentropy(0.9)}):
        model.compile(**options)
        metrics = model.metrics
        found = evaluate(model, pairs, max_length=3)
        assert (found.perplexity, found.accuracy) == pytest.approx((right.perplexity, right.accuracy))
        assert model.metrics == metrics


def test_every_token_counts_the_same_in_whichever_batch(model):
    for weight in model.decoder.output_layer.trainable_variables:
        weight.assign(weight * 10)  # so that losses of tokens differ
    words = [letter * length for letter, length in zip("solmarzt" * 100, range(1, 801), strict=True)]
    found = evaluate(model, pairs := [(word, word.upper()) for word in words[::25]])
    scores = model.score(*map(list, zip(*pairs, strict=True)))
    loss = -float(tf.reduce_sum(scores)) / sum(len(target) + 1 for _, target in pairs)
    assert found.loss == pytest.approx(loss, rel=1e-4)


def test_a_loss_is_finite_even_if_its_exponential_is_not(model, pairs):
    for weight in model.trainable_variables:
        weight.assign(weight * 1e4)
    found = evaluate(model, pairs)
    scores = model.score(WORDS, [word.upper() for word in WORDS])
    loss = -float(tf.reduce_sum(scores)) / sum(len(word) + 1 for word in WORDS)
    assert found.loss == pytest.approx(loss, rel=1e-4) and loss > 1000 and math.isinf(found.perplexity)


def test_what_translate_returns_can_be_measured(model):
    texts = ["sol", "mar"]
    found = model.translate(texts, max_length=3)
    expected = [text.decode() for text in found.numpy()]
    for translations in (found, found.numpy(), expected):
        assert Evaluation.of_texts(texts, [["S"], ["M"]], translations, resamples=1).translations == expected


def test_two_lists_are_not_taken_for_pairs(model):
    with pytest.raises(OptionError, match="strategy: expected a name or a Strategy, not a list; pairs are a list of"):
        evaluate(model, ["sol"], ["SOL"])


def test_an_evaluation_prints_its_tables_and_leaves_out_what_is_unknown():
    found = evaluation(TRANSLATIONS, REFERENCES)
    shown = str(found).splitlines()
    assert shown[0] == "5 sources, 10 references" and any(line.startswith("perplexity") for line in shown)
    assert "Translations: 100.0% complete, 0.0% cut off at the limit, 0.0% stopped for repetition" in shown
    one = Evaluation.of_texts(["1"], [["a b"]], ["a c"])
    shown = str(one)
    assert math.isnan(one.scores["CER"].margin) and "±" not in shown and "nan" not in shown
    assert "perplexity" not in shown and "Translations:" not in shown
    wide = str(Evaluation.of_texts(["1", "2"], [["你好"], ["e\u0301\u0323"]], ["你们", "e"])).splitlines()
    assert "们                   好                         1        1" in wide
    hidden = Evaluation.of_texts(["1"], [["b\u200cc"]], ["b\u202fc"])
    assert f"{'U+202F':<20} {'U+200C':<20}       1        1" in str(hidden).splitlines()


def test_an_empty_reference_is_written_as_such(tmp_path):
    evaluation(["a", "b"], [["a", ""], ["b"]]).write(tmp_path)
    assert (tmp_path / "references.1.txt").read_text() == "\nb\n"
