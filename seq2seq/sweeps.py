"""Many training runs: each setting of a grid of options, or of a search among them, with several seeds."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import numbers
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import OptionError, check_number, checksums
from pipelines.options import extra, load_classes
from seq2seq.building import check_taken, configure, prepare
from seq2seq.checkpoints import locked, write_json
from seq2seq.config import MONITORS, TRANSLATION_FIGURES, Config, kinds_of
from seq2seq.presets import parse_setting
from seq2seq.processes import in_processes
from seq2seq.records import RunError, finished, read_record
from seq2seq.tables import (
    MEASURES,
    held_out_figures,
    options_of_held_out,
    options_that_change,
    read_sweep,
    setting_text,
)
from seq2seq.training import train


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers to search among, ends included: on a log scale if the ends are a factor of 10 or more apart."""

    low: float
    high: float


def read_grid(text: str) -> tuple[str, tuple | Range]:
    """Read an option of a grid and its values: "units=128,256", or a range, "learning_rate=1e-4..1e-2".

    If a value has commas itself, values are separated by ";": "teacher_forcing=1;1,0.5". Commas in brackets do not
    separate.

    Raises:
        OptionError: if it is not of this form, or a value is invalid for the option.
    """
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not equals:
        raise OptionError(f"grid={text!r}: expected NAME=VALUE,VALUE such as units=128,256")
    try:
        _, _ = map(float, values.split(".."))
    except ValueError:
        parts = values.split(";") if ";" in values else re.split(r",(?![^\[]*\])", values)
        return name, tuple(parse_setting(f"{name}={part}", of_config=True)[1] for part in parts if part.strip())
    low, high = (parse_setting(f"{name}={end}", of_config=True)[1] for end in values.split(".."))
    return name, Range(low, high)


def sweep(
    corpus: str | Sequence[str],
    out: Path | str,
    grid: Mapping[str, str | Sequence | Range],
    seeds: int = 1,
    *,
    options: Mapping[str, Any] | None = None,
    preset: str | Callable[[Config, Mapping[str, Any]], str] = "default",
    trials: int | None = None,
    jobs: int = 1,
    imports: Iterable[str] = (),
    say: Callable[[str], None] | None = None,
    show: Callable[[str], None] | None = None,
) -> dict[Path, Exception | None]:
    """Train every setting of a grid, or of a search, with several seeds: each a run folder OUT/SETTING/seed-N.

    After an interruption, the same call skips finished runs and resumes the others. Seeds and values of a grid, or
    trials of a search, may be added. Each run trains in a process of its own, so a script that calls this needs
    `if __name__ == "__main__":`. The output of a run is in OUT/SETTING/seed-N.log.

    Args:
        corpus: as in `Config`.
        out: the folder of all runs; its `sweep.json` describes them.
        grid: the values of each option, or a text that `read_grid` takes after "=".
        seeds: number of runs of each setting, with the seeds 0, 1, ...
        options: other options of all runs.
        preset: the settings to start from, or a function that chooses them for a `Config` and the options that were
            given, such as `presets.choose_preset`.
        trials: number of settings to try in a search (Optuna, extra `sweep`) by the Tree-structured Parzen Estimator
            (Bergstra et al. 2011, papers.nips.cc/paper/4443). Its objective is the mean over seeds of the option
            `monitor`, by default "val_loss". Without it, each combination of the values is trained.
        jobs: number of training runs at a time. They share the cores, and weights depend slightly on the number of
            cores; with several GPUs, each run gets one.
        imports: custom classes to load first, "module:Class".
        say: a function to call with a line of text when a run starts and when it ends.
        show: a function to call twice a second with the epochs of the runs in training, as text.

    Returns:
        {run folder: None, or the error it failed with}.

    Raises:
        OptionError: before anything is trained, if an option of any setting is wrong. A search checks each value
            only with the first values of the other options; a combination refused later is in the result, like a failed
            run.
        RunError: if the folder is in use or holds another sweep.
        CorpusError: if there is no such corpus.
    """
    values = {name: read_grid(f"{name}={of}")[1] if isinstance(of, str) else of for name, of in grid.items()}
    _check_grid(values, options or {}, seeds, trials, jobs)
    values = {name: _as_floats(name, of) for name, of in values.items()}
    settings = _settings(values, trials)
    given = {"corpus": corpus, **(options or {})}
    if not isinstance(preset, str):
        first = given | settings[0]
        preset = preset(configure("default", **_as_fields(first)), first)
    runs = _Runs(Path(out), given, preset, seeds, (trials or len(settings)) * seeds, jobs, tuple(imports), say, show)
    with locked(runs.out):
        _start(runs, settings, values, trials)
        if trials:
            _search(runs, values, trials)
        else:
            runs.train(settings)
    return runs.results


