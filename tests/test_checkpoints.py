import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import server
from conftest import notices

from pipelines import CorpusError
from seq2seq.checkpoints import Checkpoints, locked, whole_file
from seq2seq.config import Config
from seq2seq.records import RunError, finished, read_record


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "text"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), whole_file(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    with whole_file(path) as aside:
        aside.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["text"]


def test_links_are_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("of the user")
    for name in ("text", "aside-text", "lock"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(elsewhere)
    with whole_file(tmp_path / "run" / "text") as aside:
        aside.write_text("new")
    assert (tmp_path / "run" / "text").read_text() == "new"
    with pytest.raises(RunError, match="run/lock was not written by a run"), locked(tmp_path / "run"):
        pass
    assert elsewhere.read_text() == "of the user"


def test_a_folder_is_one_processes_own_until_it_ends(tmp_path):
    folder = tmp_path / "run"
    with (
        locked(folder),
        pytest.raises(RunError, match=f"{folder} is in use by process {os.getpid()} on "),
        locked(folder),
    ):
        pass
    assert not folder.exists()  # as nothing was put into it
    with locked(folder):
        (folder / "kept").touch()
    assert os.listdir(folder) == ["kept"]
    for text in ("my keys", "process notes"):
        (folder / "lock").write_text(text)
        with pytest.raises(RunError, match="run/lock was not written by a run"), locked(folder):
            pass
        assert (folder / "lock").read_text() == text


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "lock").symlink_to("nowhere/at/all")
    with pytest.raises(RunError, match="linked/lock was not written by a run"), locked(tmp_path / "linked"):
        pass
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for path, message in (("runs/x", "runs/x: cannot be made"), (".", "lock: cannot be made")):
        with pytest.raises(RunError, match=message), locked(Path(path)):
            pass


def _hold(folder, counter, failures):
    for _ in range(200):
        try:
            with locked(folder):
                before = int(counter.read_text())
                counter.write_text(str(before + 1))
        except RunError:
            failures.put(1)


def test_processes_racing_for_a_folder_never_have_it_both(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    failures = server.Queue()
    racers = [server.Process(target=_hold, args=(tmp_path / "run", counter, failures)) for _ in range(3)]
    for racer in racers:
        racer.start()
    refused = 0
    while any(racer.is_alive() for racer in racers) or not failures.empty():
        while not failures.empty():
            refused += failures.get()
        time.sleep(0.01)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert int(counter.read_text()) + refused == 600  # no increment was lost


def test_the_last_two_states_are_kept_and_the_newest_whole_one_is_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path / "unfinished")
    checkpoints.folder.mkdir()
    assert checkpoints.load() == (None, {})
    for number in (9, 10, 11):
        checkpoints.save(number, [np.arange(number), np.float64(number) / 3], {"step": number, "text": "ñ"})
    assert checkpoints.wait() is None
    newest, older = sorted(checkpoints.folder.iterdir(), reverse=True)
    arrays, facts = checkpoints.load()
    assert facts == {"step": 11, "text": "ñ"} and len(arrays) == 2
    np.testing.assert_array_equal(arrays[0], np.arange(11))
    assert arrays[1] == np.float64(11) / 3
    content = newest.read_bytes()
    directory = content.index(b"PK\1\2")
    # In the data; the method of compression; the length of a comment, which then is the rest of the directory.
    data = content.index(b"\x93NUMPY", content.index(b"arr_1")) + 130
    for place, bit in ((data, 0), (directory + 10, 0), (directory + 33, 4)):
        newest.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        assert checkpoints.load()[1]["step"] == 10, place
    for damaged in (content[:-7], b""):
        newest.write_bytes(damaged)
        assert checkpoints.load()[1]["step"] == 10
    older.unlink()
    with pytest.raises(RunError, match="no undamaged checkpoint"):
        checkpoints.load()


def test_only_what_training_has_written_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "unfinished")
    checkpoints.folder.mkdir()
    for name in ("000000000007.npz", "aside-000000000008.npz", "begun.keras", "novel.txt", "mine.npz"):
        (checkpoints.folder / name).touch()
    checkpoints.remove()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["mine.npz", "novel.txt"]
    for path in checkpoints.folder.iterdir():
        path.unlink()
    checkpoints.remove()
    assert not checkpoints.folder.exists()


