"""Checkpoints of OVFormer, OV2Seg and MinVIS under their official names, and CLIP beside them."""

from __future__ import annotations

import json
import re
from functools import cache, partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read by the extra [export]")

from tiny_instformer import BLOCKS, EMBED, PATCH, SIDE, WIDTH, tiny_clip  # noqa: E402 - after the skip
from tiny_ovformer import OPEN, QUERIES, tiny_minvis, tiny_ovformer  # noqa: E402

from openvis_rt.checkpoints.clip import clip_source, clip_weights  # noqa: E402
from openvis_rt.checkpoints.load import Checkpoint, load_model  # noqa: E402
from openvis_rt.checkpoints.weights import IGNORED  # noqa: E402
from openvis_rt.errors import CheckpointError, InputError  # noqa: E402
from openvis_rt.models import minvis, ovformer  # noqa: E402
from openvis_rt.models.ovformer import build as build_ovformer  # noqa: E402
from openvis_rt.systems import VARIANTS  # noqa: E402

VIDEO, FRAME, OV2SEG, MINVIS = (
    f"{name}-r50" for name in ("ovformer-video", "ovformer-frame", "ov2seg", "minvis")
)
HEAD = "sem_seg_head.predictor."
CLASSIFIER = f"{HEAD}class_embed.zs_weight"
LVIS, LVVIS = 1203, 1196  # classes
OFFICIAL = {  # our names of a ResNet's parts, and timm's
    r"backbone\.stem\.conv1\.norm\.(.*)": r"backbone.base.bn1.\1",
    r"backbone\.stem\.conv1\.weight": r"backbone.base.conv1.weight",
    r"backbone\.res(\d)\.(\d+)\.conv(\d)\.norm\.(.*)": r"backbone.base.layer\1.\2.bn\3.\4",
    r"backbone\.res(\d)\.(\d+)\.conv(\d)\.weight": r"backbone.base.layer\1.\2.conv\3.weight",
    r"backbone\.res(\d)\.(\d+)\.shortcut\.norm\.(.*)": r"backbone.base.layer\1.\2.downsample.1.\3",
    r"backbone\.res(\d)\.(\d+)\.shortcut\.weight": r"backbone.base.layer\1.\2.downsample.0.weight",
}


