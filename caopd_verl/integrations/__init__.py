"""The metrics in other people's tools: torchmetrics, lm-evaluation-harness, inspect_ai, the hub's model cards.

The only folder that imports those packages, each in its own module. See docs/integrations.md.
"""
