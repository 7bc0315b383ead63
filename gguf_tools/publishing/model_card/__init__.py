"""Model cards: a README.md for the hub with facts about quantized files and measurements of them.

`facts` collects them, `front_matter` and `page` write them. Values that were not measured are omitted.
"""

from gguf_tools.publishing.model_card.facts import CardFacts, CardFile, gather
from gguf_tools.publishing.model_card.page import card_page

__all__ = ["CardFacts", "CardFile", "card_page", "gather"]
