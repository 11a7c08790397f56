"""The metrics in other people's tools.

torchmetrics, lm-evaluation-harness, inspect_ai, and the model cards of the Hugging Face hub. The
only folder that imports those packages, each in its own module. See docs/integrations.md.
"""
