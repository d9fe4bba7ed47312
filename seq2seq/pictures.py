"""Pictures by matplotlib (extra `plots`). Each `draw_` function returns a `Figure` and can write it to a file."""

import functools
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.options import OptionError, extra
from seq2seq.config import MONITORS

with extra("plots"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
    from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:  # pictures do not need TensorFlow
    from pipelines import Survey

COLORS = ["#0072B2", "#D55E00", "#009E73", "#AA3377"]  # distinguishable for colour-blind people

# Fonts of many scripts that come with systems. A letter that one lacks is taken from the next.
FONTS = ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Noto Sans Devanagari"]
FONTS += ["Arial Unicode MS", "Hiragino Sans", "PingFang SC", "Kohinoor Devanagari"]  # macOS
FONTS += ["Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI"]  # Windows


def draw_lengths(survey: "Survey", path: Path | str | None = None) -> Figure:
    """Draw how many texts there are of each length, for both sides of a corpus.

    Args:
        survey: a `pipelines.Survey`.
        path: the file to write, in the format of its ending (.png, .svg, .pdf); None for no file. A notebook shows the
            result after `%matplotlib inline`.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    longest = max(survey.length(side, 0.999) for side in (0, 1))
    for side, (name, alpha) in enumerate({"source": 0.4, "target": 1.0}.items()):  # an area, and a line above it
        lengths = [survey.lengths[side].get(length, 0) for length in range(longest + 1)]
        ends = [length - 0.5 for length in range(longest + 2)]
        axes.stairs(lengths, ends, fill=side == 0, color=COLORS[side], alpha=alpha, label=name)
    beyond = sum(count for side in survey.lengths for length, count in side.items() if length > longest)
    title = f"{survey.pairs:,} pairs" + (f"; {beyond:,} texts are longer" if beyond else "")
    axes.set(xlabel="length in tokens", ylabel="texts", title=title)
    axes.margins(x=0)
    axes.legend()
    return _save(figure, path)


def draw_curves(history: Any, path: Path | str | None = None, best: int | None = None) -> Figure:
    """Draw loss, accuracy and, if they were measured, scores of translations, epoch by epoch.

    Args:
        history: what `fit` returned; or a dict of numbers for each epoch, as `read_history` of `seq2seq.records` reads
            it.
        path: as in `draw_lengths`.
        best: the epoch whose weights were kept.

    Raises:
        OptionError: if `fit` has not measured `validation_data` in each epoch.
    """
    history = _rows(history) if hasattr(history, "history") else history
    measured = set().union(*history)
    panels = {
        "loss": {"training": "loss", "held out": "val_loss"},
        "accuracy": {"training": "accuracy", "held out": "val_accuracy"},
    }
    if "val_chrf" in measured:
        panels["held-out translations"] = {"chrF": "val_chrf", "exact match": "val_exact_match"}
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), sharex=True), panels.items(), strict=True):
        lines = {}
        for label, name in names.items():
            if name in measured:
                rows = [row for row in history if name in row]
                scale = 100 if title == "accuracy" else 1
                lines[label] = [row["epoch"] for row in rows], [scale * row[name] for row in rows]
        _draw_lines(axes, lines, COLORS[2:] if "chrF" in names else COLORS)
        axes.set_title(title, pad=20 if best else None)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if title != "loss":
            axes.yaxis.set_major_formatter("{x:g}%")
            axes.set_ylim(top=min(100, axes.get_ylim()[1]))
        if best:
            axes.axvline(best, color="0.5", linewidth=0.8, zorder=0)
            axes.annotate("kept", (best, 1.02), xycoords=("data", "axes fraction"), ha="center", color="0.4")
    return _save(figure, path)


def _rows(fitted):
    """What `fit` returned, as a dict for each epoch."""
    columns = {"epoch": [epoch + 1 for epoch in fitted.epoch], **fitted.history}
    if len(set(map(len, columns.values()))) > 1:
        raise OptionError("history: with validation_freq, it does not say which epochs its values belong to")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def draw_attention(alignment: Any, path: Path | str | None = None) -> Figure:
    """Draw the attention weights: a row for each target token, a column for each source token.

    Args:
        alignment: a `seq2seq.Alignment`, as `Seq2Seq.attention` returns it in a list.
        path: as in `draw_lengths`.

    Raises:
        OptionError: for a list of alignments.
    """
    if isinstance(alignment, list):
        raise OptionError("alignment: expected one, not a list, such as model.attention(texts)[0]")
    return _save(_attention_figure(alignment), path)


def attention_svg(alignment: Any) -> str:
    """The picture of `draw_attention` as SVG for a browser, a string.

    Tokens stay text, so the browser shows scripts that matplotlib has no font for, or whose letters it cannot join.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        _save(_attention_figure(alignment), file, format="svg")
    return file.getvalue()


def _attention_figure(alignment):
    source, target = ([re.sub(r"\s", "␣", token) for token in tokens] for tokens in alignment[:2])
    rows, columns = alignment.weights.shape
    cell = min(0.25, 20 / max(rows, columns))  # inches: at most 3,000 pixels, as memory grows with their square
    height, width = cell * max(rows, 6), cell * max(columns, 6)
    beside, above = (0.1 * max(map(len, tokens), default=0) for tokens in (target, source))
    figure = Figure(figsize=(width + beside + 1.3, height + above + 0.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(alignment.weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set(xlabel="source", ylabel="target")
    style: dict[str, Any] = {"fontfamily": _fonts(alignment)[0], "parse_math": False}
    style["fontsize"] = min(10, 60 * cell)
    axes.set_xticks(range(len(source)), source, **style)
    axes.set_yticks(range(len(target)), target, **style)
    axes.tick_params(length=0)
    for label in axes.get_xticklabels():
        label.set_rotation(90 if len(label.get_text()) > 1 else 0)
    bar = min(height, 2.0)
    place: dict[str, Any] = {"shrink": bar / height, "aspect": bar / 0.12, "anchor": (0, 1), "pad": 0.2 / width}
    figure.colorbar(image, label="attention", ticks=[0, 0.5, 1], **place)
    return figure


def _fonts(alignment):
    """The installed fonts to take the characters of an alignment's tokens from, and the characters that none has.

    Of the many fonts of Noto, only those that are needed: matplotlib opens all that it is given for each picture.
    """
    installed = get_font_names()
    usual = [font for font in FONTS if font in installed]
    others = sorted(font for font in installed if font.startswith("Noto Sans") and font not in FONTS)
    missing = set("".join("".join([*alignment.source, *alignment.target]).split()))
    needed = []
    for font in (*usual, *others):
        if not missing:
            break
        found = {character for character in missing if ord(character) in _code_points(font)}
        needed += [font] * bool(found)
        missing -= found
    return list(dict.fromkeys([*usual, *needed])), sorted(missing)


@functools.cache
def _code_points(font):
    return frozenset(get_font(findfont(FontProperties(family=font))).get_charmap())


def without_font(alignment: Any) -> list[str]:
    """The characters of an alignment's tokens that no installed font has: `draw_attention` draws them as boxes."""
    return _fonts(alignment)[1]


def draw_error_rates(parts: Sequence[dict], path: Path | str | None = None) -> Figure:
    """Draw the error rates of translations of short and of long sources.

    Args:
        parts: the result of `Evaluation.by_length` or `scores_by_length`.
        path: as in `draw_lengths`.
    """
    figure = Figure(figsize=(max(4, 1.3 * len(parts) + 1), 4), layout="constrained")
    axes = figure.subplots()
    places = range(len(parts))
    _draw_lines(axes, {name: (places, [part[name] for part in parts]) for name in ("CER", "WER")}, COLORS)
    spans = ["–".join(str(end) for end in sorted({part["from"], part["to"]})) for part in parts]
    axes.set_xticks(places, [f"{span}\n{part['texts']:,} texts" for span, part in zip(spans, parts, strict=True)])
    axes.set(xlabel="length of the source in characters", ylabel="error rate")
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.tick_params(axis="x", pad=14)  # room for the label of a line that ends at 0
    axes.margins(x=0.01)
    return _save(figure, path)


def draw_table(table: Any, path: Path | str | None = None) -> Figure:
    """Draw a table: a panel for each measure, with a line for each row: the mean of its runs, the standard deviation
    as a bar, and a small dot for each run.

    Args:
        table: the result of `seq2seq.table`.
        path: as in `draw_lengths`.
    """
    figure = Figure(figsize=(3 * len(table.measures) + 2, 0.4 * len(table.rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(table.measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, table.measures, strict=True):
        for place, row in enumerate(table.rows):
            color = COLORS[1] if row.mean(measure) == table.best(measure) else COLORS[0]
            axes.plot(row.figures[measure], [place] * len(row.runs), "o", color=color, markersize=3, alpha=0.4)
            axes.errorbar(row.mean(measure), place, xerr=row.deviation(measure), fmt="o", color=color, capsize=3)
        if min(min(row.figures[measure]) for row in table.rows) >= 0:
            axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        better = "lower" if MONITORS[f"val_{measure}"] == "min" else "higher"
        axes.set_xlabel(f"{table.prefix}{measure}\n({better} is better)")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)  # as in the table, the first row above
    return _save(figure, path)


def _draw_lines(axes, lines, colors):
    """Draw {label: (x, y)}, two at most, and write each label at the end of its line."""
    lowest = min(lines, key=lambda label: lines[label][1][-1])
    for color, (label, (x, y)) in zip(colors, lines.items(), strict=False):
        axes.plot(x, y, marker="o", markersize=3.5, color=color, clip_on=False)
        side = "center" if len(lines) == 1 else "top" if label == lowest else "bottom"
        axes.annotate(label, (x[-1], y[-1]), (8, 0), textcoords="offset points", color=color, va=side)
    axes.margins(y=0.12)  # room for the labels
    if min(min(y) for _, y in lines.values()) >= 0:
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def _save(figure, path, **how):
    if path is None:
        return figure
    with warnings.catch_warnings():  # a letter that no font has is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from|Matplotlib currently does not support")
        figure.savefig(path, dpi=150, **how)
    return figure
