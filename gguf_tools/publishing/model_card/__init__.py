"""Model cards: what is known and what was measured of quantized files, as a README.md that the hub accepts.

`facts` gathers, `front_matter` and `page` write. Nothing is invented: what was not measured is left out.
"""

from gguf_tools.publishing.model_card.facts import CardFacts, CardFile, gather
from gguf_tools.publishing.model_card.page import card_page

__all__ = ["CardFacts", "CardFile", "card_page", "gather"]
