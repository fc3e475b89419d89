"""What `scripts/benchmark.py pixelvit` measures: how much of the machine PixelViT-tiny gets, pixels as tokens.

FLOP are those of the matmuls of the layers, layers * (24 n d^2 + 4 n^2 d) per image forward and three times that for a
step of training (forward and backward; on CUDA also the optimizer), with n the pixels: the CLS token, the embedding
and the head are extra work that counts as none. Rates are the best of five rounds. A row that is a share of the
machine's matmul rate, or of another implementation's, takes turns with it round by round, so that noise hits both
alike.

`stock` is transformers' ViTForImageClassification with patches of one pixel and the same sizes. bf16 is autocast over
float32 weights. On CPU everything runs on one thread and a second is a CPU second. Matmul rates are those of
`torch.matmul` of square matrices, the better of two sizes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification

from epigraph.models.attention_blocked import blocked_attention_forward
from epigraph.models.configuration_pixelvit import PixelViTConfig
from epigraph.models.modeling_pixelvit import PixelViTForImageClassification

ROUNDS = 5
SIDES = (28, 32)  # of the images: 784 and 1024 pixels
BATCH = {"cpu": 8, "cuda": 256}
MATMUL_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
CUDA_STEPS = 10  # in a round
NUM_LABELS = 100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Work = tuple[Callable[[], object], float]  # what to run, and its FLOP


def rates(work: dict[str, Work], device: str) -> dict[str, float]:
    """GFLOP per second (CPU seconds, on CUDA wall seconds) of each, the best of the rounds; they take turns."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    best = dict.fromkeys(work, 0.0)
    for _ in range(ROUNDS):
        for name, (run, flop) in work.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = max(best[name], flop / 1e9 / (clock() - start))
    return best


