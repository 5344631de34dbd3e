"""The built-in base: its world, what is held out, the shipped files, training's forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ZImagePipeline
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLModel

from dopsd_app.checks.judge.classifier import ATTRIBUTES, Judge, judge, load_judge
from dopsd_app.checks.judge.world import (
    BACKGROUND_WORDS,
    Concept,
    Scene,
    all_concepts,
    all_scenes,
    draw,
    is_held_out,
    random_concept,
    random_scene,
)
from pocket.autoencoder import encode_pictures
from pocket.captions import asked_of, full_caption, usual_caption
from pocket.crew import BatchedMuon, Training, flatten, view_parameters
from pocket.data import bring_shipped, pad_rows
from pocket.examples import EXAMPLES
from pocket.judge import frechet_distance, truth
from pocket.measure import following, load_folder, load_parent
from pocket.models import build_encoder
from pocket.network import Network, to_patches
from pocket.sampling import sigmas_of
from pocket.tokens import IMAGE, IMAGE_TOKENS, message_tokens
from pocket.wear import WORN, wear

pytestmark = pytest.mark.benchmark

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "assets" / "pocket-turbo"


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def network() -> Network:
    return load_folder(FOLDER)[0]


def teacher_encoder(network: Network, tokenizer) -> Qwen3VLModel:
    """The official module with the network's weights; its last layer is not read."""
    encoder = build_encoder(tokenizer).eval()
    encoder.visual.load_state_dict(network.encoder.visual.state_dict())
    encoder.language_model.load_state_dict(network.encoder.language_model.state_dict(), strict=False)
    return encoder


def test_world_is_a_function_of_its_numbers():
    concept, scene = random_concept(np.random.default_rng(1)), random_scene(np.random.default_rng(2))
    assert concept == random_concept(np.random.default_rng(1))
    assert scene == random_scene(np.random.default_rng(2))
    assert np.array_equal(draw(concept, scene), draw(concept, scene))
    assert draw(concept, scene, side=96).shape == (96, 96, 3)
    assert len(set(all_scenes())) == 8 * 3 * 2
    assert scene in all_scenes()


def test_held_out_concepts_are_never_drawn_for_training():
    rng = np.random.default_rng(0)
    held_out, training = set(all_concepts(held_out=True)), set(all_concepts(held_out=False))
    assert not held_out & training
    assert held_out | training == set(all_concepts())
    assert 0.04 < len(held_out) / len(all_concepts()) < 0.06
    assert not any(is_held_out(random_concept(rng)) for _ in range(300))
    assert all(is_held_out(random_concept(rng, held_out=True)) for _ in range(20))


def test_captions_name_the_background_and_never_the_creature():
    rng = np.random.default_rng(0)
    for _ in range(200):
        concept, scene = random_concept(rng), random_scene(rng)
        assert BACKGROUND_WORDS[scene.background] in usual_caption(concept, scene, rng)
    # Even the fullest caption fits two outlines, two body colours and two second colours.
    caption = full_caption(concept, scene)
    assert sum(full_caption(other, scene) == caption for other in all_concepts()) == 8


def test_what_a_caption_asks_for_is_what_its_words_name():
    concept = Concept(outline=0, body=2, second=6, pattern=1, frequency=1, eyes=0)
    scene = Scene(background=4, place=2, size=1)
    assert set(asked_of(full_caption(concept, scene), concept, scene)) == set(ATTRIBUTES)
    assert set(asked_of("a spotted zorp on the right, night", concept, scene)) == {
        "pattern",
        "place",
        "background",
    }
    assert asked_of("", concept, scene) == {}


def test_following_counts_words_and_not_what_shares_them():
    concept, other = (
        Concept(0, 2, 6, 1, 1, 0),
        Concept(1, 3, 6, 1, 1, 0),
    )
    scene = Scene(background=4, place=2, size=1)
    caption = "a round yellow spotted zorp, night"
    drawn = np.stack([draw(concept, scene), draw(other, scene), draw(Concept(2, 2, 6, 1, 1, 0), scene)])
    followed = following(drawn, [caption] * 3, [concept] * 3, [scene] * 3)
    assert followed["body"] == followed["pattern"] == followed["background"] == 1
    assert followed["outline"] == pytest.approx(2 / 3, abs=1e-3)  # a square is not
    assert followed["all"] == pytest.approx(11 / 12, abs=1e-3)


def test_examples_are_held_out_and_captioned():
    for name, concept in EXAMPLES.items():
        assert is_held_out(concept)
        folder = ROOT / "assets" / "examples" / name
        pictures = sorted(folder.glob("*.png"))
        assert len(pictures) == 6
        assert len((folder / "prompts.txt").read_text().splitlines()) >= 2
        for picture in pictures:
            with Image.open(picture) as image:
                assert image.size == (256, 256)
            assert name in picture.with_suffix(".txt").read_text()


