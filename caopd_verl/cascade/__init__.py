"""Routing between a small and a large model by the small model's confidence.

`caopd route` measures it on the rows of evaluations, `caopd proxy` does it live. The paper proposes
it (Appendix F) and leaves its validation to future work. `routing`, `paired_rows` and `measure`
need NumPy only, `proxy` needs the `proxy` extra, and nothing here needs torch.
"""
