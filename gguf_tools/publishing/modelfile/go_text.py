"""Writes a layout as a Go text/template for Ollama.

It relies on these facts. Ollama's template/template.go: a template that mentions `.Messages` gets the whole conversation,
with adjacent messages of one role joined, and `.Think`, `.IsThinkSet`; each message has `.Role`, `.Content`, `.Thinking`.
thinking/template.go: a model counts as thinking if, inside a range over `.Messages`, the innermost list around `.Thinking`
begins and ends with text; these texts, trimmed, are the tags that separate thoughts from answers. server/routes.go: if a
conversation ends with an assistant's message, the model continues it, so no text may follow it. Go's text/template: `{{-`
trims all white space before it; variables can be reassigned inside a range.

Text is written unchanged; `{{-` is used only after a line break that belongs to the template's own formatting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from gguf_tools.publishing.modelfile.layout import ChatLayout, Turn, common_start

_TOKEN = re.compile(r'\{\{+|"""+|.', re.DOTALL)


def go_template(layout: ChatLayout) -> str:
    """The text of the Go template that renders what `layout.render` renders."""
    return "".join(_joined(_pieces(layout)))


class _Action(str):
    """The text between the braces of an action; a plain str is literal text."""


_END, _ELSE = _Action("end"), _Action("else")
_Piece = str | _Action


def _pieces(layout: ChatLayout) -> Iterator[_Piece]:
    """The template as literal text and actions: a loop over the messages with a branch per role, then the generation prompt."""
    yield _Action('$previous := ""')
    yield _Action("range $i, $_ := .Messages")
    yield _Action("$last := eq (len (slice $.Messages $i)) 1")
    keyword = "if"
    if layout.system:
        limits = " .Content" * layout.skips_empty_system + " (not $previous)" * (not layout.late_system)
        yield _Action(f'if and (eq .Role "system"){limits}' if limits else 'if eq .Role "system"')
        yield from _turn(layout.system, "system")
        keyword = "else if"
    yield _Action(f'{keyword} eq .Role "user"')
    yield from _turn(layout.user, "user")
    yield _Action('else if eq .Role "assistant"')
    yield from _assistant(layout)
    yield _END
    yield _END
    if any(layout.generation):
        yield _Action('if ne $previous "assistant"')
        yield from _generation(*layout.generation)
        yield _END


def _turn(turn: Turn, role: str) -> Iterator[_Piece]:
    yield from _opening(turn)
    yield _Action(".Content")
    yield turn.after
    yield _Action(f'$previous = "{role}"')


def _opening(turn: Turn) -> Iterator[_Piece]:
    texts = [turn.before, *(text for _, text in turn.special)]
    common = _common_end(texts)
    before, *rest = [text[: len(text) - len(common)] for text in texts]
    branches = [(_previous_is(previous), text) for (previous, _), text in zip(turn.special, rest, strict=True)]
    yield from _branches(branches, before)
    yield common


def _branches(branches: list[tuple[str, str]], otherwise: str) -> Iterator[_Piece]:
    """The text of the first branch whose condition holds, else `otherwise`."""
    if len(branches) == 1 and not branches[0][1]:
        branches, otherwise = [(_negated(branches[0][0]), otherwise)], ""
    for number, (condition, text) in enumerate(branches):
        yield _Action(("else if " if number else "if ") + condition)
        yield text
    if branches and otherwise:
        yield _ELSE
        yield otherwise
    if branches:
        yield _END


def _previous_is(role: str) -> str:
    return f'eq $previous "{role}"'


def _negated(condition: str) -> str:
    return "ne" + condition[2:] if condition.startswith("eq ") else f"not ({condition})"


def _assistant(layout: ChatLayout) -> Iterator[_Piece]:
    """An assistant's message: opening, thoughts, content, and the closing text unless the message is the last."""
    yield from _opening(layout.assistant)
    thoughts = layout.thoughts
    if thoughts:
        yield _Action("if .Thinking" if thoughts.always else "if and $last .Thinking")
        yield thoughts.open
        yield _Action(".Thinking")
        yield thoughts.close
        if thoughts.absent:
            yield _Action("else if $last")
            yield thoughts.absent
        yield _END
    yield _Action(".Content")
    if layout.assistant.after:
        yield _Action("if not $last")
        yield layout.assistant.after
        yield _END
    yield _Action('$previous = "assistant"')


def _generation(default: str, on: str, off: str) -> Iterator[_Piece]:
    """The generation prompt by the user's thinking option: not set (`default`), `on` or `off`, with the common start first."""
    common = common_start([default, on, off])
    default, on, off = (text[len(common) :] for text in (default, on, off))
    yield common
    if default == on == off:
        return
    is_off = "and .IsThinkSet (not .Think)"
    if default == on:
        yield from _branches([(is_off, off)], on)
    elif default == off:
        yield from _branches([(".Think", on)], off)
    else:
        yield from _branches([(is_off, off), (".Think", on)], default)


def _common_end(texts: list[str]) -> str:
    return common_start([text[::-1] for text in texts])[::-1]


def _joined(pieces: Iterable[_Piece]) -> Iterator[str]:
    after_text, at_start = False, True
    for piece in _escaped(pieces):
        if not isinstance(piece, _Action):
            yield piece
        elif after_text:
            yield "{{ " + piece + " }}"
        else:
            yield ("" if at_start else "\n") + "{{- " + piece + " }}"
        after_text, at_start = not isinstance(piece, _Action), False


def _escaped(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """Replaces text that Go or Ollama's Modelfile parser would misread by a Go string in an action.

    Source: ParseFile in Ollama's parser/parser.go silently drops characters for which strconv.IsPrint is false, and ends a
    quoted value at three quotes before a line break.
    """
    for piece in pieces:
        if isinstance(piece, _Action):
            yield piece
            continue
        for unsafe, run in groupby(_TOKEN.findall(piece), lambda token: len(token) > 1 or not is_kept(token)):
            text = "".join(run)
            plain = "" if unsafe else text.removesuffix("{")  # if an action follows, {{{ is parsed as {{ {
            if plain:
                yield plain
            if plain != text:
                yield _Action(_go_string(text[len(plain) :]))


def is_kept(character: str) -> bool:
    """Whether Ollama's Modelfile parser keeps a character inside triple quotes."""
    return character in "\n\t" or character.isprintable()


def _go_string(text: str) -> str:
    plain = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(plain.get(c) or (c if c.isprintable() else _go_escape(ord(c))) for c in text) + '"'


def _go_escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
