"""A scoreboard of public tasks: error rates of presets and architectures over several seeds, and of their ensembles.

    python tests/benchmarks/scoreboard.py tasks --jobs 2
    python tests/benchmarks/scoreboard.py tasks --languages ady lav --set dropout=0.4 --set updates=4000   # a recipe
    python tests/benchmarks/scoreboard.py tasks --seeds 5 --side test --beam-width 5

FOLDER has a folder for each task, with a folder for each language, with `train.tsv`, `dev.tsv` and `test.tsv`: text
with two columns, source and target, or three: lemma, form and features with ';' between them. Published figures are
shown for tasks and languages named as in `PUBLISHED`. Choose recipes on dev, and read test once, at the end. The error
rate is 100 minus the percentage of exact matches: of letters to phones, the word error rate.

Each run is a run folder in OUT/TASK/LANGUAGE/SETTING, each result a row of OUT/scoreboard.csv. The same command resumes
after an interruption; rows that are there are not computed again, even if a file has changed since. A run with other
options in that place, as after a change of its preset, is an error. `--jobs` runs train at a time, each in a process of
its own, and share the cores. The seconds are the processor time of all threads during training. The weights depend
slightly on the number of cores of a process. An ensemble has the sums of its members.
"""

import argparse
import csv
import dataclasses
import itertools
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from matplotlib.figure import Figure

from pipelines import CorpusError, OptionError, group_by_source
from seq2seq import BeamSearch, Config, Greedy
from seq2seq.building import configure
from seq2seq.config import ARCHITECTURES
from seq2seq.epochs import validation_pairs
from seq2seq.pictures import COLORS
from seq2seq.presets import PRESETS, parse_setting
from seq2seq.processes import in_processes
from seq2seq.records import RunError, read_record
from seq2seq.runs import load_runs
from seq2seq.scores import corpus_scores
from seq2seq.sweeps import finished_as
from seq2seq.training import train

# Error rates, {(task, side): {system: {language: percent}}}.
PUBLISHED = {
    # github.com/sigmorphon/2021-task1: an ensemble of ten neural transducers (Makarov & Clematide 2018).
    ("g2p-2021-low", "test"): {"baseline": {"ady": 22, "ita": 19, "lav": 55, "rum": 10, "wel_sw": 10}},
    ("g2p-2021-medium", "test"): {"baseline": {"bul": 18.3, "kor": 16.3}},
    # github.com/CUNY-CL/yoyodyne, single models; its table has accuracies.
    ("inflection-2017-medium", "test"): {
        "sinusoidal Transformer": {"tur": 23.5},
        "attentive LSTM": {"tur": 15.9},
        "pointer-generator LSTM": {"tur": 13.7},
        "rotary Transformer": {"tur": 12.7},
        "rotary Transformer, pointer": {"tur": 10.6},
    },
}
# In pictures.
NAMES = {"ady": "Adyghe", "ita": "Italian", "lav": "Latvian", "rum": "Romanian", "wel_sw": "Welsh", "bul": "Bulgarian"}
NAMES |= {"kor": "Korean", "tur": "Turkish", "inflection-2017-medium": "inflection, 1,000 words"}
NAMES |= {"g2p-2021-low": "letters to phones, 800 words", "g2p-2021-medium": "letters to phones, 8,000 words"}
# Whatever the preset: three columns can be read in no other way.
INFLECTION = {name: PRESETS["inflection"][name] for name in ("columns", "source_tokenizer")}
INFLECTION["target_tokenizer"] = Config.target_tokenizer
KEY = ("task", "language", "preset", "architecture", "options", "seed", "side", "search")  # of a row
FIGURES = ("accuracy", "error", "parameters", "updates", "seconds")


def option(text):
    """`name=value`, parsed: the name of a field of `Config`, and its value."""
    try:
        name, value = parse_setting(text, of_config=True)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if name not in vars(Config()) or name in ("architecture", "corpus", "seed", "validation"):
        raise argparse.ArgumentTypeError(f"{name!r} is no option of Config, or one that the scoreboard sets")
    return name, value


def has_features(folder):
    """Whether a language's text has three columns, the last one features."""
    with (folder / "train.tsv").open(encoding="utf-8") as file:
        return file.readline().count("\t") == 2


def config_of(folder, preset, architecture, given, seed):
    """The `Config` of a run, made of preset, architecture and options as `seq2seq train` makes it."""
    usual = INFLECTION if has_features(folder) else {}
    sides = {"corpus": folder / "train.tsv", "validation": folder / "dev.tsv"}
    given = usual | sides | {"architecture": architecture, "seed": seed} | given
    return configure(preset, **given)


