"""What vitdeploy's export is held against: torch.onnx.export of timm's model, and one run on ONNX Runtime.

python benchmarks/bare_export.py mobilevit_xs /tmp/bare.onnx
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
from timm_import import import_timm


def main() -> None:
    name, out = sys.argv[1], sys.argv[2]
    warnings.simplefilter("ignore")
    model = import_timm().create_model(name).eval()
    image = torch.randn(1, *model.default_cfg["input_size"])
    torch.onnx.export(model, (image,), out, dynamo=True, verbose=False, input_names=["image"], output_names=["logits"])
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    print(session.run(None, {"image": image.numpy()})[0].shape)


if __name__ == "__main__":
    main()
