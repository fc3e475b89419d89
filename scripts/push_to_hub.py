"""Push a model, its card and its results to the Hub in one commit.

python scripts/push_to_hub.py checkpoints/comer-hme OWNER/comer-hme --dry-run
python scripts/push_to_hub.py checkpoints/comer-hme OWNER/comer-hme --code-repo OWNER/epigraph-code --push-code
"""

import sys

from epigraph.hub import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
