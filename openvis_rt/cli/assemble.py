"""``openvis assemble``: one checkpoint from the parts that people have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from openvis_rt.cli.export import require_export
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar
from openvis_rt.systems.instformer import (
    Guidance,
    InstFormerConfig,
    ToGrid,
    Values,
    VideoScore,
)

# groups of --help
_PARTS, _CHOICES = "Parts", "Choices, which docs/instformer.md explains"


SystemArgument = Annotated[
    Literal["instformer"], typer.Argument(help="The system; it alone is made of parts.")
]
ProposalOption = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_PARTS,
        help="Mask2Former or MinVIS with ResNet-50: detectron2's .pth with a 'model' entry, or "
        ".safetensors.",
    ),
]
ClipOption = Annotated[
    str,
    typer.Option(
        metavar="FILE|TAG",
        rich_help_panel=_PARTS,
        help="The whole CLIP ViT-B/32: a file of weights, or a tag such as ViT-B-32:openai, "
        "which open_clip downloads.",
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="The checkpoint to write, a .safetensors."),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_PARTS,
        help="LoRA of q_proj and v_proj in CLIP's image encoder, as PEFT saves it. Without it "
        "CLIP stays as it is.",
    ),
]
LoraAlphaOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_PARTS,
        help="The adapter's alpha, if neither its metadata nor adapter_config.json beside it "
        "says it.",
    ),
]
TrackerOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_PARTS,
        help="The rollout's recurrence: RNN, GRU, LSTM, linear or MLP. Without it tokens are "
        "matched as they are.",
    ),
]
TokensOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_PARTS,
        help="Trained `register` and `instance` [768]. Without them both are CLIP's class token.",
    ),
]
ToGridOption = Annotated[
    ToGrid,
    typer.Option(
        metavar="RULE",
        rich_help_panel=_CHOICES,
        help="Mask logits to the patch grid: area, bilinear, max.",
    ),
]
ValuesOption = Annotated[
    Values,
    typer.Option(
        metavar="RULE",
        rich_help_panel=_CHOICES,
        help="logit: scale * logit, clamped; binary: 0 or -100.",
    ),
]
GuidanceScaleOption = Annotated[
    float, typer.Option(metavar="X", rich_help_panel=_CHOICES, help="Of logit values.")
]
ClampOption = Annotated[
    float,
    typer.Option(metavar="X", rich_help_panel=_CHOICES, help="Of logit values: within +-X."),
]
SeesRegisterOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_CHOICES, help="Whether instances see the register token as well."
    ),
]
FirstBlockOption = Annotated[
    int,
    typer.Option(metavar="N", rich_help_panel=_CHOICES, help="First block with instance tokens."),
]
ProjectedOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_CHOICES,
        help="Instance tokens after CLIP's projection (512) or before.",
    ),
]
VideoScoreOption = Annotated[
    VideoScore,
    typer.Option(
        metavar="RULE",
        rich_help_panel=_CHOICES,
        help="Class scores of a video: mean-logits, mean-logits-objectness.",
    ),
]
NormalisePartsOption = Annotated[
    bool,
    typer.Option(rich_help_panel=_CHOICES, help="L2-normalise each part of a tracking token."),
]
QuickGeluOption = Annotated[
    bool | None,
    typer.Option(
        rich_help_panel=_CHOICES,
        help="CLIP's activation: QuickGELU for OpenAI's weights, GELU for LAION's and "
        "DataComp's. A tag tells; for a file, the default is QuickGELU.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file if there is one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]


def assemble(
    system: SystemArgument,  # noqa: ARG001 - the one that there is
    proposal: ProposalOption,
    clip: ClipOption,
    output: OutputOption,
    adapter: AdapterOption = None,
    lora_alpha: LoraAlphaOption = None,
    tracker: TrackerOption = None,
    tokens: TokensOption = None,
    to_grid: ToGridOption = Guidance.to_grid,
    values: ValuesOption = Guidance.values,
    guidance_scale: GuidanceScaleOption = Guidance.scale,
    clamp: ClampOption = Guidance.clamp,
    sees_register: SeesRegisterOption = Guidance.sees_register,
    first_block: FirstBlockOption = Guidance.first_block,
    projected: ProjectedOption = Guidance.projected,
    video_score: VideoScoreOption = InstFormerConfig.video_score,
    normalise_parts: NormalisePartsOption = InstFormerConfig.normalise_parts,
    quick_gelu: QuickGeluOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make an InstFormer checkpoint from its parts.

    The parts are a mask network, a CLIP, and what was trained on top.

    Example: `openvis assemble instformer --proposal mask2former.pth --clip ViT-B-32:openai
    --adapter adapter_model.safetensors --tracker rollout.safetensors -o instformer.safetensors`

    Then: `openvis export instformer-r50 --checkpoint FILE -o bundle`
    """
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
    require_export()
    from openvis_rt.checkpoints.assemble import assemble_instformer

    with progress_bar() as bar:
        written = assemble_instformer(
            proposal=proposal,
            clip=clip,
            output=output,
            adapter=adapter,
            lora_alpha=lora_alpha,
            tracker=tracker,
            tokens=tokens,
            config=config,
            quick_gelu=quick_gelu,
            overwrite=overwrite,
            progress=bar,
        )
    if as_json:
        print_json(written)
        return
    CONSOLE.print(f"wrote {output}", markup=False)
