"""Lightning: a ``Callback`` that monitors the gradient's noise."""

from typing import Any

from svag.diagnosis.monitoring.monitor import Monitor
from svag.errors import MissingPackage
from svag.integrations.figures import Waiting, check_options, destinations

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:  # the constructor says so
        Callback = object


class MonitorCallback(Callback):
    """Runs :class:`svag.Monitor` during ``trainer.fit``, and logs to the trainer's loggers.

        trainer = Trainer(callbacks=[MonitorCallback(every=50, batch_size=64)])
        trainer.fit(module, data)

    Figures are named ``svag/gamma_mean`` and so on; with several optimizers, those of the second
    are ``svag1/gamma_mean``. Their step is ``trainer.global_step``. Only the process of rank 0
    reads and logs. With ``gradient_clip_val`` the averages, and so the figures, are of clipped
    gradients.

    Args:
        options: of :class:`svag.Monitor`; ``by_layer`` is False unless given. Give ``batch_size``,
            over devices and accumulated batches, for the noise scale.

    Raises:
        MissingPackage: (an ImportError) lightning is not installed.
        UnknownOption: (a TypeError) an option that the monitor has not.
    """

    def __init__(self, **options: Any) -> None:
        if Callback is object:
            raise MissingPackage("this callback needs lightning; pip install 'svag[lightning]'")
        super().__init__()
        check_options(options)
        self._options = options
        self._waiting: list[Waiting] = []
        self.monitors: list[Monitor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to observe the trainer's optimizers."""
        if not trainer.is_global_zero:
            return
        for number, optimizer in enumerate(trainer.optimizers):
            waiting = Waiting(f"svag{number or ''}")
            options = destinations(self._options, waiting)
            self.monitors.append(Monitor(optimizer, model=pl_module, **options))
            self._waiting.append(waiting)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was read in the step."""
        for waiting in self._waiting:
            if figures := waiting.take():
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop observing."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop observing."""
        self._close()

    def _close(self) -> None:
        for monitor in self.monitors:
            monitor.close()
        self.monitors, self._waiting = [], []
