"""``openvis assemble``: one checkpoint from the parts that people have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openvis_rt.cli.export import require_export
from openvis_rt.cli.ui import CONSOLE, Bar, print_json, progress_bar
from openvis_rt.errors import BundleError, CheckpointError, InputError
from openvis_rt.files import output_file, refuse_existing, sha256_of
from openvis_rt.systems.instformer import (
    Guidance,
    InstFormerConfig,
    ToGrid,
    Values,
    VideoScore,
)
from openvis_rt.systems.variants import Variant, variant_named

if TYPE_CHECKING:
    from torch import Tensor

    from openvis_rt.checkpoints.instformer import InstFormerParts

_MODELS = {"instformer": "instformer-r50"}
_STEPS = 7


def assemble(
    system: Annotated[
        Literal["instformer"], typer.Argument(help="The system; it alone is made of parts.")
    ],
    proposal: Annotated[
        Path,
        typer.Option(
            help="Mask2Former or MinVIS with ResNet-50: detectron2's .pth with a 'model' entry, or "
            ".safetensors. Any number of classes: all but 'no object' count as an object. A .pkl "
            "of the model zoo must be converted; the error says how."
        ),
    ],
    clip: Annotated[
        str,
        typer.Option(
            metavar="FILE|TAG",
            help="The whole CLIP ViT-B/32: a state dict under open_clip's names (.safetensors, "
            ".pt, .bin), or a tag such as ViT-B-32:openai, which open_clip downloads.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The checkpoint to write, a .safetensors.")
    ],
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="LoRA of q_proj and v_proj in CLIP's image encoder, as PEFT saves it "
            "(adapter_model.safetensors); without it CLIP stays as it is."
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            help="The adapter's alpha; else adapter_config.json beside it or its metadata says it."
        ),
    ] = None,
    tracker: Annotated[
        Path | None,
        typer.Option(
            help="The rollout's recurrence under torch's names (weight_ih_l0 ...): RNN, GRU, LSTM, "
            "linear layer or MLP, .safetensors or .pth; without it tokens are matched as they are."
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Trained tokens, `register` and `instance` [768]; without them CLIP's class token."
        ),
    ] = None,
    to_grid: Annotated[
        ToGrid, typer.Option(help="Mask logits to the patch grid.")
    ] = Guidance.to_grid,
    values: Annotated[
        Values, typer.Option(help="logit: scale * logit, clamped. binary: 0 inside, -100 outside.")
    ] = Guidance.values,
    guidance_scale: Annotated[float, typer.Option(help="Of logit values.")] = Guidance.scale,
    clamp: Annotated[float, typer.Option(help="Of logit values: within +-this.")] = Guidance.clamp,
    sees_register: Annotated[
        bool, typer.Option(help="Instances see the register token as well.")
    ] = Guidance.sees_register,
    first_block: Annotated[
        int, typer.Option(help="CLIP's block from which on there are instance tokens.")
    ] = Guidance.first_block,
    projected: Annotated[
        bool, typer.Option(help="Instance tokens after CLIP's projection (512), or before (768).")
    ] = Guidance.projected,
    video_score: Annotated[
        VideoScore, typer.Option(help="Class scores of a video.")
    ] = InstFormerConfig.video_score,
    normalise_parts: Annotated[
        bool, typer.Option(help="Each part of a tracking token is L2-normalised.")
    ] = InstFormerConfig.normalise_parts,
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            help="CLIP's activation: OpenAI's weights were trained with QuickGELU, LAION's and "
            "DataComp's without. A tag knows; for a file, the default is with.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if there is one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")] = False,
) -> None:
    """Make an InstFormer checkpoint from a mask network, a CLIP, and what was trained on top.

    All parts are checked against one another before anything is written. The defaults of the
    options are the choices that docs/instformer.md explains; `openvis inspect FILE` shows them.

    Example: `openvis assemble instformer --proposal mask2former.pth --clip ViT-B-32:openai
    --adapter adapter_model.safetensors --tracker rollout.safetensors -o instformer.safetensors`

    Then: `openvis export instformer-r50 --checkpoint instformer.safetensors -o bundle`
    """
    variant = variant_named(_MODELS[system])
    config = InstFormerConfig(
        guidance=Guidance(
            to_grid=to_grid,
            values=values,
            scale=guidance_scale,
            clamp=clamp,
            sees_register=sees_register,
            first_block=first_block,
            projected=projected,
        ),
        video_score=video_score,
        normalise_parts=normalise_parts,
    )
    if output.suffix != ".safetensors":
        raise InputError(f"the checkpoint is a .safetensors file; got --output {output}")
    if lora_alpha is not None and adapter is None:
        raise InputError("--lora-alpha is of an adapter; give --adapter FILE as well")
    refuse_existing(output, overwrite=overwrite)
    files = {"proposal": proposal, "adapter": adapter, "tracker": tracker, "tokens": tokens}
    given = {part: path for part, path in files.items() if path is not None}
    for part, path in given.items():
        if not path.is_file():
            raise CheckpointError(f"there is no file {path} for --{part}")
    require_export()
    from openvis_rt.checkpoints.instformer import describe_parts, model_from_parts, write_parts

    with progress_bar() as bar:
        parts = _parts(variant, config, given, clip, lora_alpha, quick_gelu, bar)
        bar("checking that the parts fit", 5, _STEPS)
        model_from_parts(variant.name, parts, output)
        bar("writing", 6, _STEPS)
        with output_file(output) as partial:
            write_parts(parts, partial)
    if as_json:
        print_json({"checkpoint": output, "bytes": output.stat().st_size, **describe_parts(parts)})
        return
    CONSOLE.print(f"wrote {output}", markup=False)


def _parts(
    variant: Variant,
    config: InstFormerConfig,
    files: dict[str, Path],
    clip: str,
    alpha: float | None,
    quick_gelu: bool | None,
    bar: Bar,
) -> InstFormerParts:
    """Read every part; the proposal network's sizes and the tag's activation go into the config."""
    from openvis_rt.checkpoints.assemble import proposal_weights, token_weights
    from openvis_rt.checkpoints.clip import clip_source, clip_weights
    from openvis_rt.checkpoints.instformer import InstFormerParts
    from openvis_rt.checkpoints.lora import adapter_from_peft

    bar("reading the proposal network", 0, _STEPS)
    network, sizes = proposal_weights(files["proposal"])
    bar("reading CLIP", 1, _STEPS)
    source = clip_source(clip, variant, quick_gelu)
    files = {**files, "clip": source.path}
    sources: dict[str, dict[str, Any]] = {"clip": {"tag": source.tag} if source.tag else {}}
    weights = clip_weights(source.path)
    bar("reading the adapter, the tracker and the tokens", 2, _STEPS)
    parts = InstFormerParts(
        config=replace(
            config,
            quick_gelu=source.quick_gelu,
            classes=sizes.classes,
            decoder_layers=sizes.decoder_layers,
            queries=sizes.queries,
        ),
        proposal=network,
        clip=weights,
        adapter=adapter_from_peft(files["adapter"], alpha) if "adapter" in files else None,
        tracker=_tracker(files["tracker"]) if "tracker" in files else {},
        tokens=token_weights(files["tokens"]) if "tokens" in files else {},
        files=files,
    )
    bar("hashing the parts", 4, _STEPS)
    for part, path in files.items():
        sources[part] = {"file": path.name, "sha256": sha256_of(path), **sources.get(part, {})}
    return replace(parts, sources=sources)


def _tracker(path: Path) -> dict[str, Tensor]:
    """Weights that the runtime knows as a cell; their width is checked with the model."""
    from openvis_rt.checkpoints.weights import load_weights
    from openvis_rt.runtime.tracking.rollout import cell_from_weights

    weights = load_weights(path)
    try:
        cell_from_weights({key: value.float().numpy() for key, value in weights.items()})
    except BundleError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return weights
