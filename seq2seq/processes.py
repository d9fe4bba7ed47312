"""Parallel calls of a function, each in its own process with its share of the cores and GPUs."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf


def in_processes(
    function: Callable,
    tasks: Mapping[Any, tuple],
    jobs: int = 1,
    begun: Callable[[Any], None] | None = None,
    ended: Callable[[Any, Any], None] | None = None,
    watch: Callable[[list], None] | None = None,
) -> dict[Any, Any]:
    """Call a function for each of {key: arguments}, each in its own process with its share of the cores.

    The processes are forked from one that has only imported TensorFlow, and they end when this process ends, for
    whatever reason. After an interrupt, they are terminated and waited for.

    Args:
        function: a function of a module, so that other processes find it.
        tasks: {key: arguments}.
        jobs: number of processes at a time. With several GPUs each has one.
        begun, ended: functions to call with a key when its process starts, and with the key and the result when it
            ends.
        watch: a function to call twice a second with the keys of running processes.

    Returns:
        {key: what the function returned, or the exception that it raised}, in the order in which they ended.
    """
    from seq2seq.startup import without_stderr

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seq2seq.training", "seq2seq.evaluation"])
    with without_stderr():  # TensorFlow's import writes a page there
        multiprocessing.forkserver.ensure_running()
    waiting, shares, results = list(tasks.items())[::-1], _divide_machine(jobs), {}
    running: dict[Any, tuple] = {}
    try:
        while waiting or running:
            while waiting and shares:
                key, arguments = waiting.pop()
                share = shares.pop(0)
                receiver, process = _start(context, *share, function, arguments)
                running[receiver] = key, process, share
                if begun:
                    begun(key)
            ready: list[Any] = multiprocessing.connection.wait(list(running), timeout=0.5 if watch else None)
            for receiver in ready:
                key, process, share = running.pop(receiver)
                try:
                    results[key] = receiver.recv()
                except EOFError:
                    process.join()
                    results[key] = RuntimeError(f"its process ended with exit code {process.exitcode}")
                except Exception as error:  # of a class that is not known here, or cannot be made again
                    results[key] = RuntimeError(f"its process failed, and its error cannot be read here: {error}")
                process.join()
                shares.append(share)
                if ended:
                    ended(key, results[key])
            if watch and running:
                watch([key for key, _, _ in running.values()])
    finally:
        for _, process, _ in running.values():
            process.terminate()  # if it trains, it saves a checkpoint first
        for _, process, _ in running.values():
            process.join()
    return results


def _start(context, *arguments):
    """Start a process; return the connection that receives its result, and the process."""
    receiver, sender = context.Pipe(duplex=False)
    stderr = multiprocessing.connection.Connection(os.dup(2), readable=False)  # which, unlike a number, can be sent
    process = context.Process(target=_run, args=(sender, stderr, *arguments))
    process.start()
    sender.close()
    stderr.close()
    return receiver, process


def _divide_machine(jobs):
    """The cores of each process, a set, and the environment variables that give it its GPU."""
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // jobs)
    gpus = len(tf.config.list_physical_devices("GPU"))
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    shares = []
    for job in range(jobs):
        # Otherwise, the first of several on one GPU would take all of its memory.
        variables = {"TF_FORCE_GPU_ALLOW_GROWTH": os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", "true")}
        if gpus > 1:
            variables["CUDA_VISIBLE_DEVICES"] = names[job % gpus]
        shares.append(({cores[(job * size + number) % len(cores)] for number in range(size)}, variables))
    return shares


def _run(sender, stderr, cores, variables, function, arguments):
    """Call the function and send the result, in the new process."""
    from seq2seq.startup import start_tensorflow  # which sets the threads of a process that is the command's own

    def end_with_parent():
        multiprocessing.parent_process().join()  # type: ignore[union-attr]  # there is one
        os._exit(1)  # as if killed, which checkpoints survive

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(stderr.fileno(), 2)
    os.sched_setaffinity(0, cores)
    os.environ.update(variables)
    try:
        start_tensorflow(trains=True)
        result = function(*arguments)
    except BaseException as error:
        result = error
    try:
        sender.send(result)
    except Exception:  # not every exception can be pickled
        sender.send(RuntimeError(f"{type(result).__name__}: {result}"))
