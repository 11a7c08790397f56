"""The only folder that imports verl, Ray and vLLM. `compat` names every private verl symbol that it
leans on.
"""
