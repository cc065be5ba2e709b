"""From what the user named to a module in eval mode with its weights, and the ModelSpec that says how it came about."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import MissingDependency, UnsupportedModel, UsageError, VitdeployError
from vitdeploy.models import catalog, zoo
from vitdeploy.spec import OUTPUTS, InputSpec, ModelSpec, WeightsSource

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_MODEL_ARG = 1 << 14


@dataclass(frozen=True)
class BuildOptions:
    """What the user asked for about a model; None leaves it to the weights, then to the architecture.

    Attributes:
        weights: a checkpoint file, a folder in timm's layout, or 'hf-hub:ORG/NAME'.
        pretrained: load the published weights of the tag; None does so only where the name has a tag.
        num_classes: width of the logits.
        image_size: (height, width).
        in_chans: image channels.
        frames: of a video, where the model takes videos.
        outputs: 'logits', and perhaps 'embeddings' and 'attention': see models.outputs.
        seed: of random weights.
        mean, std, crop_pct, interpolation: override the InputSpec.
        arguments: of the constructor, where the name is a `zoo:` one.
    """

    weights: str | None = None
    pretrained: bool | None = None
    num_classes: int | None = None
    image_size: tuple[int, int] | None = None
    in_chans: int | None = None
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    outputs: tuple[str, ...] = ("logits",)


@dataclass(frozen=True)
class Built:
    """A module in eval mode, its ModelSpec, and what the user should know about how it was made."""

    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


@dataclass
class Source:
    """Where weights and preprocessing come from, before anything is built."""

    origin: WeightsSource
    file: Path | None = None
    architecture: str | None = None
    num_classes: int | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)


def build(name: str, options: BuildOptions | None = None) -> Built:
    """Build a model by name, in eval mode, on the CPU, in float32.

    Args:
        name: a catalog name with or without a tag, 'zoo:NAME', 'timm:NAME', 'hf-hub:ORG/NAME',
            'package.module:factory' or 'file.py:factory'.

    Raises:
        UsageError: an unknown name, bad options, or weights that are unreadable or do not fit.
        MissingDependency: timm is asked for and not installed.
    """
    options = options or BuildOptions()
    check(name, options)
    built = build_plain(name, options)
    if options.outputs == built.spec.outputs:
        return built
    from vitdeploy.models.outputs import Outputs

    module = Outputs(built.module, options.outputs, built.spec.input.tensors).eval()
    return replace(built, module=module, spec=replace(built.spec, outputs=options.outputs))


def build_plain(name: str, options: BuildOptions) -> Built:
    """The model that gives logits alone."""
    if name.startswith(zoo.PREFIX):
        return build_zoo(name, options)
    if name.startswith("timm:"):
        return build_timm(name, options)
    if re.match(r"hf[-_]hub:", name):
        source = hub_source(name)
        return build_catalog(source.architecture or "", replace(options, weights=name), source)
    if is_code(name):
        return build_factory(name, options)
    return build_catalog(name, options, None)


def check(name: str, options: BuildOptions) -> None:
    """Refuse what can be refused before anything is imported or fetched. Raises UsageError and UnsupportedModel."""
    if options.weights == "":
        raise UsageError("--weights is empty.")
    if options.weights and options.pretrained:
        raise UsageError("--weights and --pretrained exclude each other.")
    if options.num_classes is not None and options.num_classes < 0:
        raise UsageError(f"num_classes is {options.num_classes}: it must be 0 (no classifier) or more.")
    if options.in_chans is not None and not 1 <= options.in_chans <= LARGEST_MODEL_ARG:
        raise UsageError(f"in_chans is {options.in_chans}: it must be from 1 to {LARGEST_MODEL_ARG}.")
    wanted = options.outputs
    if OUTPUTS[0] not in wanted or len(set(wanted)) != len(wanted) or set(wanted) - set(OUTPUTS):
        raise UsageError(f"Outputs '{','.join(wanted)}' are not logits, and perhaps embeddings and attention.")
    if options.frames is not None and not (name.startswith(zoo.PREFIX) or is_code(name)):
        raise UsageError(f"{name} takes images, not videos.", fix="Give --shape channels, height and width.")
    if name.endswith(".onnx"):
        raise UnsupportedModel(
            f"{name} is a finished graph: there is no PyTorch model to prove it against.",
            fix="vitdeploy bench, inspect and predict take .onnx files.",
        )
    if name.endswith(".py"):
        raise UsageError(f"{name} does not say what makes the model.", fix=f"Name a function in it: {name}:factory")
    if re.match(r"hf[-_]hub:", name) and options.weights:
        raise UsageError(f"{name} already names weights: drop --weights.")
    if options.arguments and not name.startswith(zoo.PREFIX):
        raise UsageError(f"--set and --config are for {zoo.PREFIX} names, which {name} is not.")
    if name.startswith(zoo.PREFIX):
        zoo.find(name)
        if options.pretrained:
            raise UsageError(f"Nobody has published weights for {name}.", fix="--weights FILE takes your own.")
    if ":" not in name:
        entry, tagged = catalog.find(name)
        if tagged is None and not options.weights and not options.pretrained:
            apply_overrides(entry.input, options)


def is_code(name: str) -> bool:
    """Whether building this model runs code that the name points to: 'package.module:factory' or 'file.py:factory'."""
    return ":" in name and re.match(r"zoo:|timm:|hf[-_]hub:", name) is None


def rebuild(spec: ModelSpec) -> Built:
    """Build the same model again from its ModelSpec: the reference that a verification needs.

    Raises:
        UsageError: the weights are gone, or their file is no longer the one that was exported.
    """
    origin = spec.weights
    shape = spec.input.shape
    options = BuildOptions(
        weights=origin.location if origin.kind in ("file", "folder", "hub") else None,
        pretrained=False,
        num_classes=spec.num_classes if origin.kind != "factory" else None,
        image_size=spec.input.size,
        in_chans=shape[0] if shape[0] != 3 else None,
        seed=origin.seed or 0,
        mean=spec.input.mean,
        std=spec.input.std,
        crop_pct=spec.input.crop_pct,
        interpolation=spec.input.interpolation,
        arguments=spec.config if spec.name.startswith(zoo.PREFIX) else {},
        frames=spec.input.frames,
        outputs=spec.outputs,
    )
    if origin.kind == "hub" and not origin.location.startswith("hf-hub:"):
        options = replace(options, weights=f"hf-hub:{origin.location}")
    if origin.kind == "factory" and spec.name.startswith("timm:"):
        options = replace(options, pretrained=True)
    built = build(spec.name, options)
    if origin.sha256 and built.spec.weights.sha256 != origin.sha256:
        raise UsageError(f"{origin.location} has changed since the export: it is not what this model was made from.")
    return built


def build_catalog(name: str, options: BuildOptions, source: Source | None) -> Built:
    """A model of the catalog, on random or given weights."""
    from vitdeploy.models.checkpoint_file import digest, read_checkpoint
    from vitdeploy.models.weights import head_size

    entry, tagged = catalog.find(name)
    source = source or weights_source(entry, tagged, options)
    if source.architecture is not None and catalog.find(source.architecture)[0].name != entry.name:
        raise UsageError(f"The weights are of {source.architecture}, not of {entry.name}.")
    state: Mapping[str, Tensor] | None = None
    notes: list[str] = []
    if source.file is not None:
        state = read_checkpoint(source.file)
        source.origin = replace(source.origin, sha256=digest(source.file))
    preset = tagged or (entry.pretrained[0] if entry.pretrained else None)
    base = preset.input if preset is not None else entry.input
    trained = read_input(source.preprocessing, base) if source.preprocessing else base
    spec_input = apply_overrides(trained, options)

    classes = options.num_classes
    if classes is None and state is not None:
        classes = head_size(state, entry.classifier)
        expected = source.num_classes if source.num_classes is not None else entry.num_classes
        if classes is not None and classes != expected:
            notes.append(f"the checkpoint's head has {classes} classes, not {expected}: building for {classes}")
    if classes is None:
        classes = source.num_classes if source.num_classes is not None else entry.num_classes
    size = spec_input.size
    arguments = entry.arguments(classes, size)
    arguments.update(check_model_args(entry, source.model_args))
    if spec_input.shape[0] != 3:
        arguments["in_chans"] = spec_input.shape[0]

    module = construct(entry, arguments)
    if state is None:
        notes += randomise(module, options.seed, spec_input)
    else:
        from vitdeploy.models.weights import load_into

        report = load_into(module, state, num_classes=classes, trained_size=trained.size)
        notes.insert(0, f"{options.weights or source.origin.location}: {report}")
    if source.file is not None and options.weights is None and preset is not None and preset.quickgelu:
        notes.append(
            f"these weights were trained with QuickGELU, which {entry.name.replace('_clip_', '_clip_quickgelu_')} has"
        )
    tag = tagged.tag if tagged is not None and source.origin.kind == "hub" else None
    labels = source.labels or published_labels(source.origin)
    labels = labels if labels and len(labels) == classes else None
    spec = ModelSpec(entry.name, arguments, spec_input, classes, tag, labels, source.origin)
    return Built(module.eval(), spec, tuple(notes))


def weights_source(entry: catalog.Entry, tagged: catalog.Pretrained | None, options: BuildOptions) -> Source:
    if options.weights is None:
        wanted = tagged is not None if options.pretrained is None else options.pretrained
        if not wanted:
            return Source(WeightsSource("random", seed=options.seed))
        chosen = tagged or (entry.pretrained[0] if entry.pretrained else None)
        if chosen is None or chosen.hub_id is None:
            raise UsageError(f"No weights are published for {entry.name}.", fix="Pass --weights FILE or FOLDER.")
        source = hub_source(chosen.hub_id)
        source.architecture = None  # the hub's own name may be an older one
        return source
    if re.match(r"hf[-_]hub:", options.weights):
        return hub_source(options.weights)
    path = Path(options.weights).expanduser()
    if path.is_dir():
        return folder_source(path, WeightsSource("folder", str(path.resolve())))
    return Source(WeightsSource("file", str(path.resolve())), file=path)


def hub_source(hub_id: str) -> Source:
    from vitdeploy.models.hub import download

    folder = download(hub_id)
    name = re.sub(r"^hf[-_]hub:", "", hub_id)
    return folder_source(folder, WeightsSource("hub", f"hf-hub:{name}", revision=folder.name))


def folder_source(path: Path, origin: WeightsSource) -> Source:
    from vitdeploy.models.hub import read_hub_folder

    found = read_hub_folder(path)
    return Source(
        origin,
        found.weights,
        found.architecture,
        found.num_classes,
        found.labels,
        found.pretrained_cfg,
        found.model_args,
    )


def published_labels(origin: WeightsSource) -> tuple[str, ...] | None:
    """Labels of timm's own weights, whose tags tell what they were trained on last and whose configurations do not."""
    if not re.fullmatch(r"hf-hub:timm/[^@]+in1k(_\w+)?(@.*)?", origin.location):
        return None
    from vitdeploy.data.labels import imagenet1k

    return imagenet1k()


