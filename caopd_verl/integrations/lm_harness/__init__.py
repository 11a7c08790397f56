"""Tasks for lm-evaluation-harness, with the confidence instruction: SciKnowEval and own questions.

    lm_eval --include_path "$(python -m caopd_verl.integrations.lm_harness)" \\
            --tasks caopd_sciknoweval --metadata '{"caopd_data": "train.json"}' \\
            --model ... --apply_chat_template
"""

from pathlib import Path

FOLDER = Path(__file__).parent
