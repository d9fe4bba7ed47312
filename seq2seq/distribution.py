"""Synchronous training on several devices or machines: what is needed in addition to `tf.distribute`.

Every replica of the model holds all weights and gets each whole batch, of which it learns its own rows. The gradients
are summed before they are applied. So the weights are those of training on one device.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops as device_iterators

from pipelines import OptionError, choose
from pipelines.corpora import WITHOUT_AUTOTUNE
from pipelines.options import one_line


class WorkerLostError(RuntimeError):
    """Another worker of a training run on several machines has stopped. All have to be started again."""


def open_strategy(name: str) -> tf.distribute.Strategy | None:
    """The strategy of a name. For several machines it must be made before TensorFlow computes anything.

    Args:
        name: "none"; "mirrored", for all GPUs of this machine; or "multiworker", for the machines, with all their GPUs,
            that the environment variable `TF_CONFIG` lists. This machine then waits for all others.

    Raises:
        OptionError: if it is none of these, or `TF_CONFIG` does not list the machines.
    """
    if choose("strategy", name, ("none", "mirrored", "multiworker")) == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    try:
        found = json.loads(os.environ.get("TF_CONFIG", ""))
        workers, task = found["cluster"]["worker"], found["task"]
        if set(found["cluster"]) != {"worker"} or task["type"] != "worker" or task["index"] not in range(len(workers)):
            raise ValueError("the cluster must consist of workers only, including this one")
    except (ValueError, LookupError, TypeError) as error:
        raise OptionError(
            "strategy='multiworker': TF_CONFIG must look like "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}} '
            f"({one_line(error)})"
        ) from None
    return tf.distribute.MultiWorkerMirroredStrategy()


def several_workers(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether other processes take part."""
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.cluster_resolver.cluster_spec().num_tasks("worker") > 1
    )


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether this is the process that writes: the first worker, or the only process."""
    return strategy is None or not several_workers(strategy) or strategy.cluster_resolver.task_id == 0


def sums_of_workers(strategy: tf.distribute.Strategy | None, numbers: Sequence[float]) -> list[float]:
    """The sums of numbers over all workers. All workers must call this, and wait for each other here."""
    if strategy is None or not several_workers(strategy):
        return list(numbers)

    sums = _adding(strategy)(tf.constant([*numbers, 0.0], tf.float64))
    return strategy.experimental_local_results(sums)[0].numpy().tolist()[:-1]


def wait_for_workers(strategy: tf.distribute.Strategy | None) -> None:
    """Wait until all workers have called this."""
    sums_of_workers(strategy, [])


@functools.cache
def _adding(strategy):
    """A function that sums tensors over workers; all devices of a worker have the same tensor."""
    devices = strategy.num_replicas_in_sync // strategy.cluster_resolver.cluster_spec().num_tasks("worker")

    def add(numbers):
        replica = tf.distribute.get_replica_context()
        first = tf.cast(replica.replica_id_in_sync_group % devices == 0, numbers.dtype)
        return replica.all_reduce("SUM", numbers * first)

    return tf.function(lambda numbers: strategy.run(add, args=(numbers,)))


def distribute(strategy: tf.distribute.Strategy | None, batches: tf.data.Dataset) -> Any:
    """The input of `fit` and `evaluate` under a strategy: each whole batch, once for each replica.

    ```python
    with strategy.scope():
        model = Seq2Seq(source, target, units=256)
        model.compile()
    model.fit(distribute(strategy, batch_pairs(pairs, source, target, seed=0)), epochs=38)
    ```

    Args:
        strategy: a synchronous strategy, or None.
        batches: as `batch_pairs` makes them; with several workers, the same on all of them, so with a `seed`.

    Returns:
        A `tf.distribute.DistributedDataset`; without a strategy, the batches unchanged.
    """
    if strategy is None:
        return batches
    _tune_no_device()

    def copies(context):
        here = strategy.num_replicas_in_sync // context.num_input_pipelines
        copied = batches.flat_map(lambda *batch: tf.data.Dataset.from_tensors(batch).repeat(here))
        if batches.cardinality() == tf.data.INFINITE_CARDINALITY:  # or workers ask, at every step, if others have more
            copied = copied.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return copied

    distributed = strategy.distribute_datasets_from_function(copies)
    distributed.has_whole_batches = True
    return distributed


def whole_batches(strategy: tf.distribute.Strategy, data: Any) -> Any:
    """The data that `fit` and `evaluate` hand to Keras, such that every replica is given whole batches.

    Keras divides the batches of a dataset among the replicas, and `rows_of_replica` would divide each part again.

    Args:
        strategy: the model's strategy.
        data: the argument of `fit`. With one replica, it is returned unchanged.

    Returns:
        The data, distributed if it is a `tf.data.Dataset`.

    Raises:
        OptionError: with several replicas, for data that is already divided or is not a dataset; with several workers,
            also for a dataset, because each worker may shuffle it in a different order.
    """
    if strategy.num_replicas_in_sync == 1 or data is None or hasattr(data, "has_whole_batches"):
        return data
    if isinstance(data, tf.data.Dataset) and not several_workers(strategy):
        return distribute(strategy, data)
    raise OptionError(
        f"fit, evaluate: cannot divide a {type(data).__name__} among {strategy.num_replicas_in_sync} replicas; pass "
        "the result of seq2seq.distribution.distribute(strategy, batches), with the same batches on all workers"
    )


@functools.cache
def _tune_no_device():
    """Apply `WITHOUT_AUTOTUNE` to the iterators that TensorFlow (2.21) makes for each device.

    Options of a dataset do not reach these.
    """
    create = device_iterators._create_device_dataset
    device_iterators._create_device_dataset = lambda *args: create(*args).with_options(WITHOUT_AUTOTUNE)


@contextlib.contextmanager
def lost_workers(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Raise a `WorkerLostError` when TensorFlow reports that another process does not answer.

    TensorFlow's own heartbeats detect this within half a minute.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if not several_workers(strategy):
            raise
        lost = re.search(r"task:(\d+) *\n*The tasks have crashed", error.message)
        which = f"worker {lost[1]}" if lost else "another worker"
        raise WorkerLostError(f"{which} has stopped or cannot be reached; start all workers again to resume") from None


def rows_of_replica(batch: Any) -> Any:
    """The rows that this replica learns of a batch that all replicas are given: every n-th of each tensor, n being the
    number of replicas.

    All replicas have equally many. If there are not enough rows, some are zeros, which is padding.
    """
    context = tf.distribute.get_replica_context()
    count = context.num_replicas_in_sync
    if count == 1:
        return batch

    def part(tensor):
        missing = [[0, -tf.shape(tensor)[0] % count], *[[0, 0]] * (tensor.shape.rank - 1)]
        return tf.pad(tensor, missing)[context.replica_id_in_sync_group :: count]

    return tf.nest.map_structure(part, batch)


def mean_over_replicas(gradients: list[tf.Tensor | None], tokens: tf.Tensor) -> list[tf.Tensor | None]:
    """The gradients of the mean loss over the tokens of all replicas; `tokens` is their number on this replica.

    None stays None. The gradient of an embedding is a list of rows, in which a row may occur several times. Here it
    becomes the gradient of the whole table: only that has the norm by which gradients are clipped, and it is less to
    send.
    """
    gradients = [gradient if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    weighted = [g * tf.cast(tokens, g.dtype) for g in gradients if g is not None]
    *sums, all_tokens = context.all_reduce("SUM", [*weighted, tokens])
    means = iter(tf.math.divide_no_nan(total, tf.cast(all_tokens, total.dtype)) for total in sums)
    return [None if gradient is None else next(means) for gradient in gradients]
