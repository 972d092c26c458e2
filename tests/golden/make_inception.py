"""Writes ``inception.npz``: outputs of torch-fidelity's network with seeded weights.

Needs torch and torch-fidelity 0.4, which the package and its tests do not:
``PYTHONPATH=tests/evaluation python tests/golden/make_inception.py``.
"""

import importlib.util
import sys
import tempfile
import types
from pathlib import Path

import inception_tensors as drawn
import numpy as np
import torch

# Their __init__ imports more than this network needs, torchvision among it.
package = types.ModuleType("torch_fidelity")
package.__path__ = importlib.util.find_spec("torch_fidelity").submodule_search_locations
sys.modules["torch_fidelity"] = package
FeatureExtractorInceptionV3 = importlib.import_module(
    "torch_fidelity.feature_extractor_inceptionv3"
).FeatureExtractorInceptionV3

STAGES = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"),
    *("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
SIZE = (139, 107)


def network():
    """Their network in float64 with drawn weights; making one loads a file."""
    load = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "empty.pth")
        torch.save({}, path)
        wanted = ["2048", "logits_unbiased"]
        net = FeatureExtractorInceptionV3(
            "inception",
            wanted,
            feature_extractor_weights_path=path,
        )
    net.feature_extractor_internal_dtype = torch.float64
    net.double()
    FeatureExtractorInceptionV3.load_state_dict = load
    shapes = {
        name: tuple(x.shape)
        for name, x in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state = drawn.tensors({name: shapes[name] for name in sorted(shapes)})
    result = net.load_state_dict(
        {name: torch.from_numpy(x) for name, x in state.items()}, strict=False
    )
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return net


def channels_last(x):
    return x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()


if __name__ == "__main__":
    net, outputs = network(), {}
    seen = {}
    net.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: seen.update(branch=output)
    )
    with torch.no_grad():
        x = torch.from_numpy(drawn.image(*SIZE)).double().permute(0, 3, 1, 2)
        for name in STAGES:
            x = getattr(net, name)(x)
            outputs[name] = drawn.summary(channels_last(x))
        pool3 = net.AvgPool(x).flatten(1)
        outputs["pool3"] = drawn.summary(pool3)
        outputs["spatial"] = drawn.summary(channels_last(seen["branch"])[..., :7])
        outputs["logits_unbiased"] = drawn.summary(pool3 @ net.fc.weight.T)
        pixels = torch.from_numpy(drawn.pixels()).permute(0, 3, 1, 2)
        features, logits = net(pixels)
        outputs["pixels_features"] = drawn.summary(features)
        outputs["pixels_logits"] = drawn.summary(logits)
        spatial = channels_last(seen["branch"])[..., :7].reshape(1, -1)
        outputs["pixels_spatial"] = drawn.summary(spatial)
    np.savez(Path(__file__).parent / "inception.npz", **outputs)
    for name, x in outputs.items():
        print(name, x[:3])