def official_name(key: str) -> str:
    for ours, theirs in OFFICIAL.items():
        if re.fullmatch(ours, key):
            name = re.sub(f"^{ours}$", theirs, key)
            return re.sub(r"layer(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
    return key


def filled(model):
    """Every weight random: constants would hide a norm that landed in another's place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return {k: torch.rand_like(v) + 0.1 for k, v in model.network.state_dict().items()}


@cache
def weights(name: str, **sizes):
    """Of a model under its official names, with what goes with the backbone."""
    model = tiny_ovformer(name, with_clip=False, **sizes)
    state = {official_name(key): value for key, value in filled(model).items()}
    for key in [k for k in state if k.endswith("running_var")]:
        state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    for index, layer in enumerate(getattr(model.network.backbone, "layers", ())):
        for number, block in enumerate(layer.blocks):
            key = f"backbone.layers.{index}.blocks.{number}.attn.relative_position_index"
            state[key] = block.attn.relative_position_index
    return state


def official(name: str, classes: int = 0, *, trained: str = "both", **sizes):
    """A state dict as detectron2 wrote it.

    ``classes`` of the training; ``trained`` says where they can be seen: in the loss's weights, in
    the classifier's columns, or in both.
    """
    classes = classes or (LVVIS if name.startswith("ovformer-video") else LVIS)
    state = dict(weights(name, **sizes))
    state["criterion.empty_weight"] = torch.ones(classes + 1)
    state["criterion.empty_object_weight"] = torch.ones(3)
    state["criterion.freq_weight"] = torch.ones(classes if trained != "columns" else LVVIS)
    columns = classes + 1 if trained != "weights" else 81
    state[CLASSIFIER] = torch.randn(EMBED, columns)
    return state


def saved(tmp_path: Path, state, name: str = "model.pth") -> Path:
    torch.save({"model": state, "iteration": 1}, tmp_path / name)
    return tmp_path / name


def refused(name: str, path: Path, clip: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(name, path, None if clip is None else str(clip))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture(autouse=True)
def built(monkeypatch) -> list[dict[str, object]]:
    """Tiny models in place of the released ones; what their builders were asked for."""
    asked: list[dict[str, object]] = []

    def build(make, **sizes):
        asked.append(sizes)
        quick = {k: v for k, v in sizes.items() if k != "quick_gelu"}
        return make(seed=7, **quick)

    monkeypatch.setattr(
        ovformer, "build", lambda variant, **s: build(partial(tiny_ovformer, variant.name), **s)
    )
    monkeypatch.setattr(minvis, "build", lambda _, **s: build(tiny_minvis, **s))
    return asked


# what loads


@pytest.mark.parametrize("name", OPEN)
def test_every_weight_under_its_official_name_lands(tmp_path, name):
    state = official(name)
    model = load_model(name, saved(tmp_path, state)).model
    assert not model.training
    own = model.network.state_dict()
    for key, value in own.items():
        assert torch.equal(value, state[official_name(key)]), key
    left = set(state) - {official_name(key) for key in own}
    ignored = r"criterion\..*|.*num_batches_tracked|.*zs_weight|.*relative_position_index"
    assert all(re.fullmatch(ignored, key) for key in left)
    if name.endswith("r50"):
        assert any(key.startswith("backbone.base.layer4.0.downsample.1") for key in state)
    assert model.clip_model is None


def test_the_names_of_these_tests_are_those_of_the_public_checkpoint(reference):
    """Of the full-size model, whose names and shapes the reference lists."""
    listed = json.loads((reference / "ovformer-video-r50.weights.json").read_text())["tensors"]
    with torch.device("meta"):  # shapes alone
        own = build_ovformer(VARIANTS[VIDEO], with_clip=False).network.state_dict()
    wanted = {
        key: entry["shape"]
        for key, entry in listed.items()
        if not any(re.fullmatch(pattern, key) for pattern in IGNORED)
    }
    assert {official_name(key): list(value.shape) for key, value in own.items()} == wanted


def test_minvis_has_detectron2s_names_and_its_classes_are_the_files(tmp_path, built):
    state = filled(tiny_minvis(classes=9))
    model = load_model(MINVIS, saved(tmp_path, state)).model
    assert built[-1]["classes"] == 9
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert model.network.predictor.class_embed.out_features == 10


@pytest.mark.parametrize(("layers", "queries"), [(1, 4), (3, QUERIES), (2, 7)])
@pytest.mark.parametrize("name", [VIDEO, OV2SEG])
def test_depth_and_queries_are_read_from_the_file(tmp_path, built, name, layers, queries):
    state = official(name, decoder_layers=layers, queries=queries)
    model = load_model(name, saved(tmp_path, state)).model
    assert built[-1]["decoder_layers"] == layers
    assert built[-1]["queries"] == queries
    assert model.network.predictor.layers == layers
    assert torch.equal(model.network.predictor.query_feat.weight, state[f"{HEAD}query_feat.weight"])


def test_what_only_training_needs_may_be_absent(tmp_path):
    state = official(OV2SEG)
    less = {k: v for k, v in state.items() if not re.search(r"criterion|tracked|zs_weight", k)}
    load_model(OV2SEG, saved(tmp_path, less))


def test_the_checkpoints_own_vocabulary_is_not_in_the_model(tmp_path):
    one, other = official(VIDEO), official(VIDEO)
    assert not torch.equal(one[CLASSIFIER], other[CLASSIFIER])
    models = [
        load_model(VIDEO, saved(tmp_path, state, f"{index}.pth")).model
        for index, state in enumerate((one, other))
    ]
    names = {key for key, _ in (*models[0].named_parameters(), *models[0].named_buffers())}
    assert not any("zs_weight" in key for key in names)
    rows = torch.eye(EMBED)[:3]
    queries, embeddings = torch.ones(2, 256), torch.ones(2, EMBED)
    found = [model.classify(queries, rows, embeddings)["class_scores"] for model in models]
    assert torch.equal(*found)


# whose checkpoint it is


@pytest.mark.parametrize(
    ("backbone", "trained"),
    [("r50", "both"), ("r50", "weights"), ("r50", "columns"), ("swin-b", "both")],
)
def test_a_frame_checkpoint_is_not_taken_for_a_video_one_nor_the_reverse(
    tmp_path, backbone, trained
):
    frame, video = f"ovformer-frame-{backbone}", f"ovformer-video-{backbone}"
    pairs = [(frame, LVIS, video), (video, LVVIS, frame)]
    for of, classes, other in pairs[:1] if trained == "weights" else pairs:
        path = saved(tmp_path, official(of, classes, trained=trained))
        message = refused(other, path)
        assert str(path) in message
        assert f"export it as {of}" in message
        assert "OVFormer (OVFormerVideo), trained on LVIS's images" in message
        assert "OVFormer (VideoOVFormer), trained on LV-VIS's videos" in message
        load_model(of, path)
        assert Checkpoint.open(path).describe()["model"] == of
        assert load_model(of, path).warnings == ()


@pytest.mark.parametrize("change", ["other classes", "another classifier", "no word", "scalars"])
def test_a_checkpoint_that_does_not_tell_loads_in_both(tmp_path, change):
    """A loss for LV-VIS's classes is in VideoOVFormer and in OVFormerVideo."""
    state = official(VIDEO, 40)
    if change == "another classifier":
        state = official(VIDEO, LVVIS, trained="weights")
    if change == "scalars":
        state |= {"criterion.freq_weight": torch.tensor(1.0), CLASSIFIER: torch.tensor(1.0)}
    if change == "no word":
        state = {k: v for k, v in state.items() if not re.search("criterion|zs_weight", k)}
    path = saved(tmp_path, state)
    for name in (VIDEO, FRAME):
        loaded = load_model(name, path)
        assert loaded.model.variant.name == name
        (doubt,) = loaded.warnings
        assert f"{path} does not tell" in doubt
        assert VIDEO in doubt
        assert FRAME in doubt
    said = "ovformer-video-r50 or ovformer-frame-r50"
    assert Checkpoint.open(path).describe()["model"] == said
    assert Checkpoint.open(path).describe()["system"] == "ovformer"


def test_a_classifier_of_the_videos_beside_weights_of_the_images_is_a_video_evaluation(tmp_path):
    """The loss's weights are of the training; a classifier may have been replaced after it."""
    state = official(FRAME, LVIS)
    state[CLASSIFIER] = torch.randn(EMBED, LVVIS + 1)
    path = saved(tmp_path, state)
    load_model(FRAME, path)
    assert f"export it as {FRAME}" in refused(VIDEO, path)


@pytest.mark.parametrize(
    ("of", "given_to", "system"),
    [
        (OV2SEG, VIDEO, "ov2seg"),
        (OV2SEG, FRAME, "ov2seg"),
        (OV2SEG, MINVIS, "ov2seg"),
        (VIDEO, OV2SEG, "ovformer"),
        (FRAME, MINVIS, "ovformer"),
        (MINVIS, OV2SEG, "mask2former or minvis"),
        (MINVIS, VIDEO, "mask2former or minvis"),
        (OV2SEG, "clip-vis-r50", "ov2seg"),
        (VIDEO, "instformer-r50", "ovformer"),
    ],
)
def test_a_checkpoint_of_another_system_is_refused_by_its_name(tmp_path, of, given_to, system):
    state = filled(tiny_minvis()) if of == MINVIS else official(of)
    message = refused(given_to, saved(tmp_path, state))
    assert f"looks like a checkpoint of {system}, but {given_to} needs one of" in message


@pytest.mark.parametrize("system", ["ovformer-video", "ovformer-frame", "ov2seg"])
def test_the_other_backbone_is_named(tmp_path, system):
    for of, other in (("r50", "swin-b"), ("swin-b", "r50")):
        path = saved(tmp_path, official(f"{system}-{of}"))
        message = refused(f"{system}-{other}", path)
        assert f"looks like a checkpoint of {system}-{of}, not of {system}-{other}" in message


def test_every_key_that_does_not_fit_is_listed(tmp_path):
    state = official(VIDEO)
    weight = f"{HEAD}class_embed.linear.2.weight"
    del state[f"{HEAD}class_embed.cross_attention.norm.bias"]
    del state["backbone.base.layer2.0.downsample.1.bias"]
    state[f"{HEAD}class_embed.linear.4.weight"] = torch.zeros(1)
    state[weight] = torch.zeros(512, 16)
    message = refused(VIDEO, saved(tmp_path, state))
    assert "does not fit ovformer-video-r50 (decoder layers: 2, queries: 10)" in message
    # names of the backbone's parts are those that detectron2 has for them
    assert "2 missing: " in message
    assert f"{HEAD}class_embed.cross_attention.norm.bias" in message
    assert "backbone.base.layer2.0.downsample.1.bias" in message
    assert f"1 unexpected: {HEAD}class_embed.linear.4.weight" in message
    assert f"1 of another shape: {weight}: (512, 16) found, ({EMBED}, 16) needed" in message


@pytest.mark.parametrize("key", [f"{HEAD}class_embed.weight", f"{HEAD}query_feat.weight"])
def test_a_number_in_place_of_a_matrix_is_refused_by_its_shape(tmp_path, key):
    state = {**filled(tiny_minvis()), key: torch.tensor(1.0)}
    assert f"{key}: () found, " in refused(MINVIS, saved(tmp_path, state))


def test_nan_is_refused(tmp_path):
    state = official(OV2SEG)
    state["backbone.base.bn1.running_mean"] = torch.full((8,), torch.nan)
    message = refused(OV2SEG, saved(tmp_path, state))
    assert "NaN or infinity in backbone.base.bn1.running_mean" in message


# CLIP


def clip_file(tmp_path: Path, name: str = "clip.pt", **sizes) -> Path:
    torch.save(tiny_clip(3, **sizes).state_dict(), tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("quick", [True, False])
def test_clip_comes_beside_the_checkpoint(tmp_path, built, quick):
    file = clip_file(tmp_path)
    path = saved(tmp_path, official(VIDEO))
    model = load_model(VIDEO, path, str(file), quick).model
    assert built[-1] == {
        "decoder_layers": 2,
        "queries": QUERIES,
        "with_clip": True,
        "quick_gelu": quick,
    }
    wanted = tiny_clip(3).state_dict()
    for key, value in model.clip_model.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    load_model(VIDEO, path)
    assert built[-1]["with_clip"] is False


def test_clip_files_of_other_hands_are_understood(tmp_path):
    wanted = tiny_clip(3).state_dict()
    trained = {f"module.{key}": value for key, value in wanted.items()}
    torch.save({"state_dict": trained, "epoch": 3}, tmp_path / "trained.pt")
    sizes = {k: torch.tensor(1) for k in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**wanted, **sizes}, tmp_path / "openai.pt")
    for name in ("trained.pt", "openai.pt"):
        found = clip_weights(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("clip-vis-r50", "its checkpoint holds CLIP"),
        ("instformer-r50", "its checkpoint holds CLIP"),
        (MINVIS, "closed vocabulary"),
    ],
)
def test_a_model_that_has_its_own_clip_or_none_takes_none(tmp_path, name, why):
    source = str(clip_file(tmp_path))
    with pytest.raises(InputError, match=f"{name} takes no --clip: .*{why}") as caught:
        load_model(name, tmp_path / "none.pth", source)  # before the file is read
    assert caught.value.exit_code == 2


