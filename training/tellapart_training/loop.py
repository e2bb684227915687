"""The loop under every stage, over Accelerate: accumulate, clip, schedule, average, save, resume.

Simplified on purpose: the learning rate is a function of the step, randomness is keyed by seed and step, and
batches are a function of (epoch, step). What a run does next thus follows from the weights, the optimizer
and one number, which is all that a state holds; a run that was killed and resumed writes the losses of one
that was not, bit for bit on one CPU process. The order at the end of an epoch is: log, evaluate, save state.
A state therefore implies that the evaluation before it was done.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tellapart.doctor import examine_machine
from tellapart.errors import ConfigError
from tellapart_training.augment import keyed_generator
from tellapart_training.config import TrainConfig
from tellapart_training.optimisation import WeightAverage, lr_share, make_optimizer, set_training
from tellapart_training.run_folder import Progress, RunFolder, duration
from tellapart_training.state import (
    copy_tensors,
    flatten_optimizer,
    load_newest_state,
    named_tensors,
    recover_folder,
    replace_folder,
    restore_optimizer,
    save_state,
)
from tellapart_training.stopwatch import Stopwatch

# Processors that multiply in bf16; others only emulate it. "bf16" is how Linux names it on ARM.
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


class Stage(Protocol):
    """What a stage gives the loop."""

    name: str
    selection: str
    """Name of the evaluation figure that picks the best epoch."""
    higher_is_better: bool

    @property
    def steps_per_epoch(self) -> int | Sequence[int]:
        """Steps of an epoch; a sequence where epochs differ, one number for each."""

    @property
    def network(self) -> nn.Module:
        """The networks; their weights are saved and averaged."""

    @property
    def objective(self) -> nn.Module:
        """Takes a batch, returns scalars by name; "loss" is minimised. Holds `network`."""

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """This process's share of part `part` of the `step`-th batch of an epoch, on its device."""

    def evaluate(self, epoch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on the held-back images (empty where there are none), and samples to read."""

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the network as a checkpoint folder."""


class Memory(Protocol):
    """What a stage remembers from step to step besides weights, kept in every state."""

    def facts(self) -> Mapping[str, Any]:
        """Numbers and texts that JSON can hold."""

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take up what `facts` gave."""


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator a config asks for; also sets the number of threads."""
    if config.threads:
        torch.set_num_threads(config.threads)
    # Accelerate keeps its state for the whole process; a second run in it may ask for another precision.
    AcceleratorState._reset_state()
    # A stage leaves parts of the pair alone; without this, data-parallel training waits for their gradients.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        mixed_precision="bf16" if _computes_in_bf16(config) else "no",
        cpu=config.device == "cpu",
        kwargs_handlers=[unused],
    )


def _computes_in_bf16(config: TrainConfig) -> bool:
    if config.precision != "auto":
        return config.precision == "bf16"
    if config.device != "cpu" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not BF16_FLAGS.isdisjoint(examine_machine().cpu_flags)


