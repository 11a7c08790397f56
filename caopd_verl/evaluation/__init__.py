"""Calibration metrics, plots and the expected-confidence readout. Needs NumPy, matplotlib for plots, never torch."""
