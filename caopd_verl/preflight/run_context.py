"""What the checks look at: a run's config, and what it names, loaded once and only if asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from caopd_verl.config import CaopdConfig
from caopd_verl.preflight import model_files
from caopd_verl.preflight.questions import Questions, load_questions

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Context:
    """A composed config and what it names. Nothing here changes the config or writes a file.

    What cannot be loaded raises the error that names its key, at each access; so a check that needs
    it states so in the table (`Check.needs`), and the error is reported once.

    Args:
        config: as `compose` makes it; paths need not be resolved.
    """

    def __init__(self, config: DictConfig):
        self.config = config

    @cached_property
    def caopd(self) -> CaopdConfig:
        """The `caopd` block as an instance of its schema; unknown keys are attributes too."""
        from omegaconf import OmegaConf  # here, so that checks can be listed without it

        block: Any = OmegaConf.to_object(self.config.caopd)
        return block

    @property
    def rollouts_per_prompt(self) -> int:
        """K."""
        return self.config.actor_rollout_ref.rollout.n

    @property
    def ranks(self) -> int:
        """Processes that train, over all nodes."""
        return self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes

    @cached_property
    def model_path(self) -> str:
        """An absolute folder, or a hub id. Raises `ConfigError`."""
        return model_files.resolve_model_path(self.config.actor_rollout_ref.model.path)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer. Raises `ConfigError`."""
        return model_files.load_tokenizer(
            self.model_path, trust_remote_code=self._trust_remote_code
        )

    @cached_property
    def vocabulary_size(self) -> int:
        """Tokens that the student has logits for. Raises `ConfigError`."""
        return model_files.load_vocabulary_size(
            self.model_path, trust_remote_code=self._trust_remote_code
        )

    @cached_property
    def questions(self) -> Questions:
        """The questions to train and validate on. Raises `ConfigError` and `DataError`."""
        return load_questions(self.caopd.task)

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the chat template is given beside the messages, such as `enable_thinking`."""
        return dict(self.config.data.apply_chat_template_kwargs or {})

    @property
    def _trust_remote_code(self) -> bool:
        return self.config.actor_rollout_ref.model.trust_remote_code
