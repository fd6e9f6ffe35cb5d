"""Every usual spelling of published files, and which of them a level means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_convert.hub.download import Repository
from minitron_convert.hub.models import HubModel
from minitron_convert.hub.published_names import level_in, models_called
from minitron_core.errors import NotFound

LEVELS = (
    *("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q2_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q4_K_L", "Q5_K_M"),
    *("Q6_K", "IQ1_S", "IQ2_XXS", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "MXFP4_MOE", "F16", "BF16"),
)
UNSLOTH = ("Q2_K_XL", "Q4_K_XL", "IQ2_M")
STEMS = ("Model", "Llama-3.1-8B-Instruct", "nano.v0.2", "phi_3_mini", "ggml-model", "Qwen2.5-0.5B")
SPELLINGS = (
    "{stem}-{level}",
    "{stem}.{level}",
    "{stem}_{level}",
    "{level}/{stem}",
    "{level}/{stem}-{level}",
    "{stem}-{level}/{stem}-{level}",
    "{stem}.i1-{level}",
    "{stem}-UD-{level}",
    "UD-{level}/{stem}-UD-{level}",
    "{stem}-imat-{level}",
    "{stem}-{level}-imat",
)
CASES = st.sampled_from([str, str.lower, str.upper])
spelled = st.builds(
    lambda spelling, stem, level, case: (spelling.format(stem=stem, level=case(level)), level),
    st.sampled_from(SPELLINGS),
    st.sampled_from(STEMS),
    st.sampled_from(LEVELS + UNSLOTH),
    CASES,
)


@given(spelled, CASES)
def test_models_called_finds_every_spelling(published: tuple[str, str], case: type[str]) -> None:
    model, level = published
    assert models_called(case(level), [model]) == [model]
    assert models_called(case(level_in(model)), [model]) == [model]
    assert models_called(case(model), [model]) == [model]


@given(spelled, st.sampled_from(LEVELS))
def test_models_called_takes_no_level_for_another(published: tuple[str, str], wanted: str) -> None:
    model, level = published
    assert models_called(wanted, [model]) == ([model] if wanted == level else [])


@given(st.sampled_from(SPELLINGS[:5]), st.sampled_from(STEMS), CASES)
def test_models_called_picks_one_of_all_levels(spelling: str, stem: str, case: type[str]) -> None:
    names = {level: spelling.format(stem=stem, level=case(level)) for level in LEVELS}
    for level, name in names.items():
        assert models_called(level, names.values()) == [name]


@pytest.mark.parametrize(
    ("model", "level"),
    [
        ("Nano-Llama-8.0M-Q4_K_M", "Q4_K_M"),
        ("nano.Q4_K_M", "Q4_K_M"),
        ("Nano-3.05bpw", "3.05bpw"),
        ("Nano-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("Nano.i1-Q4_K_M", "i1-Q4_K_M"),
        ("Q4_K_M/nano", "Q4_K_M"),
        ("nano_q4_k_m", "q4_k_m"),
        ("Nano-F16-Q8_0", "Q8_0"),
        ("Nano-Q4_K_mine", "Q4_K_mine"),
        ("folder-1/model", "model"),
    ],
)
def test_level_in_reads_the_last_level(model: str, level: str) -> None:
    assert level_in(model) == level


def test_models_called_prefers_plain_levels() -> None:
    models = ["m-Q4_K_M", "m-UD-Q4_K_M", "m-UD-Q4_K_XL", "m.i1-Q4_K_M"]
    assert models_called("q4_k_m", models) == ["m-Q4_K_M"]
    assert models_called("ud-q4_k_m", models) == ["m-UD-Q4_K_M"]
    assert models_called("Q4_K_XL", models) == ["m-UD-Q4_K_XL"]
    assert models_called("Q4_K", models) == []
    assert models_called("Q4_K_M", models[1:]) == ["m-UD-Q4_K_M", "m.i1-Q4_K_M"]
    assert models_called("fp16", ["m-F16"]) == ["m-F16"] == models_called("F16", ["m-F16"])


def test_hub_model_tells_of_several_files_of_a_level() -> None:
    files = [
        "a/M-Q4_K_M.gguf",
        "b/M-Q4_K_M.gguf",
        *(f"Q8_0/M-0000{number}-of-00002.gguf" for number in (1, 2)),
        "M.imatrix.gguf",
        "imatrix_m.gguf",
        "M-imatrix-Q2_K.gguf",
    ]
    repository = Repository("x/y")
    assert HubModel(repository, "q8_0")._choose(files) == files[2:4]
    assert HubModel(repository, "q2_k")._choose(files) == files[-1:]
    with pytest.raises(NotFound, match="2 models of level Q4_K_M") as caught:
        HubModel(repository, "Q4_K_M")._choose(files)
    assert "x/y:a/M-Q4_K_M" in caught.value.hint
    assert HubModel(repository, "a/M-Q4_K_M")._choose(files) == files[:1]
