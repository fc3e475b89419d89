"""Draw labelled text images into shards, from a recipe.

    python scripts/synthesize.py --recipe recipes/words.yaml --preview sheet.png
    python scripts/synthesize.py --recipe recipes/words.yaml --out data/words --num_samples 1000000
    python scripts/synthesize.py --recipe recipes/scenes.yaml --out data/scenes --format webdataset --push OWNER/scenes

A run that was cut off goes on with the same command. docs/synthesis.md has the rest.
"""

import sys

from epigraph.data.synthesis.recipe import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
