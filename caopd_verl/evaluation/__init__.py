"""Rows, readouts, metrics, intervals, plots, reports: without verl or Ray, files without torch."""