@dataclasses.dataclass
class _Runs:
    """The runs of a sweep, and how to train them."""

    out: Path
    given: dict[str, Any]  # the options of all runs
    preset: str
    seeds: int
    count: int  # of all runs
    jobs: int
    imports: tuple[str, ...]
    say: Callable[[str], None] | None
    show: Callable[[str], None] | None
    results: dict[Path, Exception | None] = dataclasses.field(default_factory=dict)

    def config(self, setting: dict[str, Any], seed: int) -> Config:
        chosen = _as_fields(self.given | setting)
        return configure(self.preset, **chosen | {"seed": seed})

    def folders(self, setting: dict[str, Any]) -> list[Path]:
        """The run folder of each seed."""
        return [self.out / _folder_name(setting) / f"seed-{seed}" for seed in range(self.seeds)]

    def train(self, settings: list[dict[str, Any]]) -> None:
        """Train the runs of these settings that are not finished."""
        say, show = self.say or (lambda text: None), self.show or (lambda text: None)
        todo, already = {}, 0
        for setting in settings:
            for seed, folder in enumerate(self.folders(setting)):
                self.results[folder] = None
                try:
                    config = self.config(setting, seed)
                except OptionError as error:  # a search has not checked all combinations
                    self.results[folder] = error
                    say(f"{folder.relative_to(self.out)}  {error}")
                    continue
                if finished_as(folder, config):
                    already += 1
                else:
                    todo[folder] = config, folder, self.imports
        if already:
            say(f"Runs that are already finished: {already}")
        started: dict[Path, float] = {}
        waiting = set(todo)

        def begun(folder):
            started[folder] = time.monotonic()
            say(f"{folder.relative_to(self.out)}  starts")

        def ended(folder, error):
            self.results[folder] = error
            waiting.remove(folder)
            done, seconds = len(self.results) - len(waiting), time.monotonic() - started[folder]
            result = f"{type(error).__name__}: {error}; see {folder}.log" if error else _figures(folder)
            say(f"{done} of {self.count}: {folder.relative_to(self.out)}  {result}  {seconds:.1f} s")

        def watch(folders):
            show("  ".join(f"{folder.relative_to(self.out)} {_epoch(folder)}" for folder in folders))

        in_processes(_train, todo, self.jobs, begun, ended, watch if self.show else None)


def _start(runs, settings, values, trials):
    """Check all settings and that the folder is of this sweep, and write `sweep.json`."""
    configs = [runs.config(setting, 0) for setting in settings]
    monitor = runs.given.get("monitor") or "val_loss"
    held_out = ("validation", *options_of_held_out(configs[0]))
    changing = options_that_change(monitor, [vars(config) | (config.own or {}) for config in configs])
    for name in values if trials else ():
        if name in held_out:
            raise OptionError(f"trials: {name} changes the held-out set; set it for all runs, not in the grid")
        if name in changing:
            raise OptionError(
                f"monitor={monitor!r}: not comparable between different values of {name}; choose another monitor"
            )
    record = _record(configs[0], runs, values, trials)
    _refuse_another(runs.out, record)
    # In another process, or this one would occupy a GPU.
    names = [name for name in (*runs.given, *values) if name != "corpus"]
    (error,) = in_processes(_check, {None: (configs, names, runs.imports)}).values()
    if error:
        raise error
    write_json(runs.out / "sweep.json", record)


