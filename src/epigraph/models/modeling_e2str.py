"""E2STR: scene text read with examples in context (Zhao et al., CVPR 2024, arXiv 2311.13120).

A ViT encodes each word image, a Perceiver resampler makes 64 latents of its tokens, and an OPT decoder reads a prompt
of images and texts in turn: `<image>text<eoc><image>text<eoc><image>` - the last text is the answer. In front of each
of its layers a gated cross-attention looks at the latents of the image that a token stands behind, and at no other;
what one image teaches about another passes through the decoder's own attention. The architecture is OpenFlamingo's
(Awadalla et al. 2023, arXiv 2308.01390). Written from the paper and from measurements of the published behaviour.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, OPTConfig, PreTrainedModel, ViTModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoderLayer, OPTLearnedPositionalEmbedding
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_e2str import E2STRConfig, E2STRResamplerConfig
from .generation_e2str import E2STRGenerationMixin
from .layers import eager_attention_forward
from .modeling_e2str_encoder import E2STRCTCHead, E2STRStem, rename_as_saved


@dataclass
class E2STRModelOutput(BaseModelOutputWithPast):
    """What a pass over a prompt gives.

    Attributes:
        last_hidden_state: (batch, length, hidden), after the decoder's last norm.
        past_key_values: keys and values of the decoder's own attention, where asked for.
        hidden_states: of the decoder's layers, each (batch, length, hidden), where asked for.
        attentions: of its own attention, each (batch, heads, length, length), where asked for and computed ("eager").
        latents: (batch, images, latents, width) of the images that were encoded or given; zeros for those that no
            prompt stands for.
        image_hidden_states: (images, tokens, width) of the ViT, of the images that were encoded for prompts, one
            prompt after the other; in a compiled graph of those that fill up the batch, too.
    """

    latents: torch.FloatTensor | None = None
    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class E2STROutput(CausalLMOutputWithPast):
    """What `E2STRForTextRecognition` gives.

    Attributes:
        loss: scalar, mean cross entropy of the next token, where labels were given; with `ctc_loss_weight` that of CTC
            is added.
        logits: (batch, length, vocab_size).
        past_key_values, hidden_states, attentions, latents, image_hidden_states: see `E2STRModelOutput`.
    """

    latents: torch.FloatTensor | None = None
    image_hidden_states: torch.FloatTensor | None = None


class E2STRFeedForward(nn.Module):
    """LayerNorm, linear, GELU, linear; without biases (OpenFlamingo)."""

    def __init__(self, width: int, multiplier: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, multiplier * width, bias=False)
        self.fc2 = nn.Linear(multiplier * width, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., width)."""
        return self.fc2(F.gelu(self.fc1(self.norm(hidden))))


class E2STRLatentAttention(nn.Module):
    """Attention of queries to other tokens, with projections of its own width and without biases."""

    def __init__(self, config, query_width: int, key_width: int, heads: int, width: int):
        super().__init__()
        self.config = config
        self.heads, self.head_dim = heads, width // heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(query_width, width, bias=False)
        self.k_proj = nn.Linear(key_width, width, bias=False)
        self.v_proj = nn.Linear(key_width, width, bias=False)
        self.o_proj = nn.Linear(width, query_width, bias=False)

    def split(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, n, heads * head_dim) to (batch, heads, n, head_dim)."""
        return states.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def keys_values(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (batch, n, key_width): twice (batch, heads, n, head_dim)."""
        return self.split(self.k_proj(tokens)), self.split(self.v_proj(tokens))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Heads (batch, heads, m, head_dim) and (batch, heads, n, head_dim) to (batch, m, heads * head_dim)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attend(self, query, key, value, None, scaling=self.scaling)[0].flatten(2)


