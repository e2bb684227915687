"""Low-rank adapters (LoRA, Hu et al. 2022) through peft: small factors learn, the weights stay.

peft is imported when an adapter is asked for. Checkpoints hold merged, plain weights; a run's states keep the
factors apart.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from tellapart.errors import ConfigError, MissingExtraError
from tellapart_model.captioner import CaptionNetwork
from tellapart_training.config import LoraConfig
from tellapart_training.optimisation import part_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)

DECODER_TARGETS = r"decoder\.layers\.\d+\.(self_qkv|self_out|cross_query|cross_out)"
"""Attention of the compact decoder: its projections in and out, as method 4.3 takes those of GPT-2."""
TRUNK_TARGETS = r"trunk\.(blocks\.\d+\.(expand|project)|head)\.0"
"""Pointwise convolutions of the trunk, where a depthwise network keeps its weights."""
CLIPCAP_LANGUAGE_TARGETS = r"language\.transformer\.h\.\d+\.attn\.(c_attn|c_proj)"
CLIPCAP_VISION_TARGETS = (
    r"vision\.vision_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj)|mlp\.(fc1|fc2))"
)
"""Both as method 4.3 names them; see `share_inputs` for the vision tower's three projections."""
_CLIPCAP_QUERY = re.compile(r"(vision\..*\.self_attn)\.q_proj")
TARGETS = {
    "compact": (DECODER_TARGETS, TRUNK_TARGETS),
    "clipcap": (CLIPCAP_LANGUAGE_TARGETS, CLIPCAP_VISION_TARGETS),
}
"""Of decoder and trunk, by `CaptionNetwork.architecture`."""


def add_lora(network: nn.Module, targets: Sequence[str], config: LoraConfig) -> list[str]:
    """Put adapters on the modules that a pattern names, in place; their own weights stop learning.

    Args:
        network: any module; only named modules that are linear or convolutions can be adapted.
        targets: regular expressions of whole module names.
        config: rank above 0.

    Returns:
        Names of the adapted modules.

    Raises:
        ConfigError: nothing is named so.
        MissingExtraError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("train", "lora.rank above 0 needs peft, which is not installed") from error
    pattern = "|".join(f"(?:{target})" for target in targets)
    names = [
        name
        for name, module in network.named_modules()
        if re.fullmatch(pattern, name) and not isinstance(module, nn.Identity)
    ]
    if not names:
        raise ConfigError(f"this network has no module {pattern}: set lora.rank = 0")
    for name in names:
        _plain_convolution(network, name)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=pattern)
    learns = {name: each.requires_grad for name, each in network.named_parameters()}
    with warnings.catch_warnings():
        # GPT-2 keeps its linear weights transposed; peft finds that out by itself and warns that it did.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        peft.inject_adapter_in_model(settings, network)
    for name, each in network.named_parameters():
        # peft freezes everything but its factors; what the run froze or not is the run's affair.
        plain = name.replace(".base_layer.", ".")
        if plain in learns:
            adapted = plain.rsplit(".", 1)[0] in names
            each.requires_grad_(learns[plain] and not adapted)
    if config.init == "normal":
        for name in names:
            nn.init.normal_(_adapted(network, name).lora_A["default"].weight)
    return names


def _plain_convolution(network: nn.Module, name: str) -> None:
    # peft builds its factors by the class of what it adapts, and a subclass may want other arguments. Only a
    # convolution of one pixel is surely the same without the subclass: it needs no padding.
    module = network.get_submodule(name)
    if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d and module.kernel_size == (1, 1):
        plain = nn.Conv2d(module.in_channels, module.out_channels, 1, bias=module.bias is not None)
        plain.weight, plain.bias = module.weight, module.bias
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, plain.train(module.training))


def share_inputs(network: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Let the modules of a group share their first factor, in place.

    Queries, keys and values that are three modules then have the adapter that one joined module would have,
    which is how the paper's CLIP holds them.

    Args:
        network: with adapters.
        groups: names of modules with equal input width.
    """
    for first, *others in groups:
        factor = _adapted(network, first).lora_A["default"]
        for other in others:
            _adapted(network, other).lora_A["default"] = factor


def merged(network: ModuleT) -> ModuleT:
    """A copy whose adapters are added into plain weights: the same outputs from the same modules as before.

    Args:
        network: with or without adapters; left as it is.
    """
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            adapted: Any = module
            adapted.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, adapted.get_base_layer())
    return plain


def _adapted(network: nn.Module, name: str) -> Any:
    return network.get_submodule(name)


def lora_of_run(network: CaptionNetwork, config: LoraConfig) -> None:
    """Freeze the decoder, and the trunk where asked, and put adapters on them, in place.

    Queries, keys and values of ClipCap's image tower share their first factor.

    Args:
        network: of the run; nothing happens with rank 0.
        config: of the run.

    Raises:
        MissingExtraError: peft is not installed.
    """
    if not config.rank:
        return
    for name, parameter in network.named_parameters():
        if part_of(name) == "decoder" or (config.trunk and part_of(name) == "trunk"):
            parameter.requires_grad_(False)
    decoder, trunk = TARGETS[network.architecture]
    adapted = add_lora(network, [decoder, *([trunk] if config.trunk else [])], config)
    layers = [found[1] for found in map(_CLIPCAP_QUERY.fullmatch, adapted) if found]
    share_inputs(network, [[f"{layer}.{each}_proj" for each in "qkv"] for layer in layers])