def measure(members, path, strategy):
    """Train the unfinished members, [(run folder, `Config`), ...]; return the figures of all as an ensemble."""
    for folder, config in members:
        if not finished_as(folder, config):
            train(config, folder, say=None)
    model = load_runs([folder for folder, _ in members])
    references = group_by_source(
        validation_pairs(dataclasses.replace(members[0][1], validation=path), model.source_tokenizer)
    )
    texts = [text.decode() for text in model.translate(list(references), strategy).numpy()]
    accuracy = corpus_scores(texts, list(references.values()))["exact match"]
    taken = [read_record(folder).content["training"] for folder, _ in members]
    updates, seconds = (sum(of[name] for of in taken) for name in ("updates", "processor_seconds"))
    found = (round(accuracy, 2), round(100 - accuracy, 2), model.count_params(), updates, round(seconds, 1))
    return dict(zip(FIGURES, found, strict=True))


def summarise(rows):
    """Means over seeds, {(task, language, setting): a dict}; of several languages also with the language "mean"."""
    found = {}
    for (task, language, *setting, seed, _, _), row in rows.items():
        seeds = found.setdefault((task, language, ", ".join(filter(None, setting))), {})
        seeds[seed] = np.array([float(row[name]) for name in FIGURES])
    for task, setting in dict.fromkeys((task, setting) for task, _, setting in found):
        parts = [seeds for (of, _, by), seeds in found.items() if (of, by) == (task, setting)]
        common = [seed for seed in parts[0] if all(seed in part for part in parts)]
        if len(parts) > 1 and common:
            found[task, "mean", setting] = {seed: np.mean([part[seed] for part in parts], axis=0) for seed in common}
    for key, seeds in found.items():
        single = np.array([figures for seed, figures in seeds.items() if seed.isdigit()])
        means = dict(zip(FIGURES, single.mean(axis=0), strict=True)) | {"seeds": len(single)}
        means["deviation"] = single[:, 1].std(ddof=1) if len(single) > 1 else None  # of the error rate
        means["ensemble"] = next((figures[1] for seed, figures in seeds.items() if not seed.isdigit()), None)
        found[key] = means
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] == "mean", item[0][1])))


def published(found, task, side):
    """The published error rates of each system, (name, {language: percent}), with their mean if it is of the same."""
    languages = {name for of, name, _ in found if of == task} - {"mean"}
    for name, of in PUBLISHED.get((task, side), {}).items():
        same = {"mean": float(np.mean(list(of.values())))} if languages == set(of) else {}
        yield name, of | same


def print_table(found, side):
    heads = ("task", "language", "setting", "seeds", "error rate", "ensemble", "published", *FIGURES[2:])
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for (task, language, setting), means in found.items():
        error, deviation, ensemble = (means[name] for name in ("error", "deviation", "ensemble"))
        known = [f"{name} {of[language]:.3g}" for name, of in published(found, task, side) if language in of]
        cells = [task, language, setting, str(means["seeds"])]
        cells += [f"{error:.1f}" if deviation is None else f"{error:.1f} ± {deviation:.1f}"]
        cells += ["" if ensemble is None else f"{ensemble:.1f}", "; ".join(known)]
        print(f"| {' | '.join(cells + [f'{means[name]:,.0f}' for name in FIGURES[2:]])} |")


