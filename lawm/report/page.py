"""A report as one HTML file that needs nothing else. All text is escaped; pictures and videos are embedded; the page's
own policy forbids it to load anything, or to run any script but its own (page.js, by its hash). It is whole without it.
"""

import base64
import datetime
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lawm import __version__, storage
from lawm.report.films import film_bytes, side_by_side
from lawm.report.pictures import image_png
from lawm.report.plots import bars_plot, curves_plot, points_plot
from lawm.report.sections import (
    Bars,
    Cell,
    Curves,
    Details,
    Estimate,
    Film,
    Films,
    Headlines,
    Pictures,
    Plot,
    Points,
    Section,
    Table,
    Text,
)
from lawm.report.tables import format_cell, format_number, interval_text, numeric_columns


def _esc(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _scroll(title: str, inside: str) -> str:
    """What may be wider than the page, within a frame that the keyboard can scroll as well."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_esc(title)}">{inside}</div>'


def _caption(text: str) -> str:
    return f'<p class="caption">{_esc(text)}</p>' if text else ""


def _plot_html(plot: Plot) -> str:
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(plot.dark)}">' if plot.dark else ""
    image = f'<picture>{source}<img class="plot" src="{_data_uri(plot.png)}" alt="{_esc(plot.title)}"></picture>'
    return f'<section class="half"><h2>{_esc(plot.title)}</h2>{image}{_caption(plot.caption)}</section>'


def _table_html(table: Table) -> str:
    numeric = numeric_columns(table)
    cells = "".join(
        f'<th scope="col"{" class=num" if i in numeric else ""}>{_esc(c)}</th>' for i, c in enumerate(table.columns)
    )
    body = []
    for i, row in enumerate(table.rows):
        control = i in table.controls
        mark = ' <span class="tag">control</span>' if control else ""
        line = []
        for j, cell in enumerate(row):
            if isinstance(cell, Estimate):
                span = interval_text(cell.low, cell.high)
                text = f'<b>{format_number(cell.value)}</b> <span class="ci">{span}</span>'
            else:
                text = _esc(format_cell(cell))
            kind = " class=num" if j in numeric else ""
            line.append(f"<td{kind}{_sort_value(cell)}>{text}{mark if j == 0 else ''}</td>")
        body.append(f"<tr{' class=control' if control else ''}>{''.join(line)}</tr>")
    sortable = ' class="sortable"' if len(table.rows) > 1 else ""
    inside = f"<table{sortable}><thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<section><h2>{_esc(table.title)}</h2>{_scroll(table.title, inside)}{_caption(table.caption)}</section>"


def _sort_value(cell: Cell) -> str:
    """What a cell is sorted by where it is a number, with all its digits."""
    number = cell.value if isinstance(cell, Estimate) else cell
    if not isinstance(number, int | float) or not math.isfinite(number):
        return "" if isinstance(cell, str) else ' data-v="NaN"'
    return f' data-v="{float(number)!r}"'


def _headlines_html(headlines: Headlines) -> str:
    cards = []
    for item in headlines.items:
        state = {None: "", True: " reached", False: " missed"}[item.passed]
        facts = [interval_text(item.low, item.high), item.counted and f"n = {item.counted}"]
        gate = ""
        if item.target:
            gate = (
                f'<p class="gate">{"&#10003; reached" if item.passed else "&#10007; missed"}: {_esc(item.target)}</p>'
            )
        cards.append(
            f'<div class="card{state}"><p class="name">{_esc(item.name)}</p>'
            f'<p class="value">{format_number(item.value)} <span class="unit">{_esc(item.unit)}</span></p>'
            f'<p class="ci">{_esc(", ".join(filter(None, facts)))}</p>{gate}{_caption(item.note)}</div>'
        )
    return f'<section><h2>{_esc(headlines.title)}</h2><div class="cards">{"".join(cards)}</div></section>'


def _pictures_html(pictures: Pictures) -> str:
    columns, labels = list(pictures.column_labels), list(pictures.row_labels)
    head = ""
    if columns:
        corner = "<td></td>" if labels else ""
        head = f"<thead><tr>{corner}{''.join(f'<th scope=col>{_esc(c)}</th>' for c in columns)}</tr></thead>"
    body = []
    wide = max((len(row) for row in pictures.rows), default=1)
    for i, row in enumerate(pictures.rows):
        if i in pictures.headings:
            across = wide + bool(labels)
            heading = _esc(pictures.headings[i])
            body.append(
                f'<tr class="heading"><th class="heading" scope="rowgroup" colspan="{across}">{heading}</th></tr>'
            )
        label = f"<th scope=row>{_esc(labels[i])}</th>" if labels else ""
        cells = []
        for j, image in enumerate(row):
            if image is None:
                cells.append("<td></td>")
                continue
            where = (pictures.headings.get(i, ""), labels[i] if labels else "", columns[j] if columns else "")
            name = ", ".join(part for part in where if part)
            height, width = np.asarray(image).shape[:2]
            sharp = " class=pixels" if width < pictures.width else ""
            source = _data_uri(image_png(image))
            size = f'width="{width}" height="{height}"'
            cells.append(f'<td><img{sharp} src="{source}" {size} alt="{_esc(name or "picture")}"></td>')
        body.append(f"<tr>{label}{''.join(cells)}</tr>")
    style = f"--n:{wide};--w:{pictures.width}px"
    inside = f'<table class="pictures" style="{style}">{head}<tbody>{"".join(body)}</tbody></table>'
    shown = _scroll(pictures.title, inside)
    return f"<section><h2>{_esc(pictures.title)}</h2>{shown}{_caption(pictures.caption)}</section>"


def _film_html(film: Film, fps: float) -> str:
    kind, data = film_bytes(film, fps)
    height, width = side_by_side(film).shape[1:3]
    said, size = _esc(f"{film.name}: {', '.join(film.labels)}"), f'width="{width}" height="{height}"'
    source = _data_uri(data, kind)
    shown = f'<img src="{source}" {size} alt="{said}">'
    if kind.startswith("video"):
        how = "autoplay muted loop playsinline controls"
        shown = f'<video src="{source}" {size} aria-label="{said}" {how}></video>'
    labels = "".join(f"<span>{_esc(label)}</span>" for label in film.labels)
    inside = f'<div class="labels" style="--n:{len(film.labels)}">{labels}</div>{shown}'
    return f'<figure class="film"><figcaption>{_esc(film.name)}</figcaption>{inside}</figure>'


def _films_html(films: Films) -> str:
    shown = "".join(_film_html(film, films.fps) for film in films.films)
    return f'<section><h2>{_esc(films.title)}</h2><div class="films">{shown}</div>{_caption(films.caption)}</section>'


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def _details_html(details: Details) -> str:
    if isinstance(details.facts, str):
        inside = f"<pre>{_esc(details.facts)}</pre>"
    else:
        rows = "".join(f"<tr><th scope=row>{_esc(k)}</th><td>{_esc(v)}</td></tr>" for k, v in _flat(details.facts))
        inside = _scroll(details.title, f'<table class="facts"><tbody>{rows}</tbody></table>')
    is_open = " open" if details.open else ""
    return f"<section><details{is_open}><summary>{_esc(details.title)}</summary>{inside}</details></section>"


def _section_html(section: Section) -> str:
    match section:
        case Text():
            paragraphs = "".join(f"<p>{_esc(part.strip())}</p>" for part in section.body.split("\n\n") if part.strip())
            kind = ' class="warning"' if section.warning else ""
            return f"<section{kind}><h2>{_esc(section.title)}</h2>{paragraphs}</section>"
        case Headlines():
            return _headlines_html(section)
        case Table():
            return _table_html(section)
        case Curves():
            light, dark = curves_plot(section), curves_plot(section, dark=True)
            return _plot_html(Plot(section.title, light, dark, section.caption))
        case Points():
            light, dark = points_plot(section), points_plot(section, dark=True)
            return _plot_html(Plot(section.title, light, dark, section.caption))
        case Bars():
            return _plot_html(Plot(section.title, bars_plot(section), bars_plot(section, dark=True), section.caption))
        case Plot():
            return _plot_html(section)
        case Pictures():
            return _pictures_html(section)
        case Films():
            return _films_html(section)
        case Details():
            return _details_html(section)


def render_report(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The report as one HTML5 document."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    script = f"\n{script}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    below = f'<p class="subtitle">{_esc(subtitle)}</p>' if subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_esc(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{_esc(title)}</h1>{below}</header>\n<main>\n"
        + "\n".join(_section_html(section) for section in sections)
        + f"\n</main>\n<footer>lawm {_esc(__version__)}, written {written}</footer>\n<script>{script}</script>\n"
        "</body>\n</html>\n"
    )


def write_report(uri: str, title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Write the report to `uri` (local path or s3://), whole or not at all; returns `uri`. Raises LawmError."""
    storage.write_bytes(uri, render_report(title, sections, subtitle).encode("utf-8"))
    return uri
