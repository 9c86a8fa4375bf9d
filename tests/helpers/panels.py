"""The panels of a figure, and texts in it that lie on top of each other."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg


def panels(figure):
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>" and ax.get_visible()]


def shown_labels(axis):
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1 for tick in ticks if tick.label1.get_visible()]


def overlapping(figure):
    """Pairs of texts that lie on top of each other when the figure is drawn; slanted ones are not looked at."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = []
    for ax in figure.axes:
        texts = [*shown_labels(ax.xaxis), *shown_labels(ax.yaxis), ax.xaxis.label, ax.yaxis.label, ax.title, *ax.texts]
        upright = [text for text in texts if ax.get_visible() and text.get_text() and not text.get_rotation() % 90]
        boxes += [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in upright]
    return [(a, b) for (a, box), (b, other) in combinations(boxes, 2) if box.overlaps(other)]
