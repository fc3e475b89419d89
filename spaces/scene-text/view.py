"""What the page shows of a visit, as HTML without scripts. desk.js hears what is pressed, by its `data-act`."""

import html
from pathlib import Path

from PIL import Image
from visit import MOST_ENTRIES, Visit, Word, uri

from epigraph.reading import WordReading

MIN_SCORE = 0.5  # below it a reading is more often wrong than right
NO_WORD = (
    "<div class=answer><p class=soft>Upload or paste pictures of single words, or take examples. What they say, and "
    "how sure that is, appears here.</p></div>"
)
PRIVATE = (
    "Nobody else sees these. They are gone an hour after you leave or reload the page, so download them to keep them."
)


def said(message: str, wrong: bool = False) -> str:
    """A sentence about what was done, or could not be; screen readers say it."""
    kind = "class=alert role=alert" if wrong else "class=said"
    return f"<div role=status><p {kind}>{html.escape(message)}</p></div>" if message else "<div role=status></div>"


def percent(score: float) -> str:
    """A probability; never 0 or 100 % where it is neither."""
    if 0 < score < 0.005 or 0.995 < score < 1:
        return "< 1 %" if score < 0.5 else "> 99 %"
    return f"{100 * score:.0f} %"


def doubtful(reading: WordReading) -> bool:
    """Whether a reading is more often wrong than right."""
    return reading.score < MIN_SCORE


# ------------------------------------------------------------------------------------------------------------- words


def sources(examples: dict[str, list[Path]]) -> str:
    """Where words come from beside uploads: the clipboard, and examples by the name of their lettering."""
    items = ""
    for name, paths in examples.items():
        pictures = "".join(f"<img alt='' src='{uri(Image.open(path), (160, 48))}'>" for path in paths[:3])
        items += (
            f"<button type=button data-act=example value='{name}' aria-label='Examples: {name}'>"
            f"<span>{name.capitalize()}</span>{pictures}</button>"
        )
    return (
        "<div class=tools><button type=button data-act=paste>Paste a picture</button></div>"
        f"<div class=examples role=group aria-label=Examples>{items}</div>"
    )


def words(visit: Visit) -> str:
    """The words of a visit as buttons, each with what it is read as and, where that changed, what it was."""
    if not visit.words:
        return ""
    items = "".join(_word(visit, word) for word in visit.words)
    return f"<h2 class=part>Your words</h2><ul class=words>{items}</ul>"


def _word(visit: Visit, word: Word) -> str:
    label, reading = visit.label(word), word.reading
    text, marks = reading.text or "nothing", "doubtful" if doubtful(reading) else ""
    note = f"<small>{percent(reading.score)}</small>"
    if label is not None:
        text, note, marks = label, "<small>✓ in your pool</small>", "taught"
    elif word.before:
        note, marks = f"<small>was <del>{html.escape(word.before.text or 'nothing')}</del></small>", f"{marks} changed"
    return (
        f"<li><button type=button class='{marks}' data-act=choose value={word.number} "
        f"aria-pressed={str(word is visit.chosen).lower()} title='{html.escape(word.name)}'>"
        f"<img alt='' src='{uri(word.picture, (160, 48))}'><span>{html.escape(text)}</span>{note}</button></li>"
    )


# ------------------------------------------------------------------------------------------------------------- answer


def answer(visit: Visit) -> str:
    """The chosen word: what it says, how sure each character is, with which examples; and how to correct it."""
    word = visit.chosen
    if word is None:
        return NO_WORD
    reading = word.reading
    words = "Doubtful" if doubtful(reading) else "Probably right"
    return (
        f"<div class=answer data-word={word.number}>"
        f"<img class=picture alt='{html.escape(word.name)}' src='{uri(word.picture)}'>"
        f"<p class=text>{html.escape(reading.text) or '<i>nothing</i>'}</p>{_characters(reading)}"
        f"<p class=confidence><meter low=0.5 high=0.5 optimum=1 value={reading.score:.3f} aria-hidden=true></meter>"
        f"<span><b>{words}: {percent(reading.score)}</b> for the whole word.</span></p>"
        f"{_facts(visit, word)}{_correction(visit, word)}{_examples(visit, reading)}</div>"
    )


