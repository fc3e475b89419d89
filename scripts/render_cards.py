"""Fill the README's table and the README of every checkpoint from model_cards/ and model_cards/results/.

python scripts/render_cards.py            # write them
python scripts/render_cards.py --check    # write nothing, fail where one is out of date
"""

import argparse
import sys
from pathlib import Path

from epigraph.cards import block_files, fill, metrics_table, other_files, read_results, render_card, results_files

ROOT = Path(__file__).resolve().parent.parent


def rendered() -> dict[Path, str]:
    """Each file that carries results -> what it should say."""
    files, tables = {}, []
    folder = ROOT / "model_cards" / "results"
    for name in sorted({path.name.split(".")[0] for path in folder.glob("*.json")}):
        results = results_files(name, folder)
        card, model_dir = ROOT / "model_cards" / f"{name}.md", ROOT / "checkpoints" / name
        blocks, others = block_files(name, folder), other_files(name, folder)
        files[model_dir / "README.md"] = render_card(card, results, model_dir, blocks, others)
        rows = [row for path in results for row in read_results(path)["rows"]]
        tables.append(f"[{name}](model_cards/{name}.md)\n\n{metrics_table({'rows': rows})}")
    readme = ROOT / "README.md"
    files[readme] = fill(readme.read_text(encoding="utf-8"), "results", "\n\n".join(tables) or "No results yet.")
    return files


def main():
    parser = argparse.ArgumentParser(description="Write the numbers of model_cards/results into cards and README.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file is out of date")
    check = parser.parse_args().check
    files = rendered()
    stale = [path for path in files if not path.is_file() or path.read_text(encoding="utf-8") != files[path]]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"out of date: {names}; run python scripts/render_cards.py and commit what it writes")
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
