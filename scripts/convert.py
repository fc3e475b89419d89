"""Turn an official checkpoint into a model folder for AutoModel and AutoProcessor (read as data, never run).

python scripts/convert.py comer CHECKPOINT.ckpt OUT_DIR
python scripts/convert.py comer WEIGHTS.safetensors OUT_DIR --hyper-parameters HPARAMS.json
"""

from epigraph.conversion import main

if __name__ == "__main__":
    main()
