"""The pretraining network in the structure that was released, for comparison: eager, every intermediate kept whole.

Written from a description of the released network, with its names, so that `gsmae.released_names.to_released` fills it.
What is slow about it on purpose, because the released one is so: all points of a group carry a copy of what they share,
splat pooling multiplies expanded tensors, attention keeps its matrix, neighbours are found by sorting all distances.
`fixed` has what one would mend first: scaled_dot_product_attention, torch.topk (and fused AdamW, outside).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIELDS = {"increase_dim": 3, "opacity_head": 1, "scale_head": 3, "rotation_head": 4, "sh_head": 3}


class Aggregate(nn.Module):
    """Splat pooling, [R, C, J] -> [R, C, S]."""

    def __init__(self, slots: int):
        super().__init__()
        self.learnable_temp, self.log_temp_bias = nn.Parameter(torch.zeros(slots)), nn.Parameter(torch.zeros(slots))
        self.nnn = nn.Module()  # released, and never used
        self.nnn.register_buffer("log_temp", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        temperature = self.learnable_temp.exp() + self.log_temp_bias
        query = x.max(dim=2, keepdim=True).values
        distance = (query - x).square().sum(dim=1)
        weights = torch.softmax(-distance[:, None, :] / temperature[None, :, None], dim=-1)
        values = x.transpose(1, 2)[:, None].expand(-1, len(temperature), -1, -1)
        return torch.einsum("rsj,rsjc->rsjc", weights, values).sum(dim=2).transpose(1, 2)


class Tokenizer(nn.Module):
    def __init__(self, columns: int, width: int, slots: int | None):
        super().__init__()
        local = 256 if slots is None else 128
        self.first_conv = nn.Sequential(
            nn.Conv1d(columns, 128, 1), nn.BatchNorm1d(128), nn.ReLU(inplace=True), nn.Conv1d(128, local, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * local, 2 * local, 1), nn.BatchNorm1d(2 * local), nn.ReLU(inplace=True),
            nn.Conv1d(2 * local, width, 1),
        )  # fmt: skip
        self.n3_agg = None if slots is None else Aggregate(slots)

    def forward(self, groups: Tensor) -> Tensor:
        batch, count, size, columns = groups.shape
        x = self.first_conv(groups.reshape(batch * count, size, columns).transpose(2, 1))
        if self.n3_agg is not None:
            x = self.n3_agg(x)
        shared = x.max(dim=2, keepdim=True).values
        x = self.second_conv(torch.cat([shared.expand(-1, -1, x.shape[2]), x], dim=1))
        return x.max(dim=2).values.reshape(batch, count, -1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fixed: bool):
        super().__init__()
        self.heads, self.fixed = heads, fixed
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.fixed:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, rate: float, fixed: bool):
        super().__init__()
        self.rate = rate
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, fixed)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x.div(1 - self.rate) * x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class Blocks(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, drop_path: float, fixed: bool):
        super().__init__()
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(width, heads, rate, fixed) for rate in rates)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x + positions)
        return x


class Decoder(Blocks):
    def __init__(self, width: int, depth: int, heads: int, drop_path: float, fixed: bool):
        super().__init__(width, depth, heads, drop_path, fixed)
        self.norm = nn.LayerNorm(width)


def positions(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))


class Released(nn.Module):
    """[B, N, 14] and a mask [B, G] -> the loss; grouped by positions, all fields embedded and normalised."""

    def __init__(self, config, fixed: bool):
        super().__init__()
        e = config.encoder
        self.groups, self.size, self.candidates, self.fixed = e.groups, e.group_size, e.candidates, fixed
        self.MAE_encoder = nn.ModuleDict(
            {
                "encoder": Tokenizer(14, e.width, (e.slots or e.group_size) if e.pooling else None),
                "pos_embed": positions(e.width),
                "blocks": Blocks(e.width, e.depth, e.heads, e.drop_path, fixed),
                "norm": nn.LayerNorm(e.width),
            }
        )
        self.MAE_decoder = Decoder(e.width, config.decoder_depth, config.decoder_heads, e.drop_path, fixed)
        self.decoder_pos_embed = positions(e.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, e.width))
        for name, width in FIELDS.items():
            setattr(self, name, nn.Sequential(nn.Conv1d(e.width, width * e.group_size, 1)))

    @torch.no_grad()
    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        means = points[..., :3].contiguous()
        batch, n, _ = means.shape
        on = points.device
        chosen = torch.zeros(batch, self.groups, dtype=torch.int64, device=on)
        to_chosen, rows = torch.full((batch, n), 1e10, device=on), torch.arange(batch, device=on)
        current = torch.zeros(batch, dtype=torch.int64, device=on)
        for i in range(self.groups):
            chosen[:, i] = current
            distance = (means - means[rows, current][:, None]).square().sum(dim=-1)
            to_chosen = torch.minimum(to_chosen, distance)
            current = to_chosen.argmax(dim=-1)
        centers = points[rows[:, None], chosen]
        distance = (centers[:, :, None, :3] - means[:, None]).square().sum(dim=-1)
        if self.fixed:
            nearest = distance.topk(self.candidates, dim=-1, largest=False).indices
        else:
            nearest = distance.argsort(dim=-1)[..., : self.candidates]
        members = points[rows[:, None, None], nearest].clone()
        members[..., :3] -= centers[:, :, None, :3]
        return members, centers

    def forward(self, points: Tensor, mask: Tensor) -> Tensor:
        members, centers = self.group(points)
        batch = len(points)
        encoder = self.MAE_encoder
        tokens = encoder["encoder"](members)
        visible = tokens[~mask].reshape(batch, -1, tokens.shape[-1])
        at = centers[..., :3]
        x = encoder["norm"](encoder["blocks"](visible, encoder["pos_embed"](at[~mask].reshape(batch, -1, 3))))
        where = [self.decoder_pos_embed(at[m].reshape(batch, -1, 3)) for m in (~mask, mask)]
        hidden = where[1].shape[1]
        x = torch.cat([x, self.mask_token.expand(batch, hidden, -1)], dim=1)
        x = self.MAE_decoder.norm(self.MAE_decoder(x, torch.cat(where, dim=1))[:, -hidden:]).transpose(1, 2)
        target = members[mask][:, : self.size]
        predicted = {
            name: getattr(self, name)(x).transpose(1, 2).reshape(batch * hidden, self.size, width)
            for name, width in FIELDS.items()
        }
        rotation = torch.tanh(predicted["rotation_head"])
        rotation = torch.cat([1 - rotation[..., :1], rotation[..., 1:]], dim=-1)
        rotation = rotation / (rotation.norm(dim=-1, keepdim=True) + 1e-9)
        distance = torch.cdist(predicted["increase_dim"], target[..., :3]).square()
        loss = distance.min(dim=2).values.mean() + distance.min(dim=1).values.mean()
        loss = loss + F.l1_loss(torch.tanh(predicted["opacity_head"]), target[..., 3:4])
        loss = loss + F.l1_loss(torch.tanh(predicted["scale_head"]), target[..., 4:7])
        loss = loss + F.l1_loss(rotation, target[..., 7:11])
        return loss + F.l1_loss(predicted["sh_head"], target[..., 11:14])