def test_a_full_disk_takes_nothing_that_was_saved(full_disk):
    checkpoints = Checkpoints(full_disk / "unfinished")
    checkpoints.folder.mkdir()
    checkpoints.save(1, [np.zeros(1000)], {"step": 1})
    checkpoints.save(2, [np.zeros(200_000)], {"step": 2})
    assert "No space left" in str(checkpoints.wait()) and checkpoints.wait() is None
    assert checkpoints.load()[1] == {"step": 1}
    assert [path.name for path in checkpoints.folder.iterdir()] == ["000000000001.npz"]
    checkpoints.save(3, [np.zeros(1000)], {"step": 3})
    assert checkpoints.wait() is None and checkpoints.load()[1] == {"step": 3}


@pytest.fixture
def config(tmp_path):
    """All that training remembers: dropout, guesses, averages, the best epoch, steps that shrink, patience."""
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}{b}{c}\t{c}{b}{a}\n" for a in "abcde" for b in "abcde" for c in "abcd"))
    return Config(
        corpus=str(path),
        units=8,
        cell="gru",
        bidirectional=False,
        attention=None,
        embedding=4,
        batch_size=4,
        epochs=8,
        dropout=0.2,
        label_smoothing=0.0,
        teacher_forcing=(1.0, 0.5),
        average=2,
        monitor="val_loss",
        schedule="plateau",
        learning_rate=0.8,
        patience=4,
        checkpoint_minutes=0.0,
    )


def _train(config, folder, events):
    """Train in a process of its own that says after each step and epoch that it is there."""
    from seq2seq.startup import start_tensorflow

    start_tensorflow()
    import keras

    from seq2seq.training import train

    class Tell(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            events.send("step")

        def on_epoch_end(self, epoch, logs=None):
            events.send("epoch")

    tell = Tell()
    model = train(config, folder, callbacks=[tell])
    assert model.teacher_forcing == 0.5  # where its schedule has ended
    events.send([weight.numpy() for weight in (*model.weights, *tell.model.optimizer.variables)])


def _run(config, folder, events_until_killed=None):
    """What training returns; None if it was killed after so many events."""
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=_train, args=(config, folder, sender))
    process.start()
    sender.close()
    count = 0
    while True:
        event = receiver.recv()
        if isinstance(event, list):
            process.join()
            return event
        count += 1
        if count == events_until_killed:
            time.sleep(random.Random(count).uniform(0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return None


@pytest.mark.slow
def test_a_training_that_was_killed_ends_with_the_same_weights(config, tmp_path):
    config = dataclasses.replace(config, keep_epochs=2)
    whole = _run(config, tmp_path / "whole")
    assert _run(config, tmp_path / "run", events_until_killed=60) is None
    _, facts = Checkpoints(tmp_path / "run" / "unfinished").load()
    assert len(facts["history"]) == 2
    found = _run(config, tmp_path / "run")
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("history.csv", "survey.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    records = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "whole")]
    for record in records:  # how long it takes and how much memory is another matter
        measured = [record["training"].pop(name) for name in ("seconds", "processor_seconds", "peak_memory_mb")]
        assert min(measured) > 0
    assert records[0] == records[1]
    epochs = (tmp_path / "run" / "history.csv").read_text().count("\n") - 1
    assert records[0]["training"]["epochs"] == epochs
    kept = sorted(path.name for path in (tmp_path / "run" / "epochs").iterdir())
    assert kept == [f"epoch-{number:04}.keras" for number in (epochs - 1, epochs)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "epochs",
        "history.csv",
        "model.keras",
        "probe.json",
        "survey.json",
    ]
    rates = [float(line.rpartition(",")[2]) for line in (tmp_path / "run" / "history.csv").read_text().splitlines()[1:]]
    assert rates[0] == pytest.approx(0.8) and min(rates) <= 0.4  # halved on a plateau


class _StopHere(Exception):
    pass


def test_a_training_goes_on_in_the_middle_of_an_epoch(config, tmp_path):
    import keras

    from seq2seq.training import train

    class Stop(keras.callbacks.Callback):
        count = 0

        def on_train_batch_end(self, batch, logs=None):
            self.count += 1
            if self.count == 8:
                raise _StopHere

    options = {"batch_tokens": 40, "encoding": "one_hot", "limit": 60, "optimizer": "rmsprop", "schedule": "cosine"}
    options |= {"steps_per_epoch": 5}  # of 6 in a pass
    config = dataclasses.replace(config, epochs=3, average=1, monitor="val_perplexity", **options)
    whole = train(config, tmp_path / "whole")
    said = []
    with pytest.raises(_StopHere):
        train(config, tmp_path / "run", callbacks=[Stop()])
    path = tmp_path / "run" / "config.json"
    record = path.read_text()
    path.write_text(json.dumps(json.loads(record) | {"plan": {"steps": 6}}))
    with pytest.raises(RunError, match=r"run/config\.json: damaged plan \(.*\); --overwrite starts"):
        train(None, tmp_path / "run")
    path.write_text(record)
    other = dataclasses.replace(config, units=4)
    with pytest.raises(RunError, match=r"unfinished run with other options \(units 8, not 4\)"):
        train(other, tmp_path / "run")
    of = set()
    follow = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: of.add(follow.params["epochs"]))
    resumed = train(None, tmp_path / "run", say=said.append, callbacks=[follow])
    assert said[0] == f"Resuming {tmp_path / 'run'} in epoch 2/3, after 2 of 5 steps" and of == {3}
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    history = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "run")]
    assert history[0] == history[1]
    with pytest.raises(RunError, match="no unfinished run to resume; its training has ended"):
        train(None, tmp_path / "run")


