"""The card's usage section: commands and code with the files' names, sampling settings and chat modes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from gguf_tools.evaluation.card.results import outcomes_of
from gguf_tools.publishing.model_card.facts import CardFacts
from gguf_tools.publishing.model_card.published import Published
from gguf_tools.text import for_markdown

_STORY = "Once upon a time"
_GREETING = "Hello!"


def usage(facts: CardFacts, show_modelfile: bool, published: Published | None = None) -> str:
    """The usage section, for the first file or the one that `published` chooses.

    Files on the hub are named by their repository and tag. `show_modelfile` includes the Modelfile's text, if the card's folder
    has none.
    """
    file = facts.files[published.chosen if published else 0]
    name, context = file.place, file.memory.context
    hub = f"{published.repository}:{published.tags[published.chosen]}" if published and published.repository else None
    model = f"-hf {hub} -c {context}" if hub else _model(name, context)
    return "\n".join(
        [
            "## Usage\n",
            *_choice(facts, published),
            *_with_llama_cpp(facts, model),
            *_thinking(facts, model),
            *_with_python(facts, name, context, published.repository if published else None),
            *_with_ollama(facts, show_modelfile, hub, published),
            *(_with_lm_studio(published.repository) if published and published.repository else ()),
        ]
    )


def _choice(facts: CardFacts, published: Published | None) -> Iterator[str]:
    """Which file the commands use, if there are several."""
    if published and len(facts.files) > 1:
        other = "another tag of the table" if published.repository else "another file's name"
        yield f"The commands use {for_markdown(facts.files[published.chosen].label)}; put {other} in its place.\n"


def _with_llama_cpp(facts: CardFacts, model: str) -> Iterator[str]:
    yield (
        "With llama.cpp, which takes the sampling settings from the file:\n" if facts.sampling else "With llama.cpp:\n"
    )
    plain = f'llama-completion {model} -p "{_STORY}"'
    yield _block("bash", [_chat_command(model) if facts.modes.template else plain])


def _thinking(facts: CardFacts, model: str) -> Iterator[str]:
    """How to ask with and without thinking, as the chat template allows, and what was measured of it."""
    modes = facts.modes
    if modes.switch and modes.thinking:
        for on, title in ((True, "With thinking"), (False, "Without thinking")):
            setting = json.dumps({modes.key: on})
            yield f"### {title}\n"
            yield _block("bash", [f"{_chat_command(model)} --chat-template-kwargs {shlex.quote(setting)}"])
            request = json.dumps(
                {"messages": [{"role": "user", "content": _GREETING}], "chat_template_kwargs": {modes.key: on}}
            )
            yield "In a request to llama-server's `/v1/chat/completions`:\n"
            yield _block("json", [request])
            yield from _measured_thinking(facts, "thinking" if on else "non_thinking")
    elif modes.opened or modes.undecided:
        yield "### Thinking\n"
        tags = f"`{modes.tags.open}` and `{modes.tags.close}`" if modes.tags else "its tags"
        always = "always asks for" if modes.opened else "leaves it to the model whether it writes"
        yield f"The chat template {always} a thought, between {tags}, before the answer; it has no switch.\n"
        yield from _measured_thinking(facts, "thinking")


_WORKS = {"thinking": "a closed thought and then an answer", "non_thinking": "an answer and no thought"}


def _measured_thinking(facts: CardFacts, part: str) -> Iterator[str]:
    """For each file that was asked in this mode: how many answers have its form."""
    counts = [
        f"{sum(right)} of {len(right)}" + (f" ({for_markdown(file.label)})" if len(facts.files) > 1 else "")
        for file in facts.files
        if file.measured.card and (right := outcomes_of(file.measured.card)[part])
    ]
    if counts:
        yield f"Measured: answers with {_WORKS[part]}: {', '.join(counts)}.\n"


def _chat_command(model: str) -> str:
    return f"llama-cli {model} --jinja"


def _model(name: str, context: int) -> str:
    return f"-m {shlex.quote(f'./{name}' if name.startswith('-') else name)} -c {context}"


def _with_python(facts: CardFacts, name: str, context: int, repository: str | None) -> Iterator[str]:
    """An example for llama-cpp-python, `name` being the file, in `repository` if given, and `context` the length in tokens."""
    settings = "".join(f", {key}={value:g}" for key, value in facts.sampling.items())
    opened = f"Llama({json.dumps(name)}, n_ctx={context})"
    if repository:
        opened = f"Llama.from_pretrained({json.dumps(repository)}, filename={json.dumps(name)}, n_ctx={context})"
    lines = ["from llama_cpp import Llama", "", f"model = {opened}"]
    if facts.modes.template:
        question = json.dumps(_question(facts), ensure_ascii=False)
        lines += [
            f'messages = [{{"role": "user", "content": {question}}}]',
            f"answer = model.create_chat_completion(messages{settings})",
            'print(answer["choices"][0]["message"]["content"])',
        ]
    else:
        lines += [f'print(model("{_STORY}"{settings})["choices"][0]["text"])']
    yield "With llama-cpp-python:\n"
    yield _block("python", lines)


def _with_ollama(facts: CardFacts, show_modelfile: bool, hub: str | None, published: Published | None) -> Iterator[str]:
    """The commands for Ollama: straight from the hub, and from the files with their Modelfile."""
    tag = _tag(facts.name)
    modelfile = published.modelfiles[published.chosen] if published else "Modelfile"
    yield "With Ollama:\n"
    if hub:
        yield _block("bash", [f"ollama run hf.co/{hub}"])
        yield "or, with the Modelfile here, which has the template and the sampling settings:\n"
    yield _block("bash", [f"ollama create {tag} -f {shlex.quote(modelfile)}", f"ollama run {tag}"])
    if show_modelfile:
        yield "where `Modelfile` is\n"
        yield _block("", facts.modelfile.text.splitlines())


def _with_lm_studio(repository: str) -> Iterator[str]:
    yield "With LM Studio, by its search for the repository's name or by its command line, which asks for the file:\n"
    yield _block("bash", [f"lms get https://huggingface.co/{repository}"])


def _question(facts: CardFacts) -> str:
    """The first question that a file answered right, or a greeting if there is none."""
    cards = [file.measured.card for file in facts.files if file.measured.card]
    return next((item.question for card in cards for item in card.answers if item.right), _GREETING)


def _block(language: str, lines: list[str]) -> str:
    """A fenced code block, with a fence longer than any in `lines`."""
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return "\n".join([fence + language, *lines, fence, ""])


def _tag(name: str) -> str:
    """The name converted to one that Ollama accepts for a model."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower())
    return kept.strip("._-") or "model"
