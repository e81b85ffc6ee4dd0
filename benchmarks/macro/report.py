"""One HTML page over the kept results: no outside assets, no script, readable in light and in dark.

Each scenario has its figures with what was asked of them, and a plot of every single run: a dot a run, a bar at the
median. The plots are SVG made here; their colours come from the page's style sheet.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.macro.figures import readable

Document = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --text: #1d1f22; --soft: #666b73; --line: #dfe1e4; --bar: #c9d8ee;
  --dot: #2c62ad; --ours-bar: #f3d6bd; --ours-dot: #b4561a; --good: #1e7a3c; --bad: #b3261e; --card: #ffffff }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --text: #e7e8ea; --soft: #9aa0a8; --line: #32363c;
  --bar: #2c3f5c; --dot: #86b2ee; --ours-bar: #563620; --ours-dot: #f0a06a; --good: #6fcf8b; --bad: #f28b82;
  --card: #1d2024 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.2rem 4rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 0 0 .1rem }
p { margin: .2rem 0 .7rem } .soft, figcaption, small { color: var(--soft) } small { font-size: 85% }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin: 1.3rem 0 }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 85% } td, th { padding: .28rem .7rem .28rem 0;
  border-bottom: 1px solid var(--line); vertical-align: baseline } .number { white-space: nowrap; font-weight: 600 }
.wide { overflow-x: auto } .subjects td { vertical-align: top; line-height: 1.3 }
.met { color: var(--good); font-weight: 600; white-space: nowrap }
.missed { color: var(--bad); font-weight: 600; white-space: nowrap }
.quick { background: var(--bad); color: var(--ground); border-radius: 4px; padding: 0 .4rem; font-size: 85% }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--text); font: 12px system-ui, sans-serif }
svg .axis { fill: var(--soft) } svg line { stroke: var(--line) }
svg .bar { fill: var(--bar) } svg .dot { fill: var(--dot) }
svg .ours .bar { fill: var(--ours-bar) } svg .ours .dot { fill: var(--ours-dot) }
details { margin-top: .6rem } summary { cursor: pointer; color: var(--soft) } pre { overflow-x: auto; font-size: 12px }
figure { margin: .8rem 0 0 } ul { margin: .4rem 0; padding-left: 1.2rem }
"""

_WIDTH, _VALUE, _ROW = 880, 70, 26
_LETTER = 7.2  # units of an average letter, rather more
_LABEL_MIN, _LABEL_MAX = 110, 420