def test_a_training_interrupted_twice_before_its_first_checkpoint_ends_with_the_same_weights(config, tmp_path):
    import keras

    from seq2seq.training import train

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise _StopHere

    options = {"epochs": 1, "patience": None, "schedule": "constant", "checkpoint_minutes": 60.0}
    config = dataclasses.replace(config, **options)
    whole = train(config, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(_StopHere):
            train(config, tmp_path / "run", callbacks=[Stop()])
        assert [path.name for path in (tmp_path / "run" / "unfinished").iterdir()] == ["begun.keras"]
    resumed = train(config, tmp_path / "run")
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_follows_each_epoch_that_is_written(config, tmp_path):
    import keras

    from seq2seq.training import train

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == self.params["steps"] + 2:
                raise _StopHere

    config = dataclasses.replace(config, epochs=2, patience=None, schedule="constant", checkpoint_minutes=60.0)
    with pytest.raises(_StopHere):
        train(config, tmp_path / "run", callbacks=[Stop()])
    checkpoints = Checkpoints(tmp_path / "run" / "unfinished")
    deadline = time.monotonic() + 60
    while not (facts := checkpoints.load()[1]) and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread writes it
    assert len(facts["history"]) == 1 and facts["step"] == 0


def test_a_signal_in_the_last_epoch_is_obeyed_once_the_run_has_ended(config, tmp_path):
    import keras

    from seq2seq.training import train

    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    config = dataclasses.replace(config, epochs=1, patience=None, schedule="constant")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", callbacks=[stop])
    assert finished(tmp_path / "run") is True


def test_a_folder_called_unfinished_that_no_run_has_made_is_left_alone(config, tmp_path):
    from seq2seq.training import train

    (tmp_path / "run" / "unfinished").mkdir(parents=True)
    novel = tmp_path / "run" / "unfinished" / "novel.txt"
    novel.write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="is not empty, and it holds no run"):
            train(config, tmp_path / "run", overwrite=overwrite)
    assert novel.read_text() == "x"


