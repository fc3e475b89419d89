"""The grammar of LaTeX token sequences that CoMER may write: braces balanced, every command with its groups.

A pushdown automaton over token ids, in both reading directions. All rows of a search advance together: their states
are small integer tensors, their moves table look-ups.
"""

import re
from dataclasses import dataclass

import torch

# Commands of handwritten-formula vocabularies, by the groups they take.
_ONE_GROUP = (
    "hat widehat bar vec dot ddot dddot tilde widetilde check acute grave overline underline overbrace underbrace "
    "overrightarrow overleftarrow boxed textcircled mathrm mathbf mathbb mathcal mathit mathsf text textbf textrm "
    "operatorname xrightarrow xleftarrow cancel phantom"
).split()
_TWO_GROUPS = "frac dfrac tfrac cfrac binom dbinom tbinom overset underset stackrel".split()
_MAX_DEPTH = 32  # open groups; real formulas stay under ten

# What may come next. Left to right:
(
    _FREE,  # anything
    _FRESH,  # anything but the end of the group that has just begun
    _GROUP,  # one group
    _GROUPS,  # two groups
    _ROOT,  # a group, or an index in brackets and then a group
    _SCRIPT,  # a sub- or superscript
    # Right to left, where a group is read before the command that owns it:
    _R_FREE,
    _R_FRESH,
    _R_SCRIPTED,  # anything, or what stands only before scripts (\limits)
    _R_OWNER,  # what owns the group just read: a command, an index bracket, or the first of two groups
    _R_TWO,  # the command of two groups
    _R_ROOT,  # the root that owns the index just read
) = range(12)
# What is open: nothing; a last group, a group with another to follow, an index; the same three right to left.
_NOTHING, _LAST, _FIRST, _INDEX, _R_LAST, _R_FIRST, _R_INDEX = range(7)

# The fewest tokens that lead from each expectation back to `free`, and from inside each open group out of it. No
# group is empty: no caption of the field has one.
_EXPECTATION_COST = [0, 1, 3, 6, 3, 4, 0, 1, 0, 1, 1, 1]
_FRAME_COST = [0, 1, 4, 4, 2, 2, 2]
_NEVER = 10_000


def grammar_from_vocabulary(vocabulary: dict[str, int]) -> dict[str, int | list[int]] | None:
    r"""Finds the tokens that have a grammatical role; the result goes into `CoMERConfig.grammar`.

    Args:
        vocabulary: token to id, LaTeX commands with their backslash.

    Returns:
        Ids: `open` and `close` brace, `scripts` (`^`, `_`), `before_scripts` (`\limits`), commands of `one` and of
        `two` groups, `root` (`\sqrt`) with `index_open` and `index_close` (brackets), and `banned` (tokens in angle
        brackets). None for a vocabulary that has no braces or nothing that takes a group, such as one of characters.
    """

    def ids(tokens):
        return [vocabulary[token] for token in tokens if token in vocabulary]

    grammar = {
        "scripts": ids(["^", "_"]),
        "before_scripts": ids(["\\limits", "\\nolimits"]),
        "one": ids("\\" + name for name in _ONE_GROUP),
        "two": ids("\\" + name for name in _TWO_GROUPS),
        "root": ids(["\\sqrt"]),
        "banned": [index for token, index in vocabulary.items() if re.fullmatch(r"<.+>", token)],
    }
    if not ids("{}")[1:] or not grammar["scripts"] + grammar["one"] + grammar["root"]:
        return None
    grammar.update(open=vocabulary["{"], close=vocabulary["}"])
    if grammar["root"] and ids("[]")[1:]:
        grammar.update(index_open=vocabulary["["], index_close=vocabulary["]"])
    if not grammar["scripts"]:
        grammar["banned"] += grammar.pop("before_scripts")
        grammar["before_scripts"] = []
    return grammar