def test_a_clip_that_does_not_fit_is_refused_with_its_keys(tmp_path):
    path = saved(tmp_path, official(OV2SEG))
    source = clip_file(tmp_path, blocks=2)
    message = refused(OV2SEG, path, source)
    assert f"{source} does not fit the CLIP of {OV2SEG}" in message
    assert "missing: visual.transformer.resblocks.2." in message
    assert "unexpected" not in message


def test_a_clip_of_other_names_says_what_it_is(tmp_path):
    path = saved(tmp_path, official(OV2SEG))
    vision = {k: v for k, v in tiny_clip().state_dict().items() if k.startswith("visual.")}
    hugging = {"vision_model.a": torch.ones(1), "text_model.b": torch.ones(1)}
    for state, what in (
        (official(OV2SEG), "ov2seg"),
        (vision, "no system known here"),
        (hugging, "a model under Hugging Face's names that is not a whole CLIP (SigLIP"),
    ):
        file = saved(tmp_path, state, "other.pt")
        message = refused(OV2SEG, path, file)
        assert f"{file} looks like {what}" in message
        assert "visual.conv1.weight" in message  # what is needed


def test_no_clip_file_and_tags_of_another_clip_are_refused(tmp_path):
    for given, message in (
        (str(tmp_path / "none.pt"), f"no file {tmp_path}/none.pt"),
        ("RN50:openai", "has the CLIP ViT-B-32; got the tag RN50:openai"),
        ("ViT-B-32:nobody", "no weights 'nobody' of ViT-B-32; it has .*openai"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            clip_source(given, VARIANTS[VIDEO])
        assert caught.value.exit_code == 2


def hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip state dict as Hugging Face's CLIPModel has it, tower by tower."""
    out = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
    }
    norms = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final"}
    layers = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for theirs, ours in (("vision_model", "visual."), ("text_model", "")):
        table = state[f"{ours}positional_embedding"]
        out[f"{theirs}.embeddings.position_embedding.weight"] = table
        out[f"{theirs}.embeddings.position_ids"] = torch.arange(len(table))[None]  # older files
        for kind in ("weight", "bias"):
            for name, norm in norms.items():
                if f"{ours}{norm}.{kind}" in state:
                    out[f"{theirs}.{name}.{kind}"] = state[f"{ours}{norm}.{kind}"]
            for block in range(BLOCKS if ours else 1):
                here = f"{ours}transformer.resblocks.{block}."
                there = f"{theirs}.encoder.layers.{block}."
                for name, part in layers.items():
                    out[f"{there}{name}.{kind}"] = state[f"{here}{part}.{kind}"]
                thirds = state[f"{here}attn.in_proj_{kind}"].chunk(3)
                for name, third in zip("qkv", thirds, strict=True):
                    out[f"{there}self_attn.{name}_proj.{kind}"] = third
    return out


def test_hugging_faces_clip_becomes_open_clips(tmp_path):
    wanted = tiny_clip(3).state_dict()
    theirs = hugging_face(wanted)
    assert theirs["vision_model.encoder.layers.2.self_attn.k_proj.weight"].shape == (WIDTH, WIDTH)
    assert theirs["visual_projection.weight"].shape == (EMBED, WIDTH)
    path = saved(tmp_path, theirs, "pytorch_model.bin")
    found = clip_weights(path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    checkpoint = saved(tmp_path, official(VIDEO))
    model = load_model(VIDEO, checkpoint, str(path)).model
    assert all(torch.equal(v, wanted[k]) for k, v in model.clip_model.state_dict().items())
    assert Checkpoint.open(path).describe()["system"] == "CLIP under Hugging Face's names"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vision_model.encoder.layers.1.self_attn.k_proj.weight": None},
            "q, k and v of one",
        ),
        (
            {"text_model.encoder.layers.0.self_attn.q_proj.bias": torch.zeros(3)},
            r"text_model.encoder.layers.0.self_attn.qkv_proj.bias .* found .*'q': \[3\]",
        ),
        ({"vision_model.encoder.layers.1.mlp.fc1.weight": None}, "missing: visual.*1.mlp.c_fc"),
        ({"vision_model.odd": torch.zeros(2)}, "1 unexpected: visual.odd"),
        ({"text_projection.weight": torch.zeros(EMBED, 7)}, r"\(7, 32\) found, \(32, 32\) needed"),
        ({"text_projection.weight": torch.zeros(())}, r"\(\) found, \(32, 32\) needed"),
        ({"visual_projection.weight": None}, "not a whole CLIP"),
    ],
    ids=range(7),
)
def test_half_a_clip_of_hugging_face_is_refused(tmp_path, change, message):
    state = {**hugging_face(tiny_clip(3).state_dict()), **change}
    path = saved(tmp_path, {k: v for k, v in state.items() if v is not None}, "clip.bin")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(OV2SEG, saved(tmp_path, official(OV2SEG)), str(path))
    assert str(path) in str(caught.value)


