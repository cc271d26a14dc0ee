"""Make the README's picture from the demonstration scene and the bundled explainer: `python docs/picture.py`."""
from pathlib import Path

from lmac.audio import make_scene
from lmac.cli import DEMO
from lmac.explain import LMAC

if __name__ == "__main__":
    scene = make_scene(DEMO)
    out = Path(__file__).resolve().parent.parent/"nbs"/"images"
    out.mkdir(exist_ok=True)
    LMAC.from_pretrained().explain(scene.waveform, scene.sample_rate).figure().savefig(out/"readme.png")
