"""The page docs/errors.md: reads it, and writes it anew where it is run as a program."""

import re
import sys
import tempfile
from pathlib import Path

from cases import CASES, Case

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
_HEAD = """# Bad input, and what is said about it

Whatever can be wrong with parameters, files, names and command lines is one line that names it and says what to do, and the
exit code 1 (2 for a command line that is not understood); never a traceback. `stages.probe`, the first stage of the pipeline,
checks all parameters before anything else runs. Where a value of `params.yaml` is no list or mapping although one is needed (`methods: lora`), DVC
stops before that stage, in its own words: `efficientllm check` says it in these. `EFFICIENTLLM_TRACEBACK=1` shows where such an error comes from.

`tests/bad_input` tries each of these inputs and compares the line with the one that stands here (`...`: words of another library).
Lists of known names are those of the small project of these tests.
"""


def shown_line(case: Case, printed: str) -> str:
    """The line as the page has it: without the words of other libraries; of argparse, the last one."""
    line = printed.splitlines()[-1]
    if case.code == 2:
        line = line[line.index("error: ") :]
        line = re.sub(r" \(choose from .*\)$", " (choose from ...)", line)  # quoted by some versions of Python only
    return re.sub(case.hidden, "...", line) if case.hidden else line


def written(lines: dict[str, str]) -> str:
    """The page with the line of each input."""
    parts = [_HEAD]
    for group in dict.fromkeys(case.group for case in CASES):
        parts.append(f"\n## {group}\n\n| input | line |\n|---|---|\n")
        parts += [
            f"| {_cell(case.given)} | `` {_cell(lines[case.given])} `` |\n" for case in CASES if case.group == group
        ]
    return "".join(parts)


def lines_of_page() -> dict[str, str]:
    """The line of each input, as the page has it."""
    rows = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.endswith(" `` |")]
    cells = [row[2:-5].replace("\\|", "|").split(" | `` ", 1) for row in rows]
    return dict(cells)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Tries every input and writes the page; one that cannot be tried here keeps its line."""
    sys.path.insert(0, str(ROOT))
    from projects import make_templates, outcome

    lines = lines_of_page() if PAGE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        templates = make_templates(Path(folder))
        for number, case in enumerate(CASES):
            if case.skip() is None:
                _, printed = outcome(case, templates, Path(folder) / str(number))
                lines[case.given] = shown_line(case, printed)
    PAGE.write_text(written(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