class E2STRResamplerLayer(GradientCheckpointingLayer):
    """Latents look at image tokens and at each other (Flamingo, section 3.1)."""

    def __init__(self, config: E2STRConfig):
        super().__init__()
        width, sizes = config.vision_config.hidden_size, config.resampler_config
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        heads = sizes.num_attention_heads
        self.attention = E2STRLatentAttention(sizes, width, width, heads, heads * sizes.head_dim)
        self.feed_forward = E2STRFeedForward(width, sizes.ffn_multiplier)

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(images, latents, width) and (images, tokens, width) to (images, latents, width)."""
        queries = self.norm_latents(latents)
        keys_values = self.attention.keys_values(torch.cat([self.norm_media(tokens), queries], dim=1))
        query = self.attention.split(self.attention.q_proj(queries))
        latents = latents + self.attention.o_proj(self.attention.attend(query, *keys_values))
        return latents + self.feed_forward(latents)


class E2STRMedia:
    """Which image each text position looks at, in a form that costs no more than that.

    The official mask lets every position score the latents of all images and then forbids all but one image's. Here
    the positions behind an image are its queries, and no score is computed in vain; the results are the same.

    Args:
        latents: (batch, images, latents, width).
        image_tokens: (batch, length) bool, True where the text has an image.
    """

    def __init__(self, latents: torch.Tensor, image_tokens: torch.BoolTensor):
        self.latents = latents
        images, length = latents.shape[1], image_tokens.shape[1]
        times = image_tokens.cumsum(1)
        self.sees = times > 0
        behind = F.one_hot(times, images + 1)[..., 1:]
        # A compiled graph cannot depend on the texts: it has a place for every position behind every image.
        self.longest = length if torch.compiler.is_compiling() else int(behind.sum(1).max()) if images else 0
        place = behind.cumsum(1).mul(behind).sum(-1) - 1
        slots = (times - 1) * self.longest + place
        # Positions in front of all images share a slot at the end, which is thrown away.
        self.slots = torch.where(self.sees, slots, images * self.longest)

    def showing(self, latents: torch.Tensor) -> "E2STRMedia":
        """The same positions in front of these latents."""
        media = copy.copy(self)
        media.latents = latents
        return media

    def attend(self, attention: E2STRLatentAttention, query: torch.Tensor) -> torch.Tensor:
        """(batch, length, heads * head_dim) queries to attended values of that shape, zeros where no image is seen."""
        batch, images = self.latents.shape[:2]
        if not images * self.longest:
            return torch.zeros_like(query)
        index = self.slots[..., None].expand(-1, -1, query.shape[2])
        spread = query.new_zeros(batch, images * self.longest + 1, query.shape[2]).scatter(1, index, query)
        rows = spread[:, :-1].reshape(batch * images, self.longest, -1)
        attended = attention.attend(attention.split(rows), *attention.keys_values(self.latents.flatten(0, 1)))
        attended = F.pad(attended.view(batch, images * self.longest, -1), (0, 0, 0, 1))
        return attended.gather(1, index) * self.sees[..., None]


class E2STRLastImage:
    """The image that everything generated looks at: its keys and values of every layer, computed once.

    Rows may be several beams of each image, in order; they are further queries of the same keys.

    Args:
        keys_values: for each layer two tensors (images, heads, latents, head_dim).
    """

    def __init__(self, keys_values: list[tuple[torch.Tensor, torch.Tensor]]):
        self.keys_values = keys_values

    def attend(self, attention: E2STRLatentAttention, query: torch.Tensor, layer: int) -> torch.Tensor:
        """(rows, length, heads * head_dim) to the same shape."""
        key, value = self.keys_values[layer]
        rows, length, width = query.shape
        query = query.reshape(len(key), rows // len(key) * length, width)
        return attention.attend(attention.split(query), key, value).reshape(rows, length, width)


class E2STRGatedCrossAttention(nn.Module):
    """Cross-attention and a feed-forward layer, each behind a gate that starts closed (Flamingo, section 3.2)."""

    def __init__(self, config: E2STRConfig, layer: int):
        super().__init__()
        self.layer, self.gate_init = layer, config.gate_init
        width, heads = config.text_config.hidden_size, config.num_cross_attention_heads
        sizes = config.vision_config.hidden_size, heads, heads * config.cross_attention_head_dim
        self.norm = nn.LayerNorm(width)
        self.attention = E2STRLatentAttention(config.text_config, width, *sizes)
        self.feed_forward = E2STRFeedForward(width, config.cross_attention_ffn_multiplier)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: torch.Tensor, media: E2STRMedia | E2STRLastImage) -> torch.Tensor:
        """(batch, length, hidden) to the same shape."""
        query = self.attention.q_proj(self.norm(hidden))
        if isinstance(media, E2STRLastImage):
            attended = media.attend(self.attention, query, self.layer)
        else:
            attended = media.attend(self.attention, query)
        hidden = hidden + self.attention_gate.tanh() * self.attention.o_proj(attended)
        return hidden + self.feed_forward_gate.tanh() * self.feed_forward(hidden)


class E2STRDecoderLayer(OPTDecoderLayer):
    """A layer of OPT behind a gated cross-attention."""

    def __init__(self, config: E2STRConfig, layer: int):
        super().__init__(config.text_config, layer_idx=layer)
        self.cross_attention = E2STRGatedCrossAttention(config, layer)

    def forward(self, hidden_states, latents, media, attention_mask=None, **kwargs):
        """As OPT's layer; `media` says which image each position sees.

        `latents` are those of `media` once more where they are learnt: reentrant checkpointing differentiates tensors
        that it is given by position, and no others.
        """
        media = media if latents is None else media.showing(latents)
        return super().forward(self.cross_attention(hidden_states, media), attention_mask, **kwargs)


class E2STRPreTrainedModel(PreTrainedModel):
    """What the E2STR models share: how they are initialised, and what transformers may do with them."""

    config_class = E2STRConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["E2STRResamplerLayer", "E2STRDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (E2STRResampler, E2STRGatedCrossAttention)):
            # OpenFlamingo leaves these to torch, whose linear layers start in proportion to their width.
            for linear in module.modules():
                if isinstance(linear, nn.Linear):
                    init.kaiming_uniform_(linear.weight, a=5**0.5)
        if isinstance(module, E2STRCTCHead):
            init.copy_(module.bias, module.likely_blank())
        elif isinstance(module, E2STRResampler):
            init.normal_(module.latents)
        elif isinstance(module, E2STRGatedCrossAttention):
            init.constant_(module.attention_gate, module.gate_init)
            init.constant_(module.feed_forward_gate, module.gate_init)


class E2STRResampler(E2STRPreTrainedModel):
    """A fixed number of latents of any number of image tokens."""

    config_class = E2STRResamplerConfig
    input_modalities = ("image",)

    def __init__(self, config: E2STRConfig):
        super().__init__(config.resampler_config)
        width, sizes = config.vision_config.hidden_size, config.resampler_config
        self.latents = nn.Parameter(torch.zeros(sizes.num_latents, width))
        self.layers = nn.ModuleList([E2STRResamplerLayer(config) for _ in range(sizes.num_hidden_layers)])
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(images, tokens, width) to (images, latents, width)."""
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.norm(latents)


