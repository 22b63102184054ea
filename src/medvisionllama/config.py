"""One experiment as a value: what ``config.yaml`` holds, and the ways in and out of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from medvisionllama.data.plan import EVEN_STRIDES, Plan, Protocol, reduction
from medvisionllama.data.planning import fitted_to_memory
from medvisionllama.errors import InputError
from medvisionllama.geometry import Shape
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.memory import training_memory_gb
from medvisionllama.models.network import NetworkConfig
from medvisionllama.models.peers.dynunet import DynUNetConfig
from medvisionllama.models.zoo import network_named, with_block
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import FORMAT_VERSION, write_text

DEFAULT_RECIPE = {"native": "native", "paper": "paper-v2"}


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's result, machine and library versions aside.

    Attributes:
        dataset: The task's folder.
        model_name: The name ``model`` started from.
        recipe_name: The name or file ``recipe`` started from.
        protocol: ``native`` or ``paper`` (SPEC 5).
        grid: Edge of the paper protocol's grid.
        fold: Which part validates.
        fraction: Share of the training part's patients that train (few-shot).
        seed: Of the network's start, the order of cases, augmentation and dropout.
        tolerance_mm: For NSD; None for the Decathlon's, where the task is one of its ten, else NSD stays empty.
        init_from: A run whose weights are the start, wherever name and shape agree; None for a fresh start.
        model: The network.
        recipe: The training.
    """

    dataset: str
    model_name: str = "medvisionllama-u"
    recipe_name: str = "native"
    protocol: Protocol = "native"
    grid: int = 128
    fold: int = 0
    fraction: float = 1.0
    seed: int = 0
    tolerance_mm: float | None = None
    init_from: str | None = None
    model: NetworkConfig = field(default_factory=ModelConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def fitted_to(self, plan: Plan) -> Experiment:
        """The experiment with the network's ends sized by the plan.

        Raises:
            InputError: The loss does not go with the plan's output, or the network cannot take the plan's window.
        """
        recipe = self.recipe
        if plan.batch_size is not None:
            recipe = replace(recipe, batch_size=plan.batch_size)
        if plan.regions and not plan.merged:
            recipe = recipe.for_regions()
        if recipe.for_softmax != plan.softmax:
            one, other = ("dice_bce or bce", "one sigmoid target") if plan.merged else ("dice_ce or ce", "a softmax")
            raise InputError(
                f"the {plan.protocol} protocol ends in {other}, which the loss does not fit",
                got=f"loss {self.recipe.loss} of the recipe {self.recipe_name}",
                expected=one,
                mend="Leave out --recipe, or choose one made for this protocol.",
            )
        ends: dict[str, Any] = {"in_channels": plan.in_channels, "out_channels": plan.out_channels}
        ends["input_size"] = plan.window
        ends |= _way_down(self.model, plan)
        ends["deep_supervision"] = self.recipe.deep_supervision
        try:
            return replace(self, recipe=recipe, model=replace(self.model, **ends))
        except ValueError as error:
            raise InputError(f"{self.model_name} does not fit the plan", got=str(error)) from error

    def within(self, memory_gb: float, plan: Plan, processes: int = 1, *, own_batch: bool = False) -> Plan:
        """The plan with window and batch as large as the network's training can bear.

        Args:
            memory_gb: Of each process's device.
            plan: What was planned without regard to memory.
            processes: Those that share a batch evenly.
            own_batch: Whether the recipe's batch stays, so that the window alone is planned.

        Raises:
            InputError: Nothing fits.
        """
        own_share = -(-self.recipe.batch_size // processes)

        def needed_gb(window: Shape, share: int) -> float:
            size = own_share if own_batch else share
            return self.fitted_to(replace(plan, window=window, batch_size=size)).memory_gb(window)

        planned = fitted_to_memory(plan, memory_gb, needed_gb)
        shares = (planned.batch_size or 1) * processes
        return replace(planned, batch_size=self.recipe.batch_size if own_batch else shares)

    def memory_gb(self, window: Shape) -> float:
        """About how many gigabytes a training step takes, once the network is fitted to a plan."""
        half = self.recipe.precision == "bfloat16"
        return training_memory_gb(self.model, window, self.recipe.batch_size, half_precision=half)

    def of_fold(self, fold: int, plan: Plan) -> Experiment:
        """The experiment for another fold: what it took from its own plan is left for that fold's plan to say.

        Args:
            fold: The other.
            plan: What this one was fitted to.
        """
        recipe, model = self.recipe, self.model
        if recipe.steps == recipe.epochs * -(-plan.training_cases // recipe.batch_size):
            recipe = replace(recipe, steps=0)
        if isinstance(model, ModelConfig) and isinstance(named := network_named(self.model_name), ModelConfig):
            even = replace(model, patch_size=named.patch_size, stem_strides=named.stem_strides)
            if replace(even, **_way_down(even, plan)) == model:
                model = even
        return replace(self, fold=fold, recipe=recipe, model=model)

    def found_where(self, asked: Experiment) -> Experiment:
        """The experiment with its data set, and its language block if that is a folder, where ``asked`` has them.

        Where files lie decides no result. Whether they are the same is known later, by hash
        (:func:`medvisionllama.run_setup.refuse_other_data`).
        """
        return self.at_places(asked.dataset, asked.folder_of_block)

    def at_places(self, dataset: str | None, block: str | None) -> Experiment:
        """The experiment with its data set, and its language block if that is a folder, at other places.

        Args:
            dataset: Where the data set lies; None for where it says.
            block: Where the block's folder lies; likewise.
        """
        moved = replace(self, dataset=dataset or self.dataset)
        if block is None or self.folder_of_block is None or not isinstance(self.model, ModelConfig):
            return moved
        return replace(moved, model=with_block(self.model, block))

    @property
    def folder_of_block(self) -> str | None:
        """The folder its language block comes from; None where it has none, or one of a hub or of the package."""
        if not isinstance(self.model, ModelConfig) or self.model.middle.kind == "none":
            return None
        source = self.model.middle.block.source
        # A run may come from another system, whose folders look otherwise.
        return source if any(kind(source).is_absolute() for kind in (PurePosixPath, PureWindowsPath)) else None

    def lasting(self, training_cases: int) -> Experiment:
        """The experiment with epochs turned into steps, once the number of training cases is known."""
        if self.recipe.steps:
            return self
        steps = self.recipe.epochs * -(-training_cases // self.recipe.batch_size)
        return replace(self, recipe=replace(self.recipe, steps=steps))


def _way_down(model: NetworkConfig, plan: Plan) -> dict[str, Any]:
    """How one of our networks that goes down evenly goes down by the plan instead; others keep their own way."""
    if not isinstance(model, ModelConfig) or model.patch_size != reduction(EVEN_STRIDES):
        return {}
    if model.stem == "patches":
        return {"patch_size": plan.patch_size}
    if model.stem_strides != EVEN_STRIDES:
        return {}
    return {"patch_size": plan.patch_size, "stem_strides": plan.stem_strides}


def make_experiment(
    dataset: Path,
    *,
    model: str = "medvisionllama-u",
    block: str | None = None,
    recipe: str | None = None,
    protocol: Protocol = "native",
    grid: int = 128,
    fold: int = 0,
    fraction: float = 1.0,
    seed: int = 0,
    tolerance_mm: float | None = None,
    init_from: Path | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
) -> Experiment:
    """An experiment from names and dotted overrides such as ``--model.depth 4`` or ``--recipe.learning_rate 1e-3``.

    Raises:
        InputError: A name is unknown, an override is not understood, or values contradict one another.
    """
    config = network_named(model)
    if block is not None:
        if not isinstance(config, ModelConfig) or config.middle.kind == "none":
            raise InputError(f"{model} has no language block", got=f"--block {block}", mend="Leave out --block.")
        # A folder must still be found when the run is used from elsewhere.
        config = with_block(config, str(Path(block).resolve()) if Path(block).is_dir() else block)
    recipe_name = recipe or DEFAULT_RECIPE[protocol]
    start = Experiment(
        dataset=str(dataset.resolve()),
        model_name=model,
        recipe_name=recipe_name,
        protocol=protocol,
        grid=grid,
        fold=fold,
        fraction=fraction,
        seed=seed,
        tolerance_mm=tolerance_mm,
        init_from=str(init_from.resolve()) if init_from else None,
        model=config,
        recipe=load_recipe(recipe_name),
    )
    if steps is not None:
        start = replace(start, recipe=replace(start.recipe, steps=steps))
    elif epochs is not None:
        start = replace(start, recipe=replace(start.recipe, steps=0, epochs=epochs))
    return _overridden(start, overrides)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    shipped = (files("medvisionllama") / "recipes").iterdir()
    return sorted(path.name.removesuffix(".yaml") for path in shipped if path.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or one from a YAML file.

    Raises:
        InputError: There is no such recipe, or it holds something a recipe does not.
    """
    shipped = files("medvisionllama") / "recipes" / f"{name}.yaml"
    if shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        expected = f"one of {', '.join(recipe_names())}, or a YAML file"
        raise InputError(f"no recipe is called {name!r}", expected=expected, mend="Choose one of these.")
    parser = _parser()
    parser.add_argument("--recipe", type=Recipe)
    recipe: Recipe = _parsed(parser, {"recipe": _yaml(text, name)}, f"the recipe {name}").recipe
    return recipe


def write_experiment(experiment: Experiment, path: Path) -> None:
    """Write ``config.yaml``."""
    content = {"format": FORMAT_VERSION} | _plain(asdict(experiment))
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_experiment(path: Path) -> Experiment:
    """Read ``config.yaml``; every key is known and every value of its type, or it is refused.

    Raises:
        InputError: The file is missing, of another version, or not understood.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path.parent} is not a run folder",
            got=f"no readable {path.name}",
            mend="Name a folder that `medvisionllama train --run` wrote.",
        ) from error
    content = _yaml(text, str(path))
    version = content.pop("format", None)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} is of another version",
            got=f"format {version}",
            expected=f"format {FORMAT_VERSION}",
            mend="Train again, or use the version of medvisionllama that wrote it.",
        )
    parser = _parser()
    network = content.pop("model", {})
    kind = DynUNetConfig if isinstance(network, dict) and network.get("kind") == "dynunet" else ModelConfig
    parser.add_argument("--experiment", type=Experiment)
    parser.add_argument("--model", type=kind)
    read = _parsed(parser, {"experiment": content, "model": network}, str(path))
    experiment: Experiment = replace(read.experiment, model=read.model)
    return experiment


def refuse_other(stored: Experiment, asked: Experiment, named: Collection[str], where: str) -> None:
    """Make sure that a run that goes on is asked for with its own settings, as far as they were named.

    Args:
        stored: The run's own.
        asked: What was asked for.
        named: The settings that were named, with dots; those below them count as named too.
        where: The run's config.yaml.

    Raises:
        InputError: Naming the settings that differ.
    """
    has, wants = _flat(_plain(asdict(stored))), _flat(_plain(asdict(asked)))
    differ = [
        f"{key} {wants.get(key)} instead of {value}"
        for key, value in has.items()
        if wants.get(key) != value and any(key == name or key.startswith(f"{name}.") for name in named)
    ]
    if differ:
        raise InputError(
            f"{where} was started with other settings",
            got="; ".join(differ[:4]) + (f" and {len(differ) - 4} more" if len(differ) > 4 else ""),
            mend="Leave them out, since a resumed run keeps its own, or name another folder.",
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _overridden(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    parser = _parser()
    parser.add_argument("--model", type=type(experiment.model), default=experiment.model)
    parser.add_argument("--recipe", type=Recipe, default=experiment.recipe)
    changed = _parsed(parser, list(overrides), "the command line")
    return replace(experiment, model=changed.model, recipe=changed.recipe)


def _parser() -> ArgumentParser:
    return ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)


def _parsed(parser: ArgumentParser, given: dict[str, Any] | list[str], where: str) -> Namespace:
    try:
        parsed = parser.parse_args(given) if isinstance(given, list) else parser.parse_object(given)
        values: Namespace = parser.instantiate(parsed)
        return values
    except InputError:
        raise
    except Exception as error:  # jsonargparse raises several kinds, all about what the user wrote
        raise InputError(f"{where} is not understood", got=" ".join(str(error).split())) from error


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML", got=" ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise InputError(f"{where} is not a table of settings", got=type(content).__name__)
    return content


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML holds nothing but plain data."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
