"""Rows, readouts, metrics, intervals, plots and reports: without verl or Ray, files without torch."""
