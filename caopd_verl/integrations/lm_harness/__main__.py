"""Prints the folder for `lm_eval --include_path`."""

from caopd_verl.integrations.lm_harness import FOLDER

print(FOLDER)