class Run:
    """One stage on its way through its epochs."""

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        accelerator: Accelerator,
        folder: RunFolder,
        *,
        memory: Memory | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.config, self.stage, self.accelerator, self.folder = config, stage, accelerator, folder
        self.memory, self.stopwatch = memory, stopwatch
        self.network = stage.network
        self.raw_optimizer = make_optimizer(self.network, config.optimizer)
        self.objective, self.optimizer = accelerator.prepare(stage.objective, self.raw_optimizer)
        self.average = WeightAverage(self.network, config.optimizer.ema_decay)
        self.trained = self.average.live
        steps, epochs = stage.steps_per_epoch, config.optimizer.epochs
        self.epoch_ends = list(accumulate([steps] * epochs if isinstance(steps, int) else steps))
        self.total_steps = self.epoch_ends[-1]
        self.step = 0
        self.elapsed_s = 0.0
        self.best: dict[str, Any] = {}

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def resume(self) -> None:
        """Take up the newest state, if there is one."""
        loaded = load_newest_state(self.folder.states)
        if loaded is not None:
            tensors, facts = loaded
            copy_tensors(tensors["model"], named_tensors(self.network), "weights")
            restore_optimizer(self.raw_optimizer, tensors.get("optimizer", {}), self.trained)
            if self.average.decay:
                copy_tensors(tensors["ema"], self.average.averages, "average")
            self.step, self.elapsed_s, self.best = facts["step"], facts["elapsed_s"], facts["best"]
            if self.memory is not None:
                self.memory.restore(facts["memory"])
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self.folder.cut_after(self.step)
            recover_folder(self.folder.path / "best")
            recover_folder(self.folder.path / "last")

    def place(self, step: int) -> tuple[int, int]:
        """Epoch and position in it after so many steps."""
        epoch = bisect_right(self.epoch_ends, step)
        return epoch, step - (self.epoch_ends[epoch - 1] if epoch else 0)

    def run(self) -> dict[str, Any]:
        """Train to the last step; returns the facts of run.json."""
        progress = Progress(self.total_steps, done_steps=self.step, enabled=self.is_main)
        started_s, before_s = time.monotonic(), self.elapsed_s
        while self.step < self.total_steps:
            epoch, position = self.place(self.step)
            values = self._train_step(epoch, position)
            self.elapsed_s = before_s + time.monotonic() - started_s
            ends_epoch = self.step == self.epoch_ends[epoch]
            if self.step % self.config.loop.log_every == 0 or ends_epoch or self.step == 1:
                self._log(epoch, values, progress)
            if ends_epoch:
                self._end_epoch(epoch, progress)
            if ends_epoch or self.step % self.config.loop.save_every == 0:
                self._save_state()
            if ends_epoch and self.stopwatch:
                self.stopwatch.lap()  # the evaluation is no part of the next epoch's first steps
        if self.is_main:
            self.folder.write_facts(
                finished=True, steps=self.step, elapsed_s=round(self.elapsed_s, 1), best=self.best,
                processes=self.accelerator.num_processes, device=str(self.accelerator.device),
                precision="bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            )  # fmt: skip
            progress.say(
                f"{self.stage.name}: {self.step} steps in {duration(self.elapsed_s)}, best {self.best}"
            )
        return dict(self.folder.facts)

    def _train_step(self, epoch: int, position: int) -> dict[str, Tensor]:
        config = self.config.optimizer
        set_training(self.network)
        share = lr_share(self.step, self.total_steps, config)
        for group in self.raw_optimizer.param_groups:
            group["lr"] = config.lr * group["multiplier"] * share
        key = (self.config.seed, "noise", self.step, self.accelerator.process_index)
        torch.manual_seed(keyed_generator(*key).initial_seed())
        totals: dict[str, Tensor] = {}
        for part in range(config.accumulate):
            batch = self.stage.batch(epoch, position, part)
            last = part + 1 == config.accumulate
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                values = self.objective(**batch)
                with self.stopwatch.measure("backward") if self.stopwatch else contextlib.nullcontext():
                    self.accelerator.backward(values["loss"] / config.accumulate)
            for name, value in values.items():
                totals[name] = (
                    totals.get(name, torch.zeros(())) + value.detach().float().cpu() / config.accumulate
                )
        if config.clip_norm:
            norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), config.clip_norm)
            totals["grad_norm"] = torch.as_tensor(norm).float().cpu()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.step)
        if self.stopwatch:
            self.stopwatch.step_done()
        return totals

    def _log(self, epoch: int, values: Mapping[str, Tensor], progress: Progress) -> None:
        numbers = {}
        for name, value in values.items():
            reduced = self.accelerator.reduce(value.to(self.accelerator.device), reduction="mean")
            numbers[name] = float(reduced)
        if not math.isfinite(numbers["loss"]):
            raise ConfigError(
                f"the loss became {numbers['loss']} at step {self.step}: "
                "lower optimizer.lr in a new run folder"
            )
        if self.is_main:
            lr = self.config.optimizer.lr * lr_share(self.step - 1, self.total_steps, self.config.optimizer)
            entry = {"kind": "train", "step": self.step, "epoch": epoch, **numbers, "lr": lr}
            entry |= self.stopwatch.lap() if self.stopwatch else {}
            self.folder.log({**entry, "elapsed_s": round(self.elapsed_s, 2)})
            progress.show(self.step, epoch, {**numbers, "lr": lr})

    def _end_epoch(self, epoch: int, progress: Progress) -> None:
        done = epoch + 1
        last = done == self.config.optimizer.epochs
        if not last and done % self.config.loop.evaluate_every:
            return
        if self.is_main:
            with self.average.in_place():
                self.network.eval()
                started_s = time.monotonic()
                figures, samples = self.stage.evaluate(epoch)
                seconds = time.monotonic() - started_s
                self.folder.log(
                    {
                        "kind": "evaluation",
                        "step": self.step,
                        "epoch": epoch,
                        **figures,
                        "seconds": round(seconds, 2),
                    }
                )
                for sample in samples:
                    self.folder.log({"step": self.step, "epoch": epoch, **sample}, name="samples.jsonl")
                text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
                progress.say(f"epoch {done}/{self.config.optimizer.epochs} tuning images: {text or 'none'}")
                self._save_checkpoint("last", {"epoch": epoch, "step": self.step, **figures})
                if self._is_best(figures):
                    self.best = {"epoch": epoch, "step": self.step, **figures}
                    self._save_checkpoint("best", self.best)
        self.accelerator.wait_for_everyone()

    def _is_best(self, figures: Mapping[str, float]) -> bool:
        name = self.stage.selection
        if name not in figures or name not in self.best:
            return True
        gain = figures[name] - float(self.best[name])
        return gain > 0 if self.stage.higher_is_better else gain < 0

    def _save_checkpoint(self, name: str, facts: Mapping[str, Any]) -> None:
        scratch = self.folder.path / f".{name}-{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        self.stage.save(scratch, {"stage": self.stage.name, **facts})
        replace_folder(scratch, self.folder.path / name)

    def _save_state(self) -> None:
        if self.is_main:
            names: dict[Tensor, str] = {parameter: name for name, parameter in self.trained.items()}
            tensors = {
                "model": named_tensors(self.network),
                "optimizer": flatten_optimizer(self.raw_optimizer, names),
                "ema": self.average.averages,
            }
            epoch, position = self.place(self.step)
            facts = {"epoch": epoch, "position": position, "elapsed_s": self.elapsed_s, "best": self.best}
            if self.memory is not None:
                facts["memory"] = dict(self.memory.facts())
            save_state(
                self.folder.states,
                step=self.step,
                tensors=tensors,
                facts=facts,
                keep=self.config.loop.keep_states,
            )
        self.accelerator.wait_for_everyone()


def run_steps(
    config: TrainConfig,
    stage: Stage,
    accelerator: Accelerator,
    *,
    folder: RunFolder,
    resume: bool,
    memory: Memory | None = None,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Any]:
    """Train one stage to its end.

    Args:
        config: resolved.
        stage: batches, objective, evaluation.
        accelerator: from `make_accelerator`; leaves its process group when done.
        folder: of the run, already checked against `config`.
        resume: take up the newest state.
        memory: kept in every state and restored from it.
        stopwatch: its figures go into every line of metrics; "backward" is measured here.

    Returns:
        The facts of run.json.

    Raises:
        ConfigError: nothing to train, or the loss is no longer finite.
        CheckpointError: a damaged state, or one of another model.
    """
    run = Run(config, stage, accelerator, folder, memory=memory, stopwatch=stopwatch)
    if accelerator.is_main_process:
        folder.open()
    if resume:
        run.resume()
    facts = run.run()
    # Without it a process may end while threads of the communication library live, which aborts it.
    accelerator.end_training()
    return facts
