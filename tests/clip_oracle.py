"""CLIP's vision transformer written out slowly from the formulas, for tests to compare with.

One image at a time, float64, plain matrix products, attention masks as explicit tables of who may
see whom. Nothing of open_clip or of the library takes part.

Shapes: T = 1 + P tokens, D width, d head width, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class SlowVision:
    def __init__(self, state):
        prefix = "visual."
        self._weights = {
            name.removeprefix(prefix): value.double()
            for name, value in state.items()
            if name.startswith(prefix)
        }
        self.width, _, self.patch, _ = self._weights["conv1.weight"].shape
        self.num_heads = self.width // 64
        self.num_blocks = sum(name.endswith(".ln_1.weight") for name in self._weights)

    def embed(self, image_3RR):
        image_3RR = image_3RR.double()
        grid = image_3RR.shape[-1] // self.patch
        kernel = self._weights["conv1.weight"].flatten(1)
        tokens = [self._weights["class_embedding"]]
        for row in range(grid):
            for column in range(grid):
                top, left = row * self.patch, column * self.patch
                patch = image_3RR[:, top : top + self.patch, left : left + self.patch]
                tokens.append(kernel @ patch.flatten())
        return self.norm("ln_pre", torch.stack(tokens) + self._positions(grid))

    def _positions(self, grid):
        trained = self._weights["positional_embedding"]
        side = round((len(trained) - 1) ** 0.5)
        if side == grid:
            return trained
        square = trained[1:].reshape(1, side, side, self.width).permute(0, 3, 1, 2)
        resized = F.interpolate(
            square, (grid, grid), mode="bicubic", align_corners=False, antialias=True
        )
        return torch.cat([trained[:1], resized[0].permute(1, 2, 0).reshape(-1, self.width)])

    def norm(self, name, x_TD):
        centred = x_TD - x_TD.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def linear(self, name, x_TD):
        return x_TD @ self._weights[f"{name}weight"].T + self._weights[f"{name}bias"]

    def heads(self, block, normed_TD):
        """Query, key and value of every head: lists of (T, d)."""
        qkv = self.linear(f"transformer.resblocks.{block}.attn.in_proj_", normed_TD)
        q, k, v = qkv.split(self.width, dim=1)
        return [list(part.split(64, dim=1)) for part in (q, k, v)]

    def block(self, index, x_TD, may_see_TT=None):
        name = f"transformer.resblocks.{index}."
        attended = []
        for q, k, v in zip(*self.heads(index, self.norm(f"{name}ln_1", x_TD)), strict=True):
            scores_TT = q @ k.T / 64**0.5
            if may_see_TT is not None:
                scores_TT = scores_TT.masked_fill(~may_see_TT, float("-inf"))
            attended.append(scores_TT.softmax(dim=1) @ v)
        x_TD = x_TD + self.linear(f"{name}attn.out_proj.", torch.cat(attended, dim=1))
        hidden = self.linear(f"{name}mlp.c_fc.", self.norm(f"{name}ln_2", x_TD))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return x_TD + self.linear(f"{name}mlp.c_proj.", hidden)

    def project(self, x_TD):
        return self.norm("ln_post", x_TD) @ self._weights["proj"]

    def encode(self, image_3RR):
        x_TD = self.embed(image_3RR)
        for index in range(self.num_blocks):
            x_TD = self.block(index, x_TD)
        return self.project(x_TD[0])

    def mask_feature(
        self, mode, local_3RR, global_3RR, coverage_P, *, first, weight=2.0, skips=True
    ):
        """Feature of one mask, (E,), by the table of fusion modes."""
        factor_T1 = torch.cat([torch.ones(1), coverage_P]).double()[:, None]
        count = len(factor_T1)
        may_see_TT = torch.ones(count, count, dtype=torch.bool)
        may_see_TT[0, 1:] = coverage_P > 0

        def gated(x_TD):
            return factor_T1 * x_TD

        def class_attends_mask(b, x_TD):
            return self.block(b, x_TD, may_see_TT)

        step = {
            "crop": lambda b, l_, g: (self.block(b, l_), g),
            "token_masking": lambda b, l_, g: (self.block(b, gated(l_)), g),
            "attn_masking": lambda b, l_, g: (class_attends_mask(b, l_), g),
            "L2G": lambda b, l_, g: (self.block(b, l_), class_attends_mask(b, l_ + weight * g)),
            "G2L": lambda b, l_, g: (
                self.block(b, weight * gated(g) + l_),
                class_attends_mask(b, g),
            ),
            "both": lambda b, l_, g: (self.block(b, l_), class_attends_mask(b, g)),
        }[mode]
        l_, g = self.embed(local_3RR), self.embed(global_3RR)
        for b in range(first):
            l_, g = self.block(b, l_), self.block(b, g)
        hl, hg = l_, g
        for b in range(first, self.num_blocks - (mode == "attn_masking" and skips)):
            hl, hg = self.block(b, hl + weight * gated(g)), class_attends_mask(b, l_ + weight * hg)
            l_, g = step(b, l_, g)
        results = {"both": (hl, hg), "L2G": (g,)}.get(mode, (l_,))
        return sum(self.project(x_TD[0]) for x_TD in results)

    def gem_patches(self, image_3RR, *, depth, iterations):
        """GEM's patch features, (P, E), of length 1."""
        x_TD = y_TD = self.embed(image_3RR)
        for index in range(self.num_blocks):
            name = f"transformer.resblocks.{index}."
            if index < self.num_blocks - (depth - 1):
                x_TD = y_TD = self.block(index, x_TD)
                continue
            normed_TD = self.norm(f"{name}ln_1", x_TD)
            tau = sum(float(token.norm()) for token in normed_TD) / len(normed_TD) / 64**0.5
            outputs = []
            for q, k, v in zip(*self.heads(index, normed_TD), strict=True):
                gathered = [self._self_self(z, v, tau, iterations) for z in (v, k, q)]
                outputs.append((gathered[0] + gathered[1] + gathered[2]) / 3)
            y_TD = y_TD + self.linear(f"{name}attn.out_proj.", torch.cat(outputs, dim=1))
            x_TD = self.block(index, x_TD)
        features = self.project(y_TD)[1:]
        return torch.stack([feature / feature.norm() for feature in features])

    @staticmethod
    def _self_self(z_Td, v_Td, tau, iterations):
        for _ in range(iterations):
            z_Td = torch.stack([z / z.norm() for z in z_Td])
            z_Td = (tau * z_Td @ z_Td.T).softmax(dim=1) @ z_Td
        z_Td = torch.stack([z / z.norm() for z in z_Td])
        return (tau * z_Td @ z_Td.T).softmax(dim=1) @ v_Td
