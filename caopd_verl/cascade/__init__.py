"""Routing between a small and a large model by the small one's confidence: measured on rows, and live as a proxy.

The paper proposes it (Appendix F) and leaves its validation to future work. `routing`, `rows` and `measure` need NumPy
only, `proxy` needs the `proxy` extra, nothing here needs torch.
"""
