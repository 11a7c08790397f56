"""The progress bar of an evaluation."""

from __future__ import annotations

from caopd_verl.evaluation.rows.row import Row


class Progress:
    """A progress bar with rate and time left, and what the rows so far say.

    Args:
        total: rows in all.
        done: rows that are on disk already.
        shown: False draws nothing.
    """

    def __init__(self, total: int, done: int, *, shown: bool):
        # of the `eval` extra; `run` must be importable without it, for `caopd --help`
        from tqdm import tqdm

        self.correct = self.finished = self.failed = 0
        self._bar = tqdm(
            total=total, initial=done, unit="row", disable=not shown, dynamic_ncols=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, *rows: Row | None) -> None:
        """More rows; None where one failed.

        The rows of a batch come in one call: one by one, the bar would take the first for as slow
        as the batch and the others for instant.
        """
        for row in rows:
            if row is None:
                self.failed += 1
            else:
                self.finished += 1
                self.correct += bool(row["correct"])
        note = f"acc {self.correct / self.finished:.2f}" if self.finished else ""
        if self.failed:
            note += f", {self.failed} failed"
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(len(rows))
