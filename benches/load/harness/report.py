"""From the rounds to medians, ratios, tables and the page.

Every ratio is taken within a round and above 1 means that the row's server is better.
"""

import statistics
import textwrap
from pathlib import Path

from scenarios import BARE, DROPS, REFERENCE, SCENARIOS

BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
PLAIN = "forwarder"
SUBJECT = "throughway"
# 1.10 times the best bare forwarder's CPU, as a ratio
FLOOR_REQUIRED = 1 / 1.10
SPREADS = ("cpu_ns_per_packet", "process_ns_per_packet", "softirq_ns_per_packet", "pps", "p50_us", "p99_us",
           "switches_per_packet", "sent_of_offered")


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None


def value(cell, scenario):
    figure = (cell or {}).get(scenario.key)
    return figure if isinstance(figure, (int, float)) and figure > 0 else None


def ratios(rounds, scenario, this, others):
    """The best of `others` against `this`, in every round in which there is something to compare."""
    found = []
    for cells in rounds:
        own = value(cells.get(this), scenario)
        theirs = [figure for other in others if (figure := value(cells.get(other), scenario))]
        if own and theirs:
            best = max(theirs) if scenario.more_is_better else min(theirs)
            found.append(scenario.ratio(best, own))
    return spread(found)


def summarise(results, calls):
    """results[setup][scenario] is a list of rounds, each with a cell by server."""
    summary = {}
    for setup, scenarios in results.items():
        summary[setup] = {}
        for name, rounds in scenarios.items():
            scenario = SCENARIOS[name]
            summary[setup][name] = {}
            for server in dict.fromkeys(server for cells in rounds for server in cells):
                cells = [cells[server] for cells in rounds if value(cells.get(server), scenario)]
                row = {"rounds": len(cells)}
                keys = [scenario.key, *SPREADS, *(column.key for column in scenario.columns)]
                for key in dict.fromkeys(keys):
                    row[key] = spread([cell[key] for cell in cells if cell.get(key) is not None])
                for key in dict.fromkeys((*scenario.faults, *DROPS, "sent", "received", "units")):
                    row[key] = sum(cell.get(key, 0) for cell in cells)
                row["to_reference"] = ratios(rounds, scenario, server, [REFERENCE])
                row["to_plain"] = ratios(rounds, scenario, server, [PLAIN])
                row["to_best_bare"] = ratios(rounds, scenario, server, BARE)
                row["calls_per_packet"] = calls.get(setup, {}).get(name, {}).get(server, {}).get("per_packet")
                row["errors"] = [cells[server]["error"] for cells in rounds if "error" in cells.get(server, {})]
                summary[setup][name][server] = row
    return summary


def written(figure, form="{median:,.0f}"):
    return "-" if not figure else form.format(**figure)


def line(cells):
    return "| " + " | ".join(cells) + " |"


def head(titles):
    return [line(titles), "|" + "---|" * len(titles)]


def failed(name, server, row, columns):
    return line([name, server, "failed: " + row["errors"][0].replace("|", "/"), *[""] * (columns - 3)])


def relay_table(scenarios, softirq):
    titles = ["scenario", "server", "CPU ns per packet: median (min to max)", *(["process + softirq"] if softirq else []),
              f"{REFERENCE} / this", f"{PLAIN} / this", "best bare / this", "thousand packets/s", "p50 / p99 us",
              "switches per packet", "system calls per packet", "lost or wrong"]
    lines = head(titles)
    for name, rows in scenarios.items():
        if not SCENARIOS[name].relays:
            continue
        for server, row in rows.items():
            if not row["rounds"]:
                lines += [failed(name, server, row, len(titles))] if row["errors"] else []
                continue
            wrong = sum(row[key] for key in SCENARIOS[name].faults)
            lines.append(line([
                name, server, written(row["cpu_ns_per_packet"], "{median:,.0f} ({min:,.0f} to {max:,.0f})"),
                *([f"{written(row['process_ns_per_packet'])} + {written(row['softirq_ns_per_packet'])}"] if softirq else []),
                written(row["to_reference"], "{median:.2f} ({min:.2f} to {max:.2f})"),
                written(row["to_plain"], "{median:.2f}"), written(row["to_best_bare"], "{median:.2f}"),
                f"{row['pps']['median'] / 1000:.0f}", f"{written(row['p50_us'])} / {written(row['p99_us'])}",
                written(row["switches_per_packet"], "{median:.2f}"),
                "-" if row["calls_per_packet"] is None else f"{row['calls_per_packet']:.2f}",
                f"{wrong:,} of {row['sent']:,}"]))
    return "\n".join(lines) if len(lines) > 2 else ""


def figure_table(scenarios):
    titles = ["scenario", "server", "figure", "median (min to max)", f"against {REFERENCE}", "beside it", "failures"]
    lines = head(titles)
    for name, rows in scenarios.items():
        scenario = SCENARIOS[name]
        if scenario.relays:
            continue
        for server, row in rows.items():
            if not row["rounds"]:
                lines += [failed(name, server, row, len(titles))] if row["errors"] else []
                continue
            beside = ", ".join(f"{column.title} {column.form.format(row[column.key]['median'])}"
                               for column in scenario.columns if row[column.key])
            wrong = sum(row[key] for key in scenario.faults)
            lines.append(line([
                name, server, scenario.title, written(row[scenario.key], "{median:,.0f} ({min:,.0f} to {max:,.0f})"),
                written(row["to_reference"], "{median:.2f} ({min:.2f} to {max:.2f})"), beside or "-", f"{wrong:,}"]))
    return "\n".join(lines) if len(lines) > 2 else ""


