"""Loss terms: tensors in, per-token losses and readings out."""
