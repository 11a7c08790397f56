"""Calibration metrics, plots and the expected-confidence readout. Needs NumPy, and matplotlib for plots; never torch."""
