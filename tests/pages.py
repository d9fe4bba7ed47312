"""The pages of the documentation, for tests: their code blocks, and a shell in which `seq2seq` starts at once.

In this shell each `seq2seq` is a process of its own, forked from one that has imported TensorFlow. Training is
shortened, and only the first run draws pictures. Of two commands that train and differ only in their seeds, only
the first is run: the second gets a copy of its run. `evaluate RUN` and `export RUN DIR` are run once for each model.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

from command_line import run_command, server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What the shell calls `seq2seq`: it sends who and where it is and what it is asked for, and waits for the exit code.
CLIENT = """#!{python} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({socket!r})
connection.sendall(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
sys.exit(int(connection.makefile().readline()))
"""


# A `train` with one of these keeps its architecture.
ARCHITECTURE = ("--preset", "--architecture", "--cell", "--from", "--config")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, and the comment above it, if any."""

    language: str
    text: str
    line: int
    comment: str

    @property
    def reason(self) -> str | None:
        """Why it is not run here."""
        if self.comment.startswith("not run: "):
            return self.comment.removeprefix("not run: ")
        return "run by .ci/run" if self.comment in ("ci: main", "ci: test") else None


def name(page: Path) -> str:
    """A short name of a page: `readme`, `guides-corpora`."""
    parts = page.relative_to(ROOT).with_suffix("").parts
    return "-".join(part.lower() for part in parts if part != "docs")


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found, lines = [], page.read_text().splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        comment = re.fullmatch(r"<!-- (.*) -->", lines[start - 1]) if start else None
        text = "".join(f"{line}\n" for line in lines[start + 1 : end])
        found.append(Block(lines[start].strip("` "), text, start + 2, comment[1] if comment else ""))
    return found


def defined_in(page: Path, file: str) -> dict:
    """What the block that a page shows as this Python file defines."""
    scope: dict = {}
    exec(shown_as(page, file), scope)
    return scope


def shown_as(page: Path, file: str) -> str:
    """The text of the block that a page shows as this Python file."""
    (text,) = (block.text for block in blocks(page) if block.text.startswith(f"# {file}\n"))
    return text


class Shell:
    """A shell for scripts, in which `seq2seq` is forked from a process that has imported TensorFlow."""

    def __init__(self, folder: Path):
        self.folder, self.trained, self.done, self.lock = folder, {}, {}, threading.Lock()
        self.running = {}  # {process ID of a `seq2seq` in the shell: the process that does its work}
        address = str(folder / "socket")
        self.client = folder / "bin" / "seq2seq"
        self.client.parent.mkdir(parents=True)
        self.client.write_text(CLIENT.format(python=sys.executable, socket=address))
        self.client.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{self.client.parent}:{os.environ['PATH']}"}
        shell = self

        class Answer(socketserver.StreamRequestHandler):
            def handle(self):
                pid, cwd, arguments = json.loads(self.rfile.readline())
                self.wfile.write(f"{shell.answer(pid, Path(cwd), short(arguments))}\n".encode())

        self.server = socketserver.ThreadingUnixStreamServer(address, Answer)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, script: str, cwd: Path) -> subprocess.CompletedProcess:
        """What `bash` says of a script, whose first error ends it."""
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True)

    def answer(self, pid: int, cwd: Path, arguments: list[str]) -> int:
        """Run one command with the standard streams of the process that asks, and return its exit code."""
        if (arguments[0], len(arguments)) in (("evaluate", 2), ("export", 3)):
            return self.once(pid, cwd, arguments)
        if arguments[:1] != ["train"] or {"--resume", "--from", "--config"} & set(arguments):
            return self.forked(pid, cwd, arguments)
        out = arguments[arguments.index("--out") + 1] if "--out" in arguments else None
        key = keyed(arguments)
        if kept := self.trained.get(key):
            out = out or kept[1]
            shutil.copytree(kept[0], cwd / out, dirs_exist_ok=True)
            Path(f"/proc/{pid}/fd/1").write_text(f"{out}\n")
            return 0
        if out:
            shutil.rmtree(cwd / out, ignore_errors=True)  # a run that the page has been given
        before = set(cwd.glob("runs/*"))
        code = self.forked(pid, cwd, arguments, not self.trained)  # the first run has all that a run can have
        made = cwd / out if out else next(iter(set(cwd.glob("runs/*")) - before), None)
        if code == 0 and made:
            with self.lock:
                kept = self.folder / f"run-{len(self.trained)}"
                self.trained[key] = shutil.copytree(made, kept), str(made.relative_to(cwd))
        return code

    def once(self, pid: int, cwd: Path, arguments: list[str]) -> int:
        """As `answer`, for what depends on a run only. With the same model again it prints nothing, and what it writes
        is copied."""
        _, run, *out = arguments
        key = *arguments, hashlib.sha256((cwd / run / "model.keras").read_bytes()).digest()
        if key not in self.done:
            if code := self.forked(pid, cwd, arguments):
                return code
            self.done[key] = self.folder / f"written-{len(self.done)}"
            if out:
                shutil.copytree(cwd / out[0], self.done[key])
        elif out:
            shutil.copytree(self.done[key], cwd / out[0])
        return 0

    def forked(self, pid: int, cwd: Path, arguments: list[str], pictures: bool = False) -> int:
        process = server.Process(target=_command, args=(pid, str(cwd), arguments, pictures))
        process.start()
        self.running[pid] = process
        process.join()
        return process.exitcode


def short(arguments: list[str]) -> list[str]:
    """The arguments of a command, with options that make training short."""
    arguments = list(arguments)

    def at_most(option, value):
        if option in arguments:
            arguments[arguments.index(option) + 1] = value

    if arguments[:1] == ["train"] and "--resume" not in arguments:
        if "--updates" in arguments:
            arguments[arguments.index("--updates")] = "--epochs"
        at_most("--epochs", "1")
        if "--epochs" not in arguments:
            arguments += ["--epochs", "3" if "--keep-epochs" in arguments else "1"]
        if not {"--units", "--from", "--config"} & set(arguments):
            arguments += ["--units", "8"]
        if "transformer" in arguments or "inflection" in arguments:  # which has two layers by default
            arguments += ["--layers", "1"]
        if not set(ARCHITECTURE) & set(arguments):
            arguments += ["--cell", "gru", *(() if "--encoder" in arguments else ("--no-bidirectional",))]
        if not {"--limit", "--config"} & set(arguments):
            arguments += ["--limit", "200"]
    if arguments[:1] == ["sweep"]:
        at_most("--seeds", "1")
        at_most("--trials", "1")
        arguments += ["--epochs", "1", "--cell", "gru", "--attention", "none"]
    return arguments


def keyed(arguments: list[str]) -> tuple[str, ...]:
    """What two commands that may share a run have in common: all but the run's folder and its seed."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return tuple(word for before, word in pairs if not {before, word} & {"--out", "--seed"})


def _command(pid, cwd, arguments, pictures):
    for number, flags in enumerate([os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND]):
        file = os.open(f"/proc/{pid}/fd/{number}", flags)
        os.dup2(file, number)
        os.close(file)
    # multiprocessing has closed the first, and the others know the files that the server had there.
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    run_command(arguments, pictures)
