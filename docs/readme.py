"""Write README.md from nbs/index.ipynb, the front page of the site: `python docs/readme.py`.

Hidden cells and outputs are left out, neighbouring code cells become one ```python block, and links that are relative
to nbs/ (or lead to a file of this repository on GitHub) become relative to the top of the repository. The table of results
is read from the result file.
"""
import json
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def results_table(root:Path # the top of the repository
                 ) -> str: # markdown
    "What the bundled explainer reaches on the test fold, from the committed result file"
    result = json.loads((root/"nbs"/"results"/"esc10_fold5.json").read_text(encoding="utf-8"))
    columns = {"AI": "AI ↑", "AD": "AD ↓", "AG": "AG ↑", "FF": "FF ↑", "Fid-In": "Fid-In ↑", "kept": "kept"}
    rows = {}
    for r in result["results"]:
        if r["metric"] in columns:
            shown = f"{r['mean']:.3g} [{r['low']:.3g}, {r['high']:.3g}]"
            rows.setdefault(f"{r['mask']} mask, scored on the {r['scored_on']}", {})[r["metric"]] = shown
    lines = ["| | " + " | ".join(columns.values()) + " |", "| --- |" + " --- |"*len(columns)]
    lines += [f"| {name} | " + " | ".join(row[c] for c in columns) + " |" for name, row in rows.items()]
    accuracy, made = result["accuracy"], result["provenance"]
    return ("\n".join(lines) + f"\n\nMeans over the {made['dataset']['n_clips']} clips of ESC-10's fold 5, which nothing was trained on, with "
            f"bootstrap 95 % intervals; the classifier is right on {accuracy['mean']:.1f} % [{accuracy['low']:.1f}, {accuracy['high']:.1f}] "
            f"of them. The fold was looked at while configurations were settled, so read this as a little optimistic. "
            f"Made by `{made['command']}`; [results](nbs/results/faithfulness.ipynb) has all of it.")


def readme_text(root:Path=ROOT # the top of the repository
               ) -> str: # what README.md should hold
    "The text of README.md, made from nbs/index.ipynb."
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(root/"settings.ini", encoding="utf-8")
    here = "{git_url}/blob/{branch}/".format(**settings["DEFAULT"])
    parts = []
    for cell in json.loads((root/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            source = re.sub(r"\]\((?!\w+:|#|/)", "](nbs/", source)
            parts.append(source.replace(f"]({here}", "]("))
        elif source and not source.startswith("#|"): parts.append(f"```python\n{source}\n```")
    parts = [part.replace("<!-- results -->", results_table(root)) if "<!-- results -->" in part else part for part in parts]
    return "\n\n".join(parts).replace("\n```\n\n```python\n", "\n\n") + "\n"


if __name__ == "__main__": (ROOT/"README.md").write_text(readme_text(), encoding="utf-8")
