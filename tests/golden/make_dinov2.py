"""Writes ``dinov2_tiny.npz``: weights, images, and every stage of a second DINOv2.

The network is timm's vision transformer in float64, with the shapes of none of the
published ones; positions and images are resized by torch. Needs torch and timm, which
the package and its tests do not: ``python make_dinov2.py``.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from timm.models.vision_transformer import VisionTransformer

HERE = Path(__file__).parent
WIDTH, DEPTH, HEADS, HIDDEN, PATCH = 24, 3, 3, 48, 4
TRAINED_SIDE, SIDE = 5, 3


def network(side):
    return VisionTransformer(
        img_size=side * PATCH,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / WIDTH,
        init_values=1.0,
        num_classes=0,
        global_pool="token",
    )


def random_weights():
    """Small tokens and no neutral scales, so that eps and every factor matter."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, value in network(TRAINED_SIDE).state_dict().items():
        shape = tuple(value.shape)
        x = rng.standard_normal(shape)
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            x *= 0.01
        elif name.endswith("weight") and len(shape) == 1:
            x = 1 + 0.3 * x
        elif name.endswith("weight"):
            x *= 1.5 / shape[1] ** 0.5
        elif name.endswith("gamma"):
            x = 0.5 + 0.3 * x
        else:
            x *= 0.3
        weights[name] = x.astype(np.float32)
    return weights


def interpolated(positions, side):
    """As the published code: torch's bicubic with a scale of (side + 0.1) / n."""
    n = int(positions.shape[1] ** 0.5)
    grid = positions.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / n
    grid = nnf.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)


def stages(weights, images):
    """Tokens with positions, tokens after each block, after the last norm, features."""
    state = {name: torch.from_numpy(x).double() for name, x in weights.items()}
    positions = state["pos_embed"]
    patches = interpolated(positions[:, 1:], SIDE)
    state["pos_embed"] = torch.cat([positions[:, :1], patches], 1)
    net = network(SIDE).double().eval()
    net.load_state_dict(state)
    found = []
    net.blocks[0].register_forward_pre_hook(lambda _, x: found.append(x[0]))
    for layer in (*net.blocks, net.norm):
        layer.register_forward_hook(lambda _, x, y: found.append(y))
    mean = torch.tensor([0.485, 0.456, 0.406]).double()
    std = torch.tensor([0.229, 0.224, 0.225]).double()
    pixels = (torch.from_numpy(images).double() / 255 - mean) / std
    with torch.no_grad():
        features = net(pixels.permute(0, 3, 1, 2))
    tokens, *blocks, normalized = found
    return {
        "tokens": tokens,
        "blocks": torch.stack(blocks),
        "normalized": normalized,
        "features": features,
    }


def resized(image, size):
    x = torch.from_numpy(image).double().permute(2, 0, 1)[None]
    x = nnf.interpolate(x, (size, size), mode="bicubic", antialias=True)
    return x[0].permute(1, 2, 0)


def main():
    rng = np.random.default_rng(1)
    weights = random_weights()
    size = SIDE * PATCH
    images = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    small = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    large = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    positions = np.random.default_rng(2).standard_normal((37 * 37, 2))
    np.savez_compressed(
        HERE / "dinov2_tiny.npz",
        images=images,
        **{
            name: x.numpy().astype(np.float32)
            for name, x in stages(weights, images).items()
        },
        positions_16=interpolated(torch.from_numpy(positions)[None], 16)[0].numpy(),
        small=small,
        small_resized=resized(small, 12).numpy(),
        large=large,
        large_resized=resized(large, 12).numpy(),
        **{"weights/" + name: x for name, x in weights.items()},
    )


if __name__ == "__main__":
    main()
