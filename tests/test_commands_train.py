import json
import re
import shlex
import signal
import subprocess
import sys

import pytest
from command_line import SEQ2SEQ, SMALL_MODEL
from command_line import in_process as seq2seq

from seq2seq import Config
from seq2seq.records import read_record


@pytest.mark.slow
def test_train_prints_its_folder_to_stdout_and_its_progress_to_stderr(toy_run):
    folder, done = toy_run
    assert (done.returncode, done.stdout) == (0, b"my runs/it's toy\n")
    progress = done.stderr.decode()
    assert re.search(r"\n\d+ updates of [\d,]+ parameters in [\d.]+ s on .*; [\d,]+ MB\n", progress)
    assert "Epoch 2/2  loss" in progress and "held out: loss" in progress and " -> " in progress
    assert "Traceback" not in progress and "Warning" not in progress and "cuda" not in progress
    command = re.search(r"Translate with:  (.*) \"TEXT\"", progress)[1]
    assert shlex.split(command) == ["seq2seq", "translate", "my runs/it's toy"]
    assert (folder / "model.keras").is_file()


@pytest.mark.slow
def test_options_reach_the_training_and_a_configuration_repeats_them(toy_run, tmp_path, training_calls):
    toy = toy_run[0].parent.parent / "toy.tsv"
    options = "--preset subword --epochs 1 --units 8 --cell gru --no-bidirectional --attention none --embedding 6"
    options += " --teacher-forcing 1,0.5 --dropout 0.2 --max-vocabulary 40 --seed 3 --precision bfloat16 --layers 2"
    assert seq2seq("train", toy, *options.split(), "--out", "first", cwd=tmp_path).returncode == 0
    ((config, folder, how),) = training_calls
    kept = {"cell": "gru", "attention": None, "bidirectional": False, "embedding": 6, "teacher_forcing": (1.0, 0.5)}
    kept |= {"precision": "bfloat16", "deterministic": None, "source_tokenizer": "subword", "layers": 2}
    assert {name: getattr(config, name) for name in kept} == kept and str(folder) == "first"
    assert how["command"] == f"seq2seq train {toy} {options} --out first"
    repeat = ["train", "--config", toy_run[0] / "config.json", "--out", "again"]
    assert seq2seq(*repeat, cwd=toy.parent).returncode == 0
    assert training_calls[1][0] == read_record(toy_run[0]).config
    assert seq2seq(*repeat, "--dropout", 0.7, cwd=toy.parent).returncode == 0
    assert (training_calls[2][0].dropout, training_calls[2][0].units) == (0.7, 8)


@pytest.mark.slow
def test_a_configuration_is_not_repeated_on_a_corpus_that_has_changed(toy_run, tmp_path):
    (tmp_path / "toy.tsv").write_text("x\tX\n")
    config = tmp_path / "config.json"
    record = json.loads((toy_run[0] / "config.json").read_text()) | {"directory": str(tmp_path)}
    config.write_text(json.dumps(record))
    done = seq2seq("train", "--config", config, "--out", "third", cwd=tmp_path)
    assert done.returncode == 2 and b"changed since the run was trained on" in done.stderr, done.stderr


def test_a_configuration_is_not_repeated_from_the_weights_of_another_run(toy_run, tmp_path):
    options = {"corpus": str(toy_run[0].parent.parent / "toy.tsv"), "warm_start": str(toy_run[0])}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"options": options, "from": {"options": {}, "command": "another"}}))
    done = seq2seq("train", "--config", config, cwd=tmp_path)
    assert done.returncode == 2 and b", which now holds a different run" in done.stderr


def test_a_configuration_may_be_written_by_hand(tsv, tmp_path, training_calls):
    options = {"corpus": str(tsv("a\tA\n")), "validation": str(tsv("b\tB\n", "dev.tsv")), "units": 8}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"options": options}))
    done = seq2seq("train", "--config", config, cwd=tmp_path)
    assert done.returncode == 0 and training_calls[0][0] == Config(**options), done.stderr


