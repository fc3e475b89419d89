"""Words as `epigraph.read` reads them: E2STR, by itself or with examples that a pool has for each word.

A word image is encoded once. Its latents are read without examples, its key finds the examples, and the same latents
are read behind them. The latents of examples come from the pool, which keeps them; what the decoder remembers of a set
of examples is computed once for all words that have the same.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from .calibration import probabilities
from .data.ink import Ink
from .inputs import open_input, picture_of, to_image
from .models.generation_e2str import E2STRContext
from .pool_encoder import Identity, weights_hash
from .pool_entries import MAX_CROP_PIXELS, MAX_TEXT, Example, crop_picture

if TYPE_CHECKING:
    from .context_pool import ContextPool

logger = logging.getLogger(__name__)
BEAMS = 3  # of the official inference, where the checkpoint does not say otherwise
NEW_TOKENS = MAX_TEXT + 1  # the longest text, and its end


@dataclass
class WordCandidate:
    """One reading of a word.

    Attributes:
        text: what the word says.
        score: probability in 0..1 that all of the text is right, by the checkpoint's `config.score_calibration`;
            without one, and of its like for characters, what the model gives to it, its end included: the product of
            the probabilities of its tokens, whatever the search ranks by. 0 where `max_new_tokens` cut it off. Of a
            further candidate that the ones before it are wrong is a part of it.
        char_scores: probability of each character of `text`, in order, by `config.char_score_calibration`. Of a
            decoder that writes pieces of words (OPT) that of each piece.
    """

    text: str
    score: float
    char_scores: list[float]


@dataclass
class UsedExample:
    """An example that a word was read with.

    Attributes:
        id: its name in the pool; `pool.examples([id])` gives all of it.
        text: what is written in it.
        similarity: cosine between its key and the word's, -1..1.
        source: where it came from, "" if nobody said.
        image: with `explain`, the picture. No field: `asdict` leaves it out.
    """

    id: str
    text: str
    similarity: float
    source: str

    image = None


@dataclass
class WordReading:
    """What one word image says.

    Attributes:
        name: the path as it was given, or "input 3".
        text: the word; empty where the input could not be read, or the model reads nothing.
        score: see `WordCandidate`, of the first reading.
        char_scores: see there.
        n_best: the best readings, `text` first; as many as were asked for. The search finds them; after the first they
            are in order of their scores.
        doubtful: whether `score` is below the `min_score` that was asked for.
        error: one sentence that names the input and says why it could not be read; None where it was.
        plain_text: with a pool, what is read without examples.
        plain_score: the score of that; the `gate` compares it.
        examples: what the word was read with, most similar first; none where there is no pool, the pool is empty or
            the gate was passed. Fewer than `k` where the pool has fewer, where the alphabet lacks characters of one
            (a warning says so), and where more would leave no room for the reading.
        image: with `explain`, the word as it was read: RGB, upright, on white. No field: `asdict` leaves it out.
    """

    name: str
    text: str = ""
    score: float | None = None
    char_scores: list[float] = field(default_factory=list)
    n_best: list[WordCandidate] = field(default_factory=list)
    doubtful: bool = False
    error: str | None = None
    plain_text: str | None = None
    plain_score: float | None = None
    examples: list[UsedExample] = field(default_factory=list)

    image = None


# ---------------------------------------------------------------------------------------------------------- encoding


class WordEncoder:
    """Word images to keys and latents, by a model and its processor; see `encoder`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int = 32):
        self.model, self.processor, self.batch_size = model, processor, batch_size

    @cached_property
    def weights_sha256(self) -> str | None:
        """What binds a pool to these weights.

        None where they are of half precision: the pool then compares keys, which are nearly those of full precision.
        """
        model = self.model.base_model
        parts = [part for part in (model.stem, model.vision_model, model.resampler) if part is not None]
        return weights_hash(*parts) if model.dtype == torch.float32 else None

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (n, width) in float32 and latents (n, latents, width) of PIL images, on the model's device."""
        training = self.model.training
        self.model.eval()
        try:
            found = []
            for start in range(0, len(images), self.batch_size):
                batch = self.processor.image_processor(images[start : start + self.batch_size], return_tensors="pt")
                found.append(self.model.encode(batch["pixel_values"].to(self.model.device, self.model.dtype)))
            keys, latents = (torch.cat(parts) for parts in zip(*found))
            return keys.float(), latents
        finally:
            self.model.train(training)


def encoder(model: PreTrainedModel, processor: ProcessorMixin) -> WordEncoder:
    """What a `ContextPool` takes as `encode`: the image encoder of E2STR.

    Args:
        model: `E2STRForTextRecognition` or `E2STRModel`; used in evaluation mode, on its device and with its dtype.
        processor: its own.

    Returns:
        A callable that takes a list of PIL images and gives their keys (n, width) and latents (n, 64, width). Its
        `weights_sha256` is the hash of the vision encoder and the resampler, so that a new decoder does not need new
        keys.
    """
    return WordEncoder(model, processor)


