"""The command line, for tests: in this process, or each command in a process forked from one that has TensorFlow."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from seq2seq import cli, runs
from seq2seq.commands import corpora, translate
from seq2seq.runs import load_runs as _load_runs

SEQ2SEQ = str(Path(sys.executable).with_name("seq2seq"))
SMALL_MODEL = ["--units", "8", "--cell", "gru", "--no-bidirectional", "--attention", "dot", "--embedding", "none"]

# The imports take longer than most of what is tested.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["tensorflow_text", "sacrebleu", "matplotlib.pyplot", "seq2seq.cli", "seq2seq.training", "seq2seq.evaluation"]
)


def seq2seq(*arguments, stdin=None, cwd=None):
    """Run a command in a process of its own, as `subprocess.run` does, and return what that returns."""
    return _in_another_process(run_command, arguments, stdin, cwd)


def python(*arguments, cwd=None):
    """Run a script in a process of its own, in which TensorFlow is imported already; otherwise as `seq2seq` above."""
    return _in_another_process(_run_script, arguments, None, cwd)


def _in_another_process(run, arguments, stdin, cwd):
    arguments = [str(argument) for argument in arguments]
    with _files(stdin) as files:
        process = server.Process(target=_with_files, args=(run, arguments, files, cwd))
        process.start()
        process.join()
        stdout, stderr = (path.read_bytes() for path in files[1:])
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _with_files(run, arguments, files, cwd):
    for number, path in enumerate(files):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0)  # which multiprocessing has closed
    os.chdir(cwd or ".")
    run(arguments)


def run_command(arguments, pictures=False):
    """Run a command in this process, and end it. It has one core, as a part of each model is traced for every core,
    and `train` draws no pictures unless they are asked for."""
    _take_one_core_and_the_server()
    if arguments[0] == "train" and not pictures:
        sys.modules["matplotlib"] = None  # as where the extra `plots` is not installed
    sys.argv = ["seq2seq", *arguments]
    cli.main()


def _run_script(arguments):
    _take_one_core_and_the_server()
    sys.argv = arguments
    path = os.path.abspath(arguments[0])  # the processes that the script starts look elsewhere
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def _take_one_core_and_the_server():
    """Processes that this process starts, such as those of a sweep, are forked from the server that it comes from.

    CPython gives a forked process its server's address, but not the server's process ID. The process would therefore
    start a second server, which would import TensorFlow again. The private names are those of CPython 3.11 to 3.13. If
    they change, a second server is started, or the tests of sweeps fail here. From 3.14 on they fail: the server asks
    for a key that forked processes do not have.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    forkserver = multiprocessing.forkserver
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None


@contextlib.contextmanager
def _files(stdin):
    """Paths of standard input, with what is in it, output and errors."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin or b"")
        yield files


def in_process(*arguments, stdin=None, cwd=None):
    """Run a command in this process, which has started TensorFlow, and return what `subprocess.run` would.

    It is much faster: a run is loaded once for all commands, and a strategy traced once. Signals, closed streams and
    what C++ writes to stderr need a process of their own.
    """
    arguments = [str(argument) for argument in arguments]
    with _files(stdin) as files:
        code = command_with_streams(arguments, *files, cwd=cwd)
        stdout, stderr = (path.read_bytes() for path in files[1:])
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


def command_with_streams(arguments, stdin, stdout, stderr, cwd=None):
    """Run a command in this process with these files or descriptors, and return its exit code."""
    modules = set(sys.modules)
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stack.enter_context(open(stdin)))
        for name, file, errors in (("stdout", stdout, "surrogateescape"), ("stderr", stderr, "backslashreplace")):
            patch.setattr(sys, name, stack.enter_context(open(file, "w", encoding="utf-8", errors=errors)))
        patch.setattr(sys, "argv", ["seq2seq", *arguments])
        patch.setattr(sys, "path", [*sys.path])
        patch.chdir(cwd or ".")
        patch.setattr(runs, "load_runs", load_runs)
        for module in (cli, corpora, translate):
            patch.setattr(module, "start_tensorflow", lambda trains=False: None)
        try:
            cli.app(prog_name="seq2seq")
        except SystemExit as end:
            return end.code or 0
        finally:
            for name in set(sys.modules) - modules if cwd else ():  # another test may have a module of the same name
                if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{cwd}/"):
                    del sys.modules[name]


def load_runs(folders):
    """Load runs as `seq2seq.runs.load_runs` does, but the same files only once."""
    paths = [Path(folder).resolve() / "model.keras" for folder in folders]
    key = tuple((path, path.stat().st_mtime_ns if path.is_file() else None) for path in paths)
    if key not in _LOADED:
        _LOADED[key] = _load_runs(folders)
    return _LOADED[key]


_LOADED = {}
