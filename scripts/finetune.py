"""Adapt a trained model to a writer, to new symbols or to a domain of words, from a folder of images with a table, of
InkML, or parquet.

    python scripts/finetune.py --lora --train_data my_folder --output_dir runs/me
    python scripts/finetune.py --lora --train_data my_folder --output_dir runs/me --new_symbols auto
    python scripts/finetune.py --recipe recipes/comer_lora.yaml --lora --train_data my_folder --output_dir runs/me
    python scripts/finetune.py --lora --model checkpoints/e2str-small --train_data my_crops --output_dir runs/me

runs/me/final is then a model for `epigraph read --model runs/me/final` and scripts/evaluate.py. Without --lora the
whole model is trained; with --merge, runs/me/merged reads without peft. Of words that measure, too, `--source NAME
--half pool --train_limit 300` trains on 300 of one half, and `scripts/evaluate.py --half queries` measures the other.
"""

import sys

from epigraph.finetuning import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