def open_pool(pool, encode: WordEncoder) -> "ContextPool":
    """A pool by folder or Hub id, or one that is open already; ValueError where another encoder made its keys."""
    from .context_pool import ContextPool

    if isinstance(pool, (str, Path)):  # all else is searched as a ContextPool is
        return ContextPool.load(pool, encode)
    if not hasattr(pool, "search"):
        raise ValueError(f"pool is a ContextPool, its folder or its Hub id, not a {type(pool).__name__}.")
    if not len(pool):
        return pool
    if pool.encode is None:
        raise ValueError(
            f"{pool!r} was opened without an encoder; give ContextPool.load(path, encoder(model, processor))."
        )
    same_model = isinstance(pool.encode, WordEncoder) and pool.encode.model.base_model is encode.model.base_model
    if not same_model and not Identity.of(pool.encode).same(Identity.of(encode)):
        raise ValueError(
            f"the keys of {pool!r} were made by another encoder than this model's; read with the model they were made "
            "with, or make them anew: pool.reencode(epigraph.encoder(model, processor))."
        )
    return pool


def prepare(item, name: str) -> Image.Image:
    """One input as a picture in RGB, upright and on white, as pools keep them.

    Raises:
        ValueError: it cannot be read; one sentence that names it.
    """
    content = open_input(item, name)
    if isinstance(content, Ink):
        raise ValueError(f"{name}: ink, but this model reads images of words; give it a picture.")
    content = to_image(content, name)
    if isinstance(content, np.ndarray):
        content = picture_of(content)
    if content.width * content.height > MAX_CROP_PIXELS:
        content = content.reduce(math.ceil(math.sqrt(content.width * content.height / MAX_CROP_PIXELS)))
    return crop_picture(content, name)


# ----------------------------------------------------------------------------------------------------------- reading


@dataclass
class Query:
    """A word that was encoded and read without examples, and those that it is to be read with.

    Attributes:
        reading: what is filled in.
        picture: the word as it was read.
        key, latents: (width,) and (latents, width), see `encoder`.
        examples: most similar first.
    """

    reading: WordReading
    picture: Image.Image
    key: torch.Tensor
    latents: torch.Tensor
    examples: list[Example] = field(default_factory=list)

    @property
    def context(self) -> tuple[tuple[str, str], ...]:
        """What tells sets of examples apart: another order is another prompt."""
        return tuple((example.id, example.text) for example in self.examples)


