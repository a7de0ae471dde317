"""What the papers claim of their parts, and the settings of the miniatures that can tell.

A setting is a miniature with one thing changed. Most are changed at inference alone: the weights
were trained with the choices of the release, which may favour those. Where InstFormer's classifier
is asked about, tracks are matched to the previous frame by the queries, as in the paper's section
5.3, so that all settings have the same tracks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from miniature_runs import ONE_CLASS, Shared, exported
from torch import Tensor

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.instformer import FORMAT, model_from_parts, parts_from_weights
from openvis_rt.checkpoints.load import Checkpoint
from openvis_rt.checkpoints.shipped import shipped_checkpoint
from openvis_rt.checkpoints.weights import load_strictly
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.models.instformer import InstFormer, clip_and_proposal, default_config
from openvis_rt.models.mask2former import Mask2Former
from openvis_rt.models.minvis_clip import MinVisClip
from openvis_rt.models.network import Network
from openvis_rt.runtime.options import TrackingOptions
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.system import Tracker
from openvis_rt.training.segmentation import frozen_state

CROPS = "N crops"
BY_CONTRAST = ("proposals with L_SC", "proposals without L_SC")


@dataclass(frozen=True)
class Claim:
    """One setting is better than others.

    Attributes:
        says: what the paper says, in a sentence.
        source: where.
        model: the miniature that tells.
        best: the setting that is to win.
        others: settings that are to lose, and the paper's figures, winner's first; empty where it
            gives none.
        group: of classes that AP is compared in.
    """

    says: str
    source: str
    model: str
    best: str
    others: dict[str, str]
    group: str = "all"


CLAIMS = (
    Claim(
        "Guidance by the mask's logits is better than by its bits, and than none.",
        "OpenVIS, table 5, lines 2 to 4",
        "instformer-mini",
        "logit guidance",
        {"binary guidance": "3.28 : 1.70 (BURST)", "no guidance": "3.28 : 1.09 (BURST)"},
    ),
    Claim(
        "The same of a CLIP that was never trained with any guidance.",
        "OpenVIS, table 5, lines 2 to 4",
        "instformer-mini",
        "plain CLIP, logit guidance",
        {
            "plain CLIP, binary guidance": "3.28 : 1.70 (BURST)",
            "plain CLIP, no guidance": "3.28 : 1.09 (BURST)",
        },
    ),
    Claim(
        "A register token of its own helps, and instances need not see it.",
        "OpenVIS, table 5, lines 4 and 5",
        "instformer-mini",
        "logit guidance",
        {"class token as register": "3.87 : 3.28 (BURST)", "register seen": ""},
    ),
    Claim(
        "Training the adapter and the tokens helps.",
        "OpenVIS, section 4.2",
        "instformer-mini",
        "logit guidance",
        {"plain CLIP, logit guidance": ""},
    ),
    Claim(
        "One pass of CLIP for all instances names them better than a pass for each masked crop.",
        "OpenVIS, table 4, lines 1 and 2",
        "instformer-mini",
        "logit guidance",
        {CROPS: "3.3 : 2.1 (BURST)"},
    ),
    Claim(
        "The loss L_SC makes the proposals better, all classes taken for one.",
        "OpenVIS, table 4, lines 2 and 3",
        "instformer-mini",
        BY_CONTRAST[0],
        {BY_CONTRAST[1]: "15.8 : 13.2 (UVO)"},
        ONE_CLASS,
    ),
    Claim(
        "Instance tokens beside the queries help to follow instances.",
        "OpenVIS, table 7, lines 1 and 2",
        "instformer-mini",
        "queries and instance tokens",
        {"logit guidance": "3.9 : 3.5 (BURST)"},
    ),
    Claim(
        "The rollout by an RNN is better than matching the last tokens.",
        "OpenVIS, table 7, lines 2 and 4",
        "instformer-mini",
        "as released",
        {"queries and instance tokens": "4.2 : 3.9 (BURST)"},
    ),
    Claim(
        "Temporal top-K is better than the previous frame alone, and than a mean memory.",
        "CLIP-VIS, table V, top",
        "clip-vis-mini",
        "as released",
        {"T = 1, K = 1": "13.2 : 10.7 (OVIS)", "mean memory": "13.2 : 12.1 (OVIS)"},
    ),
    Claim(
        "Of T = 9 frames K = 3 decide best, and fewer frames are worse.",
        "CLIP-VIS, table V, bottom",
        "clip-vis-mini",
        "T = 9, K = 3",
        {
            "T = 5, K = 3": "14.1 : 13.7 (OVIS)",
            "T = 9, K = 1": "14.1 : 10.7 (OVIS)",
            "as released": "14.1 : 13.2 (OVIS)",
            "T = 9, K = 7": "14.1 : 12.4 (OVIS)",
        },
    ),
    Claim(
        "Objectness and predicted IoU in the score both help.",
        "CLIP-VIS, table III",
        "clip-vis-mini",
        "as released",
        {
            "without S_iou": "19.5 : 18.7 (LV-VIS)",
            "without S_obj": "19.5 : 10.3 (LV-VIS)",
            "without both": "19.5 : 8.9 (LV-VIS)",
        },
    ),
    Claim(
        "Longer windows are better, up to 5 frames.",
        "OVFormer, figure 5",
        "ovformer-mini",
        "as released",
        {"windows of 3": "", "windows of 1": ""},
    ),
)


@dataclass(frozen=True)
class Setting:
    """A miniature with one thing changed.

    Attributes:
        model: the network.
        bundle: says how it is driven; its graphs are those of the released model.
        tracking: options of the pipeline.
    """

    model: Network
    bundle: Bundle
    tracking: TrackingOptions | None = None


@dataclass(frozen=True)
class Settings:
    """Those of a miniature, by their names, and what several of them compute alike."""

    settings: dict[str, Setting]
    shared: tuple[Shared, ...] = ()


def settings_of(model: Network, bundle: Bundle, by_contrast: Sequence[Path] = ()) -> Settings:
    """The settings of a miniature that some claim is about.

    Args:
        model: the miniature with its weights.
        bundle: of the same weights.
        by_contrast: InstFormer's proposals trained with L_SC, and just so without; or none. See
            :func:`proposals_from`.
    """
    if isinstance(model, InstFormer):
        return instformer_settings(model, bundle, by_contrast)
    if isinstance(model, ClipVis):
        return clip_vis_settings(model, bundle)
    windows = {f"windows of {n}": TrackingOptions(window_length=n) for n in (3, 1)}
    found = {text: Setting(model, bundle, options) for text, options in windows.items()}
    return Settings({"as released": Setting(model, bundle), **found})


def clip_vis_settings(model: ClipVis, bundle: Bundle) -> Settings:
    """CLIP-VIS: other T and K, another tracker, and scores without a factor."""
    chosen = {
        f"T = {frames}, K = {top_k}": TrackingOptions(frames=frames, top_k=top_k)
        for frames, top_k in ((1, 1), (5, 3), (9, 1), (9, 3), (9, 7))
    }
    memory = tracked(bundle, Tracker("momentum", parameters={"alpha": 0.7}))
    certain = {"mask_iou": torch.ones_like, "object_logits": sure_objects}
    factors = {"without S_iou": ["mask_iou"], "without S_obj": ["object_logits"]}
    factors["without both"] = list(certain)
    return Settings(
        {
            "as released": Setting(model, bundle),
            **{name: Setting(model, bundle, options) for name, options in chosen.items()},
            "mean memory": Setting(model, memory),
            **{
                name: Setting(changed(model, {o: certain[o] for o in outputs}), bundle)
                for name, outputs in factors.items()
            },
        },
        (Shared(model, "propose"),),
    )


def sure_objects(object_logits: Tensor) -> Tensor:
    """Logits [N, 2] that say of every query that it is an object."""
    return torch.tensor((50.0, -50.0)).expand_as(object_logits)


def changed(model: Network, outputs: Mapping[str, Any]) -> Network:
    """A network whose `propose` puts these functions of its outputs in their places."""
    other = copy.copy(model)

    def answer(frames: Tensor) -> dict[str, Tensor]:
        found = model.propose(frames)
        return {**found, **{name: function(found[name]) for name, function in outputs.items()}}

    other.propose = answer  # type: ignore[method-assign]
    return other


def instformer_settings(model: InstFormer, bundle: Bundle, by_contrast: Sequence[Path]) -> Settings:
    """InstFormer: other guidance, tokens, trackers, weights, and a crop for each instance."""
    queries = Tracker("momentum", parameters={"alpha": 1.0})
    by_queries = tracked(bundle, queries)
    matched = tracked(bundle, replace(model.tracker, name="momentum", parameters={"alpha": 1.0}))
    plain = without_training(model)
    rules: dict[str, dict[str, Any]] = {
        "logit guidance": {},
        "binary guidance": {"values": "binary"},
        "no guidance": {"scale": 0.0},
    }
    models = {name: guided(model, **rule) for name, rule in rules.items()}
    models |= {f"plain CLIP, {name}": guided(plain, **rule) for name, rule in rules.items()}
    models["register seen"] = guided(model, sees_register=not model.config.guidance.sees_register)
    models["class token as register"] = guided(model)
    models["class token as register"].instance_clip.set_tokens(
        None, model.instance_clip.instance_token
    )
    for name, path in zip(BY_CONTRAST, by_contrast, strict=False):
        models[name] = guided(model, proposals_from(path))
    crops = crops_of(plain)
    of_crops = exported(crops, bundle.path.with_name(f"{bundle.path.name}-crops"), {})
    return Settings(
        {
            "as released": Setting(model, bundle),
            "queries and instance tokens": Setting(model, matched),
            **{name: Setting(network, by_queries) for name, network in models.items()},
            CROPS: Setting(crops, tracked(of_crops, queries)),
        },
        (Shared(model.proposal, "forward"),),
    )


def guided(model: InstFormer, proposal: Mask2Former | None = None, **rule: Any) -> InstFormer:
    """The same model with other fields of its guidance, or other proposals; the rest is shared."""
    config = replace(model.config, guidance=replace(model.config.guidance, **rule))
    other = InstFormer(model.variant, config, model.clip_model, proposal or model.proposal)
    clip = model.instance_clip
    other.instance_clip.set_tokens(clip.register_token, clip.instance_token)
    other.recurrence = model.recurrence
    return other.requires_grad_(requires_grad=False).eval()


def without_training(model: InstFormer) -> InstFormer:
    """The shipped InstFormer with CLIP as it was before its adapter; the proposals are shared."""
    path = shipped_checkpoint(model.variant)
    parts = parts_from_weights(Checkpoint.open(path).weights)
    parts = replace(parts, tokens={}, adapter=None, tracker={})
    plain = model_from_parts(model.variant, parts, path)
    assert isinstance(plain, InstFormer)
    return guided(plain, model.proposal)


def crops_of(plain: InstFormer) -> MinVisClip:
    """A pass of plain CLIP for each masked crop, over the same proposals."""
    variant = replace(plain.variant, name="minvis-clip-mini", system="minvis-clip")
    return MinVisClip.from_instformer(plain, variant=variant)


def proposals_from(path: Path) -> Mask2Former:
    """A trained proposal network.

    Args:
        path: an InstFormer's checkpoint, or the ``last.pt`` of a run of its proposals.
    """
    checkpoint = Checkpoint.open(path)
    if checkpoint.weights.metadata.get("format") == FORMAT:
        state = parts_from_weights(checkpoint.weights).proposal
    else:
        state = frozen_state(checkpoint.state)
    variant = VARIANTS["instformer-mini"]
    _, proposal = clip_and_proposal(variant, default_config(variant))
    load_strictly(proposal, state, path, f"{path} does not fit {variant.name}'s proposals.")
    return proposal.requires_grad_(requires_grad=False).eval()


def tracked(bundle: Bundle, tracker: Tracker) -> Bundle:
    """The same bundle with another tracker."""
    return replace(bundle, manifest=replace(bundle.manifest, tracker=tracker))