def _characters(reading: WordReading) -> str:
    """A bar for each character. A decoder of pieces of words has no probabilities of characters, so none is shown."""
    if not reading.text or len(reading.text) != len(reading.char_scores):
        return ""
    items = "".join(
        f"<li class={'unsure' if score < MIN_SCORE else 'sure'} style='--sure: {score:.3f}'><i></i>"
        f"<b>{'␣' if character.isspace() else html.escape(character)}</b><span>{percent(score)}</span></li>"
        for character, score in zip(reading.text, reading.char_scores)
    )
    return f"<ol class=chars aria-label='How sure each character is'>{items}</ol>"


def _facts(visit: Visit, word: Word) -> str:
    """What examples did to the reading, and what became of it since the pool changed."""
    reading, facts = word.reading, []
    if word.before:
        facts.append(f"Before your pool changed it was {_quoted(word.before)}.")
    if reading.examples and not (word.before and word.before.text == reading.plain_text):
        same = reading.plain_text == reading.text
        plain = f"the same, {percent(reading.plain_score)}" if same else _quoted(reading, plain=True)
        facts.append(f"Without examples: {plain}.")
    label = visit.label(word)
    if label is not None:
        facts.append(f"Your pool has this picture as <b>{html.escape(label)}</b>; it is never its own example.")
    return f"<p class=facts>{' '.join(facts)}</p>" if facts else ""


def _quoted(reading: WordReading, plain: bool = False) -> str:
    text, score = (reading.plain_text, reading.plain_score) if plain else (reading.text, reading.score)
    return f"<b>{html.escape(text) or 'nothing'}</b>, {percent(score)}"


def _correction(visit: Visit, word: Word) -> str:
    """Buttons with the best readings, and a field for any other text; each makes the word an example."""
    label, reading = visit.label(word), word.reading
    # None where it is an example already: a second click would teach what has come under the pointer.
    candidates = [] if label is not None else [one for one in reading.n_best if one.text.strip()]
    buttons = "".join(
        f"<button type=button data-act=teach value='{html.escape(one.text)}'>{html.escape(one.text)} "
        f"<small>{percent(one.score)}</small></button>"
        for one in candidates
    )
    asks = "What does it say? The picture becomes an example in your pool, and all your words are read anew."
    if label is not None:
        asks = "If that is not what it says, correct it again."
    return (
        f"<form class=correction data-act=teach><p>{asks}</p>"
        + (f"<div class=choices role=group aria-label='It says'>{buttons}</div>" if buttons else "")
        + f"<label>{'Something else' if buttons else 'It says'}<input name=value maxlength=48 autocomplete=off "
        f"value='{html.escape(label or reading.text)}' autocapitalize=off spellcheck=false></label>"
        "<button type=submit class=main>Correct</button></form>"
    )


def _examples(visit: Visit, reading: WordReading) -> str:
    """The examples that the word was read with, the most similar first."""
    if not reading.examples:
        why = "your pool has no other picture" if len(visit.pool) else "your pool is empty"
        why = "no examples are asked for" if visit.k == 0 else why
        return f"<section class=used><h2 class=part>Read without examples</h2><p class=soft>Since {why}.</p></section>"
    items = "".join(
        f"<li><img alt='' src='{uri(example.image, (240, 72))}'><b>{html.escape(example.text)}</b>"
        f"<span>likeness {example.similarity:.2f}</span></li>"
        for example in reading.examples
    )
    return f"<section class=used><h2 class=part>Read with these examples</h2><ol>{items}</ol></section>"


# --------------------------------------------------------------------------------------------------------------- pool


def pool(visit: Visit | None) -> str:
    """The visitor's examples, each with a button that takes it out, and what can be done to all of them."""
    entries = visit.entries if visit else []
    items = "".join(
        f"<li><img alt='' src='{thumbnail}'><span>{html.escape(text)}</span><button type=button data-act=remove "
        f"value={name} aria-label='Remove {html.escape(text)}'>×</button></li>"
        for name, text, thumbnail in reversed(entries)
    )
    count = len(entries)
    number = "It is empty." if not count else f"{count} of {MOST_ENTRIES} words."
    listed = f"<ul class=pool>{items}</ul>" if items else ""
    return (
        f"<h2 class=part>Your pool</h2><p class=soft>{number} {PRIVATE}</p><div class=tools>"
        f"{_tool('download', 'Download', not count)}{_tool('upload', 'Add from a file')}"
        f"{_tool('undo', 'Undo', not (visit and visit.can_undo))}{_tool('clear', 'Empty it', not count)}</div>{listed}"
    )


def _tool(act: str, name: str, disabled: bool = False) -> str:
    # Not `disabled`: a button that has the focus would lose it.
    return f"<button type=button data-act={act} aria-disabled={str(disabled).lower()}>{name}</button>"
