"""CoMER's search: both reading directions by beam, each candidate then rated by the other direction (section 3.4).

A *search* is one image read in one direction. All searches of a batch step together, rows laid out beam by beam and
within a beam direction by direction, image by image; finished searches leave.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from .decoding_comer import CoMERCache, CoMERMemory, attend_sequences, decode, score_sequences
from .grammar_comer import CoMERGrammar, grammar_from_vocabulary

_DEFAULTS = {
    "num_beams": 10,
    "max_length": 200,
    "length_penalty": 1.0,
    "temperature": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
}
# What trainers and pipelines pass to every model, and what changes nothing here.
_IGNORED = {
    "attention_mask",
    "cache_implementation",
    "decoder_attention_mask",
    "labels",
    "num_items_in_batch",
    "processor",
    "synced_gpus",
    "tokenizer",
    "use_cache",
}
_OPEN = -1e9  # the official score of beams that do not exist yet
_NEG_INF = float("-inf")


@dataclass
class CoMERGenerateOutput(ModelOutput):
    """What `generate` found; row i * num_return_sequences is the best reading of image i.

    Attributes:
        sequences: (rows, length) token ids in reading order, without start and stop, pad after the last.
        sequences_scores: (rows,) forward plus reverse score (of a single direction: the forward score); -inf where an
            image has fewer readings than were asked for.
        forward_scores: (rows,) log-probability of the tokens and the stop, from the direction that found the sequence,
            divided by their number to the power of `length_penalty`.
        reverse_scores: (rows,) the same from the other direction; None for a single direction.
        log_probabilities: (rows,) log-probability of the whole sequence, tokens and stop, mean of the directions.
        token_scores: (rows, length) log-probability of each token in the direction that found it, reading order.
        directions: per row "l2r" or "r2l", the direction that found it; "l2r" for what both found.
        cross_attentions: with `output_attentions`, (rows, length, height, width) float32: where on the grid of the
            features the last decoder layer looked as it wrote each token in the direction that found the sequence.
            Refined attention, mean of the heads, in reading order; each map sums to 1, and is 0 without a token.
        coverages: with `output_coverage`, of the same shape: `cross_attentions` summed over the tokens up to and with
            this one, in reading order. A map sums to the number of those tokens, and is 0 where there is no token. For
            an "r2l" sequence the model itself had by then seen what comes after; the penalties that it subtracts are
            `CoMEROutput.coverages`.
    """

    sequences: torch.LongTensor | None = None
    sequences_scores: torch.FloatTensor | None = None
    forward_scores: torch.FloatTensor | None = None
    reverse_scores: torch.FloatTensor | None = None
    log_probabilities: torch.FloatTensor | None = None
    token_scores: torch.FloatTensor | None = None
    directions: list[str] | None = None
    cross_attentions: torch.FloatTensor | None = None
    coverages: torch.FloatTensor | None = None


@dataclass
class _Settings:
    """Arguments of one call, complete and checked."""

    direction: str
    search: str
    num_beams: int
    max_length: int
    length_penalty: float
    temperature: float
    early_stopping: bool | str
    num_return_sequences: int
    output_attentions: bool = False
    output_coverage: bool = False

    def __post_init__(self):
        if self.direction not in ("joint", "l2r", "r2l"):
            raise ValueError(f"direction must be 'joint', 'l2r' or 'r2l', not {self.direction!r}.")
        if self.search not in ("exact", "official"):
            raise ValueError(f"search must be 'exact' or 'official', not {self.search!r}.")
        for name in ("num_beams", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences {self.num_return_sequences} is more than num_beams {self.num_beams}; "
                "a search keeps no more readings than beams."
            )
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, a start and a stop token, not {self.max_length}.")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never', not {self.early_stopping!r}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}.")

    @property
    def official(self) -> bool:
        return self.search == "official"


@dataclass
class _Hypotheses:
    """The best finished sequences of each search, by forward score; all (searches, beams, ...).

    Attributes:
        tokens: (searches, beams, max_length) as found, without start and stop.
        lengths: (searches, beams).
        scores: (searches, beams) forward scores, -inf in empty places, highest first.
        token_scores: (searches, beams, max_length).
        reverse: (searches, beams) scores of the other direction, NaN where not known.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    scores: torch.Tensor
    token_scores: torch.Tensor
    reverse: torch.Tensor

    @classmethod
    def empty(cls, searches: int, settings: _Settings, pad: int, device) -> "_Hypotheses":
        shape = (searches, settings.num_beams)
        return cls(
            tokens=torch.full((*shape, settings.max_length), pad, device=device),
            lengths=torch.zeros(shape, dtype=torch.int64, device=device),
            scores=torch.full(shape, _NEG_INF, device=device),
            token_scores=torch.zeros(*shape, settings.max_length, device=device),
            reverse=torch.full(shape, torch.nan, device=device),
        )

    def add(self, searches, tokens, length, scores, token_scores):
        """Keeps the best of what is there and of `scores` (len(searches), candidates); of equals, the older."""
        old = self.scores[searches]
        kept, index = torch.cat([old, scores], dim=1).topk(old.shape[1])
        fresh = {
            "tokens": tokens,
            "lengths": torch.full_like(scores, length, dtype=torch.int64),
            "scores": scores,
            "token_scores": token_scores,
            "reverse": torch.full_like(scores, torch.nan),
        }
        for name, new in fresh.items():
            held = getattr(self, name)
            both = torch.cat([held[searches], new], dim=1)
            places = index if both.ndim == 2 else index[..., None].expand(-1, -1, both.shape[2])
            held[searches] = both.gather(1, places)
        return kept

    def reading_order(self, backwards: torch.Tensor) -> torch.Tensor:
        """Places (searches, beams, max_length) that gather the tokens into reading order."""
        places = torch.arange(self.tokens.shape[2], device=self.tokens.device).expand(self.tokens.shape)
        lengths = self.lengths[..., None]
        mirrored = torch.where(places < lengths, lengths - 1 - places, places)
        return torch.where(backwards[:, None, None], mirrored, places)