def read_input(preprocessing: Mapping[str, Any], base: InputSpec) -> InputSpec:
    """A checkpoint's own preprocessing; what it leaves out comes from the architecture's."""
    known = {"input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode"}
    given = {k: v for k, v in preprocessing.items() if k in known and v is not None}
    defaults = base.to_dict()
    return InputSpec.from_pretrained_cfg({**defaults, "input_size": defaults["shape"], **given})


def apply_overrides(spec: InputSpec, options: BuildOptions) -> InputSpec:
    """The InputSpec with the user's own size, channels and preprocessing."""
    if options.image_size is not None:
        spec = spec.with_size(*options.image_size)
    if options.frames is not None:
        spec = replace(spec, shape=(spec.shape[0], options.frames, *spec.size))
    if options.in_chans is not None and options.in_chans != spec.shape[0]:
        mean, std = ((sum(v) / len(v),) * options.in_chans for v in (spec.mean, spec.std))
        spec = replace(spec, shape=(options.in_chans, *spec.shape[1:]), mean=mean, std=std)
    given = {k: getattr(options, k) for k in ("mean", "std", "crop_pct", "interpolation")}
    return replace(spec, **{k: v for k, v in given.items() if v is not None})


def check_model_args(entry: catalog.Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration file's constructor arguments, but for those that its other keys settle.

    Raises UsageError on what is no plain value, or a number so large that building the model would never end.
    """
    arguments = {key: value for key, value in given.items() if key not in ("img_size", "num_classes")}
    for key, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            plain = item is None or isinstance(item, str | bool | int | float)
            if not plain or (not isinstance(item, str | None) and not abs(item) <= LARGEST_MODEL_ARG):
                raise UsageError(f"{entry.name} cannot be built with {key} = {str(value)[:80]}, as config.json asks.")
    return arguments


def construct(entry: catalog.Entry, arguments: Mapping[str, Any]) -> nn.Module:
    """The architecture with uninitialised parameters: nothing is drawn that weights would overwrite."""
    import torch

    from vitdeploy.bench.environment import memory_bytes

    module_name, class_name = entry.target.split(":")
    factory = getattr(importlib.import_module(f"vitdeploy.models.{module_name}"), class_name)
    try:
        with torch.device("meta"):
            module = factory(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{entry.name} cannot be built with {dict(arguments)}: {one_line(error)}.") from None
    needed = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    there = memory_bytes()
    if there is not None and needed > there:
        raise UsageError(f"{entry.name} so built has weights of {needed / 1e9:.0f} GB; memory is {there / 1e9:.0f} GB.")
    module = module.to_empty(device="cpu")
    for name, buffer in module.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return module


def randomise(module: nn.Module, seed: int, spec: InputSpec) -> list[str]:
    from vitdeploy.models.random_weights import random_weights

    random_weights(module.eval(), seed, spec.shape)
    return [f"random, seed {seed}: for architecture and latency only (to ship: --pretrained or --weights FILE)"]


def build_zoo(name: str, options: BuildOptions) -> Built:
    """An architecture of vit-pytorch's README, in our own code."""
    from vitdeploy.models.build_zoo import construct, settle

    entry = zoo.find(name)
    arguments = settle(
        entry,
        options.arguments,
        num_classes=options.num_classes,
        image_size=options.image_size,
        in_chans=options.in_chans,
        frames=options.frames,
    )
    channels, *frames, height, width = entry.shape(arguments)
    about = replace(options, in_chans=channels, image_size=options.image_size or (height, width))
    about = replace(about, frames=frames[0] if frames else None)
    spec_input = replace(apply_overrides(InputSpec(), about), packing=entry.packing(arguments))
    module = construct(entry, arguments, spec_input)
    origin = WeightsSource("random", seed=options.seed)
    built = finish_foreign(zoo.PREFIX + entry.name, module, spec_input, origin, options, None)
    notes = list(built.notes)
    if options.weights is not None and options.mean is None:
        notes.append("the checkpoint does not tell its preprocessing: ImageNet's mean and std, unless --mean and --std")
    return replace(built, spec=replace(built.spec, config=arguments), notes=tuple(notes))


def build_timm(name: str, options: BuildOptions) -> Built:
    """A model that timm builds, with timm's own code."""
    try:
        import timm
    except Exception as error:  # a torchvision that does not fit torch fails with more than ImportError
        raise MissingDependency(f"{name} needs timm: {one_line(error)}.", fix="pip install timm torchvision") from error
    arguments: dict[str, Any] = {}
    if options.num_classes is not None:
        arguments["num_classes"] = options.num_classes
    if options.in_chans is not None:
        arguments["in_chans"] = options.in_chans
    if options.image_size is not None:
        arguments["img_size"] = options.image_size
    pretrained, short = bool(options.pretrained), name.removeprefix("timm:")
    try:
        try:
            module = timm.create_model(short, pretrained=pretrained, **arguments)
        except TypeError:  # not every architecture has img_size: convolutional ones take any
            arguments.pop("img_size", None)
            module = timm.create_model(short, pretrained=pretrained, **arguments)
    except Exception as error:  # an unknown name, a size that does not fit, a hub that cannot be reached
        raise UsageError(f"timm cannot build '{short}': {one_line(error)}.") from error
    configuration = getattr(module, "pretrained_cfg", None) or {}
    spec_input = apply_overrides(InputSpec.from_pretrained_cfg(configuration), options)
    origin = WeightsSource("factory", name) if pretrained else WeightsSource("random", name, seed=options.seed)
    return finish_foreign(name, module, spec_input, origin, options, configuration.get("tag") if pretrained else None)


def build_factory(name: str, options: BuildOptions) -> Built:
    """A model that the user's own function or class makes: 'package.module:factory' or 'file.py:factory'."""
    module = call_factory(name)
    configuration = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    if not isinstance(configuration, Mapping):
        configuration = {}
    if options.image_size is None and not configuration.get("input_size"):
        size = getattr(module, "image_size", None) or getattr(module, "img_size", None)
        if not isinstance(size, (int, tuple, list)):
            raise UsageError(f"{name} does not say its input size.", fix="Pass --image-size, such as --image-size 224.")
        pair = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        options = replace(options, image_size=pair)
    spec_input = apply_overrides(InputSpec.from_pretrained_cfg(configuration), options)
    return finish_foreign(name, module, spec_input, WeightsSource("factory", name), options, None)


def call_factory(name: str) -> nn.Module:
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).expanduser()
            if not path.is_file():
                raise UsageError(f"There is no file {path}.")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            namespace = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, namespace)
            spec.loader.exec_module(namespace)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            namespace = importlib.import_module(place)
        factory = getattr(namespace, attribute, None)
        if factory is None:
            raise UsageError(f"{place} has nothing called '{attribute}'.")
        from torch import nn

        made = factory if isinstance(factory, nn.Module) else factory()
    except VitdeployError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name} raised {type(error).__name__}: {one_line(error)}.") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"{name} made a {type(made).__name__}, not a torch.nn.Module.")
    return made