def test_hugging_faces_own_clip_computes_the_same(tmp_path):
    transformers = pytest.importorskip("transformers", reason="it is what is compared with")
    tower = {"num_attention_heads": 4, "hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(
        vision_config={
            **tower,
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": BLOCKS,
            "patch_size": PATCH,
            "image_size": SIDE,
        },
        text_config={
            **tower,
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 49408,
            "eos_token_id": 49407,
        },
        projection_dim=EMBED,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    ours = tiny_clip()
    path = saved(tmp_path, theirs.state_dict(), "pytorch_model.bin")
    ours.load_state_dict(clip_weights(path))
    pictures, words = torch.randn(2, 3, SIDE, SIDE), torch.randint(1, 49000, (2, 77))
    words[:, 20], words[:, 21:] = 49407, 0
    with torch.inference_mode():
        images = ours.encode_image(pictures), theirs.get_image_features(pixel_values=pictures)
        texts = ours.encode_text(words), theirs.get_text_features(input_ids=words)
    for found, answer in (images, texts):
        wanted = getattr(answer, "pooler_output", answer)  # version 5 answers with more
        # float32 rounding of the same sums in another order
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


# what a file is, in words


def test_a_checkpoint_is_described(tmp_path):
    state = official("ovformer-video-swin-b", decoder_layers=3)
    path = saved(tmp_path, state)
    facts = Checkpoint.open(path).describe()
    assert facts["file"] == str(path)
    assert facts["system"] == "ovformer"
    assert facts["model"] == "ovformer-video-swin-b"
    assert facts["decoder layers"] == 3
    assert facts["tensors"] == len(state)
    assert facts["parameters"] == sum(value.numel() for value in state.values())
    assert facts["types"] == ["float32", "int64"]


@pytest.mark.parametrize(
    ("state", "system", "model"),
    [
        (partial(official, OV2SEG), "ov2seg", OV2SEG),
        (partial(official, "ov2seg-swin-b"), "ov2seg", "ov2seg-swin-b"),
        (partial(official, FRAME), "ovformer", FRAME),
        (lambda: filled(tiny_minvis()), "mask2former or minvis", MINVIS),
        (lambda: tiny_clip().state_dict(), "open_clip (CLIP alone)", "none of `openvis models`"),
    ],
)
def test_systems_and_models_are_told_apart(tmp_path, state, system, model):
    facts = Checkpoint.open(saved(tmp_path, state())).describe()
    assert (facts["system"], facts["model"]) == (system, model)


@pytest.mark.parametrize("clip", ["ViT-B-32:openai", "nofile.pt"])
def test_a_needless_clip_is_refused_before_it_is_looked_for(tmp_path, clip, monkeypatch):
    monkeypatch.setattr("open_clip.download_pretrained", lambda *_: pytest.fail("a download"))
    with pytest.raises(InputError, match="minvis-r50 takes no --clip: it has a closed vocabulary"):
        load_model("minvis-r50", tmp_path / "any.pth", clip)


def test_messages_have_the_files_own_names(tmp_path):
    state = official(VIDEO, LVVIS)
    gone = [f"backbone.base.{k}" for k in ("bn1.weight", "layer1.0.downsample.1.bias")]
    gone += ["backbone.base.layer3.0.bn2.running_var", "backbone.base.layer4.0.conv3.weight"]
    for key in gone:
        del state[key]
    path = saved(tmp_path, state)
    with pytest.raises(CheckpointError, match="4 missing") as caught:
        load_model(VIDEO, path)
    assert all(key in str(caught.value) for key in gone)
    assert "res2" not in str(caught.value)
    assert Checkpoint.open(path).describe()["first keys"][0].startswith("backbone.base.")