class _Search:
    """One call of `generate`: the running beams of all searches and what they have finished."""

    def __init__(self, model, memory: CoMERMemory, settings: _Settings, grammar: CoMERGrammar | None):
        self.model, self.memory, self.settings, self.grammar = model, memory, settings, grammar
        config, device = model.config, memory.keys.device
        self.device = device
        self.images = memory.keys.shape[1]
        directions = {"joint": [False, True], "l2r": [False], "r2l": [True]}[settings.direction]
        self.backwards = torch.tensor(directions, device=device).repeat_interleave(self.images)
        self.image_of = torch.arange(self.images, device=device).repeat(len(directions))
        self.first = torch.where(self.backwards, config.eos_token_id, config.bos_token_id)
        self.stop = torch.where(self.backwards, config.bos_token_id, config.eos_token_id)
        self.done = _Hypotheses.empty(len(self.backwards), settings, config.pad_token_id, device)

    # ------------------------------------------------------------------ forward search

    def run(self) -> _Hypotheses:
        """Searches until nothing better can come, or max_length."""
        settings, beams = self.settings, self.settings.num_beams
        self.live = torch.arange(len(self.backwards), device=self.device)
        shape = (len(self.live), beams)
        self.tokens = torch.full((*shape, settings.max_length), self.model.config.pad_token_id, device=self.device)
        self.token_scores = torch.zeros(*shape, settings.max_length, device=self.device)
        self.sums = torch.full(shape, _OPEN if settings.official else _NEG_INF, device=self.device)
        self.sums[:, 0] = 0
        self.state = None
        if self.grammar is not None:
            self.state = self.grammar.start(self.backwards[:, None].expand(shape))
        self.read = self.memory.rows(self.image_of.tolist())
        self.cache = CoMERCache(self.model, self.memory, beams * len(self.live), settings.official)
        last = self.first[:, None].expand(shape)

        for length in range(1, settings.max_length):
            logits = decode(self.model, last.t().reshape(-1, 1), self.read, self.cache)[:, 0]
            log_probs = (logits / settings.temperature).log_softmax(-1)
            log_probs = log_probs.view(beams, len(self.live), -1).transpose(0, 1)
            step = self._official_step if settings.official else self._exact_step
            parents, last, self.sums, finished = step(log_probs, length)
            self._extend(parents, last, log_probs, length - 1)
            if finished.any():
                self._leave(finished, parents)
                last = last[~finished]
            elif beams > 1:
                self.cache.select(self._rows(parents))
            if not len(self.live):
                return self.done
        if settings.official:  # open beams count as they stand
            scores = self.sums / settings.max_length**settings.length_penalty
            self.done.add(self.live, self.tokens, settings.max_length - 1, scores, self.token_scores)
        return self.done

    def _official_step(self, log_probs, length):
        """The published heuristics: a stop counts only among the best `num_beams` continuations, pad tokens and the
        other direction's stop are symbols like any, and a search ends by the score its best beam has now."""
        settings, beams = self.settings, self.settings.num_beams
        totals = (self.sums[..., None] + log_probs).flatten(1)
        best, index = totals.topk(2 * beams)
        parents, tokens = index // log_probs.shape[-1], index % log_probs.shape[-1]
        stops = tokens == self.stop[self.live][:, None]
        power = length**settings.length_penalty
        scores = torch.where(stops, best, _NEG_INF)[:, :beams] / power
        kept = self._finish(parents[:, :beams], scores, length - 1)
        going = stops.long().argsort(dim=1, stable=True)[:, :beams]
        finished = kept[:, -1] > _NEG_INF
        if not settings.early_stopping:
            finished &= kept[:, -1] >= best.gather(1, going)[:, 0] / power
        return parents.gather(1, going), tokens.gather(1, going), best.gather(1, going), finished

    def _exact_step(self, log_probs, length):
        """Every beam may stop where the grammar lets it; continuations compete among themselves."""
        settings, beams = self.settings, self.settings.num_beams
        config = self.model.config
        stops = self.stop[self.live][:, None, None].expand(-1, beams, 1)
        stopped = self.sums + log_probs.gather(-1, stops).squeeze(-1)
        totals = self.sums[..., None] + log_probs
        totals[..., [config.pad_token_id, config.bos_token_id, config.eos_token_id]] = _NEG_INF
        if self.grammar is not None:
            stopped = stopped.masked_fill(~self.grammar.complete(self.state), _NEG_INF)
            # After the next token and the stop, so many are left to close what is open.
            budget = settings.max_length - length - 2
            totals.masked_fill_(~self.grammar.allowed(self.state, budget), _NEG_INF)
        parents = torch.arange(beams, device=self.device).expand_as(stopped)
        self._finish(parents, stopped / length**settings.length_penalty, length - 1)
        best, index = totals.flatten(1).topk(beams)
        parents, tokens = index // log_probs.shape[-1], index % log_probs.shape[-1]
        if length == settings.max_length - 1:
            finished = torch.ones_like(best[:, 0], dtype=torch.bool)
        else:
            finished = self._cannot_improve(best[:, 0], length)
        if self.grammar is not None:
            self.state = self.grammar.advance(self._beam_states(parents), tokens)
        return parents, tokens, best, finished

    def _cannot_improve(self, best, length):
        """(live,) whether no continuation of a running beam can enter the readings that are asked for.

        Unless `early_stopping` is "never", a running beam is taken at its present length, and has to beat the forward
        scores of all hypotheses kept (False) or of as many as are asked for (True).

        For certain: a log-probability only falls, so a beam's final score is at most its present sum over the length
        penalty that suits it best; and the reverse score, never above 0, only takes away. Readings are compared by
        total score, so the few hypotheses that could decide this are rated by the other direction at once.
        """
        settings, wanted = self.settings, self.settings.num_return_sequences
        if settings.early_stopping != "never":
            beaten = wanted - 1 if settings.early_stopping else -1
            return best / (length + 1) ** settings.length_penalty <= self.done.scores[self.live, beaten]
        longest = settings.max_length - 1 if settings.length_penalty > 0 else length + 1
        bound = best / longest**settings.length_penalty
        # An image is settled together: its other direction may hold the reading that ends this one.
        images = self.image_of[self.live]
        lowest = bound.new_full((self.images,), torch.inf).scatter_reduce(0, images, bound, "amin")
        possible = self.done.scores[:, :wanted] > lowest[self.image_of][:, None]
        if not possible.any():
            return best == _NEG_INF
        if settings.direction == "joint":
            if (possible & self.done.reverse[:, :wanted].isnan()).any():
                self._share_scores()
                searches, places = (possible & self.done.reverse[:, :wanted].isnan()).nonzero().unbind(1)
                if len(searches):
                    self._rate(searches, places)
        return bound <= self._last_wanted()[images]

    def _finish(self, parents, scores, length):
        """Offers the sequences of beams `parents`, `length` tokens long, as finished with `scores`."""
        if scores.amax() == _NEG_INF:
            return self.done.scores[self.live]
        places = parents[..., None].expand(-1, -1, self.tokens.shape[2])
        return self.done.add(
            self.live, self.tokens.gather(1, places), length, scores, self.token_scores.gather(1, places)
        )

    def _extend(self, parents, tokens, log_probs, place):
        places = parents[..., None].expand(-1, -1, self.tokens.shape[2])
        self.tokens, self.token_scores = self.tokens.gather(1, places), self.token_scores.gather(1, places)
        self.tokens[..., place] = tokens
        self.token_scores[..., place] = log_probs.flatten(1).gather(1, parents * log_probs.shape[-1] + tokens)

    def _rows(self, parents):
        """Decoder rows (beam by beam) that the new beams continue."""
        searches = torch.arange(len(parents), device=self.device)[:, None]
        return (parents * len(parents) + searches).t().flatten()

    def _beam_states(self, parents):
        searches = torch.arange(len(parents), device=self.device)[:, None]
        return self.state.select(searches * self.settings.num_beams + parents)

    def _leave(self, finished, parents):
        """Drops finished searches from the batch."""
        going = ~finished
        rows = self._rows(parents).view(-1, len(finished))[:, going].flatten()
        if self.grammar is not None:
            beams = torch.arange(finished.numel() * parents.shape[1], device=self.device).view_as(parents)
            self.state = self.state.select(beams[going])
        self.live, self.tokens, self.sums = self.live[going], self.tokens[going], self.sums[going]
        self.token_scores = self.token_scores[going]
        if len(self.live):
            self.read = self.memory.rows(self.image_of[self.live].tolist())
            self.cache.select(rows)

    # ------------------------------------------------------------------ the other direction's opinion

    def _rate(self, searches, places):
        """Fills in the reverse scores of hypotheses (searches[i], places[i])."""
        done, settings = self.done, self.settings
        lengths = done.lengths[searches, places]
        width = int(lengths.max())
        tokens = done.tokens[searches, places][:, :width]
        positions = torch.arange(width, device=self.device).expand_as(tokens)
        flipped = (lengths[:, None] - 1 - positions).clamp(min=0)
        tokens = tokens.gather(1, flipped).masked_fill(positions >= lengths[:, None], self.model.config.pad_token_id)
        log_probs = score_sequences(
            self.model,
            self.memory,
            self.image_of[searches],
            tokens,
            lengths,
            ~self.backwards[searches],
            settings.official,
            settings.temperature,
        )
        done.reverse[searches, places] = log_probs.sum(1) / (lengths + 1) ** settings.length_penalty

    def _twins(self):
        """(images, beams, beams) bool: left-to-right hypothesis i is right-to-left hypothesis j."""
        done = self.done
        tokens = done.tokens.gather(2, done.reading_order(self.backwards))
        left, right = tokens.view(2, self.images, *tokens.shape[1:])
        lengths = done.lengths.view(2, self.images, -1)
        alive = (done.scores > _NEG_INF).view(2, self.images, -1)
        same = (left[:, :, None] == right[:, None]).all(-1) & (lengths[0][:, :, None] == lengths[1][:, None])
        return same & alive[0][:, :, None] & alive[1][:, None]

    def _share_scores(self):
        """What both directions found needs no rating: each one's forward score is the other's reverse score.

        Not so in the official search, whose cut-off beams lack the stop token's share.
        """
        if self.settings.official:
            return
        twins = self._twins()
        scores = self.done.scores.view(2, self.images, -1)
        reverse = self.done.reverse.view(2, self.images, -1)
        for side, same in enumerate((twins, twins.transpose(1, 2))):
            other = (same * torch.where(same, scores[1 - side][:, None], 0)).sum(2)
            reverse[side] = torch.where(same.any(2), other, reverse[side])

    def _totals(self):
        """(images, candidates) total scores, -inf where unknown or empty, and at the worse of twins."""
        done = self.done
        if self.settings.direction != "joint":
            return done.scores
        left, right = (done.scores + done.reverse.nan_to_num(_NEG_INF)).view(2, self.images, -1)
        twins = self._twins()
        drop_left = (twins & (left[:, :, None] < right[:, None])).any(2)
        drop_right = (twins & (left[:, :, None] >= right[:, None])).any(1)
        return torch.cat([left.masked_fill(drop_left, _NEG_INF), right.masked_fill(drop_right, _NEG_INF)], dim=1)

    def _last_wanted(self):
        """(images,) the total score of the last reading that is asked for, -inf while it is not known."""
        return self._totals().topk(self.settings.num_return_sequences)[0][:, -1]

    def rate(self):
        """Reverse scores of all hypotheses that can still be among the readings that are asked for."""
        if self.settings.direction != "joint":
            return
        self._share_scores()
        # The most promising first: since no reverse score is above 0, their totals rule out most others.
        for rank in (2 * self.settings.num_return_sequences, self.settings.num_beams):
            bound = self._last_wanted()[self.image_of][:, None]
            unknown = self.done.reverse.isnan() & (self.done.scores > _NEG_INF) & (self.done.scores > bound)
            unknown[:, rank:] = False
            searches, places = unknown.nonzero().unbind(1)
            if len(searches):
                self._rate(searches, places)

    def result(self) -> CoMERGenerateOutput:
        """The readings that were asked for, best first."""
        done, wanted = self.done, self.settings.num_return_sequences
        totals, index = self._totals().topk(wanted)
        beams = done.scores.shape[1]
        images = torch.arange(self.images, device=self.device)[:, None]
        searches, places = (index // beams * self.images + images).flatten(), (index % beams).flatten()
        width = max(1, int(done.lengths[searches, places].max()))
        order = done.reading_order(self.backwards)[searches, places]
        missing = totals.flatten() == _NEG_INF
        pad = self.model.config.pad_token_id
        beyond = torch.arange(done.tokens.shape[2], device=self.device) >= done.lengths[searches, places][:, None]
        beyond |= missing[:, None]
        tokens = done.tokens[searches, places].gather(1, order).masked_fill(beyond, pad)
        token_scores = done.token_scores[searches, places].gather(1, order).masked_fill(beyond, 0)
        attentions = coverages = None
        if self.settings.output_attentions or self.settings.output_coverage:
            attentions = self._attentions(searches, places, ~missing, width)
        if self.settings.output_coverage:
            coverages = attentions.cumsum(1) * ~beyond[:, :width, None, None]
        directions = 2 if self.settings.direction == "joint" else 1
        power = (done.lengths[searches, places] + 1) ** self.settings.length_penalty
        return CoMERGenerateOutput(
            sequences=tokens[:, :width],
            sequences_scores=totals.flatten(),
            forward_scores=done.scores[searches, places],
            reverse_scores=done.reverse[searches, places] if self.settings.direction == "joint" else None,
            log_probabilities=totals.flatten() / directions * power,
            token_scores=token_scores[:, :width],
            directions=["r2l" if back else "l2r" for back in self.backwards[searches].tolist()],
            cross_attentions=attentions if self.settings.output_attentions else None,
            coverages=coverages,
        )

    def _attentions(self, searches, places, found, width):
        """Maps (rows, width, ...) in reading order of hypotheses (searches[i], places[i]), 0 where not `found`.

        They are read once more: to keep the maps of all beams at each step of the search would cost far more.
        """
        done, cells = self.done, self.memory.feature_mask.shape[1:]
        maps = torch.zeros(len(searches), width, *cells, device=self.device)
        if not found.any():
            return maps
        rows, columns = searches[found], places[found]
        written = attend_sequences(
            self.model,
            self.memory,
            self.image_of[rows],
            done.tokens[rows, columns][:, :width],
            done.lengths[rows, columns],
            self.backwards[rows],
            self.settings.official,
        )
        order = done.reading_order(self.backwards)[rows, columns][:, :width]
        maps[found] = written[torch.arange(len(rows), device=self.device)[:, None], order]
        return maps


class CoMERGenerationMixin(GenerationMixin):
    """`generate` of CoMER, in place of transformers' own, which knows one direction and one stop token."""

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        encoder_outputs=None,
        generation_config=None,
        direction: str | None = None,
        search: str | None = None,
        grammar: bool | dict | None = None,
        return_dict_in_generate: bool | None = None,
        output_attentions: bool | None = None,
        output_coverage: bool | None = None,
        **kwargs,
    ) -> torch.LongTensor | CoMERGenerateOutput:
        r"""Reads formulas from images.

        Args:
            pixel_values: (batch, 1, height, width) in 0..1, white ink on black.
            pixel_mask: (batch, height, width), 1 = image.
            encoder_outputs: instead of pixel_values.
            generation_config: settings in place of the model's own; arguments go before both.
            direction: "joint" (default) searches in both directions and rates each candidate by the other; "l2r" and
                "r2l" search in one, without a second opinion.
            search: "exact" (default) keeps to the grammar and lets each direction stop on its own stop token only.
                "official" follows the heuristics of the published code to the number: no grammar, pad tokens allowed,
                beams cut off at `max_length` count as finished.
            grammar: of the exact search: False for none, or roles as from `grammar_from_vocabulary` in place of
                `config.grammar`.
            return_dict_in_generate: give all scores.
            output_attentions, output_coverage: give where the model looked too; with `return_dict_in_generate` only.
            num_beams, length_penalty, temperature, num_return_sequences: as in transformers; defaults 10, 1.0, 1.0, 1.
            max_length: tokens of a reading with its start and stop token, default 200; `max_new_tokens` = one less.
            early_stopping: as in transformers. False (default) ends a search when no running beam, at its present
                length, is better than its `num_beams` readings; True when none is better than those asked for;
                "never" only when none can ever be, which with a length penalty above 0 takes many steps more.

        Returns:
            Token ids (batch * num_return_sequences, length) in reading order, without start and stop, pad after the
            last, best reading of each image first; or `CoMERGenerateOutput`.

        Raises:
            ValueError: for arguments that CoMER does not know or that contradict each other, for images that hold NaN.
        """
        named = {"direction": direction, "search": search}
        named |= {"output_attentions": output_attentions, "output_coverage": output_coverage}
        settings, return_dict = self._generation_settings(generation_config, kwargs, named, return_dict_in_generate)
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("generate() needs pixel_values or encoder_outputs.")
            finite = pixel_values.isfinite().flatten(1).all(1)
            if not finite.all():
                raise ValueError(f"pixel_values of image {int(finite.int().argmin())} hold NaN or infinite values.")
            encoder_outputs = self.encoder(pixel_values, pixel_mask)
        roles = None
        if settings.search == "exact" and grammar is not False:
            roles = grammar if isinstance(grammar, dict) else self.config.grammar
        rules = CoMERGrammar(roles, self.config.vocab_size, self.device) if roles else None
        memory = CoMERMemory.of(self.decoder, encoder_outputs)
        run = _Search(self, memory, settings, rules)
        run.run()
        run.rate()
        output = run.result()
        return output if return_dict else output.sequences

    def _generation_settings(self, generation_config, kwargs, named, return_dict):
        """Arguments before `generation_config` before the model's own before the defaults."""
        for name, value in _DEFAULTS.items():
            # In place, so that what reads the model's configuration afterwards, as trainers do, sees what was used.
            if getattr(self.generation_config, name, None) is None:
                setattr(self.generation_config, name, value)
        given = {name: value for name, value in {**kwargs, **named}.items() if value is not None}
        configs = [config for config in (generation_config, self.generation_config) if config is not None]

        def setting(name, default=None):
            if name in given:
                return given.pop(name)
            values = (getattr(config, name, None) for config in configs)
            return next((value for value in values if value is not None), default)

        if "max_length" in given or "max_new_tokens" in given:
            new = given.pop("max_new_tokens", None)
            length = given.pop("max_length", None)
            length = length if new is None else new + 1
        else:
            lengths = ((c.max_new_tokens + 1 if c.max_new_tokens is not None else c.max_length) for c in configs)
            length = next(length for length in lengths if length is not None)
        if setting("do_sample", False):
            raise ValueError("CoMER searches by beam; do_sample is not supported.")
        settings = _Settings(
            direction=setting("direction", "joint"),
            search=setting("search", "exact"),
            max_length=length,
            output_attentions=setting("output_attentions", False),
            output_coverage=setting("output_coverage", False),
            **{name: setting(name) for name in _DEFAULTS if name != "max_length"},
        )
        return_dict = setting("return_dict_in_generate", False) if return_dict is None else return_dict
        for name in ("output_attentions", "output_coverage"):
            if getattr(settings, name) and not return_dict:
                raise ValueError(f"{name} needs return_dict_in_generate=True; token ids alone have no place for maps.")
        unknown = sorted(given.keys() - _IGNORED)
        if unknown:
            raise ValueError(f"CoMER's generate() does not take {', '.join(unknown)}.")
        return settings, return_dict


__all__ = ["CoMERGenerateOutput", "CoMERGenerationMixin", "grammar_from_vocabulary"]
