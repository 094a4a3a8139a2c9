"""Preference data as tokens, read as TRL reads it: prompts with chosen and rejected responses.

`preferences` reads a file in JSON lines or parquet with the tokenizer of a checkpoint.
"""

from flowlab.data.preferences import Pairs, preferences

__all__ = ["Pairs", "preferences"]
