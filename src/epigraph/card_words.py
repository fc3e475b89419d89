"""What was measured of models that read words besides their results, as cards and the terminal show it."""

import math

from .cards import shown


def adaptation_table(results: dict) -> str:
    """Markdown: a line for each source and way of reading it, with what changed against the model as it is."""
    lines = [
        "| data | read | n | examples | word accuracy | difference | 1-NED | texts not among the examples | "
        "weights trained | CPU seconds |",
        "|---|---|" + "---:|" * 8,
    ]
    plain = {row["source"]: row["word_accuracy"] for row in results["rows"] if "interval" not in row}
    for row in results["rows"]:
        cells = [row["source"], row["method"], str(row["n"]), str(row["examples"] or "")]
        cells += [shown("word_accuracy", row["word_accuracy"]), ""]
        if "interval" in row:
            low, high = (100 * bound for bound in row["interval"])
            cells[-1] = f"{100 * (row['word_accuracy'] - plain[row['source']]):+.2f} ({low:+.1f} … {high:+.1f})"
        cells += [shown("ned", row["ned"]), shown("word_accuracy", row["new_labels"])]
        cells += [f"{100 * row['share']:.1f} %" if row.get("share") else ""]
        cells += [f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adaptation_section(results: dict) -> str:
    """The table, with what its numbers mean and the command that produced them."""
    seeds = sorted({seed for row in results["rows"] for seed in row["seeds"]})
    draws = f"one draw of the examples, seed {seeds[0]}"
    if len(seeds) > 1:
        draws = f"mean of {len(seeds)} draws of the examples, seeds {', '.join(map(str, seeds))}"
    return (
        f"{adaptation_table(results)}\n\nProtocol {results['rows'][0]['protocol']}, the query half of each source, "
        f"{draws}; k = {results['k']}. In brackets the 95 % interval of the difference, drawn over words, of receipts "
        "over receipts. CPU seconds are those of adapting alone: of training, and of the keys of the pool. Produced "
        f"by\n\n```bash\n{results['command']}\n```"
    )


def peers_table(results: dict) -> str:
    """Markdown: a line for each set, the accuracy of each recogniser, and how many CPU seconds an image takes it."""
    readers = list(dict.fromkeys(row["reader"] for row in results["rows"]))
    seconds = [f"CPU s an image, {reader}" for reader in readers]
    lines = ["| data | split | half | n | " + " | ".join([*readers, *seconds]) + " |"]
    lines.append("|---|---|---|" + "---:|" * (1 + 2 * len(readers)))
    sets = {}
    for row in results["rows"]:
        name = row["source"], row["split"] or "", row["half"] or "all"
        sets.setdefault(name, {})[row["reader"], row["metric"]] = row
    for name, found in sets.items():
        cells = [*name, str(found[readers[0], "word_accuracy"]["n"])]
        cells += [shown("word_accuracy", found[reader, "word_accuracy"]["value"]) for reader in readers]
        cells += [f"{found[reader, 'cpu_seconds']['value']:.4f}" for reader in readers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers_section(results: dict) -> str:
    """The table, with who was measured and the command that did it."""
    identities = {
        name: ", ".join(f"{key} {value}" for key, value in identity.items() if key not in ("model", "weights_sha256"))
        for name, identity in results["readers"].items()
    }
    who = "; ".join(f"{name} ({identity})" if identity else name for name, identity in identities.items())
    left_out = "".join(f" {name} was left out: {reason}." for name, reason in results["skipped"].items())
    return (
        f"{peers_table(results)}\n\nWord accuracy under protocol {results['rows'][0]['protocol']}, the same images, "
        f"one thread: {who}.{left_out} Produced by\n\n```bash\n{results['command']}\n```"
    )


def context_section(results: dict) -> str:
    """What a sweep of scripts/evaluate.py says of its largest pool and of two examples, with the command."""
    from .evaluation_sweeps import sweep_table

    summary = results["breakdowns"]["sweep"]["summary"]
    sizes = [of["pool_size"] or math.inf for of in summary if of["context"] != "none"]
    numbers = {of["k"] for of in summary if of["context"] not in ("none", "copy")}
    k = min(numbers, key=lambda number: abs(number - 2), default=None)

    def wanted(of: dict) -> bool:
        in_pool = (of["pool_size"] or math.inf) == max(sizes, default=None)
        return of["context"] == "none" or (in_pool and (of["context"] == "copy" or of["k"] == k))

    chosen = [of for of in summary if wanted(of)]
    table = sweep_table({**results, "breakdowns": {"sweep": {"summary": chosen}}})
    return f"{table}\n\nProduced by\n\n```bash\n{results['command']}\n```"


__all__ = ["adaptation_section", "adaptation_table", "context_section", "peers_section", "peers_table"]
