"""Read word images with rapidocr, for `scripts/peers.py`, which starts this in an environment that has rapidocr.

The first line on standard output says which version and model it is. Then, for each line on standard input, the name
of an image file as JSON, comes a line with what is read there and the CPU seconds that it took: {"text", "seconds"}.
Nothing is downloaded: the wheel holds the model that it uses by default.
"""

import json
import sys
import time
from importlib.metadata import version

import cv2
from rapidocr import RapidOCR


def main():
    """See the module."""
    cv2.setNumThreads(1)
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    engine = RapidOCR(params={"Global.log_level": "critical", **threads})
    rec = engine.cfg.Rec
    model = f"{getattr(rec.ocr_version, 'value', rec.ocr_version)} {getattr(rec.model_type, 'value', rec.model_type)}"
    print(json.dumps({"version": version("rapidocr"), "model": model}), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        try:
            found = engine(json.loads(line), use_det=False, use_cls=False, use_rec=True)
            text = " ".join(found.txts or ())
        except Exception as error:  # whatever a damaged image raises there; it is a wrong answer
            text = ""
            print(f"{line.strip()}: {error}", file=sys.stderr)
        print(json.dumps({"text": text, "seconds": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    main()