class WordReader:
    """A model that reads words, for `read_all`, where the arguments are described."""

    reading, unit = WordReading, "words"

    def __init__(
        self, model, processor, n_best: int, explain: bool, generation: dict, pool, k: int, gate: float | None
    ):
        config, defaults = model.config, model.generation_config
        ours = processor.image_token_id, processor.end_of_chunk_token_id
        known, written = len(processor.tokenizer), config.text_config.vocab_size
        if ours != (config.image_token_id, config.end_of_chunk_token_id) or known > written:
            raise ValueError("the processor numbers other tokens than the model; pass the model's own.")
        self.model, self.processor, self.explain = model, processor, explain
        self.encode = encoder(model, processor)
        self.pool = None if pool is None else open_pool(pool, self.encode)
        self.k, self.gate = k, gate
        # A reading is characters: no tokens of the prompt, and none that the tokenizer has no character for.
        numbers = {config.pad_token_id, config.bos_token_id, config.image_token_id}
        numbers |= set(range(known, written))
        self.generation = {
            "num_beams": 1 if generation.get("do_sample") else max(defaults.num_beams or BEAMS, n_best),
            "max_new_tokens": defaults.max_new_tokens or NEW_TOKENS,
            "suppress_tokens": sorted(numbers - {config.end_of_chunk_token_id}),
            "num_return_sequences": n_best,
            **generation,
        }
        self.room = config.text_config.max_position_embeddings - 2 - self.generation["max_new_tokens"]
        self.unwritable: set[str] = set()

    def read(self, inputs: list[tuple[WordReading, object]], batch_size: int) -> Iterator[int]:
        """Fill in the reading of every input; yields how many more are done."""
        queries = []
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size]
            unsure = self._with_examples(self.read_plain(batch))
            queries += unsure
            yield len(batch) - len(unsure)
        yield from self.read_in_context(queries, batch_size)

    def read_plain(self, inputs: list[tuple[WordReading, object]]) -> list[Query]:
        """Read a batch without examples; returns those words that could be read."""
        readings, pictures = [], []
        for reading, item in inputs:
            try:
                pictures.append(prepare(item, reading.name))
                readings.append(reading)
            except ValueError as error:
                reading.error = str(error)
        if not readings:
            return []
        keys, latents = self.encode(pictures)
        start = self.processor.prompt_ids([], query=False).to(latents.device)
        empty = self.model.read_context([start], [latents[:0]])
        self._generate(readings, latents, empty * len(readings))
        if self.explain:
            for reading, picture in zip(readings, pictures):
                reading.image = picture
        return [Query(*of) for of in zip(readings, pictures, keys, latents)]

    def _with_examples(self, queries: list[Query]) -> list[Query]:
        """Those words that are to be read with examples, which are searched here."""
        if self.pool is None:
            return []
        for query in queries:
            query.reading.plain_text, query.reading.plain_score = query.reading.text, query.reading.score
        unsure = [query for query in queries if self.gate is None or query.reading.score < self.gate]
        if not unsure:
            return []
        keys = torch.stack([query.key for query in unsure])
        for query, examples in zip(unsure, self.pool.search([of.picture for of in unsure], self.k, keys=keys)):
            query.examples = self.usable(examples)
        return [query for query in unsure if query.examples]

    def read_in_context(self, queries: list[Query], batch_size: int) -> Iterator[int]:
        """Read words again, each behind its examples, of which it has at least one; yields how many more are done."""
        # Words with equal examples stand together, so that only the batch before can have read their context.
        queries = sorted(queries, key=lambda query: query.context)
        contexts = {}
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            contexts = self._contexts(batch, contexts)
            latents = torch.stack([query.latents for query in batch])
            self._generate([query.reading for query in batch], latents, [contexts[query.context] for query in batch])
            yield len(batch)

    def usable(self, examples: list[Example]) -> list[Example]:
        """Those that the tokenizer can write and that leave room for the reading, the most similar first."""
        usable, room = [], self.room
        for example in examples:
            try:
                room -= 2 + len(self.processor.text_ids(example.text))
            except ValueError as error:
                if example.id not in self.unwritable:
                    logger.warning("The pool's entry %s is no example for this model: %s", example.id, error)
                self.unwritable.add(example.id)
                continue
            if room < 0:
                break
            usable.append(example)
        return usable

    def _contexts(self, queries: list[Query], known: dict[tuple, E2STRContext]) -> dict[tuple, E2STRContext]:
        """What the decoder remembers of the examples of a batch: each set once, and not again if it is known."""
        wanted = {query.context: query.examples for query in queries}
        contexts = {name: known[name] for name in wanted if name in known}
        new = {name: examples for name, examples in wanted.items() if name not in known}
        if new:
            device, dtype = self.model.device, self.model.dtype
            prompts = [
                self.processor.prompt_ids([e.text for e in own], query=False).to(device) for own in new.values()
            ]
            latents = [
                torch.stack([torch.as_tensor(e.latents) for e in own]).to(device, dtype) for own in new.values()
            ]
            contexts |= dict(zip(new, self.model.read_context(prompts, latents)))
        for query in queries:
            query.reading.examples = [
                UsedExample(example.id, example.text, example.similarity, example.source) for example in query.examples
            ]
            if self.explain:
                for used, example in zip(query.reading.examples, query.examples):
                    used.image = example.image
        return contexts

    def _generate(self, readings: list[WordReading], latents: torch.Tensor, contexts: list[E2STRContext]):
        """Fill in what the model reads in images of `latents` (n, latents, width), each behind its context."""
        output = self.model.generate(
            latents=latents[:, None],
            contexts=contexts,
            return_dict_in_generate=True,
            output_logits=True,
            **self.generation,
        )
        # Of the raw logits, so that neither the beams' length penalty nor a temperature is in them.
        found = self.model.compute_transition_scores(
            output.sequences, output.logits, output.get("beam_indices"), normalize_logits=True
        )
        start = max(len(context.input_ids) for context in contexts) + 1
        candidates = [self._candidate(*row) for row in zip(output.sequences[:, start:].tolist(), found.tolist())]
        copies = len(candidates) // len(readings)
        for index, reading in enumerate(readings):
            first, *others = candidates[index * copies : (index + 1) * copies]
            by_text = {}  # pieces of words can make one text in several ways
            for candidate in (first, *sorted(others, key=lambda other: -other.score)):
                by_text.setdefault(candidate.text, candidate)
            reading.n_best = list(by_text.values())
            if self.model.config.score_calibration:  # the model's own probabilities are of one distribution
                left = 1.0
                for candidate in reading.n_best:
                    candidate.score *= left
                    left -= candidate.score
            reading.text, reading.score, reading.char_scores = first.text, first.score, first.char_scores

    def _candidate(self, tokens: list[int], log_probabilities: list[float]) -> WordCandidate:
        """A reading of generated tokens, which go on with padding where it ends before the others of its batch."""
        end = self.processor.end_of_chunk_token_id
        length = tokens.index(end) if end in tokens else len(tokens)
        complete = sum(log_probabilities[: length + 1]) if length < len(tokens) else -math.inf
        text = self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        config = self.model.config
        (score,) = _calibrated([complete], config.score_calibration)
        return WordCandidate(text, score, _calibrated(log_probabilities[:length], config.char_score_calibration))


def _calibrated(log_probabilities: list[float], calibration: dict | None) -> list[float]:
    if calibration and log_probabilities:
        return probabilities(log_probabilities, calibration).tolist()
    return [math.exp(value) for value in log_probabilities]


__all__ = ["Query", "UsedExample", "WordCandidate", "WordEncoder", "WordReader", "WordReading", "encoder", "open_pool"]
