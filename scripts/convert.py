"""Turn a checkpoint of other code into a model folder (read as data, never run).

python scripts/convert.py comer CHECKPOINT.ckpt OUT_DIR
python scripts/convert.py comer WEIGHTS.safetensors OUT_DIR --hyper-parameters HPARAMS.json
python scripts/convert.py e2str CHECKPOINT.pth OUT_DIR --tokenizer OPT_FOLDER
python scripts/convert.py mae VIT_BASE.pth OUT_DIR --into E2STR_FOLDER
python scripts/convert.py opt facebook/opt-125m OUT_DIR
python scripts/convert.py pixelvit VIT_FOLDER OUT_DIR
python scripts/convert.py vit PIXELVIT_FOLDER OUT_DIR
"""

from epigraph.conversion import main

if __name__ == "__main__":
    main()
