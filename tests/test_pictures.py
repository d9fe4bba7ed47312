import collections
import itertools
from xml.etree import ElementTree

import keras
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from pipelines import OptionError, Survey
from seq2seq import pictures
from seq2seq.pictures import (
    COLORS,
    attention_svg,
    draw_attention,
    draw_curves,
    draw_error_rates,
    draw_lengths,
    without_font,
)
from seq2seq.translation import Alignment

HISTORY = [
    {"epoch": 1, "loss": 2.5, "accuracy": 0.25, "perplexity": 12.2, "val_loss": 2.25, "val_accuracy": 0.5},
    {"epoch": 2, "loss": 1.5, "accuracy": 0.75, "perplexity": 4.5, "val_loss": 1.75, "val_accuracy": 0.625},
]
PARTS = [
    {"from": 3, "to": 21, "texts": 1200, "chrF": 61.0, "CER": 20.0, "WER": 35.0, "exact match": 30.0},
    {"from": 22, "to": 22, "texts": 800, "chrF": 55.0, "CER": 30.0, "WER": 130.0, "exact match": 10.0},
]


def alignment(source, target):
    weights = np.random.default_rng(0).dirichlet(np.ones(max(1, len(source))), len(target))
    return Alignment(list(source), list(target), weights.astype("float32"))


def lines(axes):
    """What is drawn, by the label written where it ends."""
    drawn = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    labels = {text.xy: text.get_text() for text in axes.texts}
    return {labels[tuple(points[-1])]: points for points in drawn}


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_curves_of_training_and_held_out_pairs_with_the_kept_epoch(tmp_path):
    figure = draw_curves(HISTORY, tmp_path / "curves.png", best=2)
    loss, accuracy = figure.axes
    assert lines(loss) == {"training": [[1, 2.5], [2, 1.5]], "held out": [[1, 2.25], [2, 1.75]]}
    assert lines(accuracy) == {"training": [[1, 25], [2, 75]], "held out": [[1, 50], [2, 62.5]]}
    for axes in figure.axes:
        assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() != "o"] == [[2, 2]]
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert 400 < height < width < 2000


def test_curves_of_translations_only_where_they_were_measured(tmp_path):
    scores = [{}, {"val_chrf": 40.5, "val_exact_match": 0.0}]
    history = [row | more for row, more in zip(HISTORY, scores, strict=True)]
    *_, translations = draw_curves(history, tmp_path / "curves.png").axes
    assert lines(translations) == {"chrF": [[2, 40.5]], "exact match": [[2, 0]]}
    assert translations.get_ylim()[0] == 0
    assert len(draw_curves(history[:1], tmp_path / "curves.png").axes) == 2
    negative = [{"epoch": 1, "loss": -0.5, "accuracy": 0.0}, {"epoch": 2, "loss": -1.5, "accuracy": 0.0}]
    loss, accuracy = draw_curves(negative, tmp_path / "curves.png").axes
    assert loss.get_ylim()[0] < -1.5 < -0.5 < loss.get_ylim()[1] and accuracy.get_ylim()[0] == 0


def test_curves_of_one_epoch_and_nothing_held_out(tmp_path):
    history = [{name: HISTORY[0][name] for name in ("epoch", "loss", "accuracy", "perplexity")}]
    loss, accuracy = draw_curves(history, tmp_path / "curves.png").axes
    assert (lines(loss), lines(accuracy)) == ({"training": [[1, 2.5]]}, {"training": [[1, 25]]})
    low, high = loss.get_xlim()
    assert [tick for tick in loss.get_xticks() if low <= tick <= high] == [1]


def test_characters_that_no_font_has_are_found():
    assert without_font(alignment(["a", "\U000f0000", "ñ"], ["\U000f0000", "\n"])) == ["\U000f0000"]


def test_of_many_fonts_only_those_are_opened_for_a_picture_that_it_needs(monkeypatch):
    have = {"Noto Sans Thai": "กa", "DejaVu Sans": "a", "Noto Sans Adlam": "x"}
    monkeypatch.setattr(pictures, "get_font_names", lambda: list(have))
    monkeypatch.setattr(pictures, "_code_points", lambda font: set(map(ord, have[font])))
    assert pictures._fonts(alignment("a", "a")) == (["DejaVu Sans"], [])
    assert pictures._fonts(alignment("a", "aกy")) == (["DejaVu Sans", "Noto Sans Thai"], ["y"])


