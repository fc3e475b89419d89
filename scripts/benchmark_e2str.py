"""What `scripts/benchmark.py e2str` measures: reading with examples in context, against the official loop.

The model is `E2STRConfig.official()` with random weights, 324 million parameters, its gates open so that the readings
depend on the images. Eight queries are read, each with two examples of its own, by three beams that write 48 tokens
whatever they are. Times are per query, in CPU seconds (on CUDA wall seconds), files and their preparation included;
of several rounds, and of the queries that the official loop reads, the best counts.

`cached` is `read_context` and `generate`, the queries as one batch. The examples' latents come from the pool, which
computed them when it was asked for these examples first: `cached/first_use/...` is what that costs, and `ratio_cold`
charges all of it to the one batch.

`official` is the loop of the published code, made of the same modules. Queries are read one by one, and each of these
steps computes again what was known, or what nobody needs:

    key       the query is encoded to be compared with the pool; its latents are not kept
    plain     it is read without examples, which nothing is done with; encoded once for every beam
    encode    the images of both examples are opened and encoded again, and everything once for every beam: nine passes
    decode    every beam reads the prompt; at every token each of the 12 layers projects the latents of all three
              images of every beam to keys and values, and scores all of them under a mask that leaves one image

The decoder's own attention keeps its keys and values, as it does there, and the search is transformers' in both. The
published code also opens and encodes the whole pool once in each process, which is not counted. `ratio` is all of it
over `cached`, `ratio_without_plain` leaves out the reading that is thrown away. `e2str/b1/...` is `cached` with one
query in a batch, and what remains of the ratio then; `bf16` is `cached` with weights in bfloat16.

The readings of both must be the same, token by token; the script ends with an error otherwise. `score_difference` is
how far the log-probabilities per token, which the searches rank by, are apart.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.generation import GenerationMixin

from epigraph.models.configuration_e2str import E2STRConfig
from epigraph.models.image_processing_e2str import E2STRImageProcessor
from epigraph.models.modeling_e2str import E2STRForTextRecognition

QUERIES, EXAMPLES, BEAMS, NEW_TOKENS = 8, 2, 3, 48
OFFICIAL_QUERIES = 2  # of them, how many the official loop reads, too; the cheapest of them counts
ROUNDS = 2  # of the cached path, the best of which counts


def e2str_model(device: str, config: E2STRConfig | None = None) -> E2STRForTextRecognition:
    """Random weights, large enough that every token depends on the images, with open gates."""
    torch.manual_seed(0)
    model = E2STRForTextRecognition(config or E2STRConfig.official())
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                # Attention that is not flat, and latents that hold more of their image than of the learned queries.
                sharp = name.endswith(("q_proj", "k_proj")) or "resampler" in name
                module.weight.normal_(0, (2.2 if sharp else 0.55) / module.weight[0].numel() ** 0.5)
        for name, weight in model.named_parameters():
            if name.endswith("_gate"):
                weight.fill_(1.0)
    return model.eval().to(device)


@dataclass
class Task:
    """Word images as files, and prompts whose examples have texts of different lengths.

    Attributes:
        queries: files.
        examples: for each query the files of its examples.
        prompts: for each query token ids (length,), without the query's `<image>`.
    """

    queries: list[Path]
    examples: list[list[Path]]
    prompts: list[torch.LongTensor]

    def only(self, queries: int) -> "Task":
        """The first of them."""
        return Task(self.queries[:queries], self.examples[:queries], self.prompts[:queries])


def e2str_task(folder: Path, config: E2STRConfig, queries: int) -> Task:
    """Random pictures, and of each example's text the 1 to 4 tokens that a word has."""
    random = np.random.default_rng(0)

    def picture(name: str) -> Path:
        coarse = random.integers(0, 256, (4, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((140, 44), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
        return folder / f"{name}.png"

    special = config.image_token_id, config.end_of_chunk_token_id
    words = [token for token in range(3, config.text_config.vocab_size) if token not in special]
    prompts = []
    for _ in range(queries):
        ids = [config.bos_token_id]
        for _ in range(EXAMPLES):
            text = random.choice(words, random.integers(1, 5)).tolist()
            ids += [config.image_token_id, *text, config.end_of_chunk_token_id]
        prompts.append(torch.tensor(ids))
    files = [picture(f"query{number}") for number in range(queries)]
    examples = [[picture(f"example{number}-{k}") for k in range(EXAMPLES)] for number in range(queries)]
    return Task(files, examples, prompts)


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    device: str
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str):
        start = self._now()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @property
    def total(self) -> float:
        return sum(self.spent.values())

    def per(self, queries: int) -> "Clock":
        """The same for each of them."""
        return Clock(self.device, {name: seconds / queries for name, seconds in self.spent.items()})


@dataclass
class Reading:
    """What a search found: `ids` (queries, new tokens), and their `scores` (queries,), log-probability per token."""

    ids: torch.LongTensor
    scores: torch.Tensor


def searched(found, new_tokens: int) -> Reading:
    return Reading(found.sequences[:, -new_tokens:].cpu(), found.sequences_scores.float().cpu())


def search_options(config: E2STRConfig, new_tokens: int) -> dict:
    """Of both paths. What ends a reading is forbidden until the last token, and no other one is looked for then."""
    options = {"num_beams": BEAMS, "do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    options |= {"eos_token_id": config.end_of_chunk_token_id, "pad_token_id": config.pad_token_id}
    return options | {"return_dict_in_generate": True, "output_scores": True}


class Prepare:
    """Files to `pixel_values` (images, 3, 32, 128) on the device."""

    def __init__(self, model: E2STRForTextRecognition):
        self.model, self.processor = model, E2STRImageProcessor()

    def __call__(self, files: list[Path]) -> torch.Tensor:
        pictures = [Image.open(file).convert("RGB") for file in files]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.device, self.model.dtype)


# ------------------------------------------------------------------------------------------------------------- ours


@torch.no_grad()
def pool_latents(model, task: Task, clock: Clock) -> list[torch.Tensor]:
    """What the pool keeps of each query's examples: (examples, latents, width)."""
    prepare = Prepare(model)
    with clock("open"):
        pixels = prepare([file for files in task.examples for file in files])
    with clock("encode"):
        return list(model.encode(pixels)[1].split(EXAMPLES))


@torch.no_grad()
def read_cached(model, task: Task, known: list[torch.Tensor], clock: Clock, new_tokens: int) -> Reading:
    """All queries as one batch; `known` are the latents of their examples."""
    with clock("open"):
        pixels = Prepare(model)(task.queries)
    with clock("encode"):
        _, latents = model.encode(pixels)
    with clock("context"):
        contexts = model.read_context([prompt.to(model.device) for prompt in task.prompts], known)
    with clock("decode"):
        options = search_options(model.config, new_tokens)
        return searched(model.generate(latents=latents[:, None], contexts=contexts, **options), new_tokens)


# --------------------------------------------------------------------------------------------------- the official loop


class OfficialMedia:
    """All images of a prompt in front of every position, under a mask that leaves the one before it.

    Args:
        latents: (1, images, latents, width), or of each beam.
        input_ids: (1, length), the prompt.
        image_token: stands for an image in it.
    """

    def __init__(self, latents: torch.Tensor, input_ids: torch.LongTensor, image_token: int):
        self.latents = latents.flatten(1, 2)
        self.times = (input_ids == image_token).cumsum(1)
        self.of_latent = torch.arange(1, latents.shape[1] + 1, device=latents.device)
        self.of_latent = self.of_latent.repeat_interleave(latents.shape[2])

    def attend(self, attention, query: torch.Tensor) -> torch.Tensor:
        """(beams, length, heads * head_dim) to the same shape: of the prompt, and later of one token at a time."""
        times = self.times if query.shape[1] > 1 else self.times[:, -1:]
        key, value = attention.keys_values(self.latents)
        mask = (times[..., None] == self.of_latent)[:, None]
        attended = F.scaled_dot_product_attention(
            attention.split(query), key, value, mask.logical_or(times[:, None, :, None] == 0), scale=attention.scaling
        )
        return attended.transpose(1, 2).flatten(2).masked_fill(times[..., None] == 0, 0)


def generate_officially(model, pixels: torch.Tensor, input_ids, clock: Clock, name: str, new_tokens: int) -> Reading:
    """One prompt (1, length) and its images (images, 3, height, width), repeated for every beam before the encoder."""
    with clock(f"{name}encode"):
        repeated = pixels[None].repeat_interleave(BEAMS, 0)
        latents = model.encode(repeated.flatten(0, 1))[1].unflatten(0, repeated.shape[:2])
    with clock(f"{name}decode"):
        media = OfficialMedia(latents, input_ids, model.config.image_token_id)
        options = search_options(model.config, new_tokens)
        return searched(GenerationMixin.generate(model, input_ids=input_ids, last_image=media, **options), new_tokens)


@torch.no_grad()
def read_officially(model, task: Task, number: int, clock: Clock, new_tokens: int) -> tuple[Reading, Reading]:
    """One query: what is thrown away, and its reading with examples."""
    prepare, image = Prepare(model), torch.tensor([model.config.image_token_id])
    with clock("open"):
        pixels = prepare([task.queries[number]])
    with clock("key"):
        model.encode(pixels)
    alone = torch.cat([task.prompts[number][:1], image])[None].to(model.device)
    plain = generate_officially(model, pixels, alone, clock, "plain_", new_tokens)
    with clock("open"):
        pixels = prepare([*task.examples[number], task.queries[number]])
    whole = torch.cat([task.prompts[number], image])[None].to(model.device)
    return plain, generate_officially(model, pixels, whole, clock, "", new_tokens)


# -------------------------------------------------------------------------------------------------------------- rows


class Measured:
    """Both paths over the same task, each measured when a row asks for it.

    Args:
        model: with random weights.
        folder: takes the task's pictures.
        new_tokens: of each reading.
    """

    def __init__(self, model: E2STRForTextRecognition, folder: Path, new_tokens: int = NEW_TOKENS):
        self.model, self.new_tokens, self.device = model, new_tokens, model.device.type
        self.task = e2str_task(folder, model.config, QUERIES)
        first = self.task.only(1)
        read_cached(model, first, self._latents(model, first), Clock(self.device), 2)  # pays for initialisation

    def _latents(self, model, task: Task, clock: Clock | None = None) -> list[torch.Tensor]:
        return pool_latents(model, task, clock or Clock(self.device))

    def _read(self, model, task: Task, known: list[torch.Tensor], rounds: int = 1) -> tuple[Clock, Reading]:
        """The best of some rounds, its seconds per query."""
        clocks = []
        for _ in range(rounds):
            clocks.append(Clock(self.device))
            reading = read_cached(model, task, known, clocks[-1], self.new_tokens)
        return min(clocks, key=lambda clock: clock.total).per(len(task.queries)), reading

    @cached_property
    def first_use(self) -> tuple[Clock, list[torch.Tensor]]:
        """Latents of the examples, and what they cost per query."""
        clock = Clock(self.device)
        known = self._latents(self.model, self.task, clock)
        return clock.per(QUERIES), known

    @cached_property
    def cached(self) -> tuple[Clock, Reading]:
        return self._read(self.model, self.task, self.first_use[1], ROUNDS)

    @cached_property
    def single(self) -> tuple[Clock, Reading]:
        return self._read(self.model, self.task.only(1), self.first_use[1][:1], ROUNDS)

    @cached_property
    def bf16(self) -> tuple[Clock, Reading]:
        model = copy.deepcopy(self.model).bfloat16()
        return self._read(model, self.task, self._latents(model, self.task), ROUNDS)

    @cached_property
    def official(self) -> tuple[Clock, float]:
        """Seconds per query, and the largest difference of scores; SystemExit where the readings are not the same."""
        _, ours = self.cached
        clocks = [Clock(self.device) for _ in range(OFFICIAL_QUERIES)]
        plain, read = zip(
            *(read_officially(self.model, self.task, n, clock, self.new_tokens) for n, clock in enumerate(clocks))
        )
        plain, ids = (torch.cat([reading.ids for reading in some]) for some in (plain, read))
        scores = torch.cat([reading.scores for reading in read])
        difference = float((scores - ours.scores[:OFFICIAL_QUERIES]).abs().max())
        if len(ours.ids.unique(dim=0)) < QUERIES or len(torch.cat([plain, ids]).unique(dim=0)) < 2 * OFFICIAL_QUERIES:
            raise SystemExit("the readings do not depend on images and examples, so that comparing them says nothing.")
        for number, (theirs, own) in enumerate(zip(ids, ours.ids)):
            if not torch.equal(theirs, own):
                place = int((theirs != own).nonzero()[0])
                raise SystemExit(
                    f"query {number} is read differently from token {place} on, scores {difference:.2g} apart: "
                    f"officially {theirs[place:].tolist()}, here {own[place:].tolist()}."
                )
        return min(clocks, key=lambda clock: clock.total), difference


def e2str_rows(
    wanted: Callable[[str], bool], device: str, config: E2STRConfig | None = None, new_tokens: int = NEW_TOKENS
) -> Iterator[tuple[str, float, str]]:
    """(name, value, unit) of each row of which the name is wanted."""
    unit, name = ("s", "seconds") if device == "cuda" else ("CPU s", "cpu_seconds")
    batch, single = (f"e2str/b{queries}/k{EXAMPLES}/beam{BEAMS}" for queries in (QUERIES, 1))
    with tempfile.TemporaryDirectory() as folder:
        measured = Measured(e2str_model(device, config), Path(folder), new_tokens)

        def times(prefix: str, stages: tuple[str, ...], clock: Callable[[], Clock]):
            rows = {f"{prefix}/{name}": lambda: clock().total}
            rows |= {f"{prefix}/{of}/{name}": lambda of=of: clock().spent[of] for of in stages}
            yield from ((row, value(), unit) for row, value in rows.items() if wanted(row))

        stages = ("open", "encode", "context", "decode")
        yield from times(f"{batch}/cached", stages, lambda: measured.cached[0])
        yield from times(f"{batch}/cached/first_use", (), lambda: measured.first_use[0])
        of_official = ("open", "key", "plain_encode", "plain_decode", "encode", "decode")
        yield from times(f"{batch}/official", of_official, lambda: measured.official[0])

        def official() -> float:
            return measured.official[0].total

        def plain() -> float:
            return sum(measured.official[0].spent[of] for of in ("plain_encode", "plain_decode"))

        if wanted(f"{batch}/score_difference"):
            yield f"{batch}/score_difference", measured.official[1], "log p per token"
        ratios = {
            f"{batch}/ratio": lambda: official() / measured.cached[0].total,
            f"{batch}/ratio_without_plain": lambda: (official() - plain()) / measured.cached[0].total,
            f"{batch}/ratio_cold": lambda: official() / (measured.cached[0].total + measured.first_use[0].total),
        }
        yield from ((row, value(), "x") for row, value in ratios.items() if wanted(row))
        for prefix, clock in (
            (f"{single}/cached", lambda: measured.single[0]),
            (f"{batch}/bf16", lambda: measured.bf16[0]),
        ):
            yield from times(prefix, stages, clock)
            if wanted(f"{prefix}/ratio"):
                yield f"{prefix}/ratio", official() / clock().total, "x"
