"""Pictures, for which matplotlib is needed: the extra `plots`."""

from matplotlib.figure import Figure


def draw_lengths(survey, path):
    """Draws how many texts there are of each length, for both sides of a corpus.

    Args:
        survey: a `pipelines.Survey`.
        path: the file to write; its ending (.png, .svg, .pdf) decides the format.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    longest = max(survey.length(side, 0.999) for side in (0, 1))
    for side, name in enumerate(("source", "target")):
        lengths = [survey.lengths[side].get(length, 0) for length in range(longest + 1)]
        axes.stairs(lengths, [length - 0.5 for length in range(longest + 2)], fill=True, alpha=0.5, label=name)
    beyond = sum(count for side in survey.lengths for length, count in side.items() if length > longest)
    axes.set(xlabel="length in tokens", ylabel="texts", title=f"{survey.pairs:,} pairs")
    if beyond:
        axes.annotate(f"{beyond:,} texts are longer", (0.99, 0.02), xycoords="axes fraction", ha="right", va="bottom")
    axes.margins(x=0)
    axes.legend()
    figure.savefig(path, dpi=150)
