"""Lightning: callbacks for the within-batch variance, and to monitor the gradient's noise."""

import warnings
from typing import Any, Literal

from svag.diagnosis.monitoring.monitor import Monitor
from svag.errors import InvalidOption, MissingPackage
from svag.integrations.figures import (
    Waiting,
    check_options,
    check_variance_options,
    destinations,
)
from svag.integrations.loaders import check_last_step, warn_of_unused
from svag.variance.micro_batches import micro_batch_variance
from svag.variance.per_example import within_batch_variance

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
        if not trainer.loggers and not self._options.get("to"):
            warnings.warn(
                "the trainer has no logger, so the monitor's figures go nowhere; give the callback "
                "to=, such as a path, or the trainer a logger",
                UserWarning,
                stacklevel=2,
            )
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


class VarianceCallback(Callback):
    """Gives every gradient its within-batch variance during ``trainer.fit``.

        optimizer = svag.MSVAG(self.parameters(), lr=0.1, variance="within-batch")  # in the module
        Trainer(callbacks=[VarianceCallback()]).fit(module, data)

    ``gradient_clip_val``, ``precision="bf16-mixed"`` and ``accumulate_grad_batches`` keep the
    variance right. With accumulation the variances of the mini-batches add up.

    With manual optimization, open :class:`svag.within_batch_variance` around forward pass and
    ``self.manual_backward`` yourself; with Fabric, around ``fabric.backward``.

    Args:
        variance_from: ``"examples"`` follows the examples through the module
            (:class:`svag.within_batch_variance`); ``"micro-batches"`` takes the variance over
            ``accumulate_grad_batches`` (:class:`svag.micro_batch_variance`), two or more in every
            step, for models that cannot be followed.
        options: of :class:`svag.within_batch_variance`, such as ``examples="x"``.

    Raises:
        MissingPackage: (an ImportError) lightning is not installed.
        UnknownOption: (a TypeError) an option that :class:`svag.within_batch_variance` has not.
        InvalidOption: (a ValueError) ``variance_from`` is none of the two, or has options it does
            not take; or, when training begins, the module optimizes by hand or a step accumulates
            nothing.
        PerExampleError: (a RuntimeError) the model cannot be followed.
        TooFewSamples: (a RuntimeError) a step had one example, or one micro-batch.
    """

    def __init__(
        self, variance_from: Literal["examples", "micro-batches"] = "examples", **options: Any
    ) -> None:
        if Callback is object:
            raise MissingPackage("this callback needs lightning; pip install 'svag[lightning]'")
        super().__init__()
        if variance_from not in ("examples", "micro-batches"):
            raise InvalidOption(
                f"variance_from={variance_from!r}: choose 'examples' or 'micro-batches'"
            )
        if options and variance_from == "micro-batches":
            raise InvalidOption(f"{', '.join(options)}: micro-batches take no options")
        check_variance_options(options)
        self._micro, self._options = variance_from == "micro-batches", options
        self._context: within_batch_variance | None = None
        self._micro_batches: micro_batch_variance | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot work."""
        if not pl_module.automatic_optimization:
            raise InvalidOption(
                "this module optimizes by hand: leave the callback out, and open "
                "svag.within_batch_variance(self) around forward pass and self.manual_backward"
            )
        if self._micro and trainer.accumulate_grad_batches < 2:
            raise InvalidOption(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}: a variance over "
                "micro-batches takes two or more"
            )
        warn_of_unused(trainer.optimizers)
        check_last_step(
            trainer.train_dataloader,
            micro_batches=self._micro,
            accumulated=trainer.accumulate_grad_batches,
            steps=trainer.max_steps,
            batches=trainer.num_training_batches,
        )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the forward and backward pass from here on."""
        if not self._micro:
            self._context = within_batch_variance(pl_module, **self._options).start()
        elif self._micro_batches is None:
            self._micro_batches = micro_batch_variance(pl_module.parameters())

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Take the gradients in."""
        self._stop()
        if self._micro_batches is not None:
            self._micro_batches.micro_step()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Set the variances; clipping comes afterwards."""
        if self._micro_batches is not None:
            micro_batches, self._micro_batches = self._micro_batches, None
            micro_batches.finish()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop following, where a training step skipped its batch."""
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop following."""
        self._stop()
        self._micro_batches = None

    def _stop(self) -> None:
        if self._context is not None:
            self._context.stop()
            self._context = None