@pytest.mark.parametrize("ended", [False, True])
def test_wherever_overwriting_is_interrupted_no_model_has_the_record_of_another_and_the_same_command_works(
    config, tmp_path, monkeypatch, ended
):
    import keras

    from seq2seq import training

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch and not ended:
                raise _StopHere

    def stop(*_):
        raise _StopHere

    def failing(change):
        def once(*arguments, **options):
            changes.append(arguments)
            return stop() if len(changes) == number else change(*arguments, **options)

        return once

    old = dataclasses.replace(config, epochs=2, patience=None, schedule="constant", limit=60, keep_epochs=1)
    new = dataclasses.replace(old, keep_epochs=0)
    with contextlib.nullcontext() if ended else pytest.raises(_StopHere):
        training.train(old, tmp_path / "old", callbacks=[Stop()])
    assert (tmp_path / "old" / "model.keras").is_file() and finished(tmp_path / "old") is ended
    monkeypatch.setattr(training, "_fit", stop)
    for number in itertools.count(1, 4):  # stopped before the first file is removed or renamed, the fifth, ...
        run, changes = tmp_path / f"run {number}", []
        shutil.copytree(tmp_path / "old", run)
        (run / "notes.txt").touch()  # the user's own
        with monkeypatch.context() as patched, pytest.raises(_StopHere):
            patched.setattr(Path, "unlink", failing(Path.unlink))
            patched.setattr(os, "replace", failing(os.replace))
            training.train(new, run, overwrite=True)
        is_old = read_record(run).config == old
        assert is_old or not (run / "model.keras").exists()
        assert not finished(run) or (run / "model.keras").exists()
        if (run / "unfinished" / "begun.keras").exists():  # a run to resume, of which nothing is missing
            assert not (is_old and ended) and (run / "model.keras").exists() == is_old
        with pytest.raises(_StopHere):
            training.train(new, run, overwrite=True)
        assert read_record(run).config == new and finished(run) is False
        left = sorted(path.name for path in run.rglob("*"))
        assert left == ["begun.keras", "config.json", "notes.txt", "survey.json", "unfinished"]
        if len(changes) < number:
            break  # it was not stopped
    assert number >= 9


def test_a_training_is_resumed_from_another_directory_on_its_own_corpus(config, tmp_path, monkeypatch):
    import keras

    from seq2seq.training import train

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise _StopHere

    monkeypatch.chdir(tmp_path)
    name = Path(config.corpus).name
    Path("dev.tsv").write_text("abc\tcba\n")
    options = {"corpus": name, "validation": "dev.tsv", "validation_fraction": 0.0, "schedule": "constant"}
    config = dataclasses.replace(config, epochs=1, monitor="val_loss", patience=None, **options)
    with pytest.raises(_StopHere):
        train(config, tmp_path / "run", callbacks=[Stop()])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    Path(name).write_text("another\tcorpus\n")
    with pytest.raises(CorpusError, match=rf"^{name}: this run began with {tmp_path / name}; --resume continues"):
        train(config, tmp_path / "run")
    Path(name).write_bytes((tmp_path / name).read_bytes())
    Path("dev.tsv").write_text("another\tcorpus\n")
    with pytest.raises(CorpusError, match=rf"^dev.tsv: this run began with {tmp_path}/dev.tsv; --resume"):
        train(config, tmp_path / "run")
    model = train(None, tmp_path / "run")
    assert sorted(model.source_tokenizer.tokens) == list("abcde") and (tmp_path / "run" / "model.keras").is_file()


def test_a_training_that_filled_the_disk_goes_on_when_there_is_room(config, full_disk, tmp_path):
    import keras
    from conftest import epochs_seen

    from seq2seq.runs import load_run
    from seq2seq.training import train

    class Fill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                with pytest.raises(OSError), (full_disk / "filler").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1000))

    said = []
    config = dataclasses.replace(config, epochs=4, monitor=None, schedule="constant", patience=None)
    with pytest.raises(OSError, match="No space left"):
        train(config, full_disk / "run", callbacks=[Fill()], say=said.append)
    assert notices(said) and all("could not be saved ([Errno 28] No space left" in text for text in notices(said))
    assert load_run(full_disk / "run").translate("abc").numpy()  # the epoch before
    (full_disk / "filler").unlink()
    said.clear()
    assert epochs_seen(train(config, full_disk / "run", say=said.append), full_disk / "run") == 4
    assert said[0].startswith(f"Resuming {full_disk / 'run'} in epoch 2/4")
