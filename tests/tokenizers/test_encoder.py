"""Laws of text encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.evaluation.metrics.text_quality import CausalLMScorer
from maskgen.tokenizers.text.encoder import TextEncoder, width_of
from tests.captioned import tiny_encoder

TEXTS = ["a red boat", "the tree", "a blue car of the boat"]
KINDS = ("bert", "t5", "clip")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder of every kind."""
    return {kind: tiny_encoder(tmp_path_factory.mktemp("encoders") / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder_gives_a_vector_for_each_token(homes: dict[str, Path], kind: str) -> None:
    encoder = TextEncoder(str(homes[kind]), length=6)
    states = encoder.embed(TEXTS)
    assert states.shape == (3, 6, encoder.width) == (3, 6, 8)
    assert states.dtype == torch.float32
    assert [(row.abs().sum(-1) > 0).sum().item() for row in states] == [3, 2, 6]


@pytest.mark.parametrize("padding", ["zero", "keep"])
def test_a_caption_does_not_depend_on_the_others(homes: dict[str, Path], padding: str) -> None:
    encoder = TextEncoder(str(homes["bert"]), 5, padding)  # type: ignore[arg-type]
    torch.testing.assert_close(encoder.embed(TEXTS), torch.cat([encoder.embed([text]) for text in TEXTS]))
    torch.testing.assert_close(encoder.embed(TEXTS * 30)[-3:], encoder.embed(TEXTS))


def test_zeroed_padding_is_hidden_from_the_words(homes: dict[str, Path]) -> None:
    short, long = (TextEncoder(str(homes["bert"]), length).embed(TEXTS[:1]) for length in (3, 9))
    torch.testing.assert_close(long[:, :3], short)
    assert not long[:, 3:].any()


def test_kept_padding_has_states_of_its_own(homes: dict[str, Path]) -> None:
    kept = TextEncoder(str(homes["clip"]), 6, "keep").embed(TEXTS)
    assert bool((kept.abs().sum(-1) > 0).all())


def test_no_caption_is_all_zeros(homes: dict[str, Path]) -> None:
    for padding in ("zero", "keep"):
        encoder = TextEncoder(str(homes["bert"]), 4, padding)  # type: ignore[arg-type]
        assert not encoder.embed(["", "  \n"]).any()
        assert encoder.embed([]).shape == (0, 4, 8)


def test_a_fingerprint_is_of_the_weights_and_how_they_are_used(homes: dict[str, Path], tmp_path: Path) -> None:
    source = str(homes["bert"])
    same = tiny_encoder(tmp_path / "same")
    other = tiny_encoder(tmp_path / "other", seed=1)
    assert TextEncoder(source, 4).fingerprint() == TextEncoder(str(same), 4).fingerprint()
    prints = {
        TextEncoder(*arguments).fingerprint()  # type: ignore[arg-type]
        for arguments in [(source, 4), (source, 5), (source, 4, "keep"), (str(other), 4), (str(homes["t5"]), 4)]
    }
    assert len(prints) == 5


def test_a_folder_beside_its_tokenizer_is_read_as_in_a_pipeline_of_diffusers(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text_encoder").symlink_to(homes["bert"])
    (tmp_path / "tokenizer").symlink_to(homes["bert"])
    apart = TextEncoder(str(tmp_path), 4, subfolder="text_encoder")
    torch.testing.assert_close(apart.embed(TEXTS), TextEncoder(str(homes["bert"]), 4).embed(TEXTS))


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions.encoder: no directory 'nowhere'"):
        TextEncoder("nowhere")
    with pytest.raises(UserError, match=f"{tmp_path} cannot be loaded"):
        TextEncoder(str(tmp_path))


def test_captions_longer_than_the_encoder_reads_are_refused(homes: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"captions.length: .* reads at most 32 tokens, got 33"):
        TextEncoder(str(homes["bert"]), 33)


EVIL = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel
Path({mark!r}).touch()
class C(PretrainedConfig):
    model_type = "custom_x"
class M(PreTrainedModel):
    config_class = C
class T:
    pass
"""


@pytest.mark.parametrize("model_type", ["custom_x", "bert"])
def test_python_code_in_a_folder_is_never_run(
    tmp_path: Path, model_type: str, capfd: pytest.CaptureFixture[str]
) -> None:
    mark, folder = tmp_path / "run", tmp_path / "model"
    said: list[str] = []
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    kinds = {
        f"Auto{kind}": f"evil.{kind[0]}" for kind in ("Config", "Model", "ModelForCausalLM", "ModelForTextEncoding")
    }
    kinds["AutoTokenizer"] = ["evil.T", None]  # type: ignore[assignment]
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": kinds}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": kinds, "tokenizer_class": "T"}))
    for load in (lambda: TextEncoder(str(folder)), lambda: width_of(str(folder)), lambda: CausalLMScorer(str(folder))):
        try:
            load()
        except UserError as error:
            said.append(str(error))
    assert "trust_remote_code" not in "".join(said)
    assert not mark.exists()
    assert "trust_remote_code" not in "".join(capfd.readouterr())


def test_projected_states_are_the_pooled_vector_and_the_states_before_the_last_layer(homes: dict[str, Path]) -> None:
    import transformers

    encoder = TextEncoder(str(homes["clip"]), 6, "keep", states="projected")
    model = transformers.CLIPTextModelWithProjection.from_pretrained(homes["clip"])
    words = transformers.AutoTokenizer.from_pretrained(homes["clip"])
    ids = words(TEXTS, padding="max_length", max_length=6, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids, output_hidden_states=True)
    states = encoder.embed(TEXTS)
    assert states.shape == (3, 7, 8) == (3, encoder.length, encoder.width)
    torch.testing.assert_close(states[:, 0], expected.text_embeds)
    torch.testing.assert_close(states[:, 1:], expected.hidden_states[-2])
    assert not encoder.embed([""]).any()  # "no caption"
    assert encoder.empty().shape == (7, 8)
    assert bool(encoder.empty().any())
    assert encoder.fingerprint() != TextEncoder(str(homes["clip"]), 6, "keep").fingerprint()
    with pytest.raises(UserError, match="needs CLIP's text model"):
        TextEncoder(str(homes["bert"]), 6, states="projected")
