"""Read drawn figures back: their texts, dots and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.text import Text

from engine.cli.figures import MIN_FONT_SIZE, style
from evals.plotting.common import Plot

LARGEST_OVERLAP = 0.5  # pixels; bounding boxes are a little larger than what is drawn


def text_artists(figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def texts(figure) -> list[str]:
    return [text.get_text() for text in text_artists(figure)]


def dots(axes) -> list[tuple[float, float]]:
    """Return the coordinates of the dots of intervals."""
    collections = [own for own in axes.collections if type(own) is PathCollection]
    return [tuple(point) for own in collections for point in own.get_offsets().tolist()]


def accuracies(group, subject: str | None = None) -> list[float]:
    """Return each run's accuracy, counted from its records."""
    rows = [[record for key, record in run.records.items() if subject in (None, key[0])] for run in group.runs]
    return [sum(record["correct"] for record in records) / len(records) for records in rows]


def assert_wilson_intervals(axes, n: int) -> None:
    """Check that the ends of each interval are 1.96 of their own standard errors from its dot."""
    collections = [own for own in axes.collections if type(own) is LineCollection]
    segments = [segment.tolist() for own in collections for segment in own.get_segments()]
    ends = {y: (low, high) for (low, y), (high, other_y) in segments if y == other_y}
    for mean, y in dots(axes):
        for end in ends[y]:
            assert (mean - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-4)


def assert_readable(plot: Plot) -> None:
    """Check that no texts overlap, none extends beyond the figure, and none is too small."""
    figure = plot.figure
    with style():
        figure.draw_without_rendering()
        artists = text_artists(figure)
        boxes = np.array([text.get_window_extent().extents for text in artists])  # [text, (left, bottom, right, top)]
    assert min(text.get_fontsize() for text in artists) >= MIN_FONT_SIZE
    names = [text.get_text() for text in artists]
    outside = (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > [figure.bbox.width, figure.bbox.height]).any(axis=1)
    assert [names[index] for index in np.flatnonzero(outside)] == [], plot.name
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.triu((high - low).min(axis=2), k=1) >= LARGEST_OVERLAP
    assert [(names[one], names[other]) for one, other in np.argwhere(overlap)] == [], plot.name