def started(arguments):
    return subprocess.Popen([SEQ2SEQ, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_an_interrupted_training_is_saved_and_resumed(tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--limit", "200", *SMALL_MODEL, "--epochs", "400", "--out", str(out)]
    process = started(arguments)
    for sent, code, epoch in ((signal.SIGINT, 130, b"Epoch 2/"), (signal.SIGTERM, 143, b"Epoch ")):
        for line in process.stderr:
            if line.startswith(epoch):
                break
        if sent == signal.SIGINT:
            second = seq2seq(*arguments)
            assert second.returncode == 2
            assert f"{out} is in use by process {process.pid} on ".encode() in second.stderr
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == code and b"Traceback" not in stderr
        assert f"Resume with:  seq2seq train --resume --out {out}\n".encode() in stderr
        if sent == signal.SIGINT:
            process = started(arguments)  # or with --resume
            assert process.stderr.readline().startswith(f"Resuming {out} in epoch ".encode())
    other = seq2seq(*arguments[:-4], "--epochs", "3", "--out", out)
    assert other.returncode == 2 and b"epochs 400, not 3" in other.stderr
    other = seq2seq("train", "spa-eng", "--resume", "--out", out)
    assert other.returncode == 2 and b"resume continues with the corpus phrasebook; name no other" in other.stderr
    assert seq2seq("translate", out, "Hello.").returncode == 0


def test_a_corpus_that_can_be_read_only_once_is_not_trained_on(tmp_path):
    done = seq2seq("train", "-", "--out", tmp_path / "run", stdin=b"ab\tAB\n" * 30)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert b"standard input: training reads a corpus many times, so it must be a file" in done.stderr


@pytest.mark.slow
def test_bad_input_exits_2_with_one_line(toy_run, tmp_path):
    folder, _ = toy_run
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\nno tab\n")
    for arguments, message in (
        (["train", bad], f"{bad}, line 2: expected source TAB target"),
        (["train", tmp_path / "none.tsv"], "No such file"),
        (["train", folder.parent.parent / "toy.tsv", "--out", folder], "--overwrite replaces it"),
        (["train", "--resume", "--units", 3], "resume uses the options that training began with"),
    ):
        done = seq2seq(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == b""
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "runs").exists()


def test_bad_options_exit_2(tsv, tmp_path):
    path = tsv("a\tb\n")
    for options, message in (
        (["--weights", "1,2"], "expected one number for each corpus (1)"),
        (["--weights", "one"], "weights='one': expected numbers with commas between them, or None"),
        (["--limit", "few"], "limit='few': expected a whole number, at least 1, or None"),
        (["--epochs", "many"], "epochs='many': expected a whole number, at least 1, or None"),
        (["--units", "0"], "units=0: expected a whole number, at least 1"),
        (["--learning-rate", "nan"], "learning_rate=nan: expected a number, at least 0"),
        (["--seed", "-1"], "seed=-1: expected a whole number, at least 0 and below 4,294,967,296"),
        (["--cell", "lstmm"], "did you mean 'lstm'"),
        (["--preset", "tutorail"], "preset='tutorail': expected 'default', 'subword'"),
        (["--epochs", "3", "--updates", "9"], "epochs=3 and updates=9 cannot be combined"),
        (["--resume", "--overwrite"], "overwrite and resume cannot be combined"),
        (["--preset", "tutorial", "--config", "x.json"], "preset and config cannot be combined"),
        (["--config", "x.json"], "x.json"),
        (["--tied", "--embedding", "none"], "tied=True"),
        (
            ["--architecture", "transformer", "--attention", "dot"],
            "attention: neither TransformerEncoder nor TransformerDecoder has this option",
        ),
        (["--architecture", "transformer", "--cell", "gru"], "cell: neither TransformerEncoder nor Transf"),
        (["--track", "wandbb"], "track='wandbb': expected 'tensorboard', 'wandb', 'mlflow'"),
        (["--decoder", "nowhere:Decoder"], "decoder='nowhere:Decoder': no module 'nowhere'"),
        (["--target-tokenizer", "pipelines:Nope"], "target_tokenizer='pipelines:Nope': pipelines has no class 'Nope'"),
        (["--min-frequency", "2", "--source-tokenizer", "byte"], "min_frequency=2"),
        (["--columns", "1"], "expected two names or more, or numbers"),
        (["--columns", "en,es"], "no column is called 'en'"),
    ):
        done = seq2seq("train", path, *options, "--out", tmp_path / "run")
        assert done.returncode == 2 and message in done.stderr.decode(), done.stderr
    done = seq2seq("train", "--preset", "inflection", "--out", tmp_path / "run")  # no corpus
    assert done.returncode == 2 and b"two columns, not 3; name another CORPUS" in done.stderr


def test_a_transformer_has_its_own_defaults_when_the_corpus_decides_the_preset(tsv, tmp_path, training_calls):
    options = ("--architecture", "transformer", "--schedule", "inverse_sqrt", "--optimizer", "rmsprop")
    done = seq2seq("train", tsv("a\tb\n" * 9), *options, cwd=tmp_path)
    ((config, *_),) = training_calls
    assert (config.warmup, config.beta_2) == (300, None), done.stderr  # beta_2 is an option of other optimizers
    done = seq2seq("train", tsv("a\tb\n" * 9), "--batch-size", "8", "--batch-tokens", "99", cwd=tmp_path)
    assert done.returncode == 2 and b"batch_size and batch_tokens cannot be combined" in done.stderr


@pytest.mark.slow
def test_the_corpus_decides_the_preset(tmp_path, training_calls, monkeypatch):
    (tmp_path / "sentences.tsv").write_text("".join(f"I saw {number}.\tVi a {number}.\n" for number in range(2000)))
    done = seq2seq("train", "sentences.tsv", cwd=tmp_path)
    assert (
        training_calls[0][0].source_tokenizer == "subword"
        and b"Preset subword: the corpus has enough sentences" in done.stderr
    )
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    done = seq2seq("train", "sentences.tsv", cwd=tmp_path)
    assert training_calls[1][0].source_tokenizer == "char" and b"pip install 'keras-seq2seq[subword]'" in done.stderr


@pytest.mark.slow
def test_a_run_that_starts_from_another_has_its_options(toy_run, tsv, tmp_path, training_calls):
    new = tsv("".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abxy" for b in "xyz"), "new pairs.tsv")
    done = seq2seq("train", new, "--from", toy_run[0], "--epochs", 1, "--precision", "float16", cwd=tmp_path)
    ((config, folder, _),) = training_calls
    assert done.returncode == 0 and str(folder) == "runs/new-pairs"
    assert (config.units, config.seed, config.corpus, config.warm_start) == (8, 1, str(new), str(toy_run[0]))
    assert (config.epochs, config.precision) == (1, "float16")


@pytest.mark.slow
def test_options_that_a_run_to_start_from_excludes_are_refused(toy_run, tsv, tmp_path):
    for more, message in ((["--preset", "default"], "cannot be combined with preset"), (["--units", 9], "units=9: ")):
        done = seq2seq("train", tsv("a\tA\n"), "--from", toy_run[0], "--out", tmp_path / "other", *more)
        assert done.returncode == 2 and message in done.stderr.decode()


@pytest.mark.slow
def test_another_corpus_that_is_held_out_replaces_the_split_of_a_preset(tmp_path, training_calls):
    apart = ["--validation", "dev.tsv", "--validation", "more.tsv"]
    for name in ("train", "dev", "more"):
        (tmp_path / f"{name}.tsv").write_text("ab\tAB\n")
    done = seq2seq("train", "train.tsv", *apart, "--preset", "tutorial", "--updates", 2, cwd=tmp_path)
    ((config, _, _),) = training_calls
    kept = {"validation": ("dev.tsv", "more.tsv"), "validation_fraction": 0.0, "split": "hash", "epochs": None}
    assert done.returncode == 0 and {name: getattr(config, name) for name in kept} == kept


@pytest.mark.slow
def test_tensorboard_gets_curves_and_pictures(toy_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for name in ("train", "validation", "pictures"):
        events = EventAccumulator(str(toy_run[0] / "tensorboard" / name))
        found[name] = events.Reload().Tags()["tensors"]
    assert "epoch_loss" in found["train"] and {"epoch_loss", "epoch_chrf"} <= set(found["validation"])
    assert {"curves", "attention-1"} <= set(found["pictures"])
