"""How to run an artifact's file without vitdeploy: a program that can be copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from vitdeploy.artifact import PACKED, Manifest
from vitdeploy.spec import InputSpec

PREPARE = '''import numpy as np
from PIL import Image, ImageOps


def prepare(path):
    """An image file as float32 ({shape})."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB"){grey}
{resize}
    pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ({mean}, {std}))
    return ((pixels - mean) / std)[None]
'''
FRAME = '''import numpy as np
from PIL import Image, ImageOps


def prepare(path):
    """An image file as a frame, uint8 ({shape}); the file does the rest."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB"){fit}
    return {pixels}
'''
PIXELS = {
    "rgb": "np.array(image)",
    "rgba": 'np.array(image.convert("RGBA"))',
    "bgra": 'np.ascontiguousarray(np.array(image.convert("RGBA"))[..., [2, 1, 0, 3]])',
}
FIT = "\n    image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.BICUBIC)"
SQUASH = """    image = image.resize(({resize_width}, {resize_height}), Image.Resampling.{filter})
    left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
    image = image.crop((left, top, left + {width}, top + {height}))"""
SQUARE = """    short = min(image.size)
    size = [int({resize_width} * side / short) for side in image.size]
    image = image.resize(size, Image.Resampling.{filter})
    left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
    image = image.crop((left, top, left + {width}, top + {height}))"""
OBLONG = """    ratio = min(image.width / {resize_width}, image.height / {resize_height})
    image = image.resize([round(side / ratio) for side in image.size], Image.Resampling.{filter})
    left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
    image = image.crop((left, top, left + {width}, top + {height}))"""

RUNS = {
    "onnxruntime": """import onnxruntime

session = onnxruntime.InferenceSession({file}, providers=["CPUExecutionProvider"])
feed = session.get_inputs()[0]
image = prepare("photo.jpg"){repeat}{cast}
logits = session.run(None, {{feed.name: image}})[0][0]""",
    "openvino": """import openvino

model = openvino.compile_model({file}, "CPU")
image = prepare("photo.jpg"){repeat}{cast}
logits = model(image)[0][0]""",
    "coreml": """import coremltools

model = coremltools.models.MLModel({file})  # runs on macOS alone
image = prepare("photo.jpg"){repeat}{cast}
logits = model.predict({{"image": image}})["logits"][0]""",
    "litert": """from ai_edge_litert.interpreter import Interpreter

model = Interpreter({file})
model.allocate_tensors()
image = prepare("photo.jpg"){repeat}{cast}
model.set_tensor(model.get_input_details()[0]["index"], image)
model.invoke()
logits = model.get_tensor(model.get_output_details()[0]["index"])[0]""",
    "ncnn": """import ncnn

net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param({file})
net.load_model({weights})
image = np.ascontiguousarray(prepare("photo.jpg")[0])  # which must outlive the next line
mat = ncnn.Mat(image).clone()
extractor = net.create_extractor()
extractor.input("image", mat)
logits = np.array(extractor.extract("logits")[1])""",
    "executorch": """import torch
from executorch.runtime import Runtime

method = Runtime.get().load_program({file}).load_method("forward")
image = prepare("photo.jpg"){repeat}{cast}
logits = method.execute([torch.from_numpy(image)])[0][0]""",
}
THROUGH = """import vitdeploy

session = vitdeploy.load(".")
image = prepare("photo.jpg"){repeat}{cast}
logits = session.run({{session.inputs[0].name: image}})[session.outputs[0].name][0]"""


def usage(manifest: Manifest) -> Sequence[str]:
    """Markdown: what goes in, and a program that runs the file from the artifact's folder."""
    spec = manifest.model.input
    lines = [f"- {tensor}" for tensor in spec.tensors] + [f"- {spec.kind}: {spec}", ""]
    if not plain_image(spec):
        return [*lines, '`vitdeploy info .` tells what each input is; `vitdeploy.load(".")` opens the file in Python.']
    return [*lines, "In this folder:", "", "```python", *program(manifest).splitlines(), "```"]


def plain_image(spec: InputSpec) -> bool:
    """Whether an image file can become this input in a few lines."""
    if spec.frame is not None:
        return spec.frame.format in PIXELS
    known = spec.shape[0] in (1, 3) and spec.channel_order == "RGB" and spec.crop_mode != "border"
    return known and spec.frames is None and spec.packing is None


def program(manifest: Manifest) -> str:
    """Python that prints the best class of `photo.jpg`."""
    request = manifest.request
    backend, batch = str(request.get("backend", "onnxruntime")), request.get("batch", 1)
    repeat = f".repeat({batch}, axis=0)" if isinstance(batch, int) and batch > 1 else ""
    cast = ".astype(np.float16)" if request.get("io_precision") == "fp16" else ""
    name, suffix, _ = manifest.model_file.partition(PACKED + "/")
    file = ascii(name + PACKED if suffix else name)
    weights = ascii(PurePosixPath(manifest.model_file).with_suffix(".bin").as_posix())
    run = RUNS.get(backend, THROUGH).format(file=file, weights=weights, repeat=repeat, cast=cast)
    return f"{prepare(manifest.model.input)}\n\n{run}\nprint(int(logits.argmax()))"


def prepare(spec: InputSpec) -> str:
    """The function that makes an input of an image file, as data.frames.as_input does."""
    if spec.frame is not None:
        size = spec.frame.size
        fit = FIT.format(height=size[0], width=size[1]) if size else ""
        shape = ", ".join(map(str, spec.frame.shape))
        return FRAME.format(shape=shape, fit=fit, pixels=PIXELS[spec.frame.format])
    height, width = spec.size
    tall, wide = (math.floor(side / spec.crop_pct) for side in spec.size)
    form = SQUASH if spec.crop_mode == "squash" else SQUARE if tall == wide else OBLONG
    places = {"height": height, "width": width, "resize_height": tall, "resize_width": wide}
    resize = form.format(filter=spec.interpolation.upper(), **places)
    return PREPARE.format(
        shape=", ".join(map(str, (1, *spec.shape))),
        grey="" if spec.shape[0] == 3 else '.convert("L")',
        channels=spec.shape[0],
        resize=resize,
        mean=list(spec.mean),
        std=list(spec.std),
        **places,
    )
