"""Train a model from a recipe.

    accelerate launch scripts/pretrain.py --recipe recipes/comer_crohme.yaml
    accelerate launch scripts/pretrain.py --recipe recipes/pixelvit_fashion.yaml
    python scripts/pretrain.py --recipe recipes/comer_crohme_cpu.yaml --resume

Two processes on a CPU (`--cpu` would silently run one):

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/pretrain.py --recipe ...
"""

import sys

from epigraph.pretraining import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
