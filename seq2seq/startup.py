"""Start TensorFlow in a process of the command line: quietly, and with threads that suit small operations."""

import contextlib
import gc
import os
from collections.abc import Iterator


def start_tensorflow(trains: bool = False) -> None:
    """Import TensorFlow without the start-up log that its C++ code writes to stderr, and set its threads.

    Args:
        trains: whether the process is mainly there to train.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # has an effect only once TensorFlow runs, hence the rest
    gc.disable()  # the import makes 350,000 objects that stay, and would be searched for garbage again and again
    with without_stderr():
        import tensorflow as tf
    gc.freeze()  # from now on, they are not searched either
    gc.enable()
    # The settings apply to the whole process and must precede its first operation, so the library does not make them.
    cores = len(os.sched_getaffinity(0))  # those that this process may use, not those of the machine
    tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // 2))
    # The operations of a recurrent step are small: two in parallel are faster than one divided among all cores. In
    # training on a GPU, waking another thread takes longer than the operation that it is to start.
    gpus = len(tf.config.list_physical_devices("GPU"))
    tf.config.threading.set_inter_op_parallelism_threads(min(2 * gpus, cores) if gpus and trains else cores)
    if not gpus:
        tf.config.experimental.enable_op_determinism()  # same seed, same result; on a GPU it costs speed


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """A context in which everything written to stderr is discarded, by C++ and by child processes too."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
