"""Hugging Face transformers: a ``TrainerCallback`` that monitors the gradient's noise."""

from typing import Any

from svag.diagnosis.monitoring.monitor import Monitor
from svag.errors import MissingPackage
from svag.integrations.figures import Waiting, check_options, destinations

try:
    from transformers import TrainerCallback
except ImportError:  # the constructor says so
    TrainerCallback = object


class MonitorCallback(TrainerCallback):
    """Runs :class:`svag.Monitor` during ``trainer.train()``, and logs by ``trainer.log``.

        trainer = Trainer(model, args, train_dataset=data)
        trainer.add_callback(MonitorCallback(trainer, every=50))
        trainer.train()

    Figures are named ``svag/gamma_mean`` and so on, and come in ``trainer.state.log_history`` and
    in whatever ``report_to`` names. Only the main process reads and logs. ``batch_size`` is the
    number of examples in a gradient, over devices and accumulation steps, if it is not given.

    ``Trainer`` clips gradients to ``max_grad_norm=1.0`` by default; the averages, and so the
    figures, are of clipped gradients then.

    Args:
        trainer: the one that the callback is added to.
        options: of :class:`svag.Monitor`; ``by_layer`` is False unless given.

    Raises:
        MissingPackage: (an ImportError) transformers is not installed.
        UnknownOption: (a TypeError) an option that the monitor has not.
    """

    def __init__(self, trainer: Any, **options: Any) -> None:
        if TrainerCallback is object:
            raise MissingPackage("this callback needs transformers; pip install 'svag[hf]'")
        check_options(options)
        self._trainer, self._options = trainer, options
        self._waiting = Waiting()
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to observe the trainer's optimizer."""
        if not state.is_world_process_zero:
            return
        examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        options = {"batch_size": examples, **destinations(self._options, self._waiting)}
        self.monitor = Monitor(kwargs["optimizer"], model=kwargs["model"], **options)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what was read in the step."""
        if figures := self._waiting.take():
            self._trainer.log(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop observing."""
        if self.monitor is not None:
            self.monitor.close()
