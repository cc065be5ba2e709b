"""The command line: parse, call the pipeline, print. Importing this imports no torch, onnx or onnxruntime."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy import __version__
from vitdeploy.arguments import (
    BackendOpt,
    Config,
    CropPct,
    Data,
    Device,
    Duration,
    ImageSize,
    InChans,
    Interpolation,
    Json,
    Mean,
    ModelArg,
    NumClasses,
    Optimization,
    PretrainedOpt,
    Provider,
    ProviderOption,
    Seed,
    Set,
    Shape,
    Std,
    Threads,
    Tolerance,
    Verbose,
    Warmup,
    Weights,
    finite,
    parse_batch,
    parse_numbers,
    parse_shape,
    parse_size,
    read_arguments,
    run_options,
)
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.exits import run

app = typer.Typer(
    name="vitdeploy",
    help="Take vision transformers from PyTorch to the devices that run them, and prove the result.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    pass


@app.command("list")
def list_models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a glob such as 'levit_*'.")
    ] = None,
    of_zoo: Annotated[
        bool, typer.Option("--zoo", help="vit-pytorch's architectures instead, which are built by their arguments.")
    ] = False,
    json: Json = False,
) -> None:
    """Models of the catalog: parameters, GMACs, input, published top-1."""
    from vitdeploy.models import catalog, zoo
    from vitdeploy.report.tables import model_rows, print_json, print_rows, print_zoo, zoo_rows

    names = (zoo if of_zoo else catalog).names(pattern)
    if not names:
        raise UsageError(f"No model's name matches '{pattern}'.", fix="vitdeploy list prints all of them.")
    rows = zoo_rows(names) if of_zoo else model_rows(names)
    if json:
        print_json(rows)
    else:
        (print_zoo if of_zoo else print_rows)(rows)


@app.command()
def info(
    target: Annotated[str, typer.Argument(metavar="MODEL|ARTIFACT", help="A catalog name, or an artifact's folder.")],
    json: Json = False,
) -> None:
    """Everything known about a model or an artifact."""
    from vitdeploy.report.tables import artifact_facts, model_facts, print_facts, print_json

    facts = artifact_facts(Path(target)) if Path(target).exists() else model_facts(target)
    if json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command()
def doctor(json: Json = False) -> None:
    """Backends, devices and precisions that work here, and fixes."""
    from vitdeploy.backends import registry
    from vitdeploy.backends.nvidia.gpus import driver
    from vitdeploy.bench.environment import environment
    from vitdeploy.report.tables import backend_facts, print_doctor, print_json

    facts = {
        "backends": [backend_facts(b) for b in registry.backends().values()],
        "nvidia": driver().to_dict(),
        "environment": environment(),
    }
    if json:
        print_json(facts)
    else:
        print_doctor(facts)


@app.command()
def export(
    model: ModelArg,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16, fp8, int8, int8-dynamic, int8-weights or int4-weights.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Short for --precision fp16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Short for --precision int8.")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="Short for --precision fp8.")] = False,
    calib: Annotated[
        Path | None, typer.Option(help="int8, fp8: images to calibrate on: a folder, a list, an .npz or an .npy.")
    ] = None,
    calib_random: Annotated[
        bool, typer.Option("--calib-random", help="int8, fp8: calibrate on synthetic images, for latency work only.")
    ] = False,
    calib_images: Annotated[int, typer.Option(min=1, help="int8, fp8: how many images at most, evenly spread.")] = 256,
    calib_method: Annotated[
        str, typer.Option(help="int8, fp8: activation ranges by output, mse, minmax, percentile or (int8) entropy.")
    ] = "output",
    equalize: Annotated[
        str, typer.Option(help="int8, fp8: scale channels to fit one step: auto, none, smoothquant, repq, cross-layer.")
    ] = "auto",
    rounding: Annotated[str, typer.Option(help="int8: weights to nearest, or learned from the images.")] = "nearest",
    no_bias_correction: Annotated[
        bool, typer.Option("--no-bias-correction", help="int8, fp8: leave means as rounding shifts them.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="int8, fp8, int4: layers that stay in float; repeatable."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="int8, fp8: also measure the error of each op alone; takes a while.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="int8, fp8: fail on an image that cannot be read.")] = False,
    scheme: Annotated[
        str | None, typer.Option(help="int8, fp8: write another runtime's dialect, such as tensorrt; see docs/int8.md.")
    ] = None,
    embed_preprocessing: Annotated[
        bool, typer.Option("--embed-preprocessing", help="The file takes camera frames or photos, and prepares them.")
    ] = False,
    frame_format: Annotated[
        str | None, typer.Option(help="Of these frames: rgb (the default), rgba, bgra or nv21.")
    ] = None,
    frame_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of these frames; by default any, or 480x640 where there must be one."),
    ] = None,
    embed_postprocessing: Annotated[
        bool, typer.Option("--embed-postprocessing", help="The file gives the best classes and their scores too.")
    ] = False,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many best classes; by default 5.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Class names in the file: imagenet, or a .txt or .json FILE of them.")
    ] = None,
    io_precision: Annotated[
        str, typer.Option(help="Precision of the graph's input and output: fp32 or fp16.")
    ] = "fp32",
    weights: Weights = None,
    pretrained: PretrainedOpt = None,
    num_classes: NumClasses = None,
    image_size: ImageSize = None,
    in_chans: InChans = None,
    shape: Shape = None,
    arguments: Set = None,
    config: Config = None,
    seed: Seed = 0,
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    batch: Annotated[str, typer.Option(help="Fixed batch such as 4, or min:opt:max such as 1:8:32.")] = "1",
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset, 18 to 24; by default 20, or what the precision wants.")
    ] = None,
    backend: BackendOpt = "onnxruntime",
    device: Device = "",
    provider: Provider = None,
    provider_option: ProviderOption = None,
    optimization: Optimization = "all",
    data: Data = None,
    tolerance: Tolerance = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure latency.")] = True,
    threads: Threads = 1,
    warmup: Warmup = 0.5,
    duration: Duration = 3.0,
    outputs: Annotated[
        str, typer.Option(help="What the file gives: logits, and perhaps embeddings and attention, by commas.")
    ] = "logits",
    layout: Annotated[
        str, typer.Option(help="Of the artifact's folder: plain, or triton for an NVIDIA Triton model repository.")
    ] = "plain",
    out: Annotated[Path | None, typer.Option(help="The artifact's folder; by default MODEL-PRECISION.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """From a model's name to a verified artifact.

    Builds, traces, optimises, converts, compiles, verifies, measures and reports.
    """
    from vitdeploy.export.options import EmbedOptions
    from vitdeploy.models.build import BuildOptions
    from vitdeploy.pipeline import ExportRequest, check_request, request_record
    from vitdeploy.pipeline import export as run_export
    from vitdeploy.quantize.options import Int8Options
    from vitdeploy.report.console import ConsoleListener, print_artifact
    from vitdeploy.report.tables import print_facts, print_json

    short = (("fp16", fp16), ("int8", int8), ("fp8", fp8))
    asked = {name for name, wanted in short if wanted} | ({precision} if precision else set())
    if len(asked) > 1:
        raise UsageError(f"More than one precision is asked for: {', '.join(sorted(asked))}.")
    numbers = (parse_numbers(mean, "--mean"), parse_numbers(std, "--std"))
    size, channels, frames = parse_shape(shape, image_size, in_chans)
    build = BuildOptions(
        weights,
        pretrained,
        num_classes,
        size,
        channels,
        seed,
        *numbers,
        crop_pct,
        interpolation,
        read_arguments(config, arguments),
        frames,
        tuple(outputs.split(",")),
    )
    options = run_options(device, threads, provider, provider_option, optimization)
    request = ExportRequest(
        model=model,
        build=build,
        precision=asked.pop() if asked else "fp32",
        io_precision=io_precision,
        backend=backend,
        batch=parse_batch(batch),
        opset=opset,
        run=options,
        data=data,
        calib=calib,
        calib_random=calib_random,
        calib_images=calib_images,
        strict=strict,
        sensitivity=sensitivity,
        int8=Int8Options(calib_method, not no_bias_correction, rounding, keep=tuple(keep or ()), equalize=equalize),
        scheme=scheme,
        embed=EmbedOptions(
            embed_preprocessing, frame_format, parse_size(frame_size, "Frame size"), embed_postprocessing, top_k, labels
        ),
        tolerance=tolerance,
        bench=bench,
        warmup=warmup,
        duration=duration,
        layout=layout,
        out=out,
        force=force,
    )
    check_request(request)
    if dry_run:
        plan = {"folder": str(request.folder), **request_record(request)}
        print_json(plan) if json else print_facts(plan)
        return
    with ConsoleListener(quiet=json) as listener:
        artifact = run_export(request, listener)
    if json:
        print_json({"folder": str(artifact.folder), **artifact.manifest.to_dict()})
    else:
        print_artifact(artifact)


@app.command()
def verify(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder, or an .onnx that vitdeploy wrote.")
    ],
    model: Annotated[
        str | None, typer.Option(help="The code that made the model, where it was yours: it is run again.")
    ] = None,
    weights: Weights = None,
    device: Device = "",
    provider: Provider = None,
    provider_option: ProviderOption = None,
    threads: Threads = 1,
    data: Data = None,
    tolerance: Tolerance = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Prove an artifact against eager PyTorch again.

    On failure, names the first node that departs.
    """
    from vitdeploy.pipeline import verify_artifact
    from vitdeploy.report.console import ConsoleListener
    from vitdeploy.report.tables import print_json

    options = run_options(device, threads, provider, provider_option)
    with ConsoleListener(quiet=json) as listener:
        result = verify_artifact(
            artifact, options, model=model, weights=weights, data=data, tolerance=tolerance, listener=listener
        )
    if json:
        print_json(result.to_dict())
    else:
        print(f"{artifact}: {result.summary()}   PASS")


