"""What rounding changes in a matrix, in one kernel on an NVIDIA GPU.

PyTorch takes a dozen operations for it, each of which reads and writes the whole matrix; they were two
thirds of a search. The kernels are compiled at run time by NVRTC, which comes with PyTorch. Where that
cannot be done, `kernels` returns None, and the search uses PyTorch's operations.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.passes.quantize.grid import Grid

SHRINKS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)  # of a group's range, as AWQ's authors try
KEPT = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # types of a group's scale, as the kernels say
SIZES = (16, 32, 64, 128)  # of a group
WARPS, ROWS = 4, 256  # of a block of `clipped`; rows that it works on
BEGINS = 'extern "C"'  # each kernel
MOST_SAID = 500  # characters of why there are none
MISSED_WARPS = 8  # of a block of `missed`, each with a group of its own
# A warp has a group, each of its 32 lanes every 32nd weight. What is computed is what `Grid` computes with
# PyTorch, rounded at the same places; PyTorch multiplies by the inverse where it divides by a number.
SOURCE = r"""
#define PER ((SIZE + 31) / 32)
#define WHOLE 0xffffffffu

struct Group { float low, high; };

__device__ __forceinline__ unsigned short low_bits(float value) {  // the nearest bfloat16
    unsigned int bits = __float_as_uint(value);
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ float as_kept(float value, int kept) {
    if (kept == 1) return __uint_as_float((unsigned int)low_bits(value) << 16);
    if (kept == 2) {
        unsigned short half;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    }
    return value;
}

__device__ __forceinline__ Group limits(const float* x, int lane, int symmetric) {
    Group found = {0.f, 0.f};
    #pragma unroll
    for (int i = 0; i < PER; i++)
        if (i * 32 + lane < SIZE) {
            found.low = fminf(found.low, x[i]);
            found.high = fmaxf(found.high, x[i]);
        }
    #pragma unroll
    for (int other = 16; other; other >>= 1) {
        found.low = fminf(found.low, __shfl_xor_sync(WHOLE, found.low, other));
        found.high = fmaxf(found.high, __shfl_xor_sync(WHOLE, found.high, other));
    }
    if (symmetric) {
        found.high = fmaxf(-found.low, found.high);
        found.low = -found.high;
    }
    if (found.high == found.low) {
        found.low = -1.f;
        found.high = 1.f;
    }
    return found;
}

__device__ __forceinline__ void parameters(
    float low, float high, int top, int symmetric, int kept, float tiny, float* scale, float* zero
) {
    *scale = fmaxf(as_kept(__fmul_rn(high - low, 1.f / (float)top), kept), tiny);
    *zero = symmetric ? (float)((top + 1) / 2) : fminf(fmaxf(rintf(-low / *scale), 0.f), (float)top);
}

__device__ __forceinline__ float rounded(float x, float scale, float zero, int top) {
    float code = fminf(fmaxf(rintf(__fadd_rn(x / scale, zero)), 0.f), (float)top);
    return __fmul_rn(code - zero, scale);
}

extern "C" __global__ void missed(
    const float* matrix, const float* factors, unsigned short* made,
    int groups, int inputs, int top, int symmetric, int kept, double tiny
) {
    int group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (group >= groups) return;
    size_t at = (size_t)group * SIZE;
    int column = (int)(at % inputs);
    float plain[PER], factor[PER], x[PER], scale, zero;
    #pragma unroll
    for (int i = 0; i < PER; i++) {
        int k = i * 32 + lane;
        plain[i] = k < SIZE ? matrix[at + k] : 0.f;
        factor[i] = k < SIZE ? factors[column + k] : 1.f;
        x[i] = __fmul_rn(plain[i], factor[i]);
    }
    Group found = limits(x, lane, symmetric);
    parameters(found.low, found.high, top, symmetric, kept, (float)tiny, &scale, &zero);
    #pragma unroll
    for (int i = 0; i < PER; i++) {
        int k = i * 32 + lane;
        if (k < SIZE) made[at + k] = low_bits(rounded(x[i], scale, zero, top) / factor[i] - plain[i]);
    }
}

extern "C" __global__ void clipped(
    const float* matrix, const float* gram, float* scales, float* zeros,
    unsigned short* of_plain, unsigned short* of_best,
    int rows, int inputs, int together, int top, int symmetric, int kept, double tiny
) {
    extern __shared__ float shared[];
    float* block = shared;  // this group's part of the Gram matrix, [SIZE, SIZE]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float* mine = shared + SIZE * SIZE + warp * SIZE * 12;  // what each step misses, [SIZE, 12]
    int group = blockIdx.x, groups = inputs / SIZE, column = group * SIZE;
    for (int i = threadIdx.x; i < SIZE * SIZE; i += blockDim.x)
        block[i] = gram[(size_t)(column + i / SIZE) * inputs + column + i % SIZE];
    __syncthreads();
    const float shrinks[STEPS] = {1.f, SHRINKS};
    int end = min(rows, (int)(blockIdx.y + 1) * together);
    for (int row = blockIdx.y * together + warp; row < end; row += warps) {
        size_t at = (size_t)row * inputs + column;
        float x[PER], scale[STEPS], zero[STEPS], price[STEPS], sums[STEPS][PER];
        #pragma unroll
        for (int i = 0; i < PER; i++) x[i] = i * 32 + lane < SIZE ? matrix[at + i * 32 + lane] : 0.f;
        Group found = limits(x, lane, symmetric);
        #pragma unroll
        for (int step = 0; step < STEPS; step++) {
            float low = __fmul_rn(found.low, shrinks[step]), high = __fmul_rn(found.high, shrinks[step]);
            parameters(low, high, top, symmetric, kept, (float)tiny, &scale[step], &zero[step]);
            #pragma unroll
            for (int i = 0; i < PER; i++) {
                int k = i * 32 + lane;
                sums[step][i] = 0.f;
                if (k < SIZE)
                    mine[k * 12 + step] = __fsub_rn(rounded(x[i], scale[step], zero[step], top), x[i]);
            }
        }
        __syncwarp();
        for (int k = 0; k < SIZE; k++) {
            const float4* all = (const float4*)(mine + k * 12);
            float4 a = all[0], b = all[1], c = all[2];
            float miss[12] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
            #pragma unroll
            for (int i = 0; i < PER; i++) {
                float weight = i * 32 + lane < SIZE ? block[k * SIZE + i * 32 + lane] : 0.f;
                #pragma unroll
                for (int step = 0; step < STEPS; step++)
                    sums[step][i] = fmaf(weight, miss[step], sums[step][i]);
            }
        }
        int best = 0;
        #pragma unroll
        for (int step = 0; step < STEPS; step++) {
            price[step] = 0.f;
            #pragma unroll
            for (int i = 0; i < PER; i++)
                if (i * 32 + lane < SIZE)
                    price[step] = fmaf(sums[step][i], mine[(i * 32 + lane) * 12 + step], price[step]);
            #pragma unroll
            for (int other = 16; other; other >>= 1)
                price[step] += __shfl_xor_sync(WHOLE, price[step], other);
        }
        float lowest = price[0], best_scale = scale[0], best_zero = zero[0];
        #pragma unroll
        for (int step = 1; step < STEPS; step++)
            if (price[step] < lowest) {
                lowest = price[step];
                best = step;
                best_scale = scale[step];
                best_zero = zero[step];
            }
        #pragma unroll
        for (int i = 0; i < PER; i++) {
            int k = i * 32 + lane;
            if (k < SIZE) {
                of_plain[at + k] = low_bits(mine[k * 12]);
                of_best[at + k] = low_bits(mine[k * 12 + best]);
            }
        }
        if (lane == 0) {
            size_t here = (size_t)row * groups + group, next = (size_t)rows * groups + here;
            scales[here] = scale[0];
            zeros[here] = zero[0];
            scales[next] = best_scale;
            zeros[next] = best_zero;
        }
        __syncwarp();
    }
}
"""


@dataclass(frozen=True)
class Kernels:
    """The kernels for groups of one size. `clip` is None where a block of the GPU has too little memory."""

    size: int
    miss: Any
    clip: Any

    def missed(self, matrix: Tensor, factors: Tensor, grid: Grid) -> Tensor:
        """What rounding `matrix * factors` to nearest changes in `matrix`, bfloat16 [rows, inputs]."""
        made = torch.empty(matrix.shape, dtype=torch.bfloat16, device=matrix.device)
        groups, inputs = matrix.numel() // self.size, matrix.shape[1]
        blocks = -(-groups // MISSED_WARPS)
        given = [matrix, factors.contiguous(), made, groups, inputs, *_told(grid)]
        self.miss((blocks, 1, 1), (32 * MISSED_WARPS, 1, 1), given)
        return made

    def clipped(self, matrix: Tensor, gram: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each group with its whole range, and with the one whose price with its part of `gram` is least:
        scales and zero points [2, rows, groups], and what each changes, bfloat16 [rows, inputs]."""
        rows, inputs = matrix.shape
        groups = inputs // self.size
        scales, zeros = (torch.empty(2, rows, groups, device=matrix.device) for _ in range(2))
        plain, best = (torch.empty_like(matrix, dtype=torch.bfloat16) for _ in range(2))
        given = [matrix, gram.contiguous(), scales, zeros, plain, best, rows, inputs, ROWS, *_told(grid)]
        blocks = groups, -(-rows // ROWS), 1
        self.clip(blocks, (32 * WARPS, 1, 1), given, shared_mem=_shared(self.size))
        return scales, zeros, plain, best


def _told(grid: Grid) -> tuple[int, int, int, float]:
    tiny = torch.finfo(grid.dtype).tiny
    return (1 << grid.bits) - 1, int(grid.symmetric), KEPT[grid.dtype], tiny


def _shared(size: int) -> int:
    return 4 * (size * size + WARPS * size * 12)


_made: dict[int, Kernels | None] = {}
_making = threading.Lock()


def kernels(size: int) -> Kernels | None:
    """The kernels for groups of that size; None where they cannot be made."""
    with _making:
        if size not in _made:
            try:
                _made[size] = _compiled(size) if size in SIZES else None
            except Exception as error:  # PyTorch has no class for what NVRTC or the driver refuses
                print(f"Scales are searched without kernels of our own: {str(error)[:MOST_SAID]}")
                _made[size] = None
        return _made[size]


def prepare(size: int) -> None:
    """Compile them from a thread: that takes up to a second, in which this process can load a model."""

    def make() -> None:
        with _making, suppress(Exception):  # `kernels` tries again, and says why
            if size in SIZES and size not in _made:
                _made[size] = _compiled(size)

    threading.Thread(target=make, name="kernels", daemon=True).start()


def _compiled(size: int) -> Kernels:
    """Raises what NVRTC or the driver refuses."""
    torch.zeros((), device="cuda")  # a thread that has launched nothing has no context of the driver
    miss, clip = (torch.cuda._compile_kernel(*each) for each in sources(size))
    try:
        clip.set_shared_memory_config(_shared(size))
    except Exception:
        clip = None
    return Kernels(size, miss, clip)


def sources(size: int) -> Iterator[tuple[str, str]]:
    """The source of each kernel, and its name."""
    common, *each = SOURCE.split(BEGINS)
    shrinks = ", ".join(f"{shrink}f" for shrink in SHRINKS)
    known = f"#define SIZE {size}\n#define STEPS {1 + len(SHRINKS)}\n#define SHRINKS {shrinks}\n"
    for name, source in zip(("missed", "clipped"), each, strict=True):
        yield f"{known}{common}{BEGINS}{source}", name


def fitting(matrix: Tensor, grid: Grid) -> Kernels | None:
    """The kernels for a matrix and a grid; None where they are not for these."""
    fits = matrix.is_cuda and matrix.dtype == torch.float32 and matrix.is_contiguous() and grid.dtype in KEPT
    return kernels(grid.group_size) if fits and matrix.shape[1] % grid.group_size == 0 else None
