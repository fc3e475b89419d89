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

MAX_NEW_TOKENS = 48  # of a reading, its end included, unless `generate` is told otherwise; as in the official code


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

        Raises:
            ValueError: a prompt stands for another number of images, or is longer than the decoder's positions.
        """
        if not prompts or len(prompts) != len(latents):
            raise ValueError(f"{len(prompts)} prompts and the latents of {len(latents)}: give as many of each.")
        ids, mask = self._padded(prompts)
        self.model.check_length(ids.shape[1])
        for row, (prompt, own) in enumerate(zip(prompts, latents)):
            wanted = int((prompt == self.config.image_token_id).sum())
            if wanted != len(own):
                raise ValueError(f"context {row} stands for {wanted} images, but latents of {len(own)} were given.")
        own = self.model.resampler.latents
        stacked = own.new_zeros(len(prompts), max(map(len, latents)), *own.shape)
        for row, of in zip(stacked, latents):
            row[: len(of)] = of
        cache = self.model(input_ids=ids, attention_mask=mask, latents=stacked, use_cache=True).past_key_values
        # Copies, as a part of the batch would keep all of the batch in memory.
        return [
            E2STRContext(
                prompt,
                [(x.keys[i, :, -len(prompt) :].clone(), x.values[i, :, -len(prompt) :].clone()) for x in cache.layers],
            )
            for i, prompt in enumerate(prompts)
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
            pixel_values: (batch, images, 3, height, width); with `context_latents` those that come after them, with
                `contexts` the image to read. Equal images are encoded once.
            input_ids: (batch, length), left padded. What stands behind a prompt's last `config.image_token_id`, as in
                batches for training, is not shown to the model. Left out with `contexts`, and for images without
                examples.
            attention_mask: (batch, length), 1 = token.
            context_latents: (batch, examples, latents, width) instead of the examples' images; of prompts with fewer
                examples the last are not looked at.
            latents: (batch, images, latents, width) instead of `pixel_values`.
            contexts: what `read_context` gave, one for each query; the same object for several that share it.
            **kwargs: as in transformers (`num_beams`, `max_new_tokens`, ...). By default generation ends with
                `config.end_of_chunk_token_id`, and after 48 tokens at the latest. `max_length` counts the prompt.

        Returns:
            As transformers' `generate`: prompt and reading, (batch * num_return_sequences, length + new).

        Raises:
            ValueError: a prompt has no image or stands for more of them than were given; with what is to be read it
                is longer than the decoder's positions; values of an image are not finite.
        """
        if contexts is None:
            if input_ids is None and context_latents is not None:
                raise ValueError("context_latents were given without input_ids, which say what the examples show.")
            prompts = self._prompts(input_ids, attention_mask, latents if pixel_values is None else pixel_values)
        elif input_ids is not None or context_latents is not None:
            raise ValueError("contexts hold examples and their texts; leave out input_ids and context_latents.")
        else:
            prompts = [context.input_ids for context in contexts]
        if not prompts:
            raise ValueError("There is nothing to read; give an image, or several.")
        kwargs = self._settings(max(map(len, prompts)) + 1, kwargs)
        shown = self._shown(pixel_values, context_latents, latents, prompts, contexts is not None)
        if contexts is None:
            contexts = self._contexts(prompts, [of[:-1] for of in shown])
        image = prompts[0].new_tensor([self.config.image_token_id])
        ids, mask = self._padded([torch.cat([prompt, image]) for prompt in prompts])
        return super().generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self._joined(contexts, ids.shape[1] - 1),
            last_image=self.model.last_image(torch.stack([of[-1] for of in shown])),
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
            **{name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs},
        }

    def _expand_inputs_for_generation(self, expand_size=1, **kwargs):
        """Beams and further samples share the image that was encoded, and start from the same context."""
        if expand_size > 1 and kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"].batch_repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)

    def _settings(self, length: int, kwargs: dict) -> dict:
        """Keyword arguments of transformers' `generate` with our defaults, for prompts of up to `length` tokens."""
        given = kwargs.get("generation_config")
        settings = self.generation_config if given is None else given
        new, total = (kwargs.get(name, getattr(settings, name)) for name in ("max_new_tokens", "max_length"))
        if new is None and total is None:
            kwargs["max_new_tokens"] = new = MAX_NEW_TOKENS
        self.model.check_length(length, more=max(total - length, 0) if new is None else new)
        for name, value in (
            ("eos_token_id", self.config.end_of_chunk_token_id),
            ("pad_token_id", self.config.pad_token_id),
        ):
            if given is None or getattr(given, name) is None:
                kwargs.setdefault(name, value)
        return kwargs

    def _padded(self, prompts: Sequence[torch.Tensor]) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Token ids and mask (batch, longest), padded on the left."""
        ids = torch.nn.utils.rnn.pad_sequence(
            list(prompts), batch_first=True, padding_value=self.config.pad_token_id, padding_side="left"
        )
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)[:, None]
        return ids, (torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths).long()

    def _prompts(self, input_ids, attention_mask, images: torch.Tensor | None) -> list[torch.LongTensor]:
        """Token ids (length,) of each prompt up to its query's `<image>`, which is left out."""
        if input_ids is None:
            if images is None:
                raise ValueError("Give pixel_values or latents of the images to read.")
            if images.shape[1] != 1:
                raise ValueError(f"{images.shape[1]} images were given for a prompt; say in input_ids what they show.")
            return [torch.tensor([self.config.bos_token_id], device=images.device)] * len(images)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.dim() != 2 or mask.shape != input_ids.shape:
            shapes = f"{tuple(input_ids.shape)} and {tuple(mask.shape)}"
            raise ValueError(f"input_ids and attention_mask must both be (batch, length), not {shapes}.")
        prompts = []
        for row, (ids, own) in enumerate(zip(input_ids, mask)):
            ids = ids[own.bool()]
            places = (ids == self.config.image_token_id).nonzero()
            if not len(places):
                raise ValueError(f"prompt {row} has no image token {self.config.image_token_id}: nothing to read.")
            prompts.append(ids[: places[-1]])
        return prompts

    def _shown(self, pixel_values, context_latents, latents, prompts, query_only: bool) -> list[torch.Tensor]:
        """The latents of each prompt's images, its query last: (images, latents, width)."""
        wanted = [1 if query_only else 1 + int((of == self.config.image_token_id).sum()) for of in prompts]
        images = latents if pixel_values is None else pixel_values
        if query_only and images is not None and images.dim() in (4, 5) and images.shape[1] != 1:
            raise ValueError(f"with contexts give the image to read alone, not {images.shape[1]} images.")
        gathered, _ = self.model.gather_latents(
            pixel_values, context_latents, latents, torch.tensor(wanted, device=self.device), distinct=True
        )
        return [of[:count] for of, count in zip(gathered, wanted)]

    def _contexts(self, prompts: list[torch.Tensor], shown: list[torch.Tensor]) -> list[E2STRContext]:
        """Of whole prompts; equal ones are read once."""
        unique, which = [], []
        for row, (prompt, own) in enumerate(zip(prompts, shown)):
            same = (i for i in unique if torch.equal(prompts[i], prompt) and torch.equal(shown[i], own))
            found = next(same, None)
            if found is None:
                unique.append(row)
            which.append(unique.index(row if found is None else found))
        read = self.read_context([prompts[i] for i in unique], [shown[i] for i in unique])
        return [read[i] for i in which]

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
