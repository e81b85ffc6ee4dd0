"""The timeline of one start: as a page that needs nothing but itself, and as a short table. Pure.

The record is what `onesec run` wrote down (lazyfs/timeline.py): a plain dict, all times in seconds since the process
started. Names of files come from images, so everything is escaped, and the page's own policy forbids it to load or run
anything.

Everything is drawn on one time axis. Text is HTML and the plots are SVG stretched to the width there is: so the letters
keep their size on a narrow window. A dot is a line without length with round ends, which stretching leaves round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from onesec.cli.main import printable

Row = Mapping[str, Any]

SLOWEST = 25
SLOWEST_IN_TABLE = 10
_TITLED = 300  # dots that say what they are under the pointer: the slowest
_HEIGHT = 1000.0  # of a plot's own coordinates, as wide as high
_LATE = 0.95  # share of the reads that decides how much of a long life is drawn
_LONGEST_NAME = 300

SOURCES = {
    "boot pack": "streamed ahead",
    "memory": "of the object server",
    "store": "chunks kept here",
    "pack": "pack files here",
    "network": "registry, mirror",
}
"""In the order of their cost, with what they mean."""


class Window(NamedTuple):
    """What is drawn of the life of the process. seconds: of the axis. cut: whether the command went on after it."""

    seconds: float
    cut: bool


def window(record: Row) -> Window:
    """A start, and little of what follows it: a service may run for a day."""
    total = max([float(record["seconds"]), *(_end(phase) for phase in record["phases"])])
    ends = [_end(phase) for phase in record["phases"] if phase["name"] != "command"]
    if (boot := record["boot"]) is not None:
        ends.append(boot["end"])
    if reads := record["reads"]:
        late = sorted(read["t"] + read["seconds"] for read in reads)
        ends.append(late[int((len(late) - 1) * _LATE)])
    interesting = max([1e-3, *ends]) * 1.25
    return Window(interesting, True) if total > 1.5 * interesting else Window(max(total, 1e-3), False)


def _end(phase: Row) -> float:
    return float(phase["end"])


def seconds(value: float) -> str:
    """In the unit that is read fastest."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms" if value < 0.9995 else "1.00 s"
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def size(value: float) -> str:
    """Decimal, as links and disks are sold."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def by_source(record: Row) -> list[tuple[str, int]]:
    """Sources that gave something, in our order; such as we do not know come last."""
    amounts = {str(name): int(amount) for name, amount in record["bytes"].items()}
    names = [*SOURCES, *sorted(set(amounts) - set(SOURCES))]
    return [(name, amounts[name]) for name in names if amounts.get(name)]


def slowest(record: Row, count: int) -> list[Row]:
    reads: Sequence[Row] = record["reads"]
    return sorted(reads, key=lambda read: -read["seconds"])[:count]


def what_was_read(read: Row) -> str:
    """The file, or the object if no file of the image is known for it."""
    name = printable(read["path"]) if read["path"] else f"object {printable(read['object'])[:16]}…"
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"


def _boot_words(boot: Row | None) -> list[str]:
    """What the boot pack did, in parts of a sentence."""
    if boot is None:
        return ["this image has none, or it is not here"]
    if boot["all_frames"] and not (boot["frames"] or boot["kept"] or boot["error"]):
        return [f"{size(boot['packed'])} packed", "still on its way when the command ended"]
    words = [
        f"{size(boot['bytes'])} in {boot['objects']:,} files",
        f"{size(boot['packed'])} packed",
        f"{boot['frames']:,} of {boot['all_frames']:,} frames",
    ]
    if boot["kept"]:
        words.append("already there from an earlier start")
    else:
        words.append(f"from {seconds(boot['start'])} to {seconds(boot['end'])}")
    if boot["share"] is not None:
        words.append(f"{boot['share']:.0%} of its pages stayed")
    if boot["error"]:
        words.append(f"broken off: {printable(boot['error'])}")
    return words


def _command(record: Row) -> str:
    return " ".join(printable(word) if word else "''" for word in record["command"]) or "(the image's command)"


def _waited(record: Row) -> float:
    return sum(float(read["seconds"]) for read in record["reads"])


# ---------------------------------------------------------------------- the table


def table(record: Row) -> str:
    """The same for a terminal, at most 100 columns as long as names are; ends with a line break."""
    lines = [
        f"{printable(record['image'])}  {_command(record)}",
        f"status {record['status']} after {seconds(record['seconds'])}",
        "",
        f"{'phase':<14}{'from':>10}{'took':>10}",
    ]
    shown = window(record)
    for phase in record["phases"]:
        bar = _text_bar(phase["start"], phase["end"], shown.seconds)
        lines.append(
            f"{printable(phase['name']):<14}{seconds(phase['start']):>10}"
            f"{seconds(phase['end'] - phase['start']):>10}  {bar}"
        )
    lines += ["", f"boot pack: {', '.join(_boot_words(record['boot']))}"]
    lines.append(
        f"page faults that left the kernel: {record['read_count']:,} reads, {record['lookup_count']:,} look-ups"
    )
    if amounts := by_source(record):
        lines += ["", f"{'bytes from':<14}{'':>10}"]
        lines += [f"{printable(name):<14}{size(amount):>10}" for name, amount in amounts]
    if reads := slowest(record, SLOWEST_IN_TABLE):
        lines += ["", f"{'slowest reads':<14}{'took':>10}{'bytes':>10}  from"]
        for read in reads:
            lines.append(
                f"{'at ' + seconds(read['t']):<14}{seconds(read['seconds']):>10}{size(read['bytes']):>10}"
                f"  {printable(read['source']):<8} {what_was_read(read)}"
            )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _text_bar(start: float, end: float, whole: float, width: int = 48) -> str:
    first = min(width - 1, int(start / whole * width))
    last = min(width, max(first + 1, round(end / whole * width)))
    return " " * first + "█" * (last - first)


# ---------------------------------------------------------------------- the page


def page(record: Row) -> str:
    """A whole HTML document. Needs no script, no font, no network."""
    shown = window(record)
    title = f"{printable(record['image'])}: {seconds(record['seconds'])}"
    body = [
        _header(record),
        '<section class="chart" aria-label="time">',
        '<div class="plots">',
        _grid(shown),
        *(_phase(phase, shown) for phase in record["phases"]),
        _stream(record["boot"], shown),
        _faults(record["reads"], shown),
        _axis(shown),
        "</div>",
        _late_note(record, shown),
        "</section>",
        '<div class="below">',
        _sources(record),
        _reads(record),
        "</div>",
        f"<footer>{escape(printable(record['digest']))}</footer>",
    ]
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _header(record: Row) -> str:
    status = int(record["status"])
    boot = record["boot"]
    waited = _waited(record)
    complete = len(record["reads"]) == record["read_count"]
    figures = [
        (seconds(record["seconds"]), "whole call"),
        (size(boot["bytes"]) if boot is not None else "none", "boot pack"),
        (f"{record['read_count']:,}", "page faults that left the kernel"),
        (
            seconds(waited),
            "waited in them, together" if complete else f"waited in the {len(record['reads']):,} slowest",
        ),
        (size(record["bytes"].get("network", 0)), "over the network"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in figures)
    bad = "" if status == 0 else f' <em class="bad">status {status}</em>'
    return (
        f"<header><h1>{escape(printable(record['image']))}{bad}</h1>"
        f"<p><code>{escape(_command(record))}</code></p></header>\n"
        f'<section class="figures" aria-label="figures">{cells}</section>'
    )


def _percent(value: float, shown: Window) -> float:
    return max(0.0, min(100.0, value / shown.seconds * 100))


def _phase(phase: Row, shown: Window) -> str:
    left, right = _percent(phase["start"], shown), _percent(phase["end"], shown)
    width = max(right - left, 0.15)
    took = seconds(phase["end"] - phase["start"])
    cut = shown.cut and phase["end"] > shown.seconds
    name = printable(phase["name"])
    label = f"{took} →" if cut else took
    # The time stands in the bar if that is long, else behind it, or before it where the page ends.
    place = "inside" if width > 30 else "after" if right < 80 else "before"
    kind = ("bar command" if name == "command" else "bar") + (" cut" if cut else "")
    title = f"{name}: from {seconds(phase['start'])}, {took}"
    return (
        f'<div class="row phase"><span class="name">{escape(name)}</span><div class="track">'
        f'<div class="{kind}" style="left:{left:.3f}%;width:{width:.3f}%" title="{escape(title)}">'
        f'<span class="{place}">{escape(label)}</span></div></div></div>'
    )


def _plot(name: str, note: str, inner: str, labels: str = "", kind: str = "") -> str:
    return (
        f'<div class="row plot {kind}"><span class="name">{escape(name)}<small>{note}</small></span>'
        f'<div class="track"><svg viewBox="0 0 {_HEIGHT:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(name)}">{inner}</svg>{labels}</div></div>'
    )


def _stream(boot: Row | None, shown: Window) -> str:
    """Bytes stored in the page cache over time."""
    note = escape(", ".join(_boot_words(boot)))
    if boot is None:
        return _plot("boot pack", note, "", kind="empty")
    whole = max(1, *(int(amount) for _, amount in boot["progress"])) if boot["progress"] else max(1, boot["bytes"])
    points = [(boot["start"], 0.0), *((t, float(amount)) for t, amount in boot["progress"])]
    if not boot["progress"]:
        points.append((boot["end"], float(boot["bytes"])))
    dots = [
        (_percent(t, shown) * 10, _HEIGHT - amount / whole * (_HEIGHT - 60))
        for t, amount in points
        if t <= shown.seconds
    ]
    line = "".join(f"{'L' if number else 'M'}{x:.2f} {y:.1f}" for number, (x, y) in enumerate(dots))
    if not dots:
        return _plot("boot pack", note, "", kind="empty")
    area = f"{line}L{dots[-1][0]:.2f} {_HEIGHT:.0f}L{dots[0][0]:.2f} {_HEIGHT:.0f}Z"
    label = f'<i style="top:2px">{size(whole)}</i>'
    return _plot("boot pack", note, f'<path class="area" d="{area}"/><path class="edge" d="{line}"/>', label, "stream")


_DECADES = (
    *((1e-5, "10 µs"), (1e-4, "0.1 ms"), (1e-3, "1 ms"), (1e-2, "10 ms")),
    *((1e-1, "0.1 s"), (1.0, "1 s"), (10.0, "10 s"), (100.0, "100 s")),
)


def _faults(reads: Sequence[Row], shown: Window) -> str:
    """When each read came, and how long it took (logarithmic); colours are sources."""
    inside = [read for read in reads if read["t"] <= shown.seconds]
    if not inside:
        return _plot("page faults", "none", "", kind="empty")
    longest = max(read["seconds"] for read in inside)
    shortest = min(read["seconds"] for read in inside)
    low = max((decade for decade, _ in _DECADES if decade <= shortest), default=_DECADES[0][0])
    high = min((decade for decade, _ in _DECADES if decade >= longest and decade > low), default=max(longest, low * 10))

    def place(read: Row) -> tuple[float, float]:
        share = _log(max(low, read["seconds"]) / low) / _log(high / low)
        return _percent(read["t"], shown) * 10, _HEIGHT - 40 - share * (_HEIGHT - 80)

    titled = {id(read) for read in sorted(inside, key=lambda read: -read["seconds"])[:_TITLED]}
    paths: dict[str, list[str]] = {}
    singles: list[str] = []
    for read in inside:
        x, y = place(read)
        dot = f"M{x:.2f} {y:.1f}h0"
        source = _class(read["source"])
        if id(read) in titled:
            words = f"{seconds(read['seconds'])}, {size(read['bytes'])} from {printable(read['source'])}: "
            singles.append(
                f'<path class="dot {source}" d="{dot}"><title>{escape(words + what_was_read(read))}</title></path>'
            )
        else:
            paths.setdefault(source, []).append(dot)
    inner = "".join(f'<path class="dot {source}" d="{"".join(dots)}"/>' for source, dots in sorted(paths.items()))
    labels = ""
    for decade, words in _DECADES:
        if low <= decade <= high:
            top = 96 - _log(decade / low) / _log(high / low) * 92
            labels += f'<i style="top:calc({top:.1f}% - 0.6em)">{words}</i>'
    note = f"{len(inside):,} reads; height: how long each took"
    return _plot("page faults", escape(note), inner + "".join(singles), labels, "faults")


def _log(value: float) -> float:
    from math import log10

    return log10(value)


def _class(source: str) -> str:
    return f"s-{source.replace(' ', '-')}" if source in SOURCES else "s-other"


def ticks(whole: float) -> list[float]:
    """Round times from 0 to whole, five to ten of them."""
    step = 10.0 ** int(_log(whole) - 3)
    for factor in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000):
        if whole / (step * factor) <= 8:
            step *= factor
            break
    return [number * step for number in range(int(whole / step) + 1)]


def _grid(shown: Window) -> str:
    lines = "".join(f'<u style="left:{_percent(t, shown):.3f}%"></u>' for t in ticks(shown.seconds))
    return f'<div class="grid" aria-hidden="true">{lines}</div>'


def _axis(shown: Window) -> str:
    marks = ticks(shown.seconds)
    labels = "".join(
        f'<i style="left:{_percent(t, shown):.3f}%"{" class=odd" if number % 2 else ""}>{seconds(t) if t else "0"}</i>'
        for number, t in enumerate(marks)
        if _percent(t, shown) < 97
    )
    return f'<div class="row axis"><span class="name"></span><div class="track">{labels}</div></div>'


def _late_note(record: Row, shown: Window) -> str:
    words = []
    if shown.cut:
        late = sum(read["t"] > shown.seconds for read in record["reads"])
        words.append(f"Drawn: the first {seconds(shown.seconds)} of {seconds(record['seconds'])}")
        if late:
            words.append(f"{late:,} reads came later")
    if len(record["reads"]) < record["read_count"]:
        words.append(f"of {record['read_count']:,} reads the {len(record['reads']):,} slowest are shown")
    return f'<p class="note">{escape("; ".join(words))}</p>' if words else ""


def _sources(record: Row) -> str:
    amounts = by_source(record)
    most = max((amount for _, amount in amounts), default=1)
    rows = "".join(
        f'<tr><th scope="row"><span class="key {_class(name)}"></span>{escape(printable(name))} '
        f"<small>{escape(SOURCES.get(name, ''))}</small></th>"
        f'<td class="number">{size(amount)}</td>'
        f'<td class="wide"><div class="fill {_class(name)}" style="width:{max(0.5, amount / most * 100):.1f}%">'
        "</div></td></tr>"
        for name, amount in amounts
    )
    return (
        '<section class="sources"><h2>Bytes by source</h2>'
        f"<table><tbody>{rows or '<tr><td>nothing was read</td></tr>'}</tbody></table></section>"
    )


def _reads(record: Row) -> str:
    rows: Iterable[str] = (
        f'<tr><td class="number">{seconds(read["seconds"])}</td><td class="number at">{seconds(read["t"])}</td>'
        f'<td class="number size">{size(read["bytes"])}</td>'
        f'<td class="from"><span class="key {_class(read["source"])}"></span>{escape(printable(read["source"]))}</td>'
        f'<td class="file">{escape(what_was_read(read))}<small> +{size(read["offset"])}</small></td></tr>'
        for read in slowest(record, SLOWEST)
    )
    body = "".join(rows)
    if not body:
        return '<section class="reads"><h2>Slowest reads</h2><p>No page fault left the kernel.</p></section>'
    return (
        '<section class="reads"><h2>Slowest reads</h2><table><thead><tr><th class="number">took</th>'
        '<th class="number at">at</th><th class="number size">bytes</th><th>from</th><th>file and offset</th></tr>'
        "</thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


_STYLE = """
:root{--back:#fff;--card:#f6f7f9;--text:#16191d;--soft:#5b6470;--line:#dfe3e8;--phase:#7d8ba1;--command:#2f9e5b;
--boot:#0e8f8a;--memory:#8a63d2;--store:#2f6fde;--pack:#c27803;--network:#d6336c;--other:#777;--bad:#c92a2a}
@media (prefers-color-scheme:dark){:root{--back:#121417;--card:#1b1f24;--text:#e8eaed;--soft:#9aa4b1;--line:#31373f;
--phase:#6b7a92;--command:#3fbf74;--boot:#2bb9b2;--memory:#a98bea;--store:#5b93f5;--pack:#e0a02d;--network:#f0628f;
--other:#999;--bad:#ff7b7b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1500px;padding:14px 20px;background:var(--back);color:var(--text);
font:14px/1.4 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:19px;margin:0;overflow-wrap:anywhere}h2{font-size:14px;margin:0 0 6px}
header p{margin:2px 0 10px;color:var(--soft);overflow-wrap:anywhere}
code{font:12px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}
.bad{color:var(--bad);font-style:normal;font-size:14px;margin-left:8px}
.figures{display:flex;flex-wrap:wrap;gap:8px 30px;margin-bottom:12px}
.figures b{display:block;font-size:21px;line-height:1.15;font-variant-numeric:tabular-nums}
.figures span,small,.note,footer{color:var(--soft);font-size:12px}
.chart{background:var(--card);border-radius:8px;padding:10px 16px 4px 12px}
.plots{position:relative}
.row{display:flex;align-items:center;position:relative;min-height:21px}
.name{flex:0 0 200px;padding-right:10px;font-size:13px}
.name small{display:block;line-height:1.25}
.track{position:relative;flex:1;align-self:stretch;min-width:0}
.grid{position:absolute;left:200px;right:0;top:0;bottom:22px}
.grid u{position:absolute;top:0;bottom:0;width:1px;background:var(--line)}
.bar{position:absolute;top:3px;bottom:3px;border-radius:3px;background:var(--phase);min-width:3px}
.bar.command{background:var(--command)}
.bar.cut{border-radius:3px 0 0 3px}
.bar span{position:absolute;top:50%;transform:translateY(-50%);font-size:12px;line-height:1;white-space:nowrap;
font-variant-numeric:tabular-nums}
.bar .after{left:100%;margin-left:6px}.bar .before{right:100%;margin-right:6px}
.bar .inside{right:8px;color:#fff;text-shadow:0 0 2px #0009}
.plot .name{padding-right:62px}
.plot{border-top:1px solid var(--line);margin-top:4px;padding-top:4px;align-items:flex-start}
.plot .track{height:84px}.plot.faults .track{height:128px}
.plot.empty{align-items:center}.row.plot.empty .track{height:24px}
svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot i{position:absolute;right:100%;margin-right:8px;font-style:normal;font-size:11px;color:var(--soft);
white-space:nowrap}
.area{fill:var(--boot);opacity:.25}
.edge{fill:none;stroke:var(--boot);stroke-width:2px;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.dot{fill:none;stroke:var(--other);stroke-width:6px;stroke-linecap:round;vector-effect:non-scaling-stroke;opacity:.75}
.axis .track{height:22px}
.axis i{position:absolute;top:4px;transform:translateX(-50%);font-style:normal;font-size:12px;color:var(--soft);
white-space:nowrap}
.axis i:first-child{transform:none}
.note{margin:2px 0 6px}
.below{display:grid;grid-template-columns:minmax(370px,2fr) 5fr;gap:16px;margin-top:12px}
.below section{background:var(--card);border-radius:8px;padding:10px 14px;min-width:0}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;font-weight:400;padding:2px 10px 2px 0;vertical-align:top}
thead th{color:var(--soft);font-size:12px}
.sources th{white-space:nowrap}.sources th small{margin-left:6px}
.sources td{padding-top:3px}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.from{white-space:nowrap}
.file{width:99%;word-break:break-all;font:12px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}
.wide{width:40%;min-width:50px}.fill{height:14px;border-radius:3px;margin-top:2px}
.key{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:6px}
.fill,.key{background:var(--other)}
.s-boot-pack{background:var(--boot);stroke:var(--boot)}.s-memory{background:var(--memory);stroke:var(--memory)}
.s-store{background:var(--store);stroke:var(--store)}.s-pack{background:var(--pack);stroke:var(--pack)}
.s-network{background:var(--network);stroke:var(--network)}.s-other{background:var(--other);stroke:var(--other)}
footer{margin-top:10px;overflow-wrap:anywhere}
@media (max-width:760px){body{padding:10px}.name{flex-basis:84px;font-size:12px;padding-right:6px}.grid{left:84px}
.below{grid-template-columns:1fr}.plot{flex-wrap:wrap}.plot .name{flex:0 0 100%;padding-bottom:2px}
.plot .name small{display:inline;margin-left:6px}.plot .track{flex:0 0 calc(100% - 84px);margin-left:84px}
.at,.size,.axis .odd,.sources small{display:none}.figures b{font-size:17px}.figures{gap:6px 20px}}
"""