@app.command("eval")
def evaluate(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder, or an .onnx that vitdeploy wrote.")
    ],
    data: Annotated[
        Path, typer.Option(help="Labelled images: a folder with a subfolder per class, a list, or an .npz.")
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Score that many, evenly spread over the data.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on an image that cannot be read.")] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Another artifact or .onnx file to compare with.")
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Compare with eager PyTorch, built again.")] = False,
    model: Annotated[
        str | None, typer.Option(help="With --eager: the code that made the model, where it was yours.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="With --eager: where the checkpoint is now.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a run, where the batch is dynamic.")] = None,
    device: Device = "",
    provider: Provider = None,
    provider_option: ProviderOption = None,
    threads: Threads = 1,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Top-1 and top-5 on labelled images.

    With the artifact's own preprocessing. --against and --eager tell whether another model does better.
    """
    from vitdeploy.pipeline import EvalRequest
    from vitdeploy.pipeline import evaluate as run_eval
    from vitdeploy.report.console import ConsoleListener
    from vitdeploy.report.tables import print_json, print_scores

    options = run_options(device, threads, provider, provider_option)
    request = EvalRequest(artifact, data, options, batch, limit, strict, against, eager, model, weights)
    with ConsoleListener(quiet=json) as listener:
        found = run_eval(request, listener).to_dict()
    if json:
        print_json(found)
    else:
        print_scores(found)


@app.command()
def bench(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT", help="Artifacts or .onnx files; several are interleaved.")
    ],
    batch: Annotated[int | None, typer.Option(min=1, help="Images a run, where the batch is dynamic.")] = None,
    backend: BackendOpt = "onnxruntime",
    device: Device = "",
    provider: Provider = None,
    provider_option: ProviderOption = None,
    optimization: Optimization = "all",
    threads: Threads = 1,
    warmup: Warmup = 0.5,
    duration: Duration = 3.0,
    transfers: Annotated[
        bool, typer.Option("--transfers/--no-transfers", help="Copy inputs to a GPU and outputs back in each run.")
    ] = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure latency.

    Every sample counts. Several artifacts take turns; ratios are to the first, above 1 for faster.
    """
    from vitdeploy.pipeline import bench_files
    from vitdeploy.report.console import ConsoleListener
    from vitdeploy.report.tables import print_json, print_latency

    options = run_options(device, threads, provider, provider_option, optimization)
    with ConsoleListener(quiet=json):
        timing: dict[str, Any] = {"warmup": warmup, "duration": duration, "transfers": transfers}
        measured, ratios = bench_files(artifacts, backend, options, batch=batch, **timing)
    rows = [m.to_dict() for m in measured]
    if json:
        pairs = [{"ratio_to_first": r.to_dict()} if len(rows) > 1 else {} for r in ratios]
        print_json([{**row, **pair} for row, pair in zip(rows, pairs, strict=True)])
    else:
        print_latency(rows, ratios)


@app.command()
def compare(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT", help="Artifacts' folders, two or more.")],
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure those that run here, in turn.")] = True,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the comparison as a page.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a run, where the batch is dynamic.")] = None,
    device: Device = "",
    provider: Provider = None,
    provider_option: ProviderOption = None,
    optimization: Optimization = "all",
    threads: Threads = 1,
    warmup: Warmup = 0.5,
    duration: Duration = 3.0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Artifacts side by side: size, parity, latency.

    Those that run here take turns in one run, whatever their backend; the others keep what was recorded of them.
    """
    from vitdeploy.pipeline import compare as run_compare
    from vitdeploy.report.comparison import comparison_page, print_comparison
    from vitdeploy.report.console import ConsoleListener
    from vitdeploy.report.tables import print_json
    from vitdeploy.staging import disk_errors

    options = run_options(device, threads, provider, provider_option, optimization)
    timing: dict[str, Any] = {"warmup": warmup, "duration": duration, "batch": batch}
    if html is not None and not html.parent.is_dir():
        raise UsageError(f"Cannot write {html}: there is no folder {html.parent}.")
    with ConsoleListener(quiet=json) as listener:
        found = run_compare(artifacts, options, bench=bench, listener=listener, **timing)
    if html is not None:
        with disk_errors(html, html.parent, everything=True):
            html.write_text(comparison_page(found), encoding="utf-8", newline="\n")
    if json:
        print_json(found.to_dict())
    else:
        print_comparison(found)


@app.command()
def tune(
    model: ModelArg,
    data: Annotated[Path | None, typer.Option(help="Labelled images; one half searches, the other confirms.")] = None,
    calib: Annotated[
        Path | None, typer.Option(help="Images to calibrate int8 on; without --data also to judge by, unlabelled.")
    ] = None,
    calib_random: Annotated[
        bool, typer.Option("--calib-random", help="Synthetic images instead, for latency work only.")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option(help="Percentage points of top-1; unlabelled: percent of images that change class.")
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="Relative L2 error of the logits.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="p50 in milliseconds.")] = None,
    max_size: Annotated[float | None, typer.Option(help="Megabytes of the model's files.")] = None,
    time_budget: Annotated[
        float, typer.Option(min=0, callback=finite, help="Seconds of search; building and the last race come on top.")
    ] = 600.0,
    backend: Annotated[
        list[str] | None, typer.Option(help="Runtime to try; repeatable. By default all that are installed.")
    ] = None,
    search_images: Annotated[int, typer.Option(min=1, help="Images of the first half in each trial, at most.")] = 1000,
    split_seed: Annotated[int, typer.Option(min=0, help="Of the halves.")] = 0,
    calib_images: Annotated[int, typer.Option(min=1, help="How many to calibrate on, at most.")] = 256,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Layers that stay in float; repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on an image that cannot be read.")] = False,
    weights: Weights = None,
    pretrained: PretrainedOpt = None,
    num_classes: NumClasses = None,
    image_size: ImageSize = None,
    in_chans: InChans = None,
    shape: Shape = None,
    arguments: Set = None,
    config: Config = None,
    seed: Seed = 0,
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    batch: Annotated[str, typer.Option(help="Fixed batch such as 4, or min:opt:max such as 1:8:32.")] = "1",
    device: Device = "",
    threads: Threads = 1,
    warmup: Warmup = 0.5,
    duration: Duration = 3.0,
    out: Annotated[Path | None, typer.Option(help="The artifact's folder; by default MODEL-tuned.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The fastest plan within a budget, measured on this device.

    Tries precisions, backends and mixtures; what it writes is faster than fp32 and fp16, or is one of them.
    """
    from vitdeploy.backends.base import RunOptions
    from vitdeploy.models.build import BuildOptions
    from vitdeploy.pipeline import ExportRequest, TuneRequest
    from vitdeploy.pipeline import tune as run_tune
    from vitdeploy.quantize.options import Int8Options
    from vitdeploy.report.console import ConsoleListener, print_artifact
    from vitdeploy.report.tables import print_json, print_tuned
    from vitdeploy.tune.budget import Budget

    numbers = (parse_numbers(mean, "--mean"), parse_numbers(std, "--std"))
    size, channels, frames = parse_shape(shape, image_size, in_chans)
    request = TuneRequest(
        export=ExportRequest(
            model=model,
            build=BuildOptions(
                weights,
                pretrained,
                num_classes,
                size,
                channels,
                seed,
                *numbers,
                crop_pct,
                interpolation,
                read_arguments(config, arguments),
                frames,
            ),
            batch=parse_batch(batch),
            run=RunOptions(device, threads),
            calib=calib,
            calib_random=calib_random,
            calib_images=calib_images,
            strict=strict,
            int8=Int8Options(keep=tuple(keep or ())),
            warmup=warmup,
            duration=duration,
            out=out,
            force=force,
        ),
        budget=Budget(max_drop, max_error, max_latency, None if max_size is None else round(max_size * 1e6)),
        data=data,
        backends=tuple(backend or ()),
        search_images=search_images,
        time_budget=time_budget,
        split_seed=split_seed,
    )
    with ConsoleListener(quiet=json) as listener:
        tuned = run_tune(request, listener)
    manifest = tuned.artifact.manifest
    if json:
        print_json({"folder": str(tuned.artifact.folder), **manifest.to_dict()})
    else:
        print_tuned(manifest.to_dict()["applied"]["tune"])
        print_artifact(tuned.artifact)


@app.command()
def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="ARTIFACT|FILE", help="An artifact's folder, an .onnx file or an engine.")
    ],
    scheme: Annotated[
        str | None,
        typer.Option(help="Also hold its Q/DQ against a runtime's scheme: onnxruntime, openvino, tensorrt..."),
    ] = None,
    mobile: Annotated[
        bool, typer.Option("--mobile", help="Also which nodes NNAPI, Core ML, XNNPACK and QNN would take.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ops or layers, precisions and MACs of a file.

    Of an engine: its layers, their precisions, and on its GPU their share of the time.

    With --scheme, also the nodes whose quantisation a runtime would trip over.
    """
    from vitdeploy.pipeline import inspect_file, lint_file, mobile_file
    from vitdeploy.report.tables import print_compiled, print_findings, print_json, print_mobile, print_summary

    summary = inspect_file(model)
    taken = mobile_file(model) if mobile else []
    findings = None if scheme is None else lint_file(model, scheme)
    if json:
        faults = {} if findings is None else {"scheme": scheme, "findings": [found.to_dict() for found in findings]}
        print_json({**summary, **({"mobile": taken} if mobile else {}), **faults})
    else:
        (print_summary if "ops" in summary else print_compiled)(summary)
        if mobile:
            print_mobile(taken)
        if scheme is not None and findings is not None:
            print_findings(scheme, findings)
    if findings:
        raise UnsupportedModel(f"{model} breaks the scheme {scheme} in {len(findings)} places.")


@app.command()
def predict(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder, or an .onnx that vitdeploy wrote.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    device: Device = "",
    provider: Provider = None,
    provider_option: ProviderOption = None,
    threads: Threads = 1,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Classify images with the artifact's own preprocessing."""
    from vitdeploy.pipeline import predict_images
    from vitdeploy.report.console import ConsoleListener
    from vitdeploy.report.tables import print_json, print_predictions

    options = run_options(device, threads, provider, provider_option)
    with ConsoleListener(quiet=json):
        results = predict_images(artifact, images, options, top=top)
    if json:
        print_json(results)
    else:
        print_predictions(results)


@app.command()
def lab(
    artifacts: Annotated[list[Path] | None, typer.Argument(metavar="ARTIFACT", help="Artifacts' folders.")] = None,
    lan: Annotated[bool, typer.Option("--lan", help="Let other devices in: prints a QR code with the token.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    data: Data = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM, for https: what phones ask for threads.")] = None,
    key: Annotated[Path | None, typer.Option(help="Of the certificate.")] = None,
    results: Annotated[int | None, typer.Option(min=1, help="End after so many results.")] = None,
    model: Annotated[str | None, typer.Option(help="The code that made the model, where it was yours.")] = None,
    weights: Weights = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Only fetch onnxruntime-web from npm's registry.")] = False,
    package: Annotated[Path | None, typer.Option(metavar="FILE.tgz", help="With --fetch: its npm package.")] = None,
    verbose: Verbose = False,
) -> None:
    """A page that proves and measures artifacts in the browser of any device.

    Results go into the artifacts' manifests and reports.
    """
    from vitdeploy.lab import runtime
    from vitdeploy.pipeline import LabRequest
    from vitdeploy.pipeline import lab as run_lab
    from vitdeploy.report.console import ConsoleListener

    if fetch:
        print(f"onnxruntime-web {runtime.VERSION} is in {runtime.fetch(package)}")
        return
    if not artifacts:
        raise UsageError("No artifact is named.", fix="vitdeploy lab FOLDER")
    if package is not None:
        raise UsageError("--package goes with --fetch.")
    request = LabRequest(artifacts, data, model, weights, lan, port, certificate, key, results)
    with ConsoleListener() as listener:
        run_lab(request, listener.say, listener)


@app.command()
def package(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT", help="Artifacts' folders.")],
    web: Annotated[Path | None, typer.Option(metavar="DIR", help="A page for any web host: a new folder.")] = None,
    android: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An Android Studio project: a new folder.")
    ] = None,
    ios: Annotated[Path | None, typer.Option(metavar="DIR", help="An Xcode project: a new folder.")] = None,
    data: Data = None,
    model: Annotated[str | None, typer.Option(help="The code that made the model, where it was yours.")] = None,
    weights: Weights = None,
    verbose: Verbose = False,
) -> None:
    """Write artifacts as what an app's author opens.

    With --web the lab's page, which classifies images in the visitor's browser and proves itself there. With --android
    and --ios the source of an app around one artifact, which does so on a phone.
    """
    from vitdeploy.pipeline import package_app, package_web
    from vitdeploy.report.console import ConsoleListener

    apps = {"android": android, "ios": ios}
    folders = [folder for folder in (web, *apps.values()) if folder is not None]
    if not folders:
        raise UsageError("Where to?", fix="Give --web DIR, --android DIR or --ios DIR.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("Each of --web, --android and --ios has a folder of its own.")
    if web is None:
        given = {"--data": data, "--model": model, "--weights": weights}
        for option in (name for name, value in given.items() if value is not None):
            raise UsageError(f"{option} goes with --web.")
    if (web is None or len(folders) > 1) and len(artifacts) > 1:
        raise UsageError(f"An app is made of one artifact, not of {len(artifacts)}.")
    with ConsoleListener() as listener:
        for platform, folder in apps.items():
            if folder is not None:
                package_app(artifacts[0], folder, platform, listener=listener)
        if web is not None:
            package_web(artifacts, web, data=data, model=model, weights=weights, listener=listener)
    if android is not None:
        print(f"{android}/   open it in Android Studio; it was not compiled here: see README.md")
    if ios is not None:
        print(f"{ios}/   open Classify.xcodeproj in Xcode; it was not compiled here: see README.md")
    if web is not None:
        print(f"{web}/   index.html; to try it: python3 -m http.server --directory {shlex.quote(str(web))} 8000")


def main() -> None:
    """Run the command line; exit with the code that docs/cli.md lists."""
    run(app)


if __name__ == "__main__":
    main()
