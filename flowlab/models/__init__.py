"""Language models from Hugging Face checkpoints, as functions of JAX, without torch.

`load` reads GPT-2 and the Llama family (Llama, Mistral, Qwen2). A loaded model has `.parameters`, a
PyTree of arrays, and `.apply(parameters, tokens)`, which returns logits.
"""

from flowlab.models.model import Model, load

__all__ = ["Model", "load"]
