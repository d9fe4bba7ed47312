"""Many trainings: each setting of a grid of options, or of a search among them, with several seeds."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines import OptionError, check_number, checksums, load_class
from seq2seq.checkpoints import RunError, locked, whole_file
from seq2seq.config import MONITORS, TRANSLATION_FIGURES, Config, parse_setting, usual_options
from seq2seq.runs import configuration, finished
from seq2seq.tables import MEASURES, held_out_figures, read_sweep, setting_text, spoiling_options
from seq2seq.training import check_taken, prepare, train


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers to search among, ends included: on a log scale if the ends are a factor of 10 or more apart."""

    low: float
    high: float


def read_grid(text: str) -> tuple[str, tuple | Range]:
    """Reads an option of a grid and its values: "units=128,256", or a range, "learning_rate=1e-4..1e-2".

    If a value has commas itself, ";" stands between values: "teacher_forcing=1;1,0.5". Commas in brackets separate
    nothing.

    Raises:
        OptionError: if it is not written so, or the option cannot be one of them.
    """
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not equals:
        raise OptionError(f"grid={text!r}: expected NAME=VALUE,VALUE such as units=128,256")
    try:
        _, _ = map(float, values.split(".."))
    except ValueError:
        parts = values.split(";") if ";" in values else re.split(r",(?![^\[]*\])", values)
        return name, tuple(parse_setting(f"{name}={part}")[1] for part in parts if part.strip())
    low, high = (parse_setting(f"{name}={end}")[1] for end in values.split(".."))
    if not low < high:
        raise OptionError(f"grid={text!r}: expected the lower end first")
    return name, Range(low, high)


