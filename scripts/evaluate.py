"""Measure a model on a data set: a table, and a JSON of results with all that is needed to repeat it.

python scripts/evaluate.py --model checkpoints/comer-hme --data '${EPIGRAPH_DATA}/crohme_ink.parquet' \
    --split test_2014 --output model_cards/results/comer-hme.ink.json
python scripts/evaluate.py --model runs/pixelvit_fashion/best --data runs/fashion.parquet --split test
python scripts/evaluate.py --model runs/e2str/best --data '${EPIGRAPH_DATA}/words.parquet' --split test \
    --source iiit5k --protocol 36 literature --context knn --pool runs/pool --k 2
"""

import sys

from epigraph.evaluation import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
