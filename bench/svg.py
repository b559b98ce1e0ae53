"""Curves as SVG, with the standard library alone."""

WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 110, 60, 24, 46
COLOURS = ["#1b6ca8", "#c4572a"]


def panels(rows, wanted, x, unit, scale):
    """A picture of panels below each other. `wanted` holds titles and the names of one or two figures of `rows`; `x` names what
    they are drawn over, in `unit` when multiplied by `scale`."""
    whole = TOP + len(wanted) * (HEIGHT + GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" font-family="sans-serif" font-size="11">',
             f'<rect width="{WIDTH}" height="{whole}" fill="white"/>']
    last = max(row[x] for row in rows)
    for number, (title, names) in enumerate(wanted):
        parts += panel(rows, title, names, x, last, unit, scale, TOP + number * (HEIGHT + GAP))
    return "\n".join([*parts, "</svg>\n"])


def panel(rows, title, names, x, last, unit, scale, top):
    values = [row[name] for row in rows for name in names if row[name] is not None]
    # The 99th of a hundred, so that one slow moment does not flatten the rest.
    most = 1.1 * sorted(values)[max(0, int(0.99 * len(values)) - 1)] or 1
    wide = WIDTH - LEFT - 16
    parts = [f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{title}</text>',
             f'<rect x="{LEFT}" y="{top}" width="{wide}" height="{HEIGHT}" fill="none" stroke="#999"/>']
    for share in (0, 0.5, 1):
        y = top + HEIGHT * (1 - share)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{most * share:.4g}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        text = f"{last * scale * share:.3g}" + (f" {unit}" if share == 1 else "")
        anchor = "end" if share == 1 else "middle"
        parts.append(f'<text x="{LEFT + wide * share:.0f}" y="{top + HEIGHT + 14}" text-anchor="{anchor}">{text}</text>')
    for number, (name, colour) in enumerate(zip(names, COLOURS)):
        points = " ".join(f"{LEFT + wide * row[x] / last:.1f},{top + HEIGHT * (1 - min(1, row[name] / most)):.1f}"
                          for row in rows if row[name] is not None)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        if len(names) > 1:
            parts.append(f'<text x="{WIDTH - 20}" y="{top + 14 + 13 * number}" text-anchor="end" fill="{colour}">'
                         f'{name.removesuffix(" ms")}</text>')
    return parts
