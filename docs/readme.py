"""Write README.md from nbs/index.ipynb, the front page of the site: `python docs/readme.py`.

Hidden cells and outputs are left out, neighbouring code cells become one ```python block, and links that are relative
to nbs/ (or lead to a file of this repository on GitHub) become relative to the top of the repository.
"""
import json
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
    return "\n\n".join(parts).replace("\n```\n\n```python\n", "\n\n") + "\n"


if __name__ == "__main__": (ROOT/"README.md").write_text(readme_text(), encoding="utf-8")
