"""Times a method on this machine.

    python scripts/benchmark.py comer
    python scripts/benchmark.py comer --only 'comer/b1/*' --json benchmark.json
    python scripts/benchmark.py synthesis --profile
    python scripts/benchmark.py pixelvit --only 'pixelvit/*/peak_fraction'
    python scripts/benchmark.py e2str --only 'e2str/b8/k2/beam3/ratio'

`synthesis` draws four rounds of every kind that fill the caches of glyphs and are not counted, then takes the best of
three rounds of new samples, in about a minute of CPU in all. `pixelvit` trains PixelViT-tiny and transformers' ViT
with patches of one pixel on one thread, about ten minutes of CPU in all, or compiled on `--device cuda`. `e2str` reads
words with examples in context as the official code does and as ours, and fails where they read differently; three
minutes of CPU in all.

Times are CPU seconds of the process (on CUDA wall seconds). Rows are named alike on every machine; compare machines
by `matmul_gflop_per_cpu_second`, which is measured at the start.
"""

import os

# Before torch loads: threads that spin while they wait would be counted as work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import transformers


@dataclass
class Row:
    name: str
    value: float
    unit: str


Wanted = Callable[[str], bool]  # whether a row of this name was asked for


def seconds(run: Callable[[], object], device: str, repeats: int = 1) -> float:
    """The least of `repeats` timings: CPU seconds of the process, on CUDA wall seconds."""
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if device == "cuda" else time.process_time
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)


def matmul_rate() -> float:
    """GFLOP per CPU second of float32 products of 1024 x 1024 matrices."""
    left, right = torch.rand(2, 1024, 1024)
    times = seconds(lambda: [left @ right for _ in range(20)], "cpu", repeats=3)
    return 20 * 2 * 1024**3 / times / 1e9


def machine(device: str) -> str:
    """Processor, cores and accelerator in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    accelerator = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{name}, {os.cpu_count()} cores{accelerator}"


# ---------------------------------------------------------------------- CoMER

COMER_SIZE = (128, 512)
COMER_GRID = [(batch, beams, length) for batch in (1, 8) for beams in (1, 10) for length in (20, 50, 100)]


def comer_model(device: str, **config):
    """CoMER with random weights that never stops: stop and pad tokens are out of reach."""
    from epigraph.models.configuration_comer import CoMERConfig
    from epigraph.models.generation_comer import grammar_from_vocabulary
    from epigraph.models.modeling_comer import CoMERForConditionalGeneration
    from epigraph.models.tokenization import latex_tokenizer

    torch.manual_seed(0)
    config = CoMERConfig(grammar=grammar_from_vocabulary(latex_tokenizer().get_vocab()), **config)
    model = CoMERForConditionalGeneration(config)
    specials = [config.pad_token_id, config.bos_token_id, config.eos_token_id]
    model.lm_head.bias.data[specials] = -1e4
    return model.eval().to(device)


def comer_images(batch: int, device: str) -> torch.Tensor:
    return torch.rand(batch, 1, *COMER_SIZE, generator=torch.Generator().manual_seed(batch)).to(device)


@torch.no_grad()
def comer_uncached(model, images: torch.Tensor, beams: int, length: int) -> list[list[int]]:
    """The official schedule: every step decodes the whole prefix of every row, the memory repeated for each.

    Returns the best reading of each image. Only for a model that never stops: what finishes is not looked at.
    """
    encoded = comer_encode_plainly(model.encoder, images)
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    batch = len(images)
    features = encoded.last_hidden_state.repeat_interleave(beams, 0).repeat(2, 1, 1, 1)
    mask = encoded.feature_mask.repeat_interleave(beams, 0).repeat(2, 1, 1)

    def log_probs(tokens):
        return model.lm_head(model.decoder(tokens, features, mask)[0]).log_softmax(-1)

    tokens = torch.tensor([bos, eos], device=images.device).repeat_interleave(batch * beams)[:, None]
    sums = torch.full((2 * batch, beams), -1e9, device=images.device)
    sums[:, 0] = 0
    while tokens.shape[1] < length:
        scores = log_probs(tokens)[:, -1]
        vocabulary = scores.shape[1]
        best, index = (sums.view(-1, 1) + scores).view(2 * batch, -1).topk(2 * beams)
        rows, chosen, kept = [], [], []
        for search in range(2 * batch):
            for rank in range(beams):
                place = index[search, rank].item()
                rows.append(search * beams + place // vocabulary)
                chosen.append(place % vocabulary)
                kept.append(best[search, rank].item())
        tokens = torch.cat([tokens[rows], torch.tensor(chosen, device=images.device)[:, None]], dim=1)
        sums = torch.tensor(kept, device=images.device).view(2 * batch, beams)

    # Each candidate rated in the other direction: the halves swap places, the sequences are reversed.
    half = batch * beams
    found = tokens[:, 1:]
    first = torch.cat([tokens[half:, :1], tokens[:half, :1]])
    stop = torch.cat([tokens[:half, :1], tokens[half:, :1]])
    backwards = found.flip(1)
    # The rows of left-to-right candidates now read right to left: the order of the memory is the same for both halves.
    rated = log_probs(torch.cat([first, backwards], dim=1))
    reverse = rated.gather(2, torch.cat([backwards, stop], dim=1)[..., None]).sum((1, 2)) / length
    totals = (sums.flatten() / length + reverse).view(2, batch, beams).transpose(0, 1).flatten(1)
    reading = torch.cat([found[:half], backwards[half:]]).view(2, batch, beams, -1).transpose(0, 1).flatten(1, 2)
    return [reading[i, totals[i].argmax()].tolist() for i in range(batch)]


def comer_cached(model, images: torch.Tensor, beams: int, length: int, search: str = "official") -> list[list[int]]:
    """The same search by `generate`."""
    return model.generate(images, num_beams=beams, max_length=length, search=search).tolist()


def comer_encode_plainly(encoder, images: torch.Tensor, fold: bool = False):
    """The encoder as the paper writes it, for one size of images: every layer's output concatenated to its input."""
    from epigraph.models.modeling_comer_encoder import CoMEREncoderOutput, image_positions

    def layer(module, hidden):
        if fold:
            return F.relu(F.conv2d(hidden, *module.folded(), module.conv.stride, module.conv.padding))
        return F.relu(module.norm(module.conv(hidden)))

    hidden = F.max_pool2d(layer(encoder.stem, images), 2, ceil_mode=True)
    for index, block in enumerate(encoder.blocks):
        for dense in block.layers:
            hidden = torch.cat([hidden, layer(dense.growth, layer(dense.bottleneck, hidden))], dim=1)
        if index < len(encoder.transitions):
            hidden = F.avg_pool2d(layer(encoder.transitions[index].projection, hidden), 2, ceil_mode=True)
    hidden = encoder.feature_proj(encoder.post_norm(hidden)).permute(0, 2, 3, 1)
    mask = torch.ones(hidden.shape[:3], dtype=torch.bool, device=hidden.device)
    positions = image_positions(mask, encoder.config.hidden_size, encoder.config.position_temperature)
    return CoMEREncoderOutput(encoder.layer_norm(hidden + positions), mask)


