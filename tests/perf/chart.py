"""Bar charts as SVG: a title, panels of bars, a line of small print. They bring their own ground, dark where it is wanted."""

import html

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328 }
  .title { font-size: 18px; font-weight: 600 }
  .panel { font-weight: 600 }
  .quiet { fill: #59636e }
  .small { font-size: 11px }
  .ground { fill: #ffffff; stroke: #d1d9e0 }
  .serve { fill: #0969da }
  .cgi { fill: #7eb6f6 }
  .nginx { fill: #d4a72c }
  .peer { fill: #a8b1bb }
  .spread { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .quiet { fill: #9198a1 }
    .ground { fill: #0d1117; stroke: #3d444d }
    .serve { fill: #4493f8 }
    .cgi { fill: #1f5fb0 }
    .nginx { fill: #9e6a03 }
    .peer { fill: #656c76 }
    .spread { stroke: #e6edf3 }
  }
"""

WIDTH, MARGIN, GAP = 880, 24, 40
LABEL, VALUE = 88, 66        # room left and right of a bar
BAR, STEP = 16, 24


def number(value):
    """Three digits are all that a measurement is worth."""
    if value >= 1000:
        return "{:,.0f}".format(float("%.3g" % value))
    return "%.3g" % value


def draw(title, panels, note, columns=2):
    """The SVG of `panels`: each a title, what is said of it, and bars of label, kind, value, lowest, highest."""
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    shapes, y = [], 76
    for row in (panels[first:first + columns] for first in range(0, len(panels), columns)):
        for column, panel in enumerate(row):
            shapes += bars(panel, MARGIN + column * (width + GAP), y, width)
        y += 44 + STEP * max(len(panel["bars"]) for panel in row) + 18
    height = y + 14
    text = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="%d" viewBox="0 0 %d %d" role="img">' % (WIDTH, WIDTH, height),
        "<title>%s</title>" % html.escape(title),
        "<style>%s</style>" % STYLE,
        '<rect class="ground" x="0.5" y="0.5" width="%d" height="%d" rx="8"/>' % (WIDTH - 1, height - 1),
        '<text class="title" x="%d" y="40">%s</text>' % (MARGIN, html.escape(title)),
        *shapes,
        '<text class="quiet small" x="%d" y="%d">%s</text>' % (MARGIN, height - 14, html.escape(note)),
        "</svg>",
    ]
    return "\n".join(text) + "\n"


def bars(panel, x, y, width):
    yield '<text class="panel" x="%.0f" y="%d">%s</text>' % (x, y, html.escape(panel["title"]))
    yield '<text class="quiet small" x="%.0f" y="%d">%s</text>' % (x, y + 17, html.escape(panel["unit"]))
    scale = (width - LABEL - VALUE) / max(highest for *_, highest in panel["bars"])
    y += 28
    for label, kind, value, lowest, highest in panel["bars"]:
        left, end = x + LABEL, x + LABEL + scale * value
        middle, edge = y + BAR / 2, x + LABEL + scale * max(value, highest)
        yield '<text x="%.1f" y="%.1f" text-anchor="end">%s</text>' % (left - 8, middle + 4.5, html.escape(label))
        yield '<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%d" rx="2"/>' % (
            kind, left, y, max(end - left, 1), BAR)
        if highest > lowest:
            yield '<line class="spread" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>' % (
                left + scale * lowest, middle, edge, middle)
        yield '<text x="%.1f" y="%.1f">%s</text>' % (edge + 7, middle + 4.5, number(value))
        y += STEP