def _check_grid(values, given, seeds, trials, jobs):
    in_place = {"corpus": "give it as an argument", "seed": "seeds are 0, 1 and so on; give their number with seeds"}
    for name, instead in in_place.items():
        if name in given or name in values:
            raise OptionError(f"{name}: cannot be set like other options; {instead}")
    for name, of in values.items():
        if name in given:
            raise OptionError(f"grid={name}: is already set, for all runs")
        if not isinstance(of, Range | tuple | list) or not of:
            raise OptionError(f"grid={name}={of!r}: expected a list of values")
        if isinstance(of, Range):
            if not (all(isinstance(end, numbers.Real) for end in (of.low, of.high)) and of.low < of.high):
                raise OptionError(f"grid={name}={of.low}..{of.high}: expected two numbers, the lower one first")
            if not trials:
                raise OptionError(f"grid={name}={of.low}..{of.high}: only a search takes ranges; add --trials")
    check_number("seeds", seeds, least=1)
    check_number("trials", trials, least=1, optional=True)
    check_number("jobs", jobs, least=1)
    if trials and not values:
        raise OptionError("trials: nothing to search; name options and their ranges or values with --grid")
    if given.get("monitor") in TRANSLATION_FIGURES:
        import seq2seq.evaluation  # noqa: F401  (its packages may be missing)


def _as_floats(name, of):
    """Convert whole numbers to floats for an option that takes floats, as `Config` does. So 0 and 0.0 are one setting,
    and a search from 1 to 4 also tries numbers in between."""
    if name not in Config.__dataclass_fields__ or float not in kinds_of(name):
        return of
    if isinstance(of, Range):
        return Range(_as_floats(name, of.low), _as_floats(name, of.high))
    if isinstance(of, tuple | list):
        return [_as_floats(name, value) for value in of]
    return float(of) if type(of) is int and abs(of) < 2**31 else of  # larger ones are refused later


def _settings(values, trials):
    """The settings of a grid: each combination of values. For a search, those to check: each value, or end of a range,
    with the first values of the other options."""
    ends = {name: (of.low, of.high) if isinstance(of, Range) else of for name, of in values.items()}
    for name, of in ends.items():
        if len({_folder_name({name: value}) for value in of}) < len(of):
            raise OptionError(f"grid={name}: has the same value twice")
    if not trials:
        return [dict(zip(ends, chosen, strict=True)) for chosen in itertools.product(*ends.values())]
    first = {name: of[0] for name, of in ends.items()}
    return [first, *({**first, name: value} for name, of in ends.items() for value in of[1:])]


def _as_fields(options):
    """Options as fields of `Config`; all others are in `own`, for custom classes."""
    known = vars(Config())
    own = {name: value for name, value in options.items() if name not in known}
    fields = {name: value for name, value in options.items() if name in known}
    return fields | ({"own": {**(fields.get("own") or {}), **own}} if own else {})


def _folder_name(setting):
    """The name of a setting's folder: its text, or if that is not safe and short, a part of it and a hash."""
    name = setting_text(dict(sorted(setting.items())))
    safe = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)[:150]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def _record(config, runs, values, trials):
    """What defines a sweep, for `sweep.json`."""
    record = {"preset": runs.preset, "seeds": runs.seeds, "trials": trials}
    record["options"] = runs.given | {"corpus": config.corpus}
    record["grid"] = {name: vars(of) if isinstance(of, Range) else list(of) for name, of in values.items()}
    record["checksums"] = checksums(config.corpus) | (checksums(config.validation) if config.validation else {})
    return json.loads(json.dumps(record, default=str))


def _refuse_another(out, record):
    """Check that a folder holds nothing but this sweep, or one with fewer seeds, values or trials."""

    def parts(record):
        single = {name: record[name] for name in ("preset", "seeds", "trials")}
        return single | {f"{of} {k}": v for of in ("options", "grid", "checksums") for k, v in record[of].items()}

    def fits(name, was, now):
        grows = name == "trials" if record["trials"] else name == "seeds" or name.startswith("grid ")
        if not grows or None in (was, now):
            return was == now
        if isinstance(was, list) != isinstance(now, list):  # values instead of a range
            return False
        return all(value in now for value in was) if isinstance(was, list) else was <= now

    path = out / "sweep.json"
    if path.is_file():
        old, new = parts(read_sweep(path)), parts(record)
        found = [(name, old.get(name), new.get(name)) for name in old | new]
        if other := [f"{name} {was}, not {now}" for name, was, now in found if not fits(name, was, now)]:
            raise RunError(f"{out} holds another sweep ({', '.join(other)}); choose another folder (--out)")
    elif {path.name for path in out.iterdir()} - {"lock", "aside-sweep.json"}:
        raise RunError(f"{out} is not empty and holds no sweep; choose another folder (--out)")