def test_shipped_files_are_small_and_name_no_machine():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    sizes = [file.stat().st_size for file in files]
    assert sum(sizes) <= 25_000_000
    assert max(sizes) <= 15_000_000
    for config in FOLDER.rglob("*.json"):
        assert "_name_or_path" not in config.read_text()


def test_pipeline_samples_in_four_steps(pipeline):
    settings = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 0.0}
    generator = torch.Generator().manual_seed(0)
    pixels = pipeline("zorp on a mint background", output_type="pt", generator=generator, **settings).images
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.isfinite().all()
    assert pixels.std() > 0.05
    assert torch.allclose(pipeline.scheduler.sigmas, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]), atol=1e-6)
    assert torch.allclose(sigmas_of(4), pipeline.scheduler.sigmas)


def test_any_text_is_tokenized_and_the_template_is_qwens(pipeline):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
    message = [{"role": "user", "content": "[V] été 🐙"}]
    text = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert text == "<|im_start|>user\n[V] été 🐙<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_training_sees_what_the_official_modules_see(network, pipeline):
    tokenizer, encoder = pipeline.tokenizer, teacher_encoder(network, pipeline.tokenizer)
    picture = draw(random_concept(np.random.default_rng(3)), Scene(background=1, place=0, size=1))
    processor = Qwen2VLImageProcessorPil.from_pretrained(FOLDER / "vision_tower")
    seen = processor(images=[Image.fromarray(picture)], return_tensors="pt")
    patches = to_patches(torch.from_numpy(picture)[None])
    assert torch.allclose(patches[0], seen["pixel_values"], atol=1e-6)

    tokens = torch.tensor([message_tokens(tokenizer, "zorp on a rose background", picture=True)])
    image = tokens == tokenizer.convert_tokens_to_ids(IMAGE)
    assert image.sum() == IMAGE_TOKENS
    with torch.no_grad():
        official = encoder(
            input_ids=tokens, mm_token_type_ids=image.int(), output_hidden_states=True, **seen
        ).hidden_states[-2]
        assert torch.allclose(network.encode(tokens, patches), official, atol=1e-4)


