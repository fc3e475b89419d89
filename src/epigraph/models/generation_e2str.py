"""Generation of E2STR: nothing is computed twice, and the readings are those of the plain prompt.

The official loop encodes all images of a prompt anew for every query and every beam, and projects them again at every
token. Here the keys and values of a set of examples are computed once (`read_context`) and shared by all queries that
use them; a query is encoded once; its keys and values for the cross-attention once; and beams are further queries of
the same keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.generation import GenerationMixin


@dataclass(frozen=True)
class E2STRContext:
    """The examples in front of a query, as the decoder remembers them.

    Attributes:
        input_ids: (length,), begin of sequence, then for each example `<image>`, its text and the end of chunk.
        keys_values: for each layer two tensors (heads, length, head_dim).
    """

    input_ids: torch.LongTensor
    keys_values: list[tuple[torch.Tensor, torch.Tensor]]


class E2STRGenerationMixin(GenerationMixin):
    """`generate` for prompts of images and texts."""

    @torch.no_grad()
    def read_context(self, prompts: Sequence[torch.Tensor], latents: Sequence[torch.Tensor]) -> list[E2STRContext]:
        """Reads sets of examples, for any number of queries.

        Args:
            prompts: for each set its token ids (length,), without the query's `<image>`.
            latents: for each set (examples, latents, width), as `encode` gives them; in the order of the prompt.

        Returns:
            A context for each set.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids, mask = self._padded(prompts)
        images = max(len(rows) for rows in latents)
        width = self.config.resampler_config.num_latents, self.config.vision_config.hidden_size
        stacked = self.model.resampler.latents.new_zeros(len(prompts), images, *width)
        for row, own in zip(stacked, latents):
            row[: len(own)] = own
        cache = self.model(input_ids=ids, attention_mask=mask, latents=stacked, use_cache=True).past_key_values
        return [
            E2STRContext(
                prompt, [(layer.keys[i, :, -length:], layer.values[i, :, -length:]) for layer in cache.layers]
            )
            for i, (prompt, length) in enumerate(zip(prompts, lengths))
        ]

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        context_latents: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        contexts: Sequence[E2STRContext] | None = None,
        **kwargs,
    ):
        """Reads the last image of every prompt.

        Args:
            pixel_values: (batch, images, 3, height, width); with `contexts` or `context_latents` the last image or
                images only.
            input_ids: (batch, length), left padded, whose last token is `config.image_token_id`; left out with
                `contexts`, and for images without examples.
            attention_mask: (batch, length), 1 = token.
            context_latents: (batch, examples, latents, width) instead of the examples' images.
            latents: the same of the images of `pixel_values`.
            contexts: what `read_context` gave, one for each query.
            **kwargs: as in transformers (`num_beams`, `max_new_tokens`, ...). By default generation ends with
                `config.end_of_chunk_token_id`.

        Returns:
            As transformers' `generate`: prompt and reading, (batch, length + new).

        Raises:
            ValueError: a prompt does not end with an image, or stands for another number of images than were given.
        """
        latents = self.model.gather_latents(pixel_values, context_latents, latents)
        if latents is None:
            raise ValueError("Give pixel_values or latents of the images to read.")
        if contexts is None:
            contexts = self._contexts(input_ids, attention_mask, latents)
        if len(contexts) != len(latents):
            raise ValueError(f"{len(latents)} images to read, but {len(contexts)} contexts.")
        last = self._last_latents(input_ids, latents)
        image = latents.new_full((1,), self.config.image_token_id, dtype=torch.long)
        ids, mask = self._padded([torch.cat([context.input_ids, image]) for context in contexts])
        cache = self._joined(contexts, ids.shape[1] - 1)
        beams = kwargs.get("num_beams") or self.generation_config.num_beams or 1
        copies = max(beams, kwargs.get("num_return_sequences") or 1)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        kwargs.setdefault("eos_token_id", self.config.end_of_chunk_token_id)
        kwargs.setdefault("pad_token_id", self.config.pad_token_id)
        return super().generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            last_image=self.model.last_image(last),
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, last_image=None, **kwargs
    ):
        """The tokens that are not in the cache yet."""
        return {
            "input_ids": input_ids[:, past_key_values.get_seq_length() :],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "last_image": last_image,
            "use_cache": True,
        }

    def _padded(self, prompts: Sequence[torch.Tensor]) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Token ids and mask (batch, longest), padded on the left."""
        ids = torch.nn.utils.rnn.pad_sequence(
            list(prompts), batch_first=True, padding_value=self.config.pad_token_id, padding_side="left"
        )
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)[:, None]
        return ids, (torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths).long()

    def _contexts(self, input_ids, attention_mask, latents: torch.Tensor) -> list[E2STRContext]:
        """The contexts of whole prompts; equal ones are read once."""
        image = self.config.image_token_id
        if input_ids is None:
            start = torch.tensor([self.config.bos_token_id], device=latents.device)
            return self.read_context([start], [latents[0, :0]]) * len(latents)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [ids[own.bool()] for ids, own in zip(input_ids, mask)]
        for row, prompt in enumerate(prompts):
            wanted = int((prompt == image).sum())
            if not len(prompt) or prompt[-1] != image:
                raise ValueError(f"prompt {row} must end with the image token {image}, which stands for its query.")
            if wanted > latents.shape[1]:
                raise ValueError(f"prompt {row} stands for {wanted} images, but {latents.shape[1]} were given.")
        prompts = [prompt[:-1] for prompt in prompts]
        shown = [rows[: int((prompt == image).sum())] for prompt, rows in zip(prompts, latents)]
        unique, which = [], []
        for row, (prompt, rows) in enumerate(zip(prompts, shown)):
            same = (i for i in unique if torch.equal(prompts[i], prompt) and torch.equal(shown[i], rows))
            found = next(same, None)
            if found is None:
                unique.append(row)
            which.append(unique.index(row if found is None else found))
        read = self.read_context([prompts[i] for i in unique], [shown[i] for i in unique])
        return [read[i] for i in which]

    def _last_latents(self, input_ids, latents: torch.Tensor) -> torch.Tensor:
        """The latents of each prompt's query: (batch, latents, width)."""
        if input_ids is None:
            return latents[:, -1]
        last = (input_ids == self.config.image_token_id).sum(1) - 1
        return latents[torch.arange(len(latents), device=latents.device), last]

    def _joined(self, contexts: Sequence[E2STRContext], length: int) -> DynamicCache:
        """The contexts as the cache of one batch, padded on the left to `length` tokens."""
        cache = DynamicCache(config=self.config.text_config)
        for layer in range(len(contexts[0].keys_values)):
            states = []
            for which in (0, 1):
                heads, _, width = contexts[0].keys_values[layer][which].shape
                joined = contexts[0].keys_values[layer][which].new_zeros(len(contexts), heads, length, width)
                for row, context in zip(joined, contexts):
                    own = context.keys_values[layer][which]
                    row[:, length - own.shape[1] :] = own
                states.append(joined)
            cache.update(*states, layer)
        return cache


__all__ = ["E2STRContext", "E2STRGenerationMixin"]
