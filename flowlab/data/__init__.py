"""Preference data as TRL reads it: prompts with chosen and rejected responses, as tokens.

`preferences` reads a file of JSON lines or parquet with the tokenizer of a checkpoint.
"""

from flowlab.data.preferences import Pairs, preferences

__all__ = ["Pairs", "preferences"]
