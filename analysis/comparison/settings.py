"""What decides the figures of a comparison, or of a certificate: all but the models and the problems themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smc_bridge.analysis.study.config import Config, Prompts
from smc_bridge.analysis.study.plan import Axes, check_methods
from smc_bridge.distributions.shaping import check_temperature
from smc_bridge.models.arguments import check_text, is_list, real_between, said, whole_number


@dataclass(frozen=True)
class Settings:
    """Everything but the models that the figures depend on.

    Attributes:
        task: its name.
        n: problems, the first ones of the task.
        methods: as they are spelled (`smc_bridge.registry`), in the order of the table.
        temperature: of the target and of the proposals.
        w: of the intermediates that have one, where the spelling of a method does not say it.
        seed: of all draws.
        batch: prompts that are decoded together; they are the same however the work is interrupted.
    """

    task: str
    n: int
    methods: tuple[str, ...]
    temperature: float = 0.2
    w: float = 0.3
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        set_once = object.__setattr__  # the class is frozen
        check_text("task", self.task)
        for name, least in (("n", 1), ("batch", 1), ("seed", 0)):
            set_once(self, name, whole_number(name, getattr(self, name), least=least, most=None))
        set_once(self, "temperature", check_temperature(self.temperature))
        set_once(self, "w", real_between("w", self.w, 0.0, 1.0, remedy="give a number in [0, 1]"))
        if not is_list(self.methods) or not all(isinstance(name, str) for name in self.methods):
            raise ValueError(f"methods = {said(self.methods)}: give a list of names")
        set_once(self, "methods", tuple("".join(name.split()) for name in self.methods))  # blanks say nothing there
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods = {','.join(self.methods)}: give at least one, and none twice")

    def study(self) -> Config:
        """The same as a study, whose one axis is the methods: what is no setting is each method's or the task's own.

        Raises:
            ValueError: a method is unknown.
        """
        axes = Axes(
            methods=self.methods, intermediates=None, particles=None, lanes=None, w=(self.w,), windows=None,
            temperatures=(self.temperature,), seeds=(self.seed,),
        )
        return Config(axes, Prompts(self.task, self.n, self.batch))

    @property
    def shared(self) -> str:
        """For titles: target temperature and w as far as methods read them and do not spell their own, and the seed."""
        axes = self.study().axes
        plan = list(zip(check_methods(axes.methods), axes.settings(), strict=True))
        told = []
        for name, words in (("temperature", "target temperature "), ("w", "w = ")):
            if any(getattr(setting, name) is not None and name not in method.options for method, setting in plan):
                where = " where not spelled" if any(name in method.options for method, _ in plan) else ""
                told.append(f"{words}{getattr(self, name):g}{where}")
        return ", ".join([*told, f"seed {self.seed}"])

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data for JSON."""
        return {**asdict(self), "methods": list(self.methods)}
