"""CPU per relayed packet as an SVG: one panel a set-up, a group of bars a scenario, a bar a server."""

from html import escape

from scenarios import SCENARIOS

# light, dark: told apart in both, and by people who do not tell red from green
COLOURS = [("#0b6bcb", "#58a6ff"), ("#c2571a", "#f0883e"), ("#8a929c", "#8b949e"), ("#adb4bc", "#6e7681"),
           ("#cdd2d8", "#545d68"), ("#7a4fb5", "#bc8cff"), ("#1a7f64", "#56d4b0")]
WIDTH, LEFT, RIGHT, PANEL, TOP, BETWEEN = 960, 56, 16, 250, 76, 64


def step_of(most):
    """A round distance of grid lines, four to eight of them."""
    for step in (500, 1000, 2000, 2500, 5000, 10000, 20000, 50000, 100000):
        if most / step <= 7:
            return step
    return 10 ** len(str(int(most)))


def draw(summary):
    panels = []
    for setup, scenarios in summary.items():
        groups = {name: {server: row["cpu_ns_per_packet"] for server, row in rows.items() if row["rounds"] and row["cpu_ns_per_packet"]}
                  for name, rows in scenarios.items() if SCENARIOS[name].relays}
        groups = {name: bars for name, bars in groups.items() if bars}
        if groups:
            panels.append((setup, groups))
    servers = list(dict.fromkeys(server for _, groups in panels for bars in groups.values() for server in bars))
    height = TOP + len(panels) * (PANEL + BETWEEN)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
           f'aria-label="CPU time per relayed packet by scenario and server; less is better">', "<style>", STYLE]
    for n in range(len(servers)):
        light, dark = COLOURS[n % len(COLOURS)]
        out.append(f".s{n} {{ fill: {light} }} @media (prefers-color-scheme: dark) {{ .s{n} {{ fill: {dark} }} }}")
    out += ["</style>", f'<rect class="back" width="{WIDTH}" height="{height}"/>',
            f'<text class="title" x="{LEFT}" y="26">CPU microseconds per relayed packet: median, least and most of the rounds (less is better)</text>']
    x = LEFT
    for n, server in enumerate(servers):
        out.append(f'<rect class="s{n}" x="{x}" y="40" width="12" height="12" rx="2"/>'
                   f'<text x="{x + 18}" y="51">{escape(server)}</text>')
        x += 34 + 7 * len(server)
    for place, (setup, groups) in enumerate(panels):
        out += panel(setup, groups, servers, TOP + place * (PANEL + BETWEEN))
    return "\n".join(out + ["</svg>", ""])


STYLE = """text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 } .small { font-size: 9.5px } .back { fill: #ffffff }
.grid { stroke: #d8dee4 } .whisker { stroke: #24292f; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .back { fill: #0d1117 } .grid { stroke: #30363d } .whisker { stroke: #e6edf3 } }"""


def panel(setup, groups, servers, top):
    most = max(figure["max"] for bars in groups.values() for figure in bars.values())
    step = step_of(most)
    room, base = PANEL - 34, top + PANEL - 4
    scale = room / most
    out = [f'<text class="title" x="{LEFT}" y="{top + 16}">{escape(setup)}</text>']
    for mark in range(0, int(most) + 1, step):
        y = base - mark * scale
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text class="small" text-anchor="end" x="{LEFT - 6}" y="{y + 3:.1f}">{mark / 1000:g}</text>')
    span = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(26.0, span * 0.8 / max(len(bars) for bars in groups.values()))
    for n, (name, bars) in enumerate(groups.items()):
        middle = LEFT + span * (n + 0.5)
        out.append(f'<text text-anchor="middle" x="{middle:.1f}" y="{base + 18}">{escape(name)}</text>')
        x = middle - width * len(bars) / 2
        for server in servers:
            if server not in bars:
                continue
            figure = bars[server]
            tall = figure["median"] * scale
            low, high = base - figure["min"] * scale, base - figure["max"] * scale
            at = x + width / 2 - 0.5
            out.append(f'<rect class="s{servers.index(server)}" x="{x:.1f}" y="{base - tall:.1f}" width="{width - 2:.1f}" height="{tall:.1f}">'
                       f"<title>{escape(server)}, {escape(name)}, {escape(setup)}: {figure['median']:,.0f} ns</title></rect>"
                       f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
                       f'<text class="small" text-anchor="middle" x="{at:.1f}" y="{high - 4:.1f}">{short(figure["median"])}</text>')
            x += width
    return out


def short(nanoseconds):
    """In microseconds, as the axis."""
    return f"{nanoseconds / 1000:.1f}"