class E2STRDecoder(E2STRPreTrainedModel):
    """OPT's decoder with gated cross-attention before every layer; weights are named as OPT's."""

    config_class = OPTConfig
    _can_record_outputs = {"hidden_states": E2STRDecoderLayer, "attentions": OPTAttention}

    def __init__(self, config: E2STRConfig):
        text = config.text_config
        super().__init__(text)
        embedded, width = text.word_embed_proj_dim, text.hidden_size
        self.embed_tokens = nn.Embedding(text.vocab_size, embedded, text.pad_token_id)
        self.embed_positions = OPTLearnedPositionalEmbedding(text.max_position_embeddings, width)
        self.project_in = nn.Linear(embedded, width, bias=False) if embedded != width else None
        self.project_out = nn.Linear(width, embedded, bias=False) if embedded != width else None
        self.layers = nn.ModuleList([E2STRDecoderLayer(config, i) for i in range(text.num_hidden_layers)])
        self.final_layer_norm = None
        if text.do_layer_norm_before and not text._remove_final_layer_norm:
            self.final_layer_norm = nn.LayerNorm(width, elementwise_affine=text.layer_norm_elementwise_affine)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor,
        media: E2STRMedia | E2STRLastImage,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Token ids (batch, length) to hidden states (batch, length, width); see `E2STRModel.forward`."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden = self.embed_tokens(input_ids)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = create_causal_mask(self.config, hidden, attention_mask, past_key_values)
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        # Padding takes no position.
        positions = (attention_mask.cumsum(1) * attention_mask - 1)[:, past:].long()
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        hidden = hidden + self.embed_positions(attention_mask, past, position_ids=positions)
        latents = media.latents if isinstance(media, E2STRMedia) else None
        for layer in self.layers:
            hidden = layer(
                hidden,
                latents,
                media,
                attention_mask=mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        if self.final_layer_norm is not None:
            hidden = self.final_layer_norm(hidden)
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class E2STRModel(E2STRPreTrainedModel):
    """Vision encoder, resampler and decoder."""

    def __init__(self, config: E2STRConfig):
        super().__init__(config)
        self.stem = E2STRStem(config.stem_channels, config.stem_blocks) if config.stem_channels else None
        self.vision_model = ViTModel(config.vision_config, add_pooling_layer=False)
        self.vision_model.register_load_state_dict_pre_hook(rename_as_saved)
        if not config.vision_post_layernorm:
            self.vision_model.layernorm = nn.Identity()
        self.resampler = E2STRResampler(config)
        self.text_model = E2STRDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embeddings."""
        return self.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        """Replaces them."""
        self.text_model.embed_tokens = value

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys for the search of examples, and latents, of images by themselves.

        Args:
            pixel_values: (images, 3, height, width).

        Returns:
            (images, width) float32, the mean latent scaled to length 1; and (images, latents, width).

        Raises:
            ValueError: the values of an image are not finite.
        """
        latents = self.resampler(self.image_tokens(pixel_values))
        return F.normalize(latents.float().mean(1), dim=-1), latents

    def image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, 3, height, width) to (images, tokens, width), row by row; raises as `encode`."""
        if not torch.compiler.is_compiling() and not bool(pixel_values.isfinite().all()):
            finite = pixel_values.isfinite().flatten(1).all(1)
            raise ValueError(f"pixel_values of image {int(finite.int().argmin())} hold NaN or infinite values.")
        if self.stem is not None:
            pixel_values = self.stem(pixel_values)
        return self.vision_model(pixel_values).last_hidden_state[:, 1:]

    def last_image(self, latents: torch.Tensor) -> E2STRLastImage:
        """What generation looks at: keys and values of (images, latents, width) for every layer."""
        return E2STRLastImage(
            [layer.cross_attention.attention.keys_values(latents) for layer in self.text_model.layers]
        )

    def gather_latents(
        self,
        pixel_values: torch.Tensor | None,
        context_latents: torch.Tensor | None,
        latents: torch.Tensor | None,
        wanted: torch.LongTensor,
        distinct: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The latents of each prompt's images in order, whichever of the three they come from.

        Args:
            wanted: (batch,), how many images each prompt stands for. Where that is less than what was given, the last
                examples of `context_latents` are missing, then the last of the others.
            distinct: encode equal images once.

        Returns:
            (batch, images, latents, width); and (encoded images, tokens, width) of `pixel_values`, if given.

        Raises:
            ValueError: for images that do not fit the prompts.
        """
        if latents is not None and pixel_values is not None:
            raise ValueError("pixel_values and latents are two forms of the same images; give one of them.")
        if pixel_values is not None and pixel_values.dim() != 5:
            raise ValueError(
                f"pixel_values must be (batch, images, channels, height, width), not {tuple(pixel_values.shape)}."
            )
        own = self.resampler.latents
        for name, value in (("context_latents", context_latents), ("latents", latents)):
            if value is not None and (value.dim() != 4 or value.shape[2:] != own.shape):
                raise ValueError(
                    f"{name} must be (batch, images, {own.shape[0]}, {own.shape[1]}), not {(*value.shape,)}."
                )
        # What was encoded earlier may have been stored in another precision.
        context_latents, latents = (of if of is None else of.to(own.dtype) for of in (context_latents, latents))
        parts = [part for part in (context_latents, pixel_values if latents is None else latents) if part is not None]
        if not parts:
            raise ValueError("Give pixel_values or latents of the images that input_ids stand for.")
        for part in parts:
            if len(part) != len(wanted):
                raise ValueError(f"{len(wanted)} prompts were given, but the images of {len(part)}.")
        given = sum(part.shape[1] for part in parts)
        if not torch.compiler.is_compiling() and bool((wanted > given).any()):
            row = int(wanted.argmax())
            raise ValueError(f"prompt {row} stands for {int(wanted[row])} images, but {given} were given.")
        examples = 0 if context_latents is None else context_latents.shape[1]
        missing = (given - wanted).clamp(max=examples)
        tokens = None
        if pixel_values is not None:
            latents, tokens = self._encode_wanted(pixel_values, wanted - examples + missing, distinct)
        if context_latents is None:
            return latents, tokens
        if latents is None:
            return context_latents, None
        place = torch.arange(given, device=wanted.device).expand(len(wanted), -1)
        place = place + missing[:, None] * (place >= examples - missing[:, None])
        latents = torch.cat([context_latents, latents], dim=1)
        return latents.take_along_dim(place.clamp(max=given - 1)[..., None, None], 1), tokens

    def _encode_wanted(self, pixel_values: torch.Tensor, wanted: torch.LongTensor, distinct: bool):
        """(batch, images, latents, width), zeros where an image only fills up the batch, which is not encoded; and the
        tokens (encoded images, tokens, width).
        """
        batch, images = pixel_values.shape[:2]
        present = torch.arange(images, device=wanted.device) < wanted[:, None]
        if torch.compiler.is_compiling():
            tokens = self.image_tokens(pixel_values.flatten(0, 1))
            return self.resampler(tokens).unflatten(0, (batch, images)), tokens
        finite = pixel_values.isfinite().flatten(2).all(2) | ~present
        if not bool(finite.all()):
            row, image = (~finite).nonzero()[0].tolist()
            raise ValueError(f"pixel_values of prompt {row}, image {image} hold NaN or infinite values.")
        pixel_values = pixel_values[present]
        if not len(pixel_values):
            own = self.resampler.latents
            return own.new_zeros(batch, images, *own.shape), None
        which = slice(None)
        if distinct and len(pixel_values) > 1:
            pixel_values, which = pixel_values.unique(dim=0, return_inverse=True)
        tokens = self.image_tokens(pixel_values)
        encoded, tokens = self.resampler(tokens)[which], tokens[which]
        return encoded.new_zeros(batch, images, *encoded.shape[1:]).index_put((present,), encoded), tokens

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        context_latents: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        last_image: E2STRLastImage | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **kwargs,
    ) -> E2STRModelOutput:
        """Reads prompts.

        Args:
            pixel_values: (batch, images, 3, height, width), the images of each prompt in order; what shorter prompts
                have at the end is not looked at.
            input_ids: (batch, length), with `config.image_token_id` where an image stands.
            attention_mask: (batch, length), 1 = token, 0 = padding; with `past_key_values` of the whole length.
            context_latents: (batch, images, latents, width) of images that come before `pixel_values`, encoded
                earlier by `encode`.
            latents: the same instead of `pixel_values`.
            last_image: instead of all images: the one that every position of `input_ids` looks at.
            past_key_values: of the tokens before `input_ids`.
            use_cache: return keys and values, for more tokens.
            **kwargs: `output_hidden_states`, `output_attentions`, of the decoder.

        Raises:
            ValueError: a prompt stands for more images than were given, or none were; it is longer than the decoder's
                positions, or than its mask; it goes on behind `past_key_values` without its image; values of an image
                are not finite.
        """
        if input_ids is None:
            raise ValueError("Give input_ids, with the image token where an image stands.")
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        shape = (len(input_ids), past + input_ids.shape[1])
        if attention_mask is not None and attention_mask.shape != shape:
            raise ValueError(f"attention_mask must be (batch, length) {shape}, not {tuple(attention_mask.shape)}.")
        self.check_length(shape[1], attention_mask)
        media, tokens = last_image, None
        if last_image is None:
            image_tokens = input_ids == self.config.image_token_id
            if past and not torch.compiler.is_compiling() and not bool(image_tokens[:, 0].all()):
                raise ValueError("input_ids behind past_key_values must begin with an image, or come with last_image.")
            latents, tokens = self.gather_latents(pixel_values, context_latents, latents, image_tokens.sum(1))
            media = E2STRMedia(latents, image_tokens)
        outputs = self.text_model(
            input_ids, media, attention_mask, past_key_values=past_key_values, use_cache=use_cache, **kwargs
        )
        return E2STRModelOutput(**outputs, latents=latents, image_hidden_states=tokens)

    def check_length(self, length: int, attention_mask: torch.Tensor | None = None, more: int = 0):
        """Raises ValueError where a prompt, and as many tokens `more`, are longer than the decoder's positions."""
        limit = self.config.text_config.max_position_embeddings
        if length + more <= limit or torch.compiler.is_compiling():
            return
        if attention_mask is not None:
            length = int(attention_mask.sum(1).max())  # padding takes no position
        if length + more > limit:
            reading = f" and {more} more to be read" if more else ""
            raise ValueError(
                f"a prompt of {length} tokens{reading} is longer than the {limit} positions of the decoder; show "
                "fewer examples, or shorter texts."
            )


