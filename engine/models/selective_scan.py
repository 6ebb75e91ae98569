"""Mamba's recurrence over the tokens of a text, and its gradients, with bounded memory for the states."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of the states [R, t, C, N] that are in memory at once: about what a CPU's caches hold; on a GPU more are faster.
CPU_CHUNK, GPU_CHUNK = 6 * 2**20, 64 * 2**20
LEAST_TOKENS = 32  # of a chunk in each row, if gradients are needed: the state before each chunk is kept for them
BLOCK = 8  # tokens of a chunk that are computed one after the other on a GPU; the blocks of a chunk run in parallel


def selective_scan(a: Tensor, dt: Tensor, b: Tensor, c: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t, y_t = c_t h_t, chunk by chunk, to bound the memory of the states.

    a [C, N], dt and x [R, T, C], b and c [R, T, N], h [R, C, N] -> y [R, T, C] and the last h. For the gradients of all
    six only the inputs and the state before each chunk are kept; the backward pass computes the other states again.
    All is computed in the dtype of the inputs, also under autocast: a state passes its errors on to all later tokens.
    """
    with torch.autocast(dt.device.type, enabled=False):
        return _selective_scan(a, dt, b, c, x, h)


def _selective_scan(a: Tensor, dt: Tensor, b: Tensor, c: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    inputs = (a, dt, b, c, x, h)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        y, last = _SelectiveScan.apply(*inputs)  # type: ignore[no-untyped-call]
        return y, last
    size = max(1, _chunk_tokens(a) // len(dt))
    outputs = []
    for first in range(0, dt.shape[1], size):
        part = slice(first, first + size)
        states = _states(a, dt[:, part], b[:, part], x[:, part], h)[1]
        outputs.append((states @ c[:, part, :, None])[..., 0])
        h = states[:, -1]
    return torch.cat(outputs, dim=1), h.clone()  # without the other states of its chunk


def scan(decay: Tensor, added: Tensor, h: Tensor, reverse: bool = False) -> Tensor:
    """h_t = decay_t h_{t-1} + added_t along dimension 1: [R, T, …], from h [R, …] -> all h_t [R, T, …]. No gradients.

    `reverse`: h_t = decay_{t+1} h_{t+1} + added_t, from the last token to the first, with decay_{T+1} = 1.
    """
    if decay.device.type == "cpu":  # token by token, which reads and writes least
        states = torch.empty_like(added)
        factors, parts, new = decay.unbind(1), states.unbind(1), added.unbind(1)
        if reverse:
            torch.add(new[-1], h, out=parts[-1])
            for token in range(len(new) - 2, -1, -1):
                torch.addcmul(new[token], factors[token + 1], parts[token + 1], out=parts[token])
            return states
        for state, factor, part in zip(parts, factors, new, strict=True):
            h = torch.addcmul(part, factor, h, out=state)
        return states
    if reverse:
        following = torch.cat((decay[:, 1:], torch.ones_like(decay[:, :1])), dim=1)
        return _scan_blocks(following.flip(1), added.flip(1), h).flip(1)
    return _scan_blocks(decay, added, h)


def _scan_blocks(decay: Tensor, added: Tensor, h: Tensor) -> Tensor:
    """`scan` for a GPU: all blocks are computed in parallel from zero; then each block's start state is added, passed
    from block to block."""
    count = decay.shape[1]
    if count == 1:
        return torch.addcmul(added, decay, h[:, None])
    block = BLOCK if count > BLOCK and count % BLOCK == 0 else count if count <= BLOCK else 1
    if block == 1:  # a tail that does not fill a block
        whole = count - count % BLOCK
        first = _scan_blocks(decay[:, :whole], added[:, :whole], h)
        return torch.cat((first, _scan_blocks(decay[:, whole:], added[:, whole:], first[:, -1])), dim=1)
    decays = list(torch.unflatten(decay, 1, (-1, block)).unbind(2))  # of [R, T / block, …]
    states = list(torch.unflatten(added, 1, (-1, block)).unbind(2))
    for index in range(1, block):
        states[index] = torch.addcmul(states[index], decays[index], states[index - 1])
        decays[index] = decays[index] * decays[index - 1]
    starts = [h]
    for previous in range(states[-1].shape[1] - 1):
        starts.append(torch.addcmul(states[-1][:, previous], decays[-1][:, previous], starts[-1]))
    start = torch.stack(starts, dim=1)  # [R, T / block, …]
    complete = [torch.addcmul(state, decay, start) for state, decay in zip(states, decays, strict=True)]
    return torch.stack(complete, dim=2).flatten(1, 2)


def _states(a: Tensor, dt: Tensor, b: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt a) and h after each token: dt and x [R, t, C], b [R, t, N], from h [R, C, N] -> [R, t, C, N] each."""
    decay = (dt[..., None] * a).exp_()
    return decay, scan(decay, (dt * x)[..., None] * b[:, :, None], h)


class _SelectiveScan(torch.autograd.Function):
    """`selective_scan` with gradients, by the same recurrence backwards.

    The gradient of h_t is g_t = c_t dy_t + decay_{t+1} g_{t+1}; all others follow from it, token by token.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, dt: Tensor, b: Tensor, c: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, last, parts = torch.empty_like(dt), h.clone(), _parts(a, dt)
        starts = h.new_empty(1 + max(number for number, _ in parts), *h.shape)  # one tensor: small ones pin large pages
        for number, part in parts:
            rows = part[0]
            starts[number, rows] = last[rows]
            states = _states(a, dt[part], b[part], x[part], starts[number, rows])[1]
            y[part] = (states @ c[part][..., None])[..., 0]
            last[rows] = states[:, -1]
        ctx.save_for_backward(a, dt, b, c, x, starts)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        a, dt, b, c, x, starts = ctx.saved_tensors
        da = torch.zeros_like(a) if ctx.needs_input_grad[0] else None
        ddt, dx, db, dc = (torch.empty_like(tensor) for tensor in (dt, x, b, c))
        dh, ones = dlast.clone(), a.new_ones(a.shape[1])
        for number, part in reversed(_parts(a, dt)):
            rows = part[0]
            start = starts[number, rows]
            steps, inputs, outputs = dt[part], x[part], dy[part]
            decay, states = _states(a, steps, b[part], inputs, start)
            dc[part] = (outputs[:, :, None] @ states)[:, :, 0]
            g = scan(decay, outputs[..., None] * c[part][:, :, None], dh[rows], reverse=True)  # [R, t, C, N]
            of_input = (g @ b[part][..., None])[..., 0]
            dx[part] = steps * of_input
            db[part] = ((steps * inputs)[:, :, None] @ g)[:, :, 0]
            g *= decay
            dh[rows] = g[:, 0]
            g[:, 0] *= start
            g[:, 1:] *= states[:, :-1]  # now the gradient of dt a
            if da is not None:
                da += (g * steps[..., None]).sum((0, 1))
            g *= a
            ddt[part] = (g @ ones).addcmul_(inputs, of_input)
        return da, ddt, db, dc, dx, dh


def _parts(a: Tensor, dt: Tensor) -> list[tuple[int, tuple[slice, slice]]]:
    """The chunks of dt [R, T, C] for training: a few rows at a time, each from first to last.

    Of each chunk its number within its rows, and its rows and tokens.
    """
    tokens = _chunk_tokens(a)
    rows = max(1, tokens // LEAST_TOKENS)
    size = max(LEAST_TOKENS, tokens // min(rows, len(dt)))
    starts = product(range(0, len(dt), rows), enumerate(range(0, dt.shape[1], size)))
    return [(number, (slice(row, row + rows), slice(token, token + size))) for row, (number, token) in starts]


def _chunk_tokens(a: Tensor) -> int:
    """Number of tokens, of all rows, whose states are in memory at once."""
    return max(1, (CPU_CHUNK if a.device.type == "cpu" else GPU_CHUNK) // a.nbytes)