def finished_as(folder: Path, config: Config) -> bool:
    """Whether a run is finished.

    Raises:
        RunError: if it was started with other options.
    """
    if (ended := finished(folder)) is not None:
        old = vars(read_record(folder).config)
        if other := [f"{name}={old[name]!r}" for name, value in vars(config).items() if old[name] != value]:
            raise RunError(f"{folder} has {', '.join(other)}; choose another --out, or delete that run")
    return bool(ended)


def _check(configs, names, imports):
    """Check that each configuration can be trained."""
    load_classes("import", imports)
    for config in configs:
        check_taken(config, names)
        prepare(config)


def _train(config, folder, imports):
    """Train a run. Its output, TensorFlow's included, goes to a log file next to its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("a", encoding="utf-8", errors="backslashreplace") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        write = functools.partial(print, file=log, flush=True)
        try:
            load_classes("import", imports)
            train(config, folder, say=write)
        except Exception:
            traceback.print_exc(file=log)
            raise


def _epoch(folder):
    """The epoch that a run has reached, as text."""
    try:
        if finished(folder):
            return "ending"
        total = read_record(folder).content["plan"]["epochs"]
        rows = (folder / "history.csv").read_text().count("\n") if (folder / "history.csv").exists() else 1
    except (OSError, ValueError, LookupError):
        return "starting"
    return f"epoch {min(rows, total)}/{total}"


def _figures(folder):
    return "  ".join(f"val_{name} {value:.4g}" for name, value in held_out_figures(folder).items() if name in MEASURES)


def _search(runs, values, trials):
    """Ask Optuna for settings and train them, several at a time, until there have been `trials` of them.

    A trial ends when all its runs are finished, or when its options are refused. After any other failure it stays open,
    and the next call tries it again.
    """
    with extra("sweep"):
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
        from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = runs.out / "trials.log"
    Path(f"{journal}.lock").unlink(missing_ok=True)  # of a process that was killed: `out` is locked
    monitor = runs.given.get("monitor") or "val_loss"
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="sweep",
        direction={"min": "minimize", "max": "maximize"}[MONITORS[monitor]],
        load_if_exists=True,
    )
    distributions = {name: _distribution(of) for name, of in values.items()}
    tried: set[int] = set()

    # Trials that are RUNNING but not in `tried` were asked for by an earlier call, which was interrupted.
    def known():
        return [trial for trial in study.get_trials() if trial.params.keys() == values.keys()]

    def untried():
        return [t for t in known() if t.state == TrialState.RUNNING and t.number not in tried]

    while True:
        if not untried():
            for _ in range(min(max(1, runs.jobs // runs.seeds), trials - len(known()))):
                # Seeded again for each, or a resumed search would draw the same numbers again.
                study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials()))
                study.ask(distributions)
        settings = {trial.number: _suggested(values, trial.params) for trial in untried()}
        if not settings:
            return
        tried |= settings.keys()
        runs.train(list(settings.values()))
        for number, setting in settings.items():
            if all(map(finished, runs.folders(setting))):
                mean = float(np.mean([_figure(folder, monitor) for folder in runs.folders(setting)]))
                study.tell(number, mean) if math.isfinite(mean) else study.tell(number, state=TrialState.FAIL)
            elif any(isinstance(runs.results[folder], OptionError) for folder in runs.folders(setting)):
                study.tell(number, state=TrialState.FAIL)


def _figure(folder, monitor):
    figures = held_out_figures(folder)
    if monitor.removeprefix("val_") not in figures:
        raise RunError(f"{folder}: {monitor}, which the search uses, was not measured; is there a held-out set?")
    return figures[monitor.removeprefix("val_")]


def _distribution(of):
    """The values of an option as Optuna takes them; those of a list by their numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(of, Range):
        return CategoricalDistribution(tuple(range(len(of))))
    kind = IntDistribution if isinstance(of.low, int) and isinstance(of.high, int) else FloatDistribution
    return kind(of.low, of.high, log=of.low > 0 and of.high >= 10 * of.low)


def _suggested(values, params):
    """The setting of a trial, with numbers of four digits for the name of its folder."""
    setting = dict(params)
    for name, of in values.items():
        if not isinstance(of, Range):
            setting[name] = of[params[name]]
        elif isinstance(params[name], float):
            setting[name] = min(max(float(f"{params[name]:.4g}"), of.low), of.high)
    return setting