class E2STRForTextRecognition(E2STRPreTrainedModel, E2STRGenerationMixin):
    """E2STR with its language head."""

    _tied_weights_keys = {"lm_head.weight": "model.text_model.embed_tokens.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^ctc_head\."]  # of training, where ctc_loss_weight is set to 0 after it

    def __init__(self, config: E2STRConfig):
        super().__init__(config)
        self.model = E2STRModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.word_embed_proj_dim, text.vocab_size, bias=False)
        self.ctc_head = E2STRCTCHead(config) if config.ctc_loss_weight else None
        self.post_init()

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `E2STRModel.encode`."""
        return self.model.encode(pixel_values)

    def num_loss_items(self, batch: dict[str, torch.Tensor]) -> int:
        """Over how many items the mean loss of a batch is taken: the tokens that are predicted."""
        return int((batch["labels"][:, 1:] != -100).sum())

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        context_latents: torch.Tensor | None = None,
        num_items_in_batch: int | float | torch.Tensor | None = None,
        **kwargs,
    ) -> E2STROutput:
        """Reads prompts; see `E2STRModel.forward`.

        Args:
            labels: (batch, length), the tokens themselves where they are to be predicted, -100 elsewhere.
            num_items_in_batch: divides the summed loss instead of the number of labels.
        """
        outputs = dict(self.model(pixel_values, input_ids, attention_mask, context_latents, **kwargs))
        logits, loss = self.lm_head(outputs.pop("last_hidden_state")), None
        if labels is not None:
            predicted, tokens = labels[:, 1:], outputs.get("image_hidden_states")
            items = (predicted != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), predicted.flatten(), reduction="sum") / items
            if self.ctc_head is not None and tokens is not None and context_latents is None:
                loss = loss + self.config.ctc_loss_weight * self.ctc_head(tokens, input_ids, labels) / items
        return E2STROutput(loss=loss, logits=logits, **outputs)


__all__ = ["E2STRForTextRecognition", "E2STRModel"]
