"""A report as one HTML file that needs nothing else. All text is escaped; images are embedded; the page's own policy
forbids it to load anything.
"""

import base64
import datetime
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lawm import __version__, storage
from lawm.report.pictures import image_png
from lawm.report.plots import curves_plot
from lawm.report.sections import Curves, Details, Estimate, Headlines, Pictures, Plot, Section, Table, Text
from lawm.report.tables import format_cell, format_number, interval_text, numeric_columns


def _esc(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


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
            line.append(f"<td{' class=num' if j in numeric else ''}>{text}{mark if j == 0 else ''}</td>")
        body.append(f"<tr{' class=control' if control else ''}>{''.join(line)}</tr>")
    return (
        f'<section><h2>{_esc(table.title)}</h2><div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{_caption(table.caption)}</section>"
    )


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
    for i, row in enumerate(pictures.rows):
        label = f"<th scope=row>{_esc(labels[i])}</th>" if labels else ""
        cells = []
        for j, image in enumerate(row):
            if image is None:
                cells.append("<td></td>")
                continue
            name = ", ".join(part for part in (labels[i] if labels else "", columns[j] if columns else "") if part)
            sharp = " class=pixels" if np.asarray(image).shape[1] < pictures.width else ""
            source = _data_uri(image_png(image))
            cells.append(
                f'<td><img{sharp} src="{source}" width="{pictures.width}" alt="{_esc(name or "picture")}"></td>'
            )
        body.append(f"<tr>{label}{''.join(cells)}</tr>")
    return (
        f'<section><h2>{_esc(pictures.title)}</h2><div class="scroll"><table class="pictures">{head}'
        f"<tbody>{''.join(body)}</tbody></table></div>{_caption(pictures.caption)}</section>"
    )


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
        inside = f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
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
        case Plot():
            return _plot_html(section)
        case Pictures():
            return _pictures_html(section)
        case Details():
            return _details_html(section)


_STYLE = """
:root { --ink:#1f2328; --muted:#656d76; --grid:#dfe3e8; --paper:#fff; --page:#f5f6f8; --accent:#2563c9;
  --good:#0a6b4d; --bad:#b3261e; --tint:#eef0f3; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ed; --muted:#9aa4af; --grid:#343b44; --paper:#191d22;
  --page:#111418; --accent:#74a7ff; --good:#4fc9a4; --bad:#ff8b82; --tint:#232930; } }
* { box-sizing:border-box; } p { margin:.3rem 0; }
body { margin:0 auto; max-width:76rem; padding:1.5rem 1rem 3rem; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif; }
h1 { font-size:1.7rem; line-height:1.25; margin:0; } h2 { font-size:1.05rem; margin:0 0 .7rem; }
.subtitle, .caption, footer, .ci, .unit { color:var(--muted); } .caption, footer { font-size:.87rem; }
main { display:grid; grid-template-columns:repeat(2,minmax(0,1fr)); gap:1rem; margin:1.2rem 0; }
section { grid-column:1/-1; background:var(--paper); border:1px solid var(--grid); border-radius:8px;
  padding:1rem 1.1rem; }
.half { grid-column:span 1; } @media (max-width:52rem) { .half { grid-column:1/-1; } }
.warning { border-left:4px solid var(--bad); } .scroll { overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:.32rem .9rem .32rem 0; vertical-align:top; }
thead th { color:var(--muted); font-weight:600; border-bottom:1px solid var(--grid); }
tbody tr + tr > * { border-top:1px solid var(--grid); }
.num { text-align:right; white-space:nowrap; }
.control { background:var(--tint); color:var(--muted); } .control b { font-weight:500; }
.tag { font-size:.75rem; border:1px solid var(--muted); border-radius:99px; padding:0 .45rem; margin-left:.4rem; }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(13.5rem,1fr)); gap:.8rem; }
.card { border:1px solid var(--grid); border-left:4px solid var(--muted); border-radius:6px; padding:.6rem .8rem; }
.card.reached { border-left-color:var(--good); } .card.missed { border-left-color:var(--bad); }
.card p { margin:0; } .card .name { color:var(--muted); font-size:.9rem; }
.card .value { font-size:1.55rem; font-weight:650; }
.card .unit { font-size:.9rem; font-weight:400; } .card .gate { font-weight:600; font-size:.9rem; }
.reached .gate { color:var(--good); } .missed .gate { color:var(--bad); }
.plot { width:100%; height:auto; display:block; }
.pictures td, .pictures th { padding:2px; border:0; font-weight:400; font-size:.85rem; color:var(--muted);
  vertical-align:middle; text-align:center; }
.pictures tbody th { text-align:right; padding-right:.6rem; white-space:nowrap; } .pictures img { display:block; }
.pixels { image-rendering:pixelated; } .facts { font-size:.87rem; } .facts th { font-weight:500; color:var(--muted); }
.facts td { overflow-wrap:anywhere; } pre { overflow-x:auto; } summary { cursor:pointer; font-weight:600; }
"""


def render_report(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The report as one HTML5 document."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    below = f'<p class="subtitle">{_esc(subtitle)}</p>' if subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_esc(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_esc(title)}</h1>{below}</header>\n<main>\n"
        + "\n".join(_section_html(section) for section in sections)
        + f"\n</main>\n<footer>lawm {_esc(__version__)}, written {written}</footer>\n</body>\n</html>\n"
    )


def write_report(uri: str, title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Write the report to `uri` (local path or s3://), whole or not at all; returns `uri`. Raises LawmError."""
    storage.write_bytes(uri, render_report(title, sections, subtitle).encode("utf-8"))
    return uri
