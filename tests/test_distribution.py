"""Two logical CPU devices, and two real processes on 127.0.0.1, each hold what one device alone comes to."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import time

import numpy as np
import pytest
from command_line import server

from pipelines import OptionError
from seq2seq.config import Config
from seq2seq.distribution import lost_workers, open_strategy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Batches that two do not divide evenly, of texts of unequal length, and gradients that are clipped."""
    path = tmp_path_factory.mktemp("corpus") / "pairs.tsv"
    texts = [f"{a}{b}{c}" * (1 + number % 3) for number, (a, b, c) in enumerate(_triples())]
    path.write_text("".join(f"{text}\t{text[::-1]}\n" for text in texts))
    return Config(
        corpus=str(path),
        units=8,
        cell="gru",
        bidirectional=False,
        embedding=None,
        attention="dot",
        dropout=0.0,
        batch_size=7,
        epochs=3,
        average=2,
        clip_norm=0.3,
        label_smoothing=0.1,
        optimizer="sgd",
        learning_rate=0.5,
        monitor="val_loss",
        checkpoint_minutes=0.0,
    )


def _triples():
    return [(a, b, c) for a in "abcd" for b in "abcd" for c in "abc"]


def _two_devices():
    """A strategy of two logical CPU devices: one to a process, as TensorFlow numbers what replicas exchange anew."""
    import tensorflow as tf

    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def _train(config, folder, strategy, cluster, index, events):
    """Train in a process of its own: one device ("none"), two logical ones ("mirrored") or a worker of several."""
    if cluster:
        task = {"type": "worker", "index": index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": task})
    from seq2seq.startup import start_tensorflow

    start_tensorflow()
    import keras

    from seq2seq.training import train

    strategy = _two_devices() if strategy == "mirrored" else open_strategy(strategy)

    class Tell(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            events.send("step")

    tell = Tell()
    try:
        model = train(config, folder, strategy=strategy, callbacks=[tell])
    except Exception as error:
        events.send({"error": f"{type(error).__name__}: {error}", "at": time.monotonic()})
        return
    events.send([weight.numpy() for weight in (*model.weights, *tell.model.optimizer.variables)])


class Process:
    def __init__(self, config, folder, strategy="none", cluster=None, index=0):
        self.events, sender = server.Pipe(duplex=False)
        self.process = server.Process(target=_train, args=(config, folder, strategy, cluster, index, sender))
        self.process.start()
        sender.close()

    def steps(self, count):
        """Wait for so many steps."""
        for _ in range(count):
            assert self.events.recv() == "step"

    def result(self):
        """The weights that it ends with, or its error."""
        while (event := self.events.recv()) == "step":
            pass
        self.process.join(60)
        return event

    def weights(self):
        found = self.result()
        assert isinstance(found, list), found
        return found


def workers(config, folder):
    """Two processes, and the chief is the first."""
    cluster = []
    for _ in range(2):
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            cluster.append(f"127.0.0.1:{port.getsockname()[1]}")
    return [Process(config, folder, "multiworker", cluster, index) for index in range(2)]


@pytest.fixture(scope="module")
def one_device(config, tmp_path_factory):
    """A run of one device, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("one_device") / "run"
    return folder, Process(config, folder).weights()


def assert_same_run(config, one_device, folder, found):
    whole, weights = one_device
    for one, other in zip(weights, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    rows = [np.genfromtxt(run / "history.csv", delimiter=",", skip_header=1) for run in (whole, folder)]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)
    assert len(rows[0]) == config.epochs


def test_two_devices_learn_what_one_does(config, one_device, tmp_path):
    found = Process(config, tmp_path / "run", "mirrored").weights()
    assert_same_run(config, one_device, tmp_path / "run", found)


def test_a_batch_without_a_finite_gradient_changes_nothing_on_any_device(config, tmp_path):
    wild = {"learning_rate": 1e38, "clip_norm": None, "schedule": "constant", "on_divergence": "skip"}
    config = dataclasses.replace(config, average=1, monitor=None, epochs=1, **wild)
    processes = Process(config, tmp_path / "run", "mirrored"), Process(config, tmp_path / "whole")
    found, skipped = [process.weights() for process in processes]
    iterations = [[int(x) for x in weights if x.dtype == np.int64 and x.ndim == 0] for weights in (found, skipped)]
    assert iterations[0] == iterations[1] and 1 <= iterations[0][0] < 6
    assert all(np.isfinite(weight).all() for weight in found if weight.ndim == 2)
    assert (tmp_path / "run" / "diverged.tsv").exists()


def _rows(path, pairs):
    """The source ids of the rows that each of two devices learns in an epoch, padding left out."""
    strategy = _two_devices()
    import tensorflow as tf

    from pipelines import CharTokenizer, batch_pairs, read_pairs
    from seq2seq.distribution import distribute, rows_of_replica

    corpus, tokenizer = read_pairs(path), CharTokenizer()
    tokenizer.adapt(corpus.map(lambda source, _: source))
    batches = batch_pairs(corpus, tokenizer, tokenizer, 7, seed=1, encoding="ids")
    take = tf.function(lambda batch: strategy.run(rows_of_replica, args=(batch,)), reduce_retracing=True)
    learned = []
    read = iter(distribute(strategy, batches))
    (of_machine,) = read._iterators
    tuned = [of_device._dataset.options().autotune.enabled for of_device in of_machine._iterator._device_iterators]
    assert tuned == [False, False]
    for batch in read:
        parts = [tokenizer.detokenize(part).numpy() for part in strategy.experimental_local_results(take(batch)[0])]
        learned.append([[text.decode() for text in part] for part in parts])
    pairs.send(learned)


def test_each_pair_of_an_epoch_is_learned_once_by_one_device(config):
    events, sender = server.Pipe(duplex=False)
    process = server.Process(target=_rows, args=(config.corpus, sender))
    process.start()
    batches = events.recv()
    process.join()
    with open(config.corpus) as file:
        sources = sorted(line.split("\t")[0] for line in file)
    assert sorted(text for batch in batches for part in batch for text in part if text) == sources
    assert all(len(one) == len(other) and one[0] for one, other in batches)


def test_two_processes_learn_what_one_does_though_one_is_killed_in_between(config, one_device, tmp_path):
    first, second = workers(config, tmp_path / "run")
    first.steps(10)
    os.kill(second.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    stopped = first.result()
    # Which one it was is told by its heartbeats, and not where its connection was closed first.
    assert re.match("WorkerLostError: (worker 1|another worker) has stopped or cannot be reached;", stopped["error"])
    assert stopped["at"] - killed < 60
    again = workers(config, tmp_path / "run")
    found = [process.weights() for process in again]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert_same_run(config, one_device, tmp_path / "run", found[0])
    assert not (tmp_path / "run" / "unfinished").exists()


def _fit(path, given, found):
    """The result of Keras's `fit` in a process of its own: one device, or two with such data."""
    import keras

    strategy = None if given == "one device" else _two_devices()
    from pipelines import CharTokenizer, batch_pairs, read_pairs
    from seq2seq import Seq2Seq
    from seq2seq.distribution import distribute

    keras.utils.set_random_seed(0)
    corpus, tokenizer = read_pairs(path), CharTokenizer()
    tokenizer.adapt(corpus.map(lambda source, _: source))
    batches = batch_pairs(corpus, tokenizer, tokenizer, 7, seed=1)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = Seq2Seq(tokenizer, tokenizer, units=8)
        model.compile(keras.optimizers.SGD(0.5, global_clipnorm=0.3))
    if given == "divided":
        data = strategy.experimental_distribute_dataset(batches)
    elif given == "arrays":
        data = [tensor.numpy() for tensor in next(iter(batches))]
    else:
        data = batches
    held_out = distribute(strategy, batches)
    try:
        figures = model.fit(data, validation_data=held_out, epochs=2, verbose=0, shuffle=False).history
        measured = model.evaluate(data, verbose=0, return_dict=True)
        found.send([model.length_ratios.numpy()[0], figures, measured, model.get_weights()])
    except OptionError as error:
        found.send(str(error))


def _fitted(path, *given):
    receivers = []
    for how in given:
        receiver, sender = server.Pipe(duplex=False)
        server.Process(target=_fit, args=(path, how, sender)).start()
        sender.close()  # so that a process that dies is noticed
        receivers.append(receiver)
    return [receiver.recv() for receiver in receivers]


def test_fit_and_evaluate_of_two_devices_learn_and_measure_all_rows_of_what_one_does(config):
    whole, found = _fitted(config.corpus, "one device", "two devices")
    assert found[0] == whole[0] == 2 * len(_triples())
    for name, values in whole[1].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-3, err_msg=name)
    for name, value in whole[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-3, err_msg=name)
    for one, other in zip(whole[3], found[3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_data_that_keras_would_divide_among_devices_is_refused(config):
    divided, arrays = _fitted(config.corpus, "divided", "arrays")
    assert divided.startswith("fit, evaluate: cannot divide a DistributedDataset among 2 replicas; pass the ")
    assert arrays.startswith("fit, evaluate: cannot divide a list among 2 replicas; pass the ")


def _fit_float16(found):
    import keras

    strategy = _two_devices()
    import tensorflow as tf

    from pipelines import CharTokenizer
    from seq2seq import Seq2Seq

    keras.utils.set_random_seed(0)
    tokenizer = CharTokenizer("abcd")
    with strategy.scope():
        model = Seq2Seq(tokenizer, tokenizer, units=8, dtype="mixed_float16")
        sgd = keras.optimizers.SGD(0.5, global_clipnorm=1.0)
        model.compile(keras.optimizers.LossScaleOptimizer(sgd, initial_scale=2.0**24))
    source, target = (tokenizer.tokenize(["abc", "ddcba", "dab"], start_end=side) for side in (False, True))
    batches = tf.data.Dataset.from_tensors((source, target)).repeat(30)
    history = model.fit(batches, epochs=2, verbose=0, shuffle=False).history
    optimizer = model.optimizer
    numbers = [of.numpy() for of in (optimizer.dynamic_scale, optimizer.iterations, model.gradient_norm)]
    found.send([*numbers, history["loss"]])


def test_two_devices_lower_the_scale_of_a_float16_loss_together():
    receiver, sender = server.Pipe(duplex=False)
    server.Process(target=_fit_float16, args=(sender,)).start()
    sender.close()
    scale, learned, norm, losses = receiver.recv()
    assert 2.0**8 < scale < 2.0**24 and scale == 2.0 ** (24 - (60 - learned))
    assert norm < 10 and losses[1] < losses[0]


def _feed(readers, address):
    """Serve tf.data's service, with so many workers that read and encode."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (what tokenizers are made of)

    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    where = service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    workers = [service.WorkerServer(where) for _ in range(readers)]
    address.send(dispatcher.target)
    workers[0].join()


@pytest.fixture(params=[1, 2], ids=["one reader", "two readers"])
def feed(request):
    """The address of such a service, a process of its own, and the number of its workers."""
    found, address = server.Pipe(duplex=False)
    process = server.Process(target=_feed, args=(request.param, address))
    process.start()
    yield found.recv(), request.param
    process.kill()
    process.join()


def test_tf_datas_service_reads_by_file_and_nothing_is_lost_or_read_twice(feed, tmp_path):
    import tensorflow as tf

    from pipelines import CharTokenizer, batch_pairs
    from seq2seq import Seq2Seq

    address, readers = feed
    texts = ["".join(triple) for triple in _triples()]
    for number in range(8):
        lines = (f"{text}\t{text.upper()}\n" for text in texts[number::8])
        (tmp_path / f"{number}.tsv").write_text("".join(lines))
    files = tf.data.Dataset.list_files(str(tmp_path / "*.tsv"), shuffle=False)
    pairs = files.flat_map(tf.data.TextLineDataset).map(lambda line: tuple(tf.unstack(tf.strings.split(line, "\t"), 2)))
    source, target = CharTokenizer("abcd"), CharTokenizer("ABCD")
    batches = batch_pairs(pairs, source, target, 7, seed=1, encoding="ids").repeat(2)
    service = tf.data.experimental.service
    policy = service.ShardingPolicy.OFF if readers == 1 else service.ShardingPolicy.DYNAMIC
    fed = batches.apply(service.distribute(policy, address))
    read = list(fed.as_numpy_iterator())
    assert sorted(text.decode() for batch, _ in read for text in source.detokenize(batch).numpy()) == sorted(2 * texts)
    if readers == 1:
        for own, other in zip(batches.as_numpy_iterator(), read, strict=True):
            np.testing.assert_array_equal(own[1], other[1])
    model = Seq2Seq(source, target, units=8)
    model.compile()
    model.fit(fed, shuffle=False, verbose=0)
    assert model.length_ratios.numpy()[0] == 2 * len(texts)


def test_a_signal_to_one_worker_stops_all_after_a_checkpoint(config, tmp_path):
    config = dataclasses.replace(config, checkpoint_minutes=60.0)
    first, second = workers(config, tmp_path / "run")
    first.steps(10)
    os.kill(second.process.pid, signal.SIGTERM)
    stopped = first.result()
    assert stopped["error"].startswith("WorkerLostError: another worker was told to stop")
    second.process.join(60)
    assert second.process.exitcode == 143
    saved = sorted(path.name for path in (tmp_path / "run" / "unfinished").glob("*.npz"))
    assert [int(name[:12]) >= 10 for name in saved] == [False, True]  # the first is of the end of an epoch


def test_machines_that_tf_config_does_not_name_are_refused(monkeypatch):
    with pytest.raises(OptionError, match=r"strategy='mirored'.*did you mean 'mirrored'"):
        open_strategy("mirored")
    for text in (
        "",
        "{}",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(OptionError, match="strategy='multiworker': TF_CONFIG must look like"):
            open_strategy("multiworker")


def test_where_there_is_no_other_worker_none_is_lost():
    from tensorflow.errors import AbortedError

    with pytest.raises(AbortedError), lost_workers(None):
        raise AbortedError(None, None, "of another kind")