def write(results: Path, documents: Sequence[Document]) -> Path:
    """Writes `<results>/report.html` and returns its path."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / "report.html"
    path.write_text(page(documents))
    return path


def page(documents: Sequence[Document]) -> str:
    met = [bool(one["met"]) for document in documents for one in document["figures"] if one["met"] is not None]
    lead = f"{sum(met)} of {len(met)} targets met." if met else "No figure has a target."
    body = "".join(map(_section, documents)) or "<p>Nothing was measured yet.</p>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>onesec benchmarks</title>'
        f"<style>{_STYLE}</style><h1>onesec benchmarks</h1><p>{lead} "
        '<span class="soft">A figure is the median over rounds in which every contender ran once; behind it the lowest '
        f"and the highest round. Ratios are taken within a round.</span></p>{body}</html>\n"
    )


def _section(document: Document) -> str:
    machine = document["machine"]
    details = json.dumps({"conditions": document["conditions"], "machine": machine}, indent=1)
    quick = ' <span class="quick">quick run: not a measurement</span>' if document["size"] == "quick" else ""
    return (
        f'<section id="{_text(document["scenario"])}"><h2>{_text(document["scenario"])}{quick}</h2>'
        f'<p class="soft">{_text(document["summary"])}</p>'
        f"{_figures(document['figures'])}{_by_subject(document['figures'])}{plot(document['contenders'])}"
        f"{_list([*document['notes'], *(f'{n}: left out, {why}' for n, why in document['missing'].items())])}"
        f"<small>{_text(_about(machine))}</small>"
        f"<details><summary>conditions and machine</summary><pre>{_text(details)}</pre></details></section>"
    )


def _about(machine: Document) -> str:
    return (
        f"{machine['date']} · {machine['cpu']}, {machine['cores']} cores · Linux {machine['kernel']} · "
        f"{machine.get('disk', 'disk unknown')} · commit {machine['commit']} · load {machine.get('load', '?')}"
    )


def _figures(figures: Iterable[Document]) -> str:
    rows = "".join(_figure(one) for one in figures if not one.get("subject"))
    return (
        f"<table><tr><th>figure<th>median<th>lowest – highest<th>against<th>wanted</tr>{rows}</table>" if rows else ""
    )


def _by_subject(figures: Iterable[Document]) -> str:
    """Those that several contenders have, as one table: a row a contender, a column a measure."""
    cells, names, measures = subjects(figures)
    if not cells:
        return ""
    rows = "".join(
        f"<tr><td>{_text(name)}{''.join(_cell(cells.get((name, measure))) for measure in measures)}</tr>"
        for name in names
    )
    head = "".join(f"<th>{_text(measure)}" for measure in measures)
    return f'<div class="wide"><table class="subjects"><tr><th>contender{head}</tr>{rows}</table></div>'


def subjects(figures: Iterable[Document]) -> tuple[dict[tuple[str, str], Document], list[str], list[str]]:
    """Figures that several contenders have, by contender and measure; contenders and measures in their order."""
    cells = {(one["subject"], one["measure"]): one for one in figures if one.get("subject")}
    names, measures = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
    return cells, names, measures


def _cell(one: Document | None) -> str:
    if one is None:
        return "<td>"
    wanted = _wanted(one)
    return (
        f'<td><span class="number">{readable(one["value"])} {_text(one["unit"])}</span>'
        f"<br><small>{spread(one)}{f'<br>{wanted}' if wanted else ''}</small>"
    )


def _wanted(one: Document) -> str:
    if one["want"] is None:
        return ""
    sign = {"<=": "≤", ">=": "≥"}[one["want"]["relation"]]
    kind, mark = ("met", "✓ met") if one["met"] else ("missed", "✗ missed")
    return f'{sign} {readable(one["want"]["value"])} <span class="{kind}">{mark}</span>'


def spread(one: Document) -> str:
    """The lowest and the highest sample."""
    return f"{readable(one['low'])} – {readable(one['high'])}" if one["samples"] > 1 else "one run"


def _figure(one: Document) -> str:
    wanted = _wanted(one)
    return (
        f'<tr><td>{_text(one["name"])}<td class="number">{readable(one["value"])} {_text(one["unit"])}'
        f'<td class="soft">{spread(one)}<td class="soft">{_text(one["reference"])}<td>{wanted}</tr>'
    )


def plot(contenders: Mapping[str, Document]) -> str:
    """Seconds of each contender: a bar to the median, a dot for each run. Empty without contenders."""
    if not contenders:
        return ""
    most = max(max(one["runs_s"]) for one in contenders.values()) or 1.0
    unit, factor = ("ms", 1000.0) if most < 1 else ("s", 1.0)
    ticks = _ticks(most * factor)
    left = min(_LABEL_MAX, max(_LABEL_MIN, _LETTER * max(map(len, contenders)) + 20))
    span = _WIDTH - left - _VALUE
    scale = span / (ticks[-1] / factor)
    height = _ROW * len(contenders) + 24
    lines = [
        f'<line x1="{left + tick / factor * scale:.1f}" x2="{left + tick / factor * scale:.1f}" y1="0" '
        f'y2="{height - 20}"/><text class="axis" text-anchor="middle" x="{left + tick / factor * scale:.1f}" '
        f'y="{height - 6}">{_short(tick)}{" " + unit if tick == ticks[-1] else ""}</text>'
        for tick in ticks
    ]
    for row, (name, one) in enumerate(contenders.items()):
        lines.append(_plot_row(name, one, (left, row * _ROW), scale, unit, factor))
    label = f"seconds of each run of {', '.join(contenders)}"
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_text(label)}">'
    return f"<figure>{head}{''.join(lines)}</svg></figure>"


def _plot_row(name: str, one: Document, corner: tuple[float, float], scale: float, unit: str, factor: float) -> str:
    left, top = corner
    most = int((_LABEL_MAX - 20) / _LETTER)
    shown = name if len(name) <= most else f"{name[: most - 1]}…"
    middle = top + _ROW / 2
    dots = "".join(
        f'<circle class="dot" cx="{left + run * scale:.1f}" cy="{middle:.1f}" r="3.2" fill-opacity=".75"/>'
        for run in one["runs_s"]
    )
    end = left + max(one["runs_s"]) * scale + 9
    ours = ' class="ours"' if not _is_reference(name) else ""
    return (
        f'<g{ours}><text x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">{_text(shown)}</text>'
        f'<rect class="bar" x="{left}" y="{top + 4:.1f}" width="{max(1.0, one["median_s"] * scale):.1f}" '
        f'height="{_ROW - 8}" rx="3"/>{dots}'
        f'<text x="{end:.1f}" y="{middle + 4:.1f}">{readable(one["median_s"] * factor)} {unit}</text></g>'
    )


_PEERS = "ext4|crun|native|tar [|]|casync|desync|podman|stargz|SOCI|nydus|fuse-python|pyfuse3|--version"


def _is_reference(name: str) -> bool:
    return re.search(_PEERS, name) is not None


def _ticks(most: float) -> list[float]:
    """Zero and up to five more round numbers, the last one not below most."""
    step = 10.0 ** len(str(int(most)))
    while most / step <= 5:
        for part in (2, 2.5, 2):  # 1, 0.5, 0.2, 0.1, …
            if most / (step / part) > 5:
                break
            step /= part
        else:
            continue
        break
    count = int(most / step) + (most % step > 0)
    return [step * number for number in range(max(1, count) + 1)]


def _short(value: float) -> str:
    return f"{value:g}"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li><small>{_text(line)}</small></li>' for line in lines)}</ul>" if lines else ""


def _text(value: object) -> str:
    return html.escape(str(value))
