"""A web page of a trained model: a folder of static files that translates in the browser."""

import contextlib
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import keras

from pipelines.options import one_line
from seq2seq.onnx_exporting import export_onnx
from seq2seq.records import RunError

PAGE = Path(__file__).with_name("web")
ONNXRUNTIME_WEB = "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
# Its build with neither WebGPU nor WebGL, and the names here: not every server knows what .mjs is.
_FILES = {
    "dist/ort.wasm.bundle.min.mjs": "onnxruntime-web.js",
    "dist/ort-wasm-simd-threaded.wasm": "onnxruntime-web.wasm",
}


def export_web(
    model: keras.Model,
    folder: Path,
    probe: Sequence[str] = (),
    onnxruntime_web: Path | str | None = None,
) -> None:
    """Write a self-contained folder for a web server: a page that translates as you type.

    It holds the files of `export_onnx`, except the Python program; the files of `seq2seq/web`; and onnxruntime-web.

    Args:
        model, folder: as in `export_onnx`.
        probe: as in `export_onnx`; the first five are the page's examples.
        onnxruntime_web: the npm package onnxruntime-web, 1.30 or later: a .tgz file, or the folder it was unpacked to.
            Default: 1.30.0, which is downloaded once into the Keras cache.

    Raises:
        RunError: as `export_onnx`, or if onnxruntime-web cannot be downloaded or read.
        MissingExtra: if the packages of the extra `onnx` are not installed.
    """
    engine = read_onnxruntime_web(onnxruntime_web)
    export_onnx(model, folder, probe)
    (folder / "translator.py").unlink()
    for name, content in engine.items():
        (folder / name).write_bytes(content)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)


def read_onnxruntime_web(path: Path | str | None = None) -> dict[str, bytes]:
    """Read the files of onnxruntime-web that the page loads, by their names there.

    Args:
        path: as in `export_web`.

    Raises:
        RunError: if they cannot be downloaded, or are not in `path`.
    """
    path = Path(path or _download())
    try:
        if path.is_dir():
            return {name: (path / inside).read_bytes() for inside, name in _FILES.items()}
        with tarfile.open(path) as archive:
            files = {name: archive.extractfile(f"package/{inside}") for inside, name in _FILES.items()}
            return {name: file.read() for name, file in files.items() if file}
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        what = "the npm package onnxruntime-web, as a .tgz file or an unpacked folder"
        raise RunError(f"{path}: expected {what} ({one_line(error)})") from None


def _download():
    """The path of the package in the Keras cache."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras announces the download; stdout is for results
            name = ONNXRUNTIME_WEB.rpartition("/")[2]
            return keras.utils.get_file(name, ONNXRUNTIME_WEB, cache_subdir="onnxruntime-web", file_hash=_SHA256)
    except Exception as error:  # get_file raises no narrower one
        what = f"download {ONNXRUNTIME_WEB} elsewhere and name the file: --onnxruntime-web FILE"
        raise RunError(f"onnxruntime-web: {one_line(error)}; {what}") from None
