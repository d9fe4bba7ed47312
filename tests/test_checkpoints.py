import dataclasses
import json
import os
import random
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
from seq2seq.records import RunError, resumable


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
    with pytest.raises(RunError, match="linked/lock: cannot be made"), locked(tmp_path / "linked"):
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
    checkpoints.clear()
    with pytest.raises(RunError, match="no undamaged checkpoint"):
        checkpoints.load()
    for number in (9, 10, 11):
        checkpoints.save(number, [np.arange(number), np.float64(number) / 3], {"step": number, "text": "ñ"})
    assert checkpoints.wait() is None
    newest, older = sorted(checkpoints.folder.iterdir(), reverse=True)
    arrays, facts = checkpoints.load()
    assert facts == {"step": 11, "text": "ñ"} and len(arrays) == 2
    np.testing.assert_array_equal(arrays[0], np.arange(11))
    assert arrays[1] == np.float64(11) / 3
    content = newest.read_bytes()
    for damaged in (content[:-7], b"", content[:700] + bytes([content[700] ^ 1]) + content[701:]):
        newest.write_bytes(damaged)
        assert checkpoints.load()[1]["step"] == 10
    older.unlink()
    with pytest.raises(RunError, match="no undamaged checkpoint"):
        checkpoints.load()


def test_what_is_cleared_half_is_no_training_to_resume(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "unfinished")
    checkpoints.clear()
    for name in ("config.json", "aside-000000000000.npz"):  # the first checkpoint was being written
        (checkpoints.folder / name).touch()
    assert not resumable(tmp_path)
    (checkpoints.folder / "000000000000.npz").touch()
    assert resumable(tmp_path)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: exit(1))
    with pytest.raises(SystemExit):
        checkpoints.clear()
    assert not resumable(tmp_path)


def test_a_full_disk_takes_nothing_that_was_saved(full_disk):
    checkpoints = Checkpoints(full_disk / "unfinished")
    checkpoints.clear()
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
    config = dataclasses.replace(config, epochs=3, average=1, monitor="val_perplexity", **options)
    whole = train(config, tmp_path / "whole")
    said = []
    with pytest.raises(_StopHere):
        train(config, tmp_path / "run", callbacks=[Stop()])
    facts = tmp_path / "run" / "unfinished" / "run.json"
    content = facts.read_bytes()
    facts.write_bytes(content[:9])
    with pytest.raises(RunError, match=r"unfinished/run\.json: damaged \(.*\); --overwrite starts"):
        train(None, tmp_path / "run")
    facts.write_bytes(content)
    other = dataclasses.replace(config, units=4)
    with pytest.raises(RunError, match=r"unfinished run with other options \(units 8, not 4\)"):
        train(other, tmp_path / "run")
    of = set()
    follow = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: of.add(follow.params["epochs"]))
    resumed = train(None, tmp_path / "run", say=said.append, callbacks=[follow])
    assert said[0] == f"Resuming {tmp_path / 'run'} in epoch 2/3, after 1 of 6 steps" and of == {3}
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    history = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "run")]
    assert history[0] == history[1]
    with pytest.raises(RunError, match="no unfinished run to resume; its training has ended"):
        train(None, tmp_path / "run")


def test_a_training_interrupted_twice_before_its_second_checkpoint_ends_with_the_same_weights(config, tmp_path):
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
        (checkpoint,) = (tmp_path / "run" / "unfinished").glob("*.npz")
        assert checkpoint.name == "000000000000.npz"
    resumed = train(config, tmp_path / "run")
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_half_trained_model_is_not_finished_when_overwriting_its_run_is_interrupted(config, tmp_path, monkeypatch):
    import keras

    from seq2seq import training
    from seq2seq.records import finished

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                raise _StopHere

    def stop(*_):
        raise _StopHere

    config = dataclasses.replace(config, epochs=2, patience=None, schedule="constant", limit=60)
    with pytest.raises(_StopHere):
        training.train(config, tmp_path / "run", callbacks=[Stop()])
    assert (tmp_path / "run" / "model.keras").is_file() and not finished(tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(_StopHere):
        patched.setattr(training, "_fit", stop)
        training.train(config, tmp_path / "run", overwrite=True)
    assert not finished(tmp_path / "run") and not resumable(tmp_path / "run")
    with pytest.raises(RunError, match="holds part of a run, which cannot be resumed; --overwrite starts"):
        training.train(config, tmp_path / "run")
    training.train(config, tmp_path / "run", overwrite=True)
    assert finished(tmp_path / "run")


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
