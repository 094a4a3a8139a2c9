"""Language models from Hugging Face checkpoints, as functions of JAX, without torch.

`load` reads GPT-2 and the Llama family (Llama, Mistral, Qwen2); what comes back has `.parameters`,
a PyTree of arrays, and `.apply(parameters, tokens)`, which gives logits.
"""

from flowlab.models.model import Model, load

__all__ = ["Model", "load"]
