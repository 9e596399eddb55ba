"""Write the test vectors and the example of the specification, or check that nothing differs.

python spec/vectors/make.py            write v1/*.json and the generated parts of v1.md
python spec/vectors/make.py --check    exit with 1 and name what would change
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Final

import cases_files
import cases_manifest
import cases_records
import cases_stores
import cases_tables
import example

FOLDER: Final = pathlib.Path(__file__).parent / "v1"
SPEC: Final = pathlib.Path(__file__).parents[1] / "v1.md"
SOURCES: Final = (cases_manifest, cases_tables, cases_records, cases_files, cases_stores)


def vectors() -> dict[str, str]:
    """Return the text of every vector by file name."""
    texts: dict[str, str] = {}
    for source in SOURCES:
        for name, fields in source.cases():
            file = f"{name}.json"
            assert file not in texts, f"two vectors are called {name}"
            texts[file] = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
    return texts


def generated(text: str) -> str:
    """Return the specification with its generated parts as they should be."""
    for name, content in example.parts().items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        head, rest = text.split(begin)
        text = head + begin + content + end + rest.split(end)[1]
    return text


def stale() -> Iterator[str]:
    """Yield what is not as `main` would write it."""
    texts = vectors()
    committed = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    for name in sorted(texts.keys() | committed.keys()):
        if texts.get(name) != committed.get(name):
            yield f"v1/{name}"
    text = SPEC.read_text(encoding="utf-8")
    if generated(text) != text:
        yield SPEC.name


def main() -> int:
    """Run one of the two commands of the module's docstring."""
    if sys.argv[1:] == ["--check"]:
        differs = list(stale())
        print("\n".join(differs) or f"{len(vectors())} vectors are as generated")
        return bool(differs)
    texts = vectors()
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.iterdir():
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    SPEC.write_text(generated(SPEC.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {len(texts)} vectors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