@dataclass
class CoMERGrammarState:
    """Where each row stands in the grammar; all (..., ) int64 but `stack` (..., depth)."""

    expectation: torch.Tensor
    stack: torch.Tensor
    depth: torch.Tensor
    debt: torch.Tensor

    def frame(self) -> torch.Tensor:
        """What is open innermost."""
        return self.stack.gather(-1, self.depth[..., None]).squeeze(-1)

    def select(self, index: torch.Tensor) -> "CoMERGrammarState":
        """The states at the positions `index` of the flattened leading dimensions, in its shape."""
        leading = self.depth.ndim
        return CoMERGrammarState(
            self.expectation.flatten()[index],
            self.stack.flatten(0, leading - 1)[index],
            self.depth.flatten()[index],
            self.debt.flatten()[index],
        )


class CoMERGrammar:
    """Tables of the automaton.

    Args:
        roles: what `grammar_from_vocabulary` gave.
        vocab_size: number of tokens; ids without a role are ordinary symbols.
        device: where the tables and the states live.
    """

    def __init__(self, roles: dict[str, int | list[int]], vocab_size: int, device: torch.device | str = "cpu"):
        shape = (len(_EXPECTATION_COST), len(_FRAME_COST), vocab_size)
        self.cost = torch.full(shape, _NEVER, dtype=torch.int64)  # change of debt, _NEVER where a token is forbidden
        self.next = torch.zeros(shape, dtype=torch.int64)
        self.push = torch.zeros(shape, dtype=torch.int64)
        self.pop = torch.zeros(shape, dtype=torch.int64)
        roles = {name: [ids] if isinstance(ids, int) else ids for name, ids in roles.items()}
        biggest = max((max(ids) for ids in roles.values() if ids), default=0)
        if biggest >= vocab_size:
            raise ValueError(f"The grammar names token {biggest}, but the vocabulary has only {vocab_size} tokens.")
        opening, closing = roles.get("index_open", []), roles.get("index_close", [])
        role_ids = {i for name, ids in roles.items() if not name.startswith("index") for i in ids}
        ordinary = [i for i in range(vocab_size) if i not in role_ids]
        for frame in range(len(_FRAME_COST)):
            self._left_to_right(frame, roles, ordinary, opening, closing)
            self._right_to_left(frame, roles, ordinary, opening, closing)
        # Tokens that lead to one more open group than now; where the stack is full they are out.
        opens = (self.push > 0) | (self.next >= _GROUP) & (self.next <= _SCRIPT)
        self.cost_when_full = self.cost.masked_fill(opens & (self.pop == 0), _NEVER)
        for name in ("cost", "cost_when_full", "next", "push", "pop"):
            setattr(self, name, getattr(self, name).to(device))

    def _rule(self, expectation, frame, tokens, to, push=0, pop=0):
        if tokens:
            at = (expectation, frame, torch.tensor(tokens))
            change = _EXPECTATION_COST[to] - _EXPECTATION_COST[expectation] + _FRAME_COST[push]
            self.cost[at] = change - (_FRAME_COST[frame] if pop else 0)
            self.next[at], self.push[at], self.pop[at] = to, push, pop

    def _left_to_right(self, frame, roles, ordinary, opening, closing):
        for expectation in (_FREE, _FRESH):
            # In an index the brackets are its end, elsewhere symbols like others.
            inside = [i for i in ordinary if i not in opening + closing] if frame == _INDEX else ordinary
            self._rule(expectation, frame, inside, _FREE)
            self._rule(expectation, frame, roles["one"] + roles["scripts"], _GROUP)
            self._rule(expectation, frame, roles["two"], _GROUPS)
            self._rule(expectation, frame, roles["root"], _ROOT)
            self._rule(expectation, frame, roles["before_scripts"], _SCRIPT)
        if frame == _LAST:
            self._rule(_FREE, frame, roles["close"], _FREE, pop=1)
        elif frame == _FIRST:
            self._rule(_FREE, frame, roles["close"], _GROUP, pop=1)
        elif frame == _INDEX:
            self._rule(_FREE, frame, closing, _GROUP, pop=1)
        self._rule(_GROUP, frame, roles["open"], _FRESH, push=_LAST)
        self._rule(_GROUPS, frame, roles["open"], _FRESH, push=_FIRST)
        self._rule(_ROOT, frame, roles["open"], _FRESH, push=_LAST)
        self._rule(_ROOT, frame, opening, _FRESH, push=_INDEX)
        self._rule(_SCRIPT, frame, roles["scripts"], _GROUP)

    def _right_to_left(self, frame, roles, ordinary, opening, closing):
        for expectation in (_R_FREE, _R_FRESH, _R_SCRIPTED):
            inside = [i for i in ordinary if i not in opening + closing] if frame == _R_INDEX else ordinary
            self._rule(expectation, frame, inside, _R_FREE)
            self._rule(expectation, frame, roles["close"], _R_FRESH, push=_R_LAST)
        for expectation in (_R_FREE, _R_SCRIPTED):
            if frame == _R_LAST:
                self._rule(expectation, frame, roles["open"], _R_OWNER, pop=1)
            elif frame == _R_FIRST:
                self._rule(expectation, frame, roles["open"], _R_TWO, pop=1)
            elif frame == _R_INDEX:
                self._rule(expectation, frame, opening, _R_ROOT, pop=1)
        self._rule(_R_SCRIPTED, frame, roles["before_scripts"], _R_FREE)
        self._rule(_R_OWNER, frame, roles["one"] + roles["root"], _R_FREE)
        self._rule(_R_OWNER, frame, roles["scripts"], _R_SCRIPTED)
        self._rule(_R_OWNER, frame, closing, _R_FRESH, push=_R_INDEX)
        if roles["two"]:
            self._rule(_R_OWNER, frame, roles["close"], _R_FRESH, push=_R_FIRST)
        self._rule(_R_TWO, frame, roles["two"], _R_FREE)
        self._rule(_R_ROOT, frame, roles["root"], _R_FREE)

    def start(self, backwards: torch.Tensor) -> CoMERGrammarState:
        """States before the first token; `backwards` (...,) bool, True where the row reads right to left."""
        zeros = torch.zeros_like(backwards, dtype=torch.int64)
        stack = zeros[..., None].expand(*zeros.shape, _MAX_DEPTH + 1).contiguous()
        return CoMERGrammarState(torch.where(backwards, _R_FREE, _FREE), stack, zeros, zeros)

    def allowed(self, state: CoMERGrammarState, budget: int) -> torch.Tensor:
        """(..., vocab_size) bool: tokens after which at most `budget` more are needed to complete the formula."""
        at = (state.expectation, state.frame())
        full = (state.depth == _MAX_DEPTH)[..., None]
        cost = torch.where(full, self.cost_when_full[at], self.cost[at])
        return state.debt[..., None] + cost <= min(budget, _NEVER // 2)

    def complete(self, state: CoMERGrammarState) -> torch.Tensor:
        """(...,) bool: whether the formula may end here."""
        return state.debt == 0

    def advance(self, state: CoMERGrammarState, tokens: torch.Tensor) -> CoMERGrammarState:
        """States after `tokens` (...,), which must be allowed (a forbidden one leaves a state of no meaning)."""
        at = (state.expectation, state.frame(), tokens)
        push = self.push[at]
        depth = (state.depth - self.pop[at] + (push > 0).long()).clamp(0, _MAX_DEPTH)
        stack = state.stack.clone()
        written = torch.where(push > 0, push, stack.gather(-1, depth[..., None]).squeeze(-1))
        stack.scatter_(-1, depth[..., None], written[..., None])
        return CoMERGrammarState(self.next[at], stack, depth, state.debt + self.cost[at])


__all__ = ["CoMERGrammar", "CoMERGrammarState", "grammar_from_vocabulary"]