def finish_foreign(
    name: str, module: nn.Module, spec: InputSpec, origin: WeightsSource, options: BuildOptions, tag: str | None
) -> Built:
    """Weights and a trial run for a module that is not ours."""
    import torch

    from vitdeploy.models.checkpoint_file import digest, read_checkpoint
    from vitdeploy.models.inputs import zeros
    from vitdeploy.models.weights import load_into

    module = module.to("cpu").float().eval()
    notes: list[str] = []
    if options.weights is not None:
        path = Path(options.weights).expanduser()
        if path.is_dir():
            path = folder_source(path, origin).file or path
        report = load_into(module, read_checkpoint(path), num_classes=options.num_classes)
        notes.append(f"{options.weights}: {report}")
        origin = WeightsSource("file", str(path.resolve()), sha256=digest(path))
    elif origin.kind == "random":
        notes += randomise(module, options.seed, spec)
    else:
        notes.append(f"as {name} made them")
    try:
        with torch.no_grad():
            out = module(*zeros(spec.tensors))
    except Exception as error:
        raise UsageError(f"{name} cannot run on an input of shape {spec.shape}: {one_line(error)}.") from error
    if not isinstance(out, torch.Tensor) or out.ndim < 2:
        raise UnsupportedModel(f"{name} returns {type(out).__name__}, not one (batch, classes) tensor.")
    return Built(module, ModelSpec(name, {}, spec, int(out.shape[-1]), tag, None, origin), tuple(notes))


def one_line(error: BaseException) -> str:
    """An exception's first line, without a full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
