"""Hugging Face transformers: the within-batch variance in a ``Trainer``, and a monitor.

Everything that derives from ``transformers.Trainer`` works, TRL's trainers among them.
"""

from collections.abc import Mapping
from typing import Any

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
        trainer: the one that the callback is added to; ``callbacks=`` of a trainer cannot have it.
        options: of :class:`svag.Monitor`; ``by_layer`` is False unless given.

    Raises:
        MissingPackage: (an ImportError) transformers is not installed.
        UnknownOption: (a TypeError) an option that the monitor has not.
        InvalidOption: (a ValueError) there is no trainer.
    """

    def __init__(self, trainer: Any = None, **options: Any) -> None:
        if TrainerCallback is object:
            raise MissingPackage("this callback needs transformers; pip install 'svag[hf]'")
        if not hasattr(trainer, "log"):
            raise InvalidOption(
                "this callback logs by its trainer: make the trainer without it, then "
                "trainer.add_callback(MonitorCallback(trainer, ...))"
            )
        check_options(options)
        self._trainer, self._options = trainer, options
        self._waiting = Waiting()
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to observe the trainer's optimizer."""
        if not state.is_world_process_zero:
            return
        if self.monitor is not None:  # of a training that an error has ended
            self.monitor.close()
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


class VarianceMixin:
    """Gives every gradient of a ``Trainer`` its within-batch variance.

        class MyTrainer(VarianceMixin, Trainer): ...

        optimizer = svag.MSVAG(model.parameters(), lr=0.1, variance="within-batch")
        MyTrainer(model, args, train_dataset=data, optimizers=(optimizer, None)).train()

    The trainer's clipping (``max_grad_norm``), loss scaling and gradient accumulation keep the
    variance right. With accumulation the variances of the mini-batches add up.

    Attributes:
        variance_from: ``"examples"`` follows the examples through the model
            (:class:`svag.within_batch_variance`); ``"micro-batches"`` takes the variance over the
            ``gradient_accumulation_steps`` (:class:`svag.micro_batch_variance`), two or more in
            every step, for models that cannot be followed.
        variance_options: of :class:`svag.within_batch_variance`, such as ``{"examples": "x"}``.

    Raises:
        InvalidOption: (a ValueError) the mixin stands behind the trainer; or, when training begins,
            ``variance_from`` is none of the two, or a step has nothing to accumulate over.
        PerExampleError: (a RuntimeError) the model cannot be followed.
        TooFewSamples: (a RuntimeError) a step had one example, or one micro-batch.
    """

    variance_from: str = "examples"
    variance_options: Mapping[str, Any] = {}
    _micro_batches: micro_batch_variance | None = None
    _is_used = False  # whether the optimizer has been looked at

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for kind in cls.__mro__[: cls.__mro__.index(VarianceMixin)]:
            if "training_step" in vars(kind) and not issubclass(kind, VarianceMixin):
                raise InvalidOption(
                    f"{cls.__name__}: {kind.__name__} comes before VarianceMixin, so that its "
                    f"training_step is the one that runs; write "
                    f"class {cls.__name__}(VarianceMixin, {kind.__name__})"
                )

    def get_train_dataloader(self) -> Any:
        """Return the trainer's own, and look whether every step will have a variance."""
        loader = super().get_train_dataloader()  # type: ignore[misc]
        args = self.args  # type: ignore[attr-defined]
        if self.variance_from != "examples":
            self._check_micro_batches()
        check_last_step(
            loader,
            micro_batches=self.variance_from == "micro-batches",
            accumulated=args.gradient_accumulation_steps,
            steps=args.max_steps,
        )
        return loader

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Take one forward and backward pass, and estimate the variance."""
        if not self._is_used:
            warn_of_unused([self.optimizer])  # type: ignore[attr-defined]
            self._is_used = True
        step = super().training_step  # type: ignore[misc]
        if self.variance_from == "examples":
            check_variance_options(self.variance_options)
            with within_batch_variance(model, **self.variance_options):
                return step(model, inputs, *args, **kwargs)
        micro_batches = self._micro_batches or micro_batch_variance(model.parameters())
        self._micro_batches = None  # unless this one ends well
        loss = step(model, inputs, *args, **kwargs)
        micro_batches.micro_step()
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            micro_batches.finish()
        else:
            self._micro_batches = micro_batches
        return loss

    def _check_micro_batches(self) -> None:
        if self.variance_from != "micro-batches":
            raise InvalidOption(
                f"variance_from={self.variance_from!r}: choose 'examples' or 'micro-batches'"
            )
        steps = self.args.gradient_accumulation_steps  # type: ignore[attr-defined]
        if steps < 2:
            raise InvalidOption(
                f"gradient_accumulation_steps={steps}: a variance over micro-batches takes two or "
                "more"
            )