def test_text_alone_gives_student_and_teacher_the_same_features(network, pipeline):
    tokens = torch.tensor([message_tokens(pipeline.tokenizer, "a small zorp in a cave scene")])
    encoder = teacher_encoder(network, pipeline.tokenizer)
    with torch.no_grad():
        teacher = encoder(input_ids=tokens, output_hidden_states=True).hidden_states[-2]
        student = pipeline.text_encoder(input_ids=tokens, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(teacher, student)


def test_fast_velocity_equals_the_official_transformer(network, pipeline):
    features, latents = torch.randn(2, 32, 192), torch.randn(2, 8, 16, 16)
    sigma, lengths = torch.tensor([0.9, 0.5]), torch.tensor([30, 12])
    with torch.no_grad():
        fast = network.velocity(latents, sigma, features, lengths)
        rows = [row[:length] for row, length in zip(features, lengths, strict=True)]
        official = pipeline.transformer(list(latents.unsqueeze(2)), 1 - sigma, rows, return_dict=False)[0]
    assert torch.allclose(fast, -torch.stack(official).squeeze(2), atol=1e-4)


def test_flat_weights_are_the_networks_own():
    one, other = Judge(), Judge()
    view_parameters(other, flatten(one))
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(one(pixels)[0], other(pixels)[0])


def test_blocks_matrices_are_stepped_by_muon_and_all_others_by_adamw():
    network = Network(AutoTokenizer.from_pretrained(FOLDER / "tokenizer"))
    before = flatten(network)
    training = Training(before.clone(), 1e-3, weight_decay=0.0, module=network)
    adamw, muon = ({p.data_ptr() for p in o.param_groups[0]["params"]} for o in training.optimizers)
    view_parameters(network, training.weights)
    names = {
        name: "muon" if parameter.data_ptr() in muon else "adamw"
        for name, parameter in network.named_parameters()
    }
    assert len(names) == len(muon) + len(adamw)
    assert names["transformer.layers.0.attention.to_q.weight"] == "muon"
    assert names["encoder.visual.blocks.0.mlp.linear_fc1.weight"] == "muon"
    assert names["encoder.language_model.embed_tokens.weight"] == "adamw"
    assert names["transformer.layers.0.attention_norm1.weight"] == "adamw"
    training.update(torch.randn_like(before), progress=0.5, step=0)
    assert all(
        not parameter.equal(old)
        for parameter, old in zip(network.parameters(), split_like(network, before), strict=True)
    )


def test_batched_muon_steps_as_the_library_does_one_by_one():
    generator = torch.Generator().manual_seed(0)
    stepped = []
    for optimizer_class, how in ((torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}), (BatchedMuon, {})):
        generator.manual_seed(0)
        # Both of one shape, one that is higher than wide, and a momentum from a first step.
        matrices = [
            torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 8), (4, 8), (9, 3))
        ]
        before = [matrix.detach().clone() for matrix in matrices]
        optimizer = optimizer_class(matrices, 0.01, weight_decay=0.1, **how)
        for _ in range(2):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            optimizer.step()
        stepped.append([matrix - old for matrix, old in zip(matrices, before, strict=True)])
    for theirs, ours in zip(*stepped, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()  # they reckon in bfloat16


def split_like(network, weights):
    parts = weights.split([parameter.numel() for parameter in network.parameters()])
    return [part.view_as(parameter) for part, parameter in zip(parts, network.parameters(), strict=True)]


def test_the_shipped_parent_predicts_better_than_no_picture_at_all():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
    parent, vae = load_parent(tokenizer), AutoencoderKL.from_pretrained(FOLDER / "vae")
    rng = np.random.default_rng(4)
    concepts = [random_concept(rng, held_out=True) for _ in range(8)]
    pictures = np.stack([draw(concept, random_scene(rng)) for concept in concepts])
    latents, noise = encode_pictures(vae, pictures), torch.randn(8, 8, 16, 16)
    row = message_tokens(tokenizer, "creature", picture=True)
    tokens, lengths = pad_rows([row] * 8, tokenizer, 32)
    sigma = torch.full((8,), 0.5)
    with torch.no_grad():
        features = parent.encode(tokens, to_patches(torch.from_numpy(pictures)))
        velocity = parent.velocity((latents + noise) / 2, sigma, features, lengths)
    # A parent that knew nothing would predict the mean: an error of noise's and latents' variance together.
    assert (velocity - (noise - latents)).square().mean() < 0.25 * (noise - latents).var()


def test_wear_moves_a_picture_away_from_itself_and_only_as_much_as_is_asked_for():
    rng = np.random.default_rng(5)
    picture = draw(random_concept(rng), random_scene(rng))
    levels = [(0, 0, 100), (0, 10, 100), (0.7, 10, 50), (1.5, 25, 20)]
    away = [np.abs(wear(picture, rng, *level).astype(int) - picture).mean() for level in levels]
    assert away == sorted(away)
    assert away[0] < 4  # the compression itself
    assert away[1] == pytest.approx(10 * (2 / np.pi) ** 0.5, rel=0.25)  # of a normal draw; some are clipped
    again = [wear(picture, np.random.default_rng(6), 0.7, 10, 50) for _ in range(2)]
    assert np.array_equal(*again)


def test_a_worn_picture_is_seen_much_like_a_flawless_one(network):
    rng = np.random.default_rng(7)
    pictures = [draw(random_concept(rng, held_out=True), random_scene(rng)) for _ in range(16)]
    worn = [wear(picture, rng, **WORN) for picture in pictures]
    with torch.no_grad():
        flawless, seen = (network.see(to_patches(torch.from_numpy(np.stack(p))))[0] for p in (pictures, worn))
    other = (flawless - flawless.roll(1, 0)).norm(dim=-1).mean()  # another creature
    assert (seen - flawless).norm(dim=-1).mean() < 0.19 * other  # 0.20 before it was taught that


@pytest.mark.parametrize("worn", [False, True])
def test_judge_reads_the_world(worn):
    rng = np.random.default_rng(9)
    concepts = [random_concept(rng, held_out=True) for _ in range(64)]
    scenes = [random_scene(rng) for _ in concepts]
    pictures = [draw(c, s) for c, s in zip(concepts, scenes, strict=True)]
    if worn:  # a LoRA that has learned people's pictures draws such ones
        pictures = [wear(picture, rng, **WORN) for picture in pictures]
    predictions = judge(np.stack(pictures), load_judge())
    truths = [truth(concept, scene) for concept, scene in zip(concepts, scenes, strict=True)]
    for name, predicted in predictions.items():
        right = [index == t[name] for index, t in zip(predicted.tolist(), truths, strict=True)]
        assert np.mean(right) > 0.9, name


def test_frechet_distance_of_shifted_gaussians_is_the_squared_shift():
    features = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(12, rel=1e-6)


def test_a_new_state_goes_on_with_the_shipped_tokenizer(tmp_path):
    bring_shipped(tmp_path)  # the shipped parent knows no other; captions have changed since it was made
    shipped = (FOLDER / "tokenizer" / "tokenizer.json").read_bytes()
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() == shipped
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("this state's own")
    bring_shipped(tmp_path)
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_text() == "this state's own"