def test_attention_labels_every_token_and_turns_the_long_ones(tmp_path):
    figure = draw_attention(alignment(["▁Good", " ", "ñ"], ["¿", "▁días", "[END]"]), tmp_path / "attention.png")
    axes, bar = figure.axes
    assert labels(axes.xaxis) == ["▁Good", "␣", "ñ"]
    assert labels(axes.yaxis) == ["¿", "▁días", "[END]"]
    assert [label.get_rotation() for label in axes.get_xticklabels()] == [90, 0, 0]
    assert bar.get_ylim() == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "你好，世界。",
        "こんにちは",
        "안녕하세요",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "Привет",
        "Γειά",
        "$x_2^",
        "$$",
        "\\$",
        "😀",
        "a\nb",
    ],
)
def test_attention_takes_any_script_and_no_text_for_a_formula(tmp_path, text):
    drawn = alignment(text, [text, "$\\nothing$", "[END]"])
    figure = draw_attention(drawn, tmp_path / "attention.png")
    assert set(without_font(drawn)) <= set(text)
    assert labels(figure.axes[0].yaxis)[1] == "$\\nothing$"
    assert labels(figure.axes[0].xaxis) == ["␣" if letter.isspace() else letter for letter in text]


@pytest.mark.parametrize(("source", "target"), [(0, 1), (3, 4), (60, 40), (2, 400)])
def test_attention_pictures_grow_with_their_tokens_and_labels_do_not_overlap(tmp_path, source, target):
    figure = draw_attention(alignment("W" * source, "m" * target), tmp_path / "attention.png")
    axes, bar = figure.axes
    assert 0 < bar.get_window_extent().x0 - axes.get_window_extent().x1 < 0.5 * figure.dpi
    for ticks, start, end in ((axes.get_xticklabels(), "x0", "x1"), (axes.get_yticklabels()[::-1], "y0", "y1")):
        boxes = [label.get_window_extent() for label in ticks]
        assert all(getattr(box, end) < getattr(after, start) for box, after in itertools.pairwise(boxes))
    assert all(150 < side < 15000 for side in imread(tmp_path / "attention.png").shape[:2])


def test_attention_as_svg_keeps_every_token_as_text():
    svg = ElementTree.fromstring(attention_svg(alignment(["مرحبا", "नमस्ते", "<b>&amp;"], ["你好", "[END]"])))
    texts = [element.text.strip() for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"مرحبا", "नमस्ते", "<b>&amp;", "你好", "[END]", "source", "target"} <= set(texts)


def test_error_rates_by_length(tmp_path):
    (axes,) = draw_error_rates(PARTS, tmp_path / "rates.png").axes
    assert lines(axes) == {"CER": [[0, 20], [1, 30]], "WER": [[0, 35], [1, 130]]}
    assert labels(axes.xaxis) == ["3–21\n1,200 texts", "22\n800 texts"]
    low, high = axes.get_ylim()
    assert low == 0
    assert high > 130
    height, width, _ = imread(tmp_path / "rates.png").shape
    assert 400 < height <= width < 2000


def test_error_rates_of_one_part_without_errors(tmp_path):
    (axes,) = draw_error_rates([PARTS[0] | {"CER": 0.0, "WER": 0.0}], tmp_path / "rates.png").axes
    assert axes.get_ylim() == (0, 1)
    ends, ticks = ([text.get_window_extent() for text in each] for each in (axes.texts, axes.get_xticklabels()))
    assert len(ends) == 2 and not any(end.overlaps(tick) for end in ends for tick in ticks)


def test_lengths_of_both_sides_are_told_apart(tmp_path):
    lengths = collections.Counter(dict.fromkeys(range(1, 9), 500)) + collections.Counter([300])
    (axes,) = draw_lengths(Survey(4001, lengths=(lengths, lengths)), tmp_path / "lengths.png").axes
    source, target = axes.patches
    assert (source.get_fill(), target.get_fill()) == (True, False)
    assert [to_hex(color).upper() for color in (source.get_facecolor(), target.get_edgecolor())] == COLORS[:2]
    assert (axes.get_title(), len(axes.texts)) == ("4,001 pairs; 2 texts are longer", 0)


def test_what_fit_returned_is_drawn_as_a_history():
    history = keras.callbacks.History()
    history.epoch = [0, 1, 2]
    history.history = {"loss": [3.0, 2.0, 1.0], "accuracy": [0.5, 0.6, 1.0], "val_loss": [3.5, 2.5, 2.0]}
    loss, accuracy = draw_curves(history).axes
    assert lines(loss) == {"training": [[1, 3.0], [2, 2.0], [3, 1.0]], "held out": [[1, 3.5], [2, 2.5], [3, 2.0]]}
    assert accuracy.get_ylim()[1] == 100
    history.history["val_loss"] = [2.5]  # of validation_freq=2
    with pytest.raises(OptionError, match="history: with validation_freq"):
        draw_curves(history)


def test_a_notebook_shows_an_alignment_as_a_picture_and_a_list_is_refused():
    drawn = alignment("ab", "c")
    assert "<svg" in drawn._repr_html_()
    assert draw_attention(drawn).axes
    with pytest.raises(OptionError, match=r"alignment: expected one, not a list, such as model\.attention"):
        draw_attention([drawn])
