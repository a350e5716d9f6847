"""Every example runs as a script and meets its ε."""

import importlib.util
import re
from pathlib import Path

import pytest
from scripts import run_script

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {
    "accelerate_fsdp2": "accelerate",
    "accelerate_loop": "accelerate",
    "forget_sentences": "transformers",
    "hf_trainer": "transformers",
    "lightning_automatic": "lightning",
    "lightning_module": "lightning",
    "peft_lora": "peft",
}
RESULT = re.compile(r"f1 (?P<f1>[\d.]+), asked ε = (?P<epsilon>[\d.]+)")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_meets_epsilon(path, tmp_path):
    needed = NEEDS.get(path.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    said = run_script(path, tmp_path, patience=120)
    results = list(RESULT.finditer(said))
    assert results, said
    for result in results:
        f1, epsilon = float(result["f1"]), float(result["epsilon"])
        assert f1 <= 1.05 * epsilon + 0.002  # the constraint
        assert f1 >= 0.8 * epsilon  # and f1 is not reduced far below ε


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_fits_a_screen(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