def matmuls(dtype: str, device: str) -> dict[str, Work]:
    """Products of square matrices, about as long together as a step of the model."""
    work = {}
    for size in MATMUL_SIZES[device]:
        left, right = torch.rand(2, size, size, device=device).to(DTYPES[dtype])
        repeats = max(1, 2 * MATMUL_SIZES[device][-1] ** 3 // size**3)
        work[f"matmul {size}"] = (lambda a=left, b=right, n=repeats: [a @ b for _ in range(n)], repeats * 2 * size**3)
    return work


def matmul_rate(measured: dict[str, float]) -> float:
    return max(rate for name, rate in measured.items() if name.startswith("matmul"))


def tiny(kind: str, side: int):
    """PixelViT-tiny or the stock ViT of its sizes, random weights, and the FLOP of one image forward."""
    torch.manual_seed(0)
    config = PixelViTConfig.of_size("tiny", image_size=side, num_labels=NUM_LABELS)
    pixels, width, layers = side**2, config.hidden_size, config.num_hidden_layers
    flop = layers * (24 * pixels * width**2 + 4 * pixels**2 * width)
    if kind == "tiny":
        return PixelViTForImageClassification(config), flop
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    same = {name: getattr(config, name) for name in names}
    config = ViTConfig(image_size=side, patch_size=1, num_labels=NUM_LABELS, **same)
    return ViTForImageClassification(config), flop


class Subject:
    """One model with one dtype and attention, and a batch for it."""

    def __init__(self, kind: str, side: int, dtype: str, attention: str, device: str):
        model, self.flop_per_image = tiny(kind, side)
        model.set_attn_implementation(attention)
        self.model, self.device, self.dtype = model.to(device), device, dtype
        generator = torch.Generator().manual_seed(side)
        self.images = torch.rand(BATCH[device], 3, side, side, generator=generator).to(device)
        self.labels = torch.randint(NUM_LABELS, (BATCH[device],), generator=generator).to(device)
        self.flop = len(self.images) * self.flop_per_image

    def logits(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bf16"):
            return self.model(pixel_values=self.images).logits

    @torch.no_grad()
    def forward(self):
        self.logits()

    def step(self):
        F.cross_entropy(self.logits().float(), self.labels).backward()
        self.model.zero_grad()

    def work(self, pass_: str) -> Work:
        return (self.forward, self.flop) if pass_ == "forward" else (self.step, 3 * self.flop)


@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pixelvit_rows(wanted: Callable[[str], bool], device: str) -> Iterator[tuple[str, float, str]]:
    """(name, value, unit) of each row of which the name is wanted."""
    if device == "cuda":
        yield from cuda_rows(wanted)
        return
    with one_thread():
        for kind in ("tiny", "stock"):
            for side in SIDES:
                prefix = f"pixelvit/{kind}/n{side * side}"
                yield from fp32_rows(wanted, prefix, kind, side)
                yield from bf16_rows(wanted, prefix, kind, side)
        for side in SIDES:
            yield from attention_rows(wanted, f"pixelvit/tiny/n{side * side}/bf16/attention", side)


def fp32_rows(wanted, prefix: str, kind: str, side: int):
    names = [f"{prefix}/fp32/{name}" for name in ("sdpa/train", "matmul", "peak_fraction")]
    if any(map(wanted, names)):
        subject = Subject(kind, side, "fp32", "sdpa", "cpu")
        measured = rates({**matmuls("fp32", "cpu"), "step": subject.work("train")}, "cpu")
        peak = matmul_rate(measured)
        values = (measured["step"], peak, measured["step"] / peak)
        units = ("GFLOP per CPU s", "GFLOP per CPU s", "of matmul rate")
        yield from (row for row in zip(names, values, units) if wanted(row[0]))


def bf16_rows(wanted, prefix: str, kind: str, side: int):
    for pass_ in ("forward", "train"):
        names = {attention: f"{prefix}/bf16/{attention}/{pass_}" for attention in ("sdpa", "eager", "blocked")}
        names = {attention: name for attention, name in names.items() if wanted(name)}
        work = {attention: Subject(kind, side, "bf16", attention, "cpu").work(pass_) for attention in names}
        for attention, rate in rates(work, "cpu").items():
            yield names[attention], rate, "GFLOP per CPU s"


def attention_rows(wanted, prefix: str, side: int):
    """The attention of one layer alone, blocked against SDPA."""
    config = PixelViTConfig.of_size("tiny")
    heads, batch, pixels = config.num_attention_heads, BATCH["cpu"], side * side
    generator = torch.Generator().manual_seed(side)
    shape = (3, batch, pixels, heads, config.hidden_size // heads)
    query, key, value = torch.randn(shape, generator=generator).bfloat16().transpose(2, 3).unbind(0)
    flop = 4 * batch * pixels**2 * config.hidden_size
    layer = torch.nn.Identity()

    def blocked(*inputs):
        return blocked_attention_forward(layer, *inputs, None, is_causal=False)[0]

    def sdpa(*inputs):
        return F.scaled_dot_product_attention(*inputs).transpose(1, 2).contiguous()

    def train(attend):
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        attend(*inputs).backward(value.transpose(1, 2))

    def forward(attend):
        with torch.no_grad():
            attend(query, key, value)

    for run, factor, suffix in ((forward, 1, ""), (train, 3, "_train")):
        names = [f"{prefix}{suffix}/{name}" for name in ("blocked", "sdpa")] + [f"{prefix}{suffix}_speedup"]
        if any(map(wanted, names)):
            measured = rates(
                {
                    name: (lambda attend=attend, run=run: run(attend), factor * flop)
                    for name, attend in (("blocked", blocked), ("sdpa", sdpa))
                },
                "cpu",
            )
            values = (measured["blocked"], measured["sdpa"], measured["blocked"] / measured["sdpa"])
            units = ("GFLOP per CPU s", "GFLOP per CPU s", "x")
            yield from (row for row in zip(names, values, units) if wanted(row[0]))


def cuda_rows(wanted):
    """Training in bf16, compiled, with a fused AdamW; compiling happens in a step before the rounds."""
    for kind in ("tiny", "stock"):
        for side in SIDES:
            prefix = f"pixelvit/{kind}/n{side * side}/bf16/compiled"
            names = [f"{prefix}/{name}" for name in ("images_per_second", "train", "matmul", "peak_fraction")]
            if not any(map(wanted, names)):
                continue
            subject = Subject(kind, side, "bf16", "sdpa", "cuda")
            optimizer = torch.optim.AdamW(subject.model.parameters(), fused=True)
            subject.model.compile()

            def steps(subject=subject, optimizer=optimizer):
                for _ in range(CUDA_STEPS):
                    F.cross_entropy(subject.logits().float(), subject.labels).backward()
                    optimizer.step()
                    optimizer.zero_grad()

            steps()
            work = {**matmuls("bf16", "cuda"), "steps": (steps, CUDA_STEPS * 3 * subject.flop)}
            measured = rates(work, "cuda")
            rate, peak = measured["steps"], matmul_rate(measured)
            values = (rate * 1e9 / (3 * subject.flop_per_image), rate, peak, rate / peak)
            units = ("images per s", "GFLOP per s", "GFLOP per s", "of matmul rate")
            yield from (row for row in zip(names, values, units) if wanted(row[0]))
