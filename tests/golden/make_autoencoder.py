"""Writes ``autoencoder_tiny.npz``: what diffusers' AutoencoderKL computes.

The output of every stage, channels last, for the weights and the inputs of
``autoencoder_weights.py``. The weights go through a file with the old names of the
attention, which diffusers translates itself. Needs torch and diffusers, which the
package and its tests do not: ``python tests/golden/make_autoencoder.py``.
"""

import json
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import autoencoder_weights as tiny  # noqa: E402

OLD_NAMES = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}


def old_name(name):
    for new, old in OLD_NAMES.items():
        name = name.replace(new, old)
    return name


def load():
    """The model of diffusers, from a file with old names."""
    shapes = diffusers.AutoencoderKL(**tiny.CONFIG).state_dict()
    state = tiny.draw({name: tuple(t.shape) for name, t in shapes.items()})
    with tempfile.TemporaryDirectory() as folder:
        settings = {"_class_name": "AutoencoderKL", **tiny.CONFIG}
        (Path(folder) / "config.json").write_text(json.dumps(settings))
        save_file(
            {old_name(name): tensor for name, tensor in state.items()},
            Path(folder) / "diffusion_pytorch_model.safetensors",
            {"format": "pt"},
        )
        return diffusers.AutoencoderKL.from_pretrained(folder).eval()


def stages(model):
    """Our name of a stage -> module of diffusers."""
    found = {"quant": model.quant_conv, "post_quant": model.post_quant_conv}
    for half, blocks in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        part = getattr(model, half)
        found |= {
            f"{half}/in": part.conv_in,
            f"{half}/middle": part.mid_block,
            f"{half}/out": part.conv_out,
        }
        for i, block in enumerate(getattr(part, blocks)):
            found[f"{half}/level_{i}"] = block
    return found


def last(array):
    return array.permute(0, 2, 3, 1).numpy()


def main():
    model = load()
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            outputs[name] = last(output)

        return hook

    for name, module in stages(model).items():
        module.register_forward_hook(keep(name))
    with torch.no_grad():
        posterior = model.encode(torch.tensor(tiny.image()).permute(0, 3, 1, 2))
        posterior = posterior.latent_dist
        outputs["mean"], outputs["std"] = last(posterior.mean), last(posterior.std)
        z = torch.tensor(tiny.latent()).permute(0, 3, 1, 2)
        outputs["pixels"] = last(model.decode(z).sample)
    np.savez_compressed(HERE / "autoencoder_tiny.npz", **outputs)


if __name__ == "__main__":
    main()
