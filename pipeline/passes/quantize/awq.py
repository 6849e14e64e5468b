# mypy: disallow-subclassing-any=False
"""AWQ: weights that matter to the activations are scaled up before they are rounded.

Source: Lin et al., AWQ: Activation-aware Weight Quantization, arXiv 2306.00978.

Layer by layer: run the layer once on the calibration blocks and sum up what its matrices read; search scales
and clipping with that (`awq_search`); divide the producer of each input by its scale and multiply the
matrices that read it; pack. The device holds only one layer and the calibration activations at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from olive.common.hf.wrapper import LayerWrapper, ModelWrapper
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.quant_utils import finalize, get_quantizer_config, prepare_model
from torch import Tensor, nn

from pipeline.errors import LabError
from pipeline.passes.quantize.awq_search import quick_products, search_clip, search_scale
from pipeline.passes.quantize.compensation import compensated
from pipeline.passes.quantize.fused_rounding import prepare
from pipeline.passes.quantize.grid import Grid
from pipeline.passes.quantize.rounding import packed
from pipeline.passes.quantize.running.kept_memory import kept_memory
from pipeline.passes.quantize.running.layer_inputs import Call, layer_inputs, run_layer
from pipeline.passes.quantize.running.layers_ahead import LayersAhead
from pipeline.passes.quantize.running.short_attention import ShortAttention
from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit

# Fraction of a block's output: rounding to bfloat16 moves it less, a scale folded in wrongly more.
MOST_MOVED = 0.05


class LabAwq(Pass):
    """Quantize linear layers to 4 or 8 bit in Olive's format, calibrated on `data_config`.

    `objective` "gram" scores a candidate by the error of its matrices' outputs, "layer" by the paper's block
    objective, the error of the whole decoder layer (slower). `compensate` uses GPTQ on the scaled weights
    instead of the clipping search (`compensation`).
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            **get_quantizer_config(),
            "data_config": PassConfigParam(
                type_=DataConfig | dict, required=True, description="Blocks to calibrate on."
            ),
            "objective": PassConfigParam(
                type_=str, default_value="gram", description="gram, or layer: the paper's, slower."
            ),
            "compensate": PassConfigParam(
                type_=bool, default_value=False, description="GPTQ on the scaled weights."
            ),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model and the calibration text", progress=0.01)
        if torch.cuda.is_available():
            prepare(config.group_size)
        wrapper, quantization, _ = prepare_model(model, config)
        ids = dataset_of(config.data_config).ids
        if not len(ids):
            raise LabError(
                "There is no text to calibrate on: give more rows, or raise quantize.general_text."
            )
        emit(message=f"Calibrating on {len(ids)} blocks of {ids.shape[1]} tokens", progress=0.1)
        quantize(wrapper, ids, config.objective, config.compensate)
        emit(message="Saving the quantized model", progress=0.95)
        return finalize(model, output_model_path, wrapper, quantization, "cpu")


