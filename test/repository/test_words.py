"""The words are those of the field: none of the home-grown ones that were replaced comes back."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPLACED = {
    "said": "predicted, reported, or the text's own name",
    "told": "given",
    "tell": "give, show, distinguish",
    "tells": "gives, shows",
    "heard": "received",
    "yardstick": "baseline",
    "specimen": "kernel variant",
    "specimens": "kernel variants",
    "trial": "self-check",
    "passage": "forward pass",
    "bears": "tolerates",
    "shall": "must, or is",
    "nobody": "no one, or what is missing",
    "at hand": "available",
    "to the letter": "exactly",
    "by heart": "memorised",
    "costs itself": "is left out",
    "costs only itself": "is left out",
}
TEXT = {".py", ".md", ".cpp", ".h", ".yaml", ".yml", ".toml", ".html", ".js", ".css", ".in", ".txt"}
ELSEWHERE = ("benchmarks/results/", "test/repository/test_words.py")


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if Path(name).suffix in TEXT]


def test_words_of_the_field_are_used() -> None:
    words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in REPLACED)
    # Identifiers count too: what surrounds a word are not letters.
    pattern = re.compile(rf"(?<![a-z.])({words})(?![a-z])", re.IGNORECASE)
    found = []
    for name in tracked():
        path = ROOT / name
        if name.startswith(ELSEWHERE) or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for match in pattern.findall(line):
                word = " ".join(match.lower().split())
                found.append(f"{name}:{number}: {match!r}; write {REPLACED[word]}")
    assert not found, f"{len(found)} words\n" + "\n".join(found)