def sweep(
    corpus: str | Sequence[str],
    out: Path | str,
    grid: Mapping[str, str | Sequence | Range],
    seeds: int = 1,
    *,
    options: Mapping[str, Any] | None = None,
    preset: str | Callable[[Config], str] = "default",
    trials: int | None = None,
    jobs: int = 1,
    imports: Iterable[str] = (),
    say: Callable[[str], None] | None = None,
    show: Callable[[str], None] | None = None,
) -> dict[Path, Exception | None]:
    """Trains every setting of a grid, or of a search, with several seeds: each a run folder OUT/SETTING/seed-N.

    The same call goes on after an interruption: what is finished is not trained again, and what is not is resumed.
    Seeds and values of a grid, or trials of a search, may be added. Each training is a process of its own, so a script
    that calls this needs `if __name__ == "__main__":`. What a training has to say is in OUT/SETTING/seed-N.log.

    Args:
        corpus: as in `Config`.
        out: the folder of all runs; `sweep.json` in it tells what they are.
        grid: the values of each option, or a text that `read_grid` takes after "=".
        seeds: how many runs of each setting, with the seeds 0, 1, ...
        options: other options of all runs.
        preset: the settings to start from, or a function that chooses them, such as `config.choose_preset`.
        trials: how many settings to try in a search (Optuna, extra `sweep`) by the Tree-structured Parzen Estimator
            (Bergstra et al. 2011, papers.nips.cc/paper/4443). Its objective is the mean over seeds of the option
            `monitor`, by default "val_loss". Without it, each combination of the values is trained.
        jobs: how many trainings at a time. They share the cores, on which weights depend a little; with several GPUs
            each has one.
        imports: classes of your own to load first, "module:Class".
        say: a function to call with a line of text when a run starts and when it ends.
        show: a function to call twice a second with the epochs of the runs in training, as text.

    Returns:
        {run folder: None, or the error it failed with}.

    Raises:
        OptionError: before anything is trained, if an option of any setting cannot be.
        RunError: if the folder is in use or holds another sweep.
        CorpusError: if there is no such corpus.
    """
    out, say = Path(out), say or (lambda text: None)
    values = {name: read_grid(f"{name}={of}")[1] if isinstance(of, str) else of for name, of in grid.items()}
    given, imports = dict(options or {}), tuple(imports)
    _check_grid(values, given, trials)
    check_number("seeds", seeds, least=1)
    check_number("jobs", jobs, least=1)
    monitor = given.get("monitor") or "val_loss"
    spoiling = spoiling_options(monitor, [given | dict.fromkeys(values, "")])
    if trials and (unlike := [name for name in spoiling if name in values]):
        raise OptionError(f"monitor={monitor!r}: with another {unlike[0]} it is another figure; take another monitor")
    if monitor in TRANSLATION_FIGURES:
        import seq2seq.evaluation  # noqa: F401  (its packages may be missing)

    corners = {name: (of.low, of.high) if isinstance(of, Range) else of for name, of in values.items()}
    settings = [dict(zip(corners, chosen, strict=True)) for chosen in itertools.product(*corners.values())]
    if len({_folder_name(setting) for setting in settings}) < len(settings):
        raise OptionError("grid: an option has the same value twice")
    if not isinstance(preset, str):
        preset = preset(Config(**_as_fields(given | settings[0]) | {"corpus": corpus}))

    def configured(setting, seed):
        chosen = _as_fields(given | setting)
        return Config(**usual_options(preset, chosen) | chosen | {"corpus": corpus, "seed": seed})

    configs = [configured(setting, 0) for setting in settings]
    results: dict[Path, Exception | None] = {}

    def train_all(settings):
        runs = {
            out / _folder_name(setting) / f"seed-{seed}": configured(setting, seed)
            for setting in settings
            for seed in range(seeds)
        }
        todo = {folder: (config, folder, imports) for folder, config in runs.items() if not finished_as(folder, config)}
        count = (trials or len(settings)) * seeds
        results.update(dict.fromkeys(runs))
        done, started = len(results) - len(todo), {}
        if len(todo) < len(runs):
            say(f"{len(runs) - len(todo)} runs are finished already")

        def begun(folder):
            started[folder] = time.monotonic()
            say(f"{folder.relative_to(out)}  starts")

        def ended(folder, error):
            nonlocal done
            done, results[folder] = done + 1, error
            came = f"{type(error).__name__}: {error}; see {folder}.log" if error else _came_to(folder)
            say(f"{done} of {count}: {folder.relative_to(out)}  {came}  {time.monotonic() - started[folder]:.1f} s")

        def watch(folders):
            if show:
                show("  ".join(f"{folder.relative_to(out)} {_epoch(folder)}" for folder in folders))

        in_processes(_train, todo, jobs, begun, ended, watch if show else None)

    with locked(out):
        record = _record(configs[0], preset, given, values, seeds, trials)
        _refuse_another(out, record)
        # In another process, or this one would occupy a GPU.
        (error,) = in_processes(_check, {None: (configs, [*given, *values], imports)}).values()
        if error:
            raise error
        with whole_file(out / "sweep.json") as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n")
        if trials:
            _search(out, values, trials, seeds, monitor, max(1, jobs // seeds), train_all)
        else:
            train_all(settings)
    return results


def _check_grid(values, given, trials):
    for name in {"seed", "corpus"} & set(given):
        raise OptionError(f"{name}: is not set like other options; give seeds, and the corpus as an argument")
    for name, of in values.items():
        if name in given or name in ("seed", "corpus"):
            raise OptionError(f"grid={name}: is set otherwise, for all runs")
        if not isinstance(of, Range | tuple | list) or not of:
            raise OptionError(f"grid={name}={of!r}: expected a list of values")
        if isinstance(of, Range) and not trials:
            raise OptionError(f"grid={name}={of.low}..{of.high}: only a search takes ranges; say --trials")
    if trials is not None:
        check_number("trials", trials, least=1)
        if not values:
            raise OptionError("trials: nothing to search; name options and their ranges or values by --grid")


def _as_fields(options):
    """Options as fields of `Config`: what is none of them is `own`, for classes of one's own."""
    known = vars(Config())
    own = {name: value for name, value in options.items() if name not in known}
    return {name: value for name, value in options.items() if name in known} | ({"own": own} if own else {})


def _folder_name(setting):
    """The name of a setting's folder, made safe and short; what is not readable then is told apart by a hash."""
    name = setting_text(dict(sorted(setting.items())))
    safe = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)[:150]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def _record(config, preset, given, values, seeds, trials):
    """What makes a sweep, as JSON holds it."""
    record = {"preset": preset, "seeds": seeds, "trials": trials, "options": {"corpus": config.corpus, **given}}
    record["grid"] = {name: vars(of) if isinstance(of, Range) else list(of) for name, of in values.items()}
    record["checksums"] = checksums(config.corpus) | (checksums(config.validation) if config.validation else {})
    return json.loads(json.dumps(record, default=str))


def _refuse_another(out, record):
    """Sees that a folder holds nothing but this sweep, or one with fewer seeds, values or trials."""

    def parts(record):
        single = {name: record[name] for name in ("preset", "seeds", "trials")}
        return single | {f"{of} {k}": v for of in ("options", "grid", "checksums") for k, v in record[of].items()}

    def fits(name, was, now):
        grows = name == "trials" if record["trials"] else name == "seeds" or name.startswith("grid ")
        if not grows or None in (was, now):
            return was == now
        return all(value in now for value in was) if isinstance(was, list) else was <= now

    path = out / "sweep.json"
    if path.is_file():
        old, new = parts(read_sweep(path)), parts(record)
        found = [(name, old.get(name), new.get(name)) for name in old | new]
        if other := [f"{name} {was} and not {now}" for name, was, now in found if not fits(name, was, now)]:
            raise RunError(f"{out} holds another sweep ({', '.join(other)}); take another folder (--out)")
    elif any(inside.name != "lock" for inside in out.iterdir()):
        raise RunError(f"{out} is not empty and holds no sweep; take another folder (--out)")


def finished_as(folder: Path, config: Config) -> bool:
    """Whether a run has come to its end.

    Raises:
        RunError: if it was begun with other options.
    """
    for place in (folder, folder / "unfinished"):
        if (place / "config.json").is_file():
            old = vars(configuration(place)[0])
            if other := [f"{name}={old[name]!r}" for name, value in vars(config).items() if old[name] != value]:
                raise RunError(f"{folder} has {', '.join(other)}; take another --out, or delete that run")
    return finished(folder)


def in_processes(
    function: Callable,
    tasks: Mapping[Any, tuple],
    jobs: int = 1,
    begun: Callable[[Any], None] | None = None,
    ended: Callable[[Any, Any], None] | None = None,
    watch: Callable[[list], None] | None = None,
) -> dict[Any, Any]:
    """Calls a function for each of {key: arguments}, each in a process of its own with its share of the cores.

    They are forked from one that has imported TensorFlow and done nothing else, and end with this one, however it ends.
    At an interrupt they are told to end, and waited for.

    Args:
        function: of a module, so that other processes find it.
        tasks: {key: arguments}.
        jobs: how many at a time. With several GPUs each has one.
        begun, ended: functions to call with a key when it begins, and with the key and the result when it ends.
        watch: a function to call twice a second with the keys at work.

    Returns:
        {key: what the function returned, or the exception that it raised}, in the order in which they ended.
    """
    from seq2seq.startup import without_stderr

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seq2seq.sweeps", "seq2seq.evaluation"])
    with without_stderr():  # where TensorFlow writes a page when it is imported
        multiprocessing.forkserver.ensure_running()
    waiting, shares, results = list(tasks.items())[::-1], _shares(jobs), {}
    running: dict[Any, tuple] = {}
    try:
        while waiting or running:
            while waiting and shares:
                key, arguments = waiting.pop()
                share = shares.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                stderr = multiprocessing.connection.Connection(os.dup(2), readable=False)  # which can be sent
                process = context.Process(target=_work, args=(sender, stderr, share, function, arguments))
                process.start()
                sender.close()
                stderr.close()
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
                process.join()
                shares.append(share)
                if ended:
                    ended(key, results[key])
            if watch and running:
                watch([key for key, _, _ in running.values()])
    finally:
        for _, process, _ in running.values():
            process.terminate()  # a training saves a checkpoint first
        for _, process, _ in running.values():
            process.join()
    return results


def _shares(jobs):
    """The cores of each of so many processes, and the variables of its environment."""
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // jobs)
    gpus = len(tf.config.list_physical_devices("GPU"))
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    shares = []
    for job in range(jobs):
        # Or the first of several on one GPU takes all of its memory.
        variables = {"TF_FORCE_GPU_ALLOW_GROWTH": os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", "true")}
        if gpus > 1:
            variables["CUDA_VISIBLE_DEVICES"] = names[job % gpus]
        shares.append(({cores[(job * size + number) % len(cores)] for number in range(size)}, variables))
    return shares


def _work(sender, stderr, share, function, arguments):
    """What a process does."""
    from seq2seq.startup import start_tensorflow  # which sets the threads of a process that is the command's own

    def end_with_parent():
        multiprocessing.parent_process().join()  # type: ignore[union-attr]  # there is one
        os._exit(1)  # as if killed: checkpoints are whole

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(stderr.fileno(), 2)
    os.sched_setaffinity(0, share[0])
    os.environ.update(share[1])
    try:
        start_tensorflow()
        result = function(*arguments)
    except BaseException as error:
        result = error
    try:
        sender.send(result)
    except Exception:  # not every exception can be pickled
        sender.send(RuntimeError(f"{type(result).__name__}: {result}"))


def _check(configs, names, imports):
    """Sees that each configuration can be trained."""
    for name in imports:
        load_class("import", name)
    for config in configs:
        check_taken(config, names)
        prepare(config)


def _train(config, folder, imports):
    """Trains a run; what it says, and what TensorFlow writes, goes into a file beside its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("a", encoding="utf-8", errors="backslashreplace") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        write = functools.partial(print, file=log, flush=True)
        try:
            for name in imports:
                load_class("import", name)
            train(config, folder, report=lambda report: write(report) if report.dropped else None, say=write)
        except Exception:
            traceback.print_exc(file=log)
            raise


def _epoch(folder):
    """The epoch that a training is in, as text."""
    try:
        total = json.loads((folder / "unfinished" / "run.json").read_bytes())["epochs"]
        rows = (folder / "history.csv").read_text().count("\n") if (folder / "history.csv").exists() else 1
    except (OSError, ValueError):
        return "ends" if finished(folder) else "begins"
    return f"epoch {min(rows, total)}/{total}"


def _came_to(folder):
    return "  ".join(f"val_{name} {value:.4g}" for name, value in held_out_figures(folder).items() if name in MEASURES)


def _search(out, values, trials, seeds, monitor, together, train_all):
    """Asks Optuna for settings, so many at a time, until there have been `trials` of them.

    A trial is told when all its runs are finished. One that fails stays open and is tried again by the next call.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = out / "trials.log"
    Path(f"{journal}.lock").unlink(missing_ok=True)  # of one that was killed: `out` is locked
    storage = JournalStorage(JournalFileBackend(str(journal)))
    directions = {"min": "minimize", "max": "maximize"}
    study = optuna.create_study(
        storage=storage, study_name="sweep", direction=directions[MONITORS[monitor]], load_if_exists=True
    )
    distributions = {name: _distribution(of) for name, of in values.items()}
    tried: set[int] = set()

    def known():
        return [trial for trial in study.get_trials() if trial.params.keys() == values.keys()]

    def begun():
        return [t for t in known() if t.state == TrialState.RUNNING and t.number not in tried]

    while True:
        if not begun():
            for _ in range(min(together, trials - len(known()))):
                # Seeded anew for each, or a search that goes on would draw again the numbers that it began with.
                study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials()))
                study.ask(distributions)
        settings = {trial.number: _suggested(values, trial.params) for trial in begun()}
        if not settings:
            return
        tried |= settings.keys()
        train_all(list(settings.values()))
        for number, setting in settings.items():
            folders = [out / _folder_name(setting) / f"seed-{seed}" for seed in range(seeds)]
            if all(map(finished, folders)):
                figures: list[Any] = [held_out_figures(folder).get(monitor.removeprefix("val_")) for folder in folders]
                if None in figures:
                    raise RunError(f"{folders[0]}: {monitor}, to search by, was not measured; is anything held out?")
                mean = float(np.mean(figures))
                study.tell(number, mean) if math.isfinite(mean) else study.tell(number, state=TrialState.FAIL)


def _distribution(of):
    """The values of an option as Optuna takes them; those of a list by their numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(of, Range):
        return CategoricalDistribution(tuple(range(len(of))))
    kind = IntDistribution if isinstance(of.low, int) and isinstance(of.high, int) else FloatDistribution
    return kind(of.low, of.high, log=of.low > 0 and of.high >= 10 * of.low)


def _suggested(values, params):
    """The setting that Optuna means; four digits of a number are enough for the name of a folder."""
    setting = {}
    for name, of in values.items():
        if not isinstance(of, Range):
            setting[name] = of[params[name]]
        elif isinstance(params[name], int):
            setting[name] = params[name]
        else:
            setting[name] = min(max(float(f"{params[name]:.4g}"), of.low), of.high)
    return setting