def draw(found, side, search, path):
    """Draw a panel for each task: error rates of each language and setting, and the published ones as lines."""
    settings, legend = list(dict.fromkeys(setting for _, _, setting in found)), {}
    panels = {task: list(dict.fromkeys(name for of, name, _ in found if of == task)) for task, _, _ in found}
    widths = [max(3.0, len(languages) * max(1.0, 0.35 * len(settings))) for languages in panels.values()]
    figure = Figure(figsize=(max(6.0, sum(widths) + 1), 4.5), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, (task, languages) in zip(row, panels.items(), strict=True):
        here = list(dict.fromkeys(setting for of, _, setting in found if of == task))
        for (_, language, setting), means in (item for item in found.items() if item[0][0] == task):
            number = settings.index(setting)
            x = languages.index(language) + 0.6 * ((here.index(setting) + 0.5) / len(here) - 0.5)
            look = {"color": COLORS[number % len(COLORS)], "marker": "osD^vPX"[number % 7], "linestyle": "none"}
            bar = axes.errorbar(x, means["error"], means["deviation"], markersize=5, capsize=3, **look)
            legend[f"{setting}: mean and standard deviation of single runs"] = bar
            if means["ensemble"] is not None:
                (mark,) = axes.plot(x, means["ensemble"], markersize=10, fillstyle="none", **look)
                legend[f"{setting}: ensemble of these runs"] = mark
        systems = list(published(found, task, side))
        for system, rates in systems:
            for x, rate in ((languages.index(name), rate) for name, rate in rates.items() if name in languages):
                line = axes.hlines(rate, x - 0.4, x + 0.4, color="0.4", linewidth=1, zorder=0)
                if len(systems) == 1:
                    legend[f"published: {system}"] = line
                else:  # each needs its name
                    axes.annotate(system, (x + 0.42, rate), fontsize=8, va="center", annotation_clip=False)
        axes.set_xticks(range(len(languages)), [NAMES.get(language, language) for language in languages])
        axes.set(title=NAMES.get(task, task), xlim=(-0.6, len(languages) - 0.4), ylim=(0, 1.08 * axes.dataLim.ymax))
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter("{x:g}%")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False)
    figure.supylabel(f"words with an error ({side}, {search} search)", fontsize="medium")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/scoreboard"))
    parser.add_argument("--languages", nargs="+", default=[], metavar="LANGUAGE", help="default: all")
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=PRESETS,
        default=[None],
        help="default: grapheme-to-phoneme, of three columns inflection",
    )
    parser.add_argument(
        "--architecture", nargs="+", choices=ARCHITECTURES, default=[None], help="default: the preset's"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each setting")
    parser.add_argument("--set", type=option, action="append", default=[], metavar="NAME=VALUE", dest="given")
    parser.add_argument("--side", choices=("dev", "test"), default="dev", help="what is measured")
    parser.add_argument("--beam-width", type=int, help="default: greedy search")
    parser.add_argument("--jobs", type=int, default=1, help="runs that train at a time")
    options = parser.parse_args()
    if min(options.seeds, options.jobs) < 1:
        parser.error("--seeds, --jobs: expected 1 or more")
    folders = [path.parent for path in sorted(options.folder.glob("*/*/train.tsv"))]
    folders = [folder for folder in folders if folder.name in (options.languages or folder.parts)]
    if not folders or set(options.languages) - {folder.name for folder in folders}:
        parser.error(f"{options.folder}: no TASK/LANGUAGE/train.tsv for each of {options.languages or 'any language'}")
    given = dict(sorted(options.given))
    said = " ".join(f"{name}={value}" for name, value in given.items())
    search = f"beam {options.beam_width}" if options.beam_width else "greedy"
    strategy = BeamSearch(options.beam_width) if options.beam_width else Greedy()
    board, runs = options.out / "scoreboard.csv", {}  # {key of a row: arguments of `measure`}
    try:
        for folder, preset, architecture in itertools.product(folders, options.preset, options.architecture):
            preset = preset or ("inflection" if has_features(folder) else "grapheme-to-phoneme")
            setting = preset, architecture or PRESETS[preset].get("architecture", Config.architecture)
            row, path = (*folder.parts[-2:], *setting, said), folder / f"{options.side}.tsv"
            place = options.out.joinpath(*row[:2], "-".join([*setting, *said.split()]).replace("/", "_"))
            configs = [config_of(folder, *setting, given, seed) for seed in range(options.seeds)]
            members = [(place / f"seed-{seed}", config) for seed, config in enumerate(configs)]
            for seed, member in enumerate(members):
                finished_as(*member)  # or an error, before anything is computed
                runs[*row, str(seed), options.side, search] = [member], path, strategy
            if len(members) > 1:
                runs[*row, f"ensemble of {len(members)}", options.side, search] = members, path, strategy
    except (CorpusError, OptionError, RunError) as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    if not board.exists():
        board.write_text(",".join(KEY + FIGURES) + "\n")
    with board.open(newline="") as file:
        rows = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}

    def keep(key, figures):
        if isinstance(figures, BaseException):
            return print(*key, f"{type(figures).__name__}: {figures}", file=sys.stderr)
        rows[key] = figures
        with board.open("a", newline="") as file:
            csv.writer(file).writerow([*key, *figures.values()])
        print(*filter(None, key), *(f"{name} {value:,}" for name, value in figures.items()), sep="  ", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for size in sorted({1, options.seeds}):  # ensembles come last, of what has been trained
        todo = {key: run for key, run in runs.items() if key not in rows and len(run[0]) == size}
        done = {key: run for key, run in todo.items() if all(finished_as(*member) for member in run[0])}
        try:
            in_processes(measure, todo if size == 1 else done, options.jobs, ended=keep)
        except KeyboardInterrupt:
            print("Interrupted; the same command continues", file=sys.stderr)
            sys.exit(130)
    if found := summarise({key: rows[key] for key in runs if key in rows}):
        print_table(found, options.side)
        draw(found, options.side, search, options.out / f"{options.side}.svg")
    sys.exit(any(key not in rows for key in runs))


if __name__ == "__main__":
    main()