def comer_rows(wanted: Wanted, device: str) -> Iterator[Row]:
    """Search by batch, beams and length, cached against the official schedule; then the encoder's steps."""
    model = comer_model(device)
    unit, name = ("s", "seconds") if device == "cuda" else ("CPU s", "cpu_seconds")
    comer_cached(model, comer_images(1, device), 1, 5)  # the first call pays for initialisation

    for batch, beams, length in COMER_GRID:
        prefix = f"comer/b{batch}/beam{beams}/len{length}"
        images = comer_images(batch, device)

        @cache
        def measure(kind, images=images, beams=beams, length=length):
            if kind == "uncached":
                return seconds(lambda: comer_uncached(model, images, beams, length), device)
            search = "official" if kind == "cached" else "exact"
            return seconds(lambda: comer_cached(model, images, beams, length, search), device, repeats=4)

        # `cached` is the search that the baseline makes; `exact` the default one, with its grammar.
        for kind in ("cached", "exact", "uncached"):
            if wanted(f"{prefix}/{kind}/{name}"):
                yield Row(f"{prefix}/{kind}/{name}", measure(kind), unit)
        if wanted(f"{prefix}/ratio"):
            yield Row(f"{prefix}/ratio", measure("uncached") / measure("cached"), "x")
    yield from comer_encoder_rows(model.encoder, wanted, device, unit, name)


@torch.no_grad()
def comer_encoder_rows(encoder, wanted: Wanted, device: str, unit: str, name: str) -> Iterator[Row]:
    """What folding the norms, the shared buffer and cutting a margin of 12 pixels give, one after the other."""
    for batch in (1, 8):
        images = comer_images(batch, device)
        ways = {
            "plain": lambda images=images: comer_encode_plainly(encoder, images),
            "folded": lambda images=images: comer_encode_plainly(encoder, images, fold=True),
            "buffered": lambda images=images: encoder(images),
            "cropped": lambda images=images: encoder(images[:, :, 12:-12, 12:-12]),
        }
        for way, run in ways.items():
            row = f"comer/encoder/b{batch}/{way}/{name}"
            if wanted(row):
                run()
                yield Row(row, seconds(run, device, repeats=5), unit)


def synthesis_rows(wanted: Wanted, device: str, profile: bool = False) -> Iterator[Row]:
    """Samples per CPU second of one core, and the share of each effect; always on the CPU."""
    from benchmark_synthesis import synthesis_rows as rows

    yield from (Row(*row) for row in rows(wanted, profile))


def pixelvit_rows(wanted: Wanted, device: str) -> Iterator[Row]:
    """PixelViT-tiny's share of the machine's matmul rate, and what the blocked attention gives."""
    from benchmark_pixelvit import pixelvit_rows as rows

    yield from (Row(*row) for row in rows(wanted, device))


def e2str_rows(wanted: Wanted, device: str) -> Iterator[Row]:
    """E2STR with examples in context, against the official loop; an error where they read differently."""
    from benchmark_e2str import e2str_rows as rows

    yield from (Row(*row) for row in rows(wanted, device))


METHODS = {"comer": comer_rows, "synthesis": synthesis_rows, "pixelvit": pixelvit_rows, "e2str": e2str_rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--only", metavar="GLOB", default="*", help="measure only rows whose name matches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows here too")
    parser.add_argument("--profile", action="store_true", help="synthesis: also print the 25 dearest functions")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device")
    if arguments.profile and arguments.method != "synthesis":
        parser.error("--profile is for synthesis")
    options = {"profile": True} if arguments.profile else {}
    report = {
        "machine": machine(arguments.device),
        "matmul_gflop_per_cpu_second": round(matmul_rate(), 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "threads": torch.get_num_threads(),
        "rows": [],
    }
    print(f"{report['machine']}; {report['matmul_gflop_per_cpu_second']} GFLOP per CPU second", flush=True)
    for row in METHODS[arguments.method](lambda name: fnmatch(name, arguments.only), arguments.device, **options):
        print(f"{row.name:<48} {row.value:10.3f} {row.unit}", flush=True)
        report["rows"].append(asdict(row))
        if arguments.json:  # after every row: a long table survives being cut off
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if not report["rows"]:
        parser.error(f"no row of {arguments.method} matches {arguments.only!r}")


if __name__ == "__main__":
    main()