def requirements(summary):
    """(what, required, aim, measured, fulfilled) of the server this project makes; None where nothing was measured."""
    found = []

    def ratio(what, required, aim, figure):
        found.append((what, f"{required:.2f}", f"{aim:.2f}" if aim else "-",
                      written(figure, "{median:.2f} ({min:.2f} to {max:.2f})"), figure["median"] >= required))

    def below(what, limit, figure, form="{median:,.0f} ({min:,.0f} to {max:,.0f})"):
        found.append((what, f"at most {limit:,.0f}" if limit >= 10 else f"at most {limit:g}", "-", written(figure, form), figure["median"] <= limit))

    def above(what, limit, figure):
        if figure:
            found.append((what, f"{limit:g}", "-", written(figure, "{median:.4f} ({min:.4f} to {max:.4f})"), figure["median"] >= limit))

    def none(what, count):
        found.append((what, "0", "-", f"{count:,}", count == 0))

    for setup, scenarios in summary.items():
        for name, rows in scenarios.items():
            scenario, row = SCENARIOS[name], rows.get(SUBJECT)
            if not row or not row["rounds"]:
                continue
            required, aim = scenario.goals.get(setup, (None, None))
            where = f"{name}, {setup}"
            if row["to_reference"] and (required or scenario.relays):
                # whatever else is asked, never costlier than the reference
                ratio(f"{where}: against {REFERENCE}", required or 1.0, aim, row["to_reference"])
            if row["to_best_bare"]:
                ratio(f"{where}: against the best bare forwarder", FLOOR_REQUIRED, None, row["to_best_bare"])
            if scenario.relays:
                none(f"{where}: payloads lost or wrong", sum(row[key] for key in scenario.faults))
            if name == "A20k":
                reference, plain = rows.get(REFERENCE), rows.get(PLAIN)
                if reference and reference["rounds"]:
                    below(f"{where}: p50 us, not above {REFERENCE}'s", reference["p50_us"]["median"], row["p50_us"])
                if plain and plain["rounds"]:
                    below(f"{where}: p99 us, not above 1.5 times the {PLAIN}'s", 1.5 * plain["p99_us"]["median"], row["p99_us"])
            if name == "flood":
                none(f"{where}: payloads lost or wrong", sum(row[key] for key in scenario.faults))
                below(f"{where}: p99 us", 1000, row["p99_us"])
            if name == "overload":
                above(f"{where}: Refreshes done within 8 s", 0.99, row["refreshes_within_8s_share"])
                above(f"{where}: answered within 10 ms of a delivered request", 0.99, row["refresh_answers_within_10ms_share"])
                above(f"{where}: forwarded, as a part of the maximum", 0.9, row["forwarded_of_maximum"])
            if name == "idle":
                below(f"{where}: B per allocation", 400, row["bytes_per_allocation"])
                if row["idle_cpu_percent"]:
                    below(f"{where}: idle CPU %", 0.5, row["idle_cpu_percent"], "{median:.2f} ({min:.2f} to {max:.2f})")
    return found


def requirement_table(summary):
    found = requirements(summary)
    if not found:
        return ""
    lines = head(["what", "required", "aim", "measured", ""])
    return "\n".join(lines + [line([*row[:4], "✓" if row[4] else "✗"]) for row in found])


def tables(summary, setups):
    """The Markdown that goes into the page; also printed."""
    parts = []
    for setup, scenarios in summary.items():
        for text in (relay_table(scenarios, bool(setup == "veth")), figure_table(scenarios)):
            if text:
                parts.append(f"### {setup}: {setups[setup].text}\n\n{text}" if not parts or f"### {setup}:" not in "".join(parts) else text)
    asked = requirement_table(summary)
    if asked:
        parts.append(f"### What is asked of {SUBJECT}\n\nRatios above 1 mean better; median (min to max) of the rounds.\n\n{asked}")
    return "\n\n".join(parts)


def introduction(report):
    machine, options = report["machine"], report["options"]
    raised = [f"{name}: {text}" for name, c in report["configurations"].items() for text in c["raised"]]
    text = (f"{machine['date']}, {machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}. "
            f"Load average {machine['load_average']} at the start"
            + (": others shared the CPUs. " if machine["load_average"] > 0.5 else ". ")
            + f"{options['rounds']} rounds of {options['measure']:g} s after {options['warm_up']:g} s of warm-up. "
            + "; ".join(f"{name} {version.removeprefix(name + ' ')}".strip() for name, version in report["servers"].items())
            + ". " + (f"Limits raised by configuration: {'; '.join(raised)}." if raised else "No limit was raised by configuration."))
    # As long as all lines of the manual.
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def refresh(document: Path, report, text, chart):
    page = document.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"compare: {document} has no {BEGIN} ... {END}")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    picture = f"![CPU per relayed packet, by scenario and server]({chart})\n\n" if chart else ""
    document.write_text(f"{before}{BEGIN}\n{introduction(report)}\n\n{picture}{text}\n{END}{after}")
