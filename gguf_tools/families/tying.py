"""Whether the token embedding and the output projection are tied (one matrix): the rule of all families.

As in transformers 5 (`tie_weights`): if the config ties them and one is missing, the other is used for both. If both are
present, they are tied if they are equal; otherwise each is used, whatever the config says.
"""

from __future__ import annotations

from gguf_tools.errors import CheckpointError
from gguf_tools.families.reading import Config, Inventory
from gguf_tools.sources.tying import TIE
from gguf_tools.tensors.base import Tensor, same_values


def embedding_and_output(
    inventory: Inventory, config: Config, embedding: str, output: str, key: str = TIE, *, by_values: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The embedding, shape (vocabulary, hidden), and the output projection of the same shape, or None if they are tied.

    `embedding` and `output` are the tensors' names, `key` is the config key. With `by_values`, for programs whose config
    does not mention tying and that save a tied matrix under both names, equal matrices are tied where the config does not
    say. Raises CheckpointError if one is missing and the config says that they are not tied.
    """
    unsaid = config.values.get(key) is None
    tied = not unsaid and config.flag(key, False)
    if embedding not in inventory and output in inventory and (tied or unsaid):
        if unsaid:
            config.note(f"{embedding} is missing and {config.path.name} does not give {key}: {output} is used for both")
        return inventory.take(output, None, None), None
    first = inventory.take(embedding, None, None)
    if output not in inventory:
        if not tied and not unsaid:
            raise CheckpointError(
                f"{inventory.path}: tensor {output} is missing, and {config.path.name} says that it is not tied to the "
                f"embedding; save the checkpoint again, or set {key} to true if it is"
            )
        if unsaid:
            config.note(f"{output} is missing and {config.path.name} does not give {key}: {embedding} is used for both")
        return first, None
    second = inventory.take(output, *first.shape)
    if second is first or ((tied or (by_values and unsaid)) and same_values(first, second)):
        config.note(f"{output} repeats the embedding; it is stored once")
        return first, None
    return first, second