@torch.no_grad()
def quantize(wrapper: ModelWrapper, ids: Tensor, objective: str = "gram", compensate: bool = False) -> None:
    """Scale, clip and pack a model in place. `ids`: int64 [blocks, tokens].

    Raises LabError naming the layer whose input is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hidden, calls = layer_inputs(wrapper, ids, device)
    layers, prefix = wrapper.get_layer_wrappers(), wrapper.get_layers()[1]
    began = time.monotonic()
    modules = [layer.layer for layer in layers]
    with kept_memory() if device.type == "cpu" else nullcontext(), LayersAhead(modules, device) as ahead:
        for index, layer in enumerate(layers):
            ahead.take(index)
            work = LayerWork(wrapper, layer, f"{prefix}.{index}", calls[index])
            outputs = work.calibrate(hidden)
            work.scale(hidden, outputs, objective)
            work.pack(compensate)
            ahead.leave(index)
            hidden = outputs
            _report(index + 1, len(layers), time.monotonic() - began)
        ahead.done()
    _quantize_head(wrapper, hidden)


@dataclass
class Group:
    """Matrices that read one input, and the layer that makes it.

    `divide` divides the producer's channels by a scale [channels] and returns the scale actually applied,
    which rounding changes a little; None if there is nothing to fold a scale into. `gram` [inputs, inputs]
    sums over tokens by their `weight`, `magnitude` [inputs] over `tokens` unweighted; `factor` [inputs] is
    what the inputs were divided by.
    """

    readers: list[str]
    divide: Callable[[Tensor], Tensor] | None = None
    gram: Tensor | None = None
    magnitude: Tensor | None = None
    tokens: int = 0
    weight: Tensor = field(default_factory=lambda: torch.zeros(()))
    factor: Tensor | None = None


class LayerWork:
    """One decoder layer on its way from float to packed.

    `exact` holds the matrices in float32 by name, so that scales are not rounded twice; the layer itself
    keeps its weights until `pack`.
    """

    def __init__(self, wrapper: ModelWrapper, layer: LayerWrapper, name: str, call: Call) -> None:
        self.wrapper, self.layer, self.name, self.call = wrapper, layer, name, call
        self.module: Any = layer.layer
        self.exact = {
            key: module.weight.to(torch.float32, copy=True)
            for key, module in self.module.named_modules()
            if hasattr(module, "quant_info")
        }
        self.groups = self._groups()
        self.blocks = dict(self._named(layer.attn, layer.mlp))
        self.before: dict[str, Tensor] = {}
        # How much the layer's output depends on each output of a matrix, [outputs, 1] by the matrix's name.
        self.sensitivity: dict[str, Any] = {}
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)

    def calibrate(self, hidden: list[Tensor]) -> list[Tensor]:
        """Run the layer on [blocks, tokens, hidden] each; sum up what the groups read; return its outputs.

        Raises LabError if a weight, or what a matrix reads, is not finite.
        """
        whole = [torch.isfinite(weight).all() for weight in self.exact.values()]
        outputs = [
            self._run_batch(part, self.before if index == 0 else None, seed=index)
            for index, part in enumerate(hidden)
        ]
        for group in self.groups:
            if group.gram is None or group.magnitude is None:
                raise LabError(f"{self.name}.{group.readers[0]} never ran, so it cannot be calibrated.")
            whole.append(torch.isfinite(group.gram).all())
            group.gram /= group.weight.clamp(min=1e-30)
            group.magnitude /= group.tokens
        self._require(torch.stack(whole).tolist())  # at once: each look makes a GPU wait
        return outputs

    def _require(self, finite: list[bool]) -> None:
        """Raise LabError for the first matrix that is not finite, then for the first group's sums."""
        for key, holds in zip(self.exact, finite, strict=False):
            if not holds:
                raise LabError(f"{self.name}.{key} holds numbers that are not finite (NaN or infinite).")
        for group, holds in zip(self.groups, finite[len(self.exact) :], strict=True):
            if not holds:
                raise LabError(
                    f"{self.name}.{group.readers[0]} reads numbers that are not finite (NaN or infinite);"
                    " the model or its number format is at fault, not the data."
                )

    def _run_batch(self, hidden: Tensor, keep: dict[str, Tensor] | None, seed: int) -> Tensor:
        """Run one batch, and estimate how sensitive the layer's output is to the outputs of each matrix.

        The squared gradient of a random combination of the layer's outputs is on average the diagonal of
        J^T J, with J the Jacobian of the layer's output by the matrix's (Hutchinson). Summed over outputs it
        weights tokens, summed over tokens it weights outputs; costs then approximate the error of the whole
        layer, the paper's objective. Each batch has its own `seed`, so that the noise averages out.
        """
        read: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}
        hooks = []
        for key in self.exact:
            module = self.module.get_submodule(key)
            hooks.append(module.register_forward_pre_hook(partial(_note, read, key)))
            hooks.append(module.register_forward_hook(partial(_keep, made, key)))
        with torch.enable_grad(), ShortAttention():
            output = self._run(hidden.detach().requires_grad_(), keep)
        for hook in hooks:
            hook.remove()
        generator = torch.Generator(hidden.device).manual_seed(seed)
        probe = torch.randn(output.shape, generator=generator, device=hidden.device).to(output.dtype)
        grads = torch.autograd.grad(output, list(made.values()), probe)
        squares_by = {
            key: grad.float().flatten(0, -2).square() for key, grad in zip(made, grads, strict=True)
        }
        for group in self.groups:
            if group.readers[0] in read:
                _sum_up(
                    group,
                    read[group.readers[0]].detach(),
                    torch.stack([squares_by[key].sum(-1) for key in group.readers]).sum(0),
                )
        for key, squares in squares_by.items():
            self.sensitivity[key] = self.sensitivity.get(key, 0.0) + squares.sum(0)[:, None]
        return output.detach()

    def scale(self, hidden: list[Tensor], outputs: list[Tensor], objective: str) -> None:
        """Search a scale for each group and fold it in; undo all if the layer's output changes too much."""
        saved = {
            key: value.clone()
            for key, value in self.module.state_dict().items()
            if key.removesuffix(".weight") not in self.exact
        }
        for group in self.groups:
            if group.divide is None:
                continue
            assert group.gram is not None
            assert group.magnitude is not None
            matrices = [self.exact[reader] for reader in group.readers]
            weighed = [
                matrix * self.sensitivity[reader].sqrt()
                for reader, matrix in zip(group.readers, matrices, strict=True)
            ]
            price = None if objective == "gram" else partial(self._price, group, hidden[0], outputs[0])
            with quick_products():
                scale, _, _ = search_scale(
                    weighed if price is None else matrices,
                    group.gram,
                    group.magnitude,
                    self._grid(group.readers[0]),
                    price,
                )
            group.factor = group.divide(scale)
            for matrix in matrices:
                matrix.mul_(group.factor)
        if not self._moved(hidden[0]) <= MOST_MOVED:  # also true for NaN
            emit(message=f"{self.name}: scales do not fold into this layer; it is rounded without them")
            self.module.load_state_dict(saved, strict=False)
            for key, matrix in self.exact.items():
                matrix.copy_(self.module.get_submodule(key).weight)
            for group in self.groups:
                group.factor = None

    def pack(self, compensate: bool) -> None:
        """Replace the layer's matrices by packed ones."""
        for group in self.groups:
            assert group.gram is not None
            gram, group.gram = group.gram, None
            if group.factor is not None:
                gram = gram.div_(group.factor).div_(group.factor[:, None])
            found = self._compensated(group.readers, gram) if compensate else {}
            for reader in group.readers:
                module = self.module.get_submodule(reader)
                weight, dtype = self.exact.pop(reader), module.weight.dtype
                if compensate:
                    weight, scales, zeros = found.pop(reader)
                else:
                    with quick_products():
                        scales, zeros = search_clip(weight, gram, self._grid(reader, dtype))
                self.module.set_submodule(reader, packed(module, weight, scales, zeros, dtype))

    def _compensated(self, readers: list[str], gram: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """What `compensated` makes of matrices that read one input, by name; those of one grid together."""
        by_grid: dict[Grid, list[str]] = {}
        for reader in readers:
            by_grid.setdefault(self._grid(reader), []).append(reader)
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for grid, same in by_grid.items():
            rows = [len(self.exact[reader]) for reader in same]
            made = compensated(torch.cat([self.exact[reader] for reader in same]), gram, grid)
            weights, scales, zeros = (torch.split(part, rows) for part in made)
            found |= dict(zip(same, zip(weights, scales, zeros, strict=True), strict=True))
        return found

    def _groups(self) -> list[Group]:
        """The layer's groups; matrices that belong to none of the known ones are clipped, not scaled."""
        attention_in, attention_out = self._known("attention_inputs"), self._known("attention_outputs")
        mlp_in, mlp_out = self._known("mlp_inputs"), self._known("mlp_outputs")
        groups = [Group(attention_in, self._norm("first_layer_norm"))] if attention_in else []
        groups += [self._after_values(attention_in, attention_out[0])] if attention_out else []
        groups += [Group(mlp_in, self._norm("second_layer_norm"))] if mlp_in else []
        groups += [self._after_gate(mlp_in, mlp_out[0])] if mlp_out else []
        known = {reader for group in groups for reader in group.readers}
        return [*groups, *(Group([key]) for key in self.exact if key not in known)]

    def _known(self, which: str) -> list[str]:
        """Names below the layer of the matrices to quantize that Olive lists under `which`."""
        try:
            found, _ = getattr(self.layer, f"get_{which}")()
        except AttributeError:  # Olive has no names for them in this architecture
            return []
        return [key for key, _ in self._named(*found) if key in self.exact]

    def _named(self, *modules: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
        for key, module in self.module.named_modules():
            if any(module is wanted for wanted in modules):
                yield key, module

    def _norm(self, which: str) -> Callable[[Tensor], Tensor] | None:
        """A function that divides the output of a norm; None if there is no such norm."""
        norm = getattr(self.module, "pre_feedforward_layernorm", None) if which.startswith("second") else None
        if norm is None:
            try:
                norm = getattr(self.layer, f"get_{which}")(return_name=False)
            except AttributeError:
                return None
        return partial(divide_norm, norm)

    def _after_values(self, inputs: list[str], output: str) -> Group:
        """o_proj reads the output of v_proj, mixed over tokens.

        If query heads share values, one scale would have to suit several parts of o_proj. On the starter
        model that made the result worse, so nothing is folded there.
        """
        width = self.exact[output].shape[1]
        rows = [self.exact[key].shape[0] for key in inputs]
        shared = self.wrapper.num_key_value_heads != self.wrapper.num_attention_heads
        if shared or rows not in ([width] * 3, [3 * width]):
            return Group([output])
        return Group([output], partial(self._divide_rows, inputs[-1], rows[-1] - width))

    def _after_gate(self, inputs: list[str], output: str) -> Group:
        """down_proj reads activation(gate) times up: linear in up. Without a gate nothing can be folded."""
        width = self.exact[output].shape[1]
        rows = [self.exact[key].shape[0] for key in inputs]
        if rows not in ([width, width], [2 * width]):
            return Group([output])
        return Group([output], partial(self._divide_rows, inputs[-1], rows[-1] - width))

    def _divide_rows(self, key: str, start: int, scale: Tensor) -> Tensor:
        """Divide the outputs of a matrix from row `start` on."""
        self.exact[key][start:] /= scale[:, None]
        bias = self.module.get_submodule(key).bias
        if bias is not None:
            bias[start:] = (bias[start:].float() / scale).to(bias.dtype)
        return scale

    def _run(self, hidden: Tensor, keep: dict[str, Tensor] | None = None) -> Tensor:
        """The layer's output; the outputs of attention and MLP go into `keep`."""
        hooks = []
        if keep is not None:
            hooks = [b.register_forward_hook(partial(_keep, keep, key)) for key, b in self.blocks.items()]
        made = run_layer(self.module, hidden, self.call)
        for hook in hooks:
            hook.remove()
        return made

    def _moved(self, hidden: Tensor) -> float:
        """The largest relative change of the outputs of attention and MLP by folding."""
        with self._weights(self.exact):
            after: dict[str, Tensor] = {}
            self._run(hidden, keep=after)
        fractions = [
            (after[key].float() - was.float()).norm() / was.float().norm().clamp(min=1e-20)
            for key, was in self.before.items()
        ]
        self.before = {}
        return float(torch.stack(fractions).max()) if fractions else 0.0  # NaN if any is

    def _price(self, group: Group, hidden: Tensor, outputs: Tensor, candidates: list[Tensor]) -> Tensor:
        """The paper's objective: how far the layer's output moves when these matrices are rounded."""
        with self._weights({**self.exact, **dict(zip(group.readers, candidates, strict=True))}):
            return (self._run(hidden).float() - outputs.float()).square().sum()

    @contextmanager
    def _weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Use other matrices in the layer meanwhile."""
        modules = {key: self.module.get_submodule(key) for key in weights}
        saved = {key: module.weight.data for key, module in modules.items()}
        for key, module in modules.items():
            module.weight.data = weights[key].to(saved[key].dtype)
        try:
            yield
        finally:
            for key, module in modules.items():
                module.weight.data = saved[key]

    def _grid(self, key: str, dtype: torch.dtype | None = None) -> Grid:
        module = self.module.get_submodule(key)
        quantizer = module.quant_info.quantizer
        return Grid(
            int(quantizer.bits), quantizer.symmetric, quantizer.group_size, dtype or module.weight.dtype
        )


def divide_norm(norm: Any, scale: Tensor) -> Tensor:
    """Divide the output of a norm by `scale` [hidden]; return the divisor actually applied.

    Gemma's norms multiply by 1 + weight. The weight is rounded to its type; the readers are multiplied by
    the divisor actually applied, so the rounding cancels out.
    """
    weight = norm.weight.data
    offset = float(_multiplies_by_one_plus(norm))
    before = weight.float() + offset
    weight.copy_((before / scale - offset).to(weight.dtype))
    after = weight.float() + offset
    got = torch.where((after != 0) & (before != 0), before / after, scale)
    if getattr(norm, "bias", None) is not None:
        norm.bias.data.copy_((norm.bias.float() / got).to(norm.bias.dtype))
    return got


def _multiplies_by_one_plus(norm: Any) -> bool:
    """Whether a norm with a weight of zero still has an output."""
    if getattr(norm, "bias", None) is not None:
        return False
    saved = norm.weight.data.clone()
    norm.weight.data.zero_()
    passed = norm(torch.arange(1.0, saved.numel() + 1).to(saved))
    norm.weight.data.copy_(saved)
    return bool(passed.any())


def _sum_up(group: Group, given: Tensor, weight: Tensor | None = None) -> None:
    """Add an input [..., inputs], its tokens weighted by `weight` [tokens], to the group's sums."""
    read = given.flatten(0, -2).float()
    weight = torch.ones(len(read), device=read.device) if weight is None else weight
    with quick_products():
        # Round both factors alike: else the sum is not positive definite, and GPTQ cannot factor it.
        weighted = read * weight.sqrt()[:, None]
        gram = weighted.T @ weighted
    magnitude = read.abs().sum(0)
    group.gram = gram if group.gram is None else group.gram.add_(gram)
    group.magnitude = magnitude if group.magnitude is None else group.magnitude.add_(magnitude)
    group.tokens += len(read)
    group.weight = group.weight + weight.sum()


def _note(read: dict[str, Tensor], key: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    read[key] = args[0]


def _keep(kept: dict[str, Tensor], key: str, module: nn.Module, args: Any, output: Any) -> None:
    kept[key] = output[0] if isinstance(output, tuple) else output


def _quantize_head(wrapper: ModelWrapper, hidden: list[Tensor]) -> None:
    """The output layer, if it is to be quantized: clipped, neither scaled nor compensated."""
    head, name = wrapper.get_lm_head()
    if not hasattr(head, "quant_info"):
        return
    emit(message="Rounding the output layer", progress=0.92)
    device, norm = hidden[0].device, wrapper.get_pre_head_layernorm(False)
    norm.to(device), head.to(device)
    group = Group([name])
    for part in hidden:
        _sum_up(group, norm(part))
    assert group.gram is not None
    if not torch.isfinite(group.gram).all():
        raise LabError(f"{name} reads numbers that are not finite (NaN or infinite).")
    quantizer, dtype = head.quant_info.quantizer, head.weight.dtype
    grid = Grid(int(quantizer.bits), quantizer.symmetric, quantizer.group_size, dtype)
    with quick_products():
        weight = head.weight.float()
        scales, zeros = search_clip(weight, group.gram / group.tokens, grid)
    wrapper.model.set_submodule(name, packed(head, weight, scales, zeros, dtype).to("cpu"))
    norm.to("cpu")


def _report(done: int, total: int, seconds: float) -> None:
    emit(
        message=f"Quantized layer {done} of {total}",
        progress=0.1 + 0.8 * done / total,
        eta_seconds=seconds / done * (total - done),
    )
